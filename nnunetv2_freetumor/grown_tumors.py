"""Grow tumors cell by cell; a process unlike the synthesizer's, so that the demo does not test it on its own output.

Two families. `compact`: cells divide into free neighbors of the colony's surface (Eden growth), sooner where many
neighbors are occupied already, where the tissue lets them and along a preferred direction. `budding`: cell density
follows logistic growth with diffusion through uneven tissue, while single cells leave the colony and found new ones
nearby, which later merge. In both, what lies too deep below the surface for oxygen dies (necrosis), and a capsule may
form.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_freetumor.phantom_scene import Grid, smooth_noise

FAMILIES = ("compact", "budding")
CONTRAST_HU = {  # against the host: unenhanced, late arterial, portal venous
    "hypovascular": (-20, -26, -52),
    "hypervascular": (-14, 58, -30),
}
NECROSIS_HU = 22.0


class Colony(NamedTuple):
    """A grown tumor on a cubic grid: share of tumor in each cell, and its HU there."""

    share: Float[np.ndarray, "n n n"]
    hu: Float[np.ndarray, "n n n"]


def grow(
    family: str, habitat: Bool[np.ndarray, "n n n"], cells: int, rng: np.random.Generator
) -> Bool[np.ndarray, "n n n"]:
    """Grow a colony of about `cells` cells from the middle of the grid, inside the habitat."""
    if family not in FAMILIES:
        raise ValueError(f"A tumor family must be one of {', '.join(FAMILIES)}, but it is '{family}'.")
    return {"compact": _grow_compact, "budding": _grow_budding}[family](habitat, cells, rng)


def _grow_compact(habitat: NDArray[np.bool_], cells: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    size = habitat.shape[0]
    consent = np.exp(0.55 * _field(size, size / 7, rng)) * habitat
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    pull = rng.uniform(0.0, 0.7)
    axes = np.meshgrid(*(np.arange(size) - size // 2,) * 3, indexing="ij")
    radius = np.sqrt(sum(a.astype(np.float32) ** 2 for a in axes)) + 1e-3
    along = sum(a * d for a, d in zip(axes, direction)) / radius
    consent = (consent * (1 + pull * (2 * along**2 - 1))).astype(np.float32)
    alive = np.zeros(habitat.shape, dtype=np.float32)
    alive[(slice(size // 2 - 1, size // 2 + 2),) * 3] = 1
    alive *= habitat
    for _ in range(8 * size):
        crowd = ndimage.uniform_filter(alive, 3, mode="constant")
        chance = np.minimum(1.6 * crowd, 1.0) ** 1.5 * consent * 0.8
        free = (crowd > 0) & (alive == 0) & habitat
        alive[free & (rng.random(alive.shape, dtype=np.float32) < chance)] = 1
        if alive.sum() >= cells or not free.any():
            break
    return alive > 0


def _grow_budding(habitat: NDArray[np.bool_], cells: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    size = habitat.shape[0]
    radius = (cells * 3 / (4 * np.pi)) ** (1 / 3)
    mobility = (np.clip(np.exp(1.1 * _field(size, size / 8, rng)), 0.1, 2.5) * habitat).astype(np.float32)
    density = np.zeros(habitat.shape, dtype=np.float32)
    density[(size // 2,) * 3] = 1
    arrival = np.zeros(habitat.shape, dtype=np.float32)
    buds = rng.poisson(2.5) + 1
    due = set(rng.integers(1, 2 + int(0.8 * radius), buds).tolist())
    for step in range(12 * size):
        spread = ndimage.gaussian_filter(density, 1.0, mode="constant", truncate=2.0) - density
        density += mobility * (0.55 * spread) + 0.45 * density * (1 - density)
        density *= habitat
        if step in due:
            _found_colony(density, radius, habitat, rng)
        arrival += density
        if (density > 0.4).sum() >= cells:
            break
    bar = np.partition(arrival.ravel(), -cells)[-cells]
    return arrival >= max(float(bar), 1e-3)


def _found_colony(density: NDArray, radius: float, habitat: NDArray, rng: np.random.Generator) -> None:
    direction = rng.normal(size=3)
    reach = rng.uniform(0.5, 1.1) * radius / np.linalg.norm(direction)
    place = tuple(np.clip(np.round(density.shape[0] // 2 + direction * reach), 0, density.shape[0] - 1).astype(int))
    if habitat[place]:
        density[place] = 1


def _field(size: int, scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw smooth noise of unit variance on a cube; `scale` in cells."""
    return smooth_noise(Grid((size,) * 3, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), 2.0 * scale, rng)


class Biology(NamedTuple):
    """What one patient's tumors have in common."""

    vital_hu: float
    hypoxic_mm: float  # cells deeper than this below the surface die
    capsule_hu: float
    edge_mm: float


def draw_biology(family: str, phase_index: int, host_hu: float, rng: np.random.Generator) -> Biology:
    """Draw a patient's kind of tumor; its contrast follows the phase of the scan."""
    kind = "hypervascular" if family == "compact" and rng.random() < 0.3 else "hypovascular"
    contrast = CONTRAST_HU[kind][phase_index] * float(np.clip(rng.normal(1.0, 0.2), 0.6, 1.5))
    capsule = (0.0, 12.0, 24.0)[phase_index] * (rng.random() < 0.4)
    return Biology(host_hu + contrast, rng.uniform(5.0, 14.0), capsule, rng.uniform(0.6, 1.3))


def dress(colony: Bool[np.ndarray, "n n n"], cell_mm: float, biology: Biology, rng: np.random.Generator) -> Colony:
    """Give a colony its HU: vital tissue, necrosis where oxygen does not reach, a capsule, a soft edge."""
    share = ndimage.gaussian_filter(colony.astype(np.float32), biology.edge_mm / cell_mm)
    depth = ndimage.distance_transform_edt(colony).astype(np.float32) * cell_mm
    depth += 1.5 * _field(colony.shape[0], 4.0 / cell_mm, rng)
    dead = 1 / (1 + np.exp(-(depth - biology.hypoxic_mm) / 0.9))
    hu = biology.vital_hu + 5.0 * _field(colony.shape[0], 5.0 / cell_mm, rng)
    hu += dead * (min(NECROSIS_HU, biology.vital_hu - 8) - hu)
    hu += biology.capsule_hu * np.exp(-(((depth - 0.8) / 1.2) ** 2))
    return Colony(share, hu.astype(np.float32))
