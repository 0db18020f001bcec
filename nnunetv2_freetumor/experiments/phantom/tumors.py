"""Grow tumors cell by cell, unlike the synthesizer does, so that the demo does not test it on its own output.

Three families. `compact`: cells divide into free neighbors of the colony's surface (Eden growth), sooner where many
neighbors are occupied already, where the tissue lets them and along a preferred direction. `budding`: cell density
follows logistic growth with diffusion through uneven tissue, while single cells leave the colony and found new ones
nearby, which later merge. In these two, what lies too deep below the surface for oxygen dies (necrosis), and a capsule
may form. `invading`: tissue resists unevenly, in streaks, and the tumor is what a front reaches first (first-passage
percolation); it dies in patches, and its edge is wide, widest on one side. This family is held out: it is used
only if it is named, so that a test cohort can have tumors that no setting of the synthesizer was chosen on.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.graph import MCP_Geometric

from nnunetv2_freetumor.experiments.phantom.scene import VoxelGrid, smooth_noise

FAMILIES = ("compact", "budding")
HELD_OUT_FAMILIES = ("invading",)
_CONTRAST_HU = {  # against the host: unenhanced, late arterial, portal venous
    "hypovascular": (-20, -26, -52),
    "hypervascular": (-14, 58, -30),
    "washed out": (-16, -26, -48),
    "late enhancing": (-13, 48, -36),
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
    if family not in FAMILIES + HELD_OUT_FAMILIES:
        choices = ", ".join(FAMILIES + HELD_OUT_FAMILIES)
        raise ValueError(f"A tumor family must be one of {choices}, but it is '{family}'.")
    growth = {"compact": _grow_compact, "budding": _grow_budding, "invading": _grow_invading}
    return growth[family](habitat, cells, rng)


def _grow_compact(habitat: NDArray[np.bool_], cells: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    size = habitat.shape[0]
    consent = np.exp(0.55 * _field(size, size / 7, rng)) * habitat
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    pull = rng.uniform(0.0, 0.7)
    axes = np.meshgrid(*(np.arange(size) - size // 2,) * 3, indexing="ij")
    radius = _radius(size) + 1e-3
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


def _grow_invading(habitat: NDArray[np.bool_], cells: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    size = habitat.shape[0]
    middle = (size // 2,) * 3
    cost = np.exp(1.0 * _streaks(size, rng) + 0.7 * _field(size, size / 12, rng)) + rng.exponential(0.5, (size,) * 3)
    cost *= 1 + 4 * (_radius(size) / (size // 2)) ** 4  # so that no front reaches the grid's flat border
    cost[~habitat] = np.inf
    front = MCP_Geometric(cost, sampling=tuple(np.exp(rng.uniform(-0.2, 0.2, 3))))
    arrival, _ = front.find_costs([middle], max_coverage=min(1.2 * cells / size**3, 1.0))
    reached = arrival <= np.partition(arrival.ravel(), cells)[cells]
    crowd = ndimage.gaussian_filter(reached.astype(np.float32), 1.0, mode="constant") * habitat
    settled = crowd >= max(float(np.partition(crowd.ravel(), -cells)[-cells]), 1e-3)
    return _whole(ndimage.binary_fill_holes(settled) & habitat, middle)


def _whole(colony: NDArray[np.bool_], middle: tuple[int, ...]) -> NDArray[np.bool_]:
    """Keep the connected part that holds the middle, or the largest one where none does."""
    parts, count = ndimage.label(colony)
    chosen = parts[middle] or (np.bincount(parts.ravel())[1:].argmax() + 1 if count else 1)
    return parts == chosen


def _streaks(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw smooth noise that changes more slowly along one random direction than across it."""
    turn = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    squeeze = turn @ np.diag([1 / rng.uniform(1.2, 2.0), 1.0, 1.0]) @ turn.T
    middle = np.full(3, size / 2)
    field = _field(size, size / 10, rng)
    return ndimage.affine_transform(field, squeeze, middle - squeeze @ middle, order=1, mode="reflect")


