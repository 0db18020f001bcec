"""Grow a tumor on a grid of its own, in whatever scene or scan is to hold it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_freetumor.experiments.phantom import tumors
from nnunetv2_freetumor.experiments.phantom.scene import Grid, Window

CELLS_ACROSS = 38  # of a tumor's diameter


class Seed(NamedTuple):
    """Where a tumor starts to grow, in world mm (z, y, x), and how large it gets."""

    number: int
    place_mm: NDArray
    diameter_mm: float


class Grown(NamedTuple):
    """A grown tumor on the grid that holds it: a window, and in it the tumor's share of each voxel and its HU."""

    window: Window
    cover: Float[np.ndarray, "z y x"]
    hu: Float[np.ndarray, "z y x"]


def choose_seeds(
    host: Bool[np.ndarray, "z y x"], grid: Grid, count: int, diameter_mm: tuple[float, float], rng: np.random.Generator
) -> list[Seed]:
    """Choose where tumors start, with room between them, and how large they grow; fewer where there is no room."""
    places = np.argwhere(host)
    seeds: list[Seed] = []
    for _ in range(20 * count):
        diameter = float(np.clip(np.exp(rng.normal(2.85, 0.5)), *diameter_mm))
        place = np.asarray(grid.origin_mm) + places[rng.integers(len(places))] * grid.spacing_mm
        far = all(np.linalg.norm(place - s.place_mm) > 0.8 * (diameter + s.diameter_mm) for s in seeds)
        if far and len(seeds) < count:
            seeds.append(Seed(len(seeds) + 1, place, diameter))
    return seeds


def grow_at(
    seed: Seed,
    habitat: Bool[np.ndarray, "z y x"],
    grid: Grid,
    family: str,
    biology: tumors.Biology,
    rng: np.random.Generator,
) -> Grown:
    """Grow one tumor from a seed, inside the habitat, and bring it onto the grid."""
    cell_mm = max(0.8, seed.diameter_mm / CELLS_ACROSS)
    size = int(2.0 * seed.diameter_mm / cell_mm) // 2 * 2 + 9
    low = seed.place_mm - size // 2 * cell_mm
    spacing, origin = np.asarray(grid.spacing_mm), np.asarray(grid.origin_mm)
    rounded = [np.round((low[a] + np.arange(size) * cell_mm - origin[a]) / spacing[a]).astype(int) for a in range(3)]
    box = np.ix_(*(np.clip(r, 0, n - 1) for r, n in zip(rounded, habitat.shape)))
    cells = max(int(np.pi / 6 * (seed.diameter_mm / cell_mm) ** 3), 8)
    colony = tumors.grow(family, habitat[box], cells, rng)
    share, hu = tumors.dress(colony, cell_mm, biology, rng)
    first = np.maximum(np.ceil((low - origin) / spacing).astype(int), 0)
    last = np.minimum((low + (size - 1) * cell_mm - origin) // spacing + 1, habitat.shape).astype(int)
    window = (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))
    places = [(origin[a] + np.arange(first[a], last[a]) * spacing[a] - low[a]) / cell_mm for a in range(3)]
    mesh = np.meshgrid(*places, indexing="ij")
    cover = ndimage.map_coordinates(share, mesh, order=1) * habitat[window]
    return Grown(window, cover, ndimage.map_coordinates(hu, mesh, order=1))