def _radius(size: int) -> NDArray[np.float32]:
    """Measure each cell's distance from the middle, in cells."""
    axes = np.meshgrid(*(np.arange(size) - size // 2,) * 3, indexing="ij")
    return np.sqrt(sum(a.astype(np.float32) ** 2 for a in axes))


def _field(size: int, scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw smooth noise of unit variance on a cube; `scale` in cells."""
    return smooth_noise(VoxelGrid((size,) * 3, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), 2.0 * scale, rng)


class Biology(NamedTuple):
    """What the tumors of one patient have in common."""

    vital_hu: float
    hypoxic_mm: float  # cells deeper than this below the surface die
    capsule_hu: float
    edge_mm: float
    one_sided: float = 0.0  # how much wider the edge is on one side than on the other, as a share
    dead_share: float = 0.0  # of the tumor's inside, in patches, instead of a dead center


def draw_biology(family: str, phase_index: int, host_hu: float, rng: np.random.Generator) -> Biology:
    """Draw a patient's kind of tumor; its contrast depends on the phase of the scan."""
    if family in HELD_OUT_FAMILIES:
        return _draw_invading_biology(phase_index, host_hu, rng)
    kind = "hypervascular" if family == "compact" and rng.random() < 0.3 else "hypovascular"
    contrast = _CONTRAST_HU[kind][phase_index] * float(np.clip(rng.normal(1.0, 0.2), 0.6, 1.5))
    capsule = (0.0, 12.0, 24.0)[phase_index] * (rng.random() < 0.4)
    return Biology(host_hu + contrast, rng.uniform(5.0, 14.0), capsule, rng.uniform(0.6, 1.3))


def _draw_invading_biology(phase_index: int, host_hu: float, rng: np.random.Generator) -> Biology:
    """Draw an invading tumor: from hardly visible to marked, some brighter than the host in a late arterial scan."""
    kind = "late enhancing" if rng.random() < 0.35 else "washed out"
    contrast = _CONTRAST_HU[kind][phase_index] * float(np.clip(rng.normal(1.0, 0.35), 0.35, 1.8))
    return Biology(
        vital_hu=host_hu + contrast,
        hypoxic_mm=0.0,
        capsule_hu=0.0,
        edge_mm=rng.uniform(1.2, 2.2),
        one_sided=rng.uniform(0.2, 0.8),
        dead_share=rng.uniform(0.03, 0.3),
    )


def dress(colony: Bool[np.ndarray, "n n n"], cell_mm: float, biology: Biology, rng: np.random.Generator) -> Colony:
    """Assign HU to a colony: vital tissue, necrosis in its center or in patches, a capsule, a soft edge."""
    share = _edge(colony, cell_mm, biology, rng)
    depth = ndimage.distance_transform_edt(colony).astype(np.float32) * cell_mm
    depth += 1.5 * _field(colony.shape[0], 4.0 / cell_mm, rng)
    if biology.dead_share:
        dead = _dead_patches(colony, depth, cell_mm=cell_mm, share=biology.dead_share, rng=rng)
    else:
        dead = 1 / (1 + np.exp(-(depth - biology.hypoxic_mm) / 0.9))
    hu = biology.vital_hu + 5.0 * _field(colony.shape[0], 5.0 / cell_mm, rng)
    hu += dead * (min(NECROSIS_HU, biology.vital_hu - 8) - hu)
    hu += biology.capsule_hu * np.exp(-(((depth - 0.8) / 1.2) ** 2))
    return Colony(share, hu.astype(np.float32))


def _edge(colony: NDArray[np.bool_], cell_mm: float, biology: Biology, rng: np.random.Generator) -> NDArray[np.float32]:
    """Blur the surface; on one side more than on the other where the biology says so, and less for small tumors."""
    hard = colony.astype(np.float32)
    if not biology.one_sided:
        return ndimage.gaussian_filter(hard, biology.edge_mm / cell_mm)
    radius = (3 * colony.sum() / (4 * np.pi)) ** (1 / 3)
    widths = [min(biology.edge_mm * (1 + way * biology.one_sided) / cell_mm, 0.4 * radius) for way in (-1, 1)]
    narrow, wide = (ndimage.gaussian_filter(hard, width) for width in widths)
    direction = rng.normal(size=3) / max(radius, 1.0)
    axes = np.meshgrid(*(np.arange(colony.shape[0]) - colony.shape[0] // 2,) * 3, indexing="ij", sparse=True)
    side = 1 / (1 + np.exp(-sum(d * a for d, a in zip(direction, axes))))
    return (narrow + side * (wide - narrow)).astype(np.float32)


def _dead_patches(
    colony: NDArray[np.bool_], depth_mm: NDArray, cell_mm: float, share: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Compute where tissue is dead: patches a few mm wide, below a living surface."""
    patches = _field(colony.shape[0], 4.5 / cell_mm, rng)
    bar = np.quantile(patches[colony], 1 - share) if colony.any() else 0.0
    return 1 / (1 + np.exp((bar - patches) / 0.15)) / (1 + np.exp((3.0 - depth_mm) / 0.6))
