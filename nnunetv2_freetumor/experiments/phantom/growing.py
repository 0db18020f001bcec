"""Grow tumors on a grid of their own, then bring them into a scene, scan or case."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_freetumor.experiments.phantom import tumors
from nnunetv2_freetumor.experiments.phantom.scene import Crop, VoxelGrid
from nnunetv2_freetumor.files.cases import Case

CELLS_ACROSS = 38  # of a tumor's diameter


_UNENHANCED, _PORTAL_VENOUS = 0, 2  # of anatomy.PHASES
ENHANCED_FROM_HU = 80.0  # median of a liver with contrast agent
_STRUCTURE_MM = 1.2  # anything finer stays in place: scanner noise
DIAMETER_MM = (7.0, 42.0)


class Seed(NamedTuple):
    """Where a tumor starts to grow, in world mm (z, y, x), and how large it gets."""

    number: int
    place_mm: NDArray
    diameter_mm: float


class Grown(NamedTuple):
    """A grown tumor on the grid that holds it: a crop, and in it the tumor's share of each voxel and its HU."""

    crop: Crop
    cover: Float[np.ndarray, "z y x"]
    hu: Float[np.ndarray, "z y x"]


def choose_seeds(
    host: Bool[np.ndarray, "z y x"],
    grid: VoxelGrid,
    count: int,
    diameter_mm: tuple[float, float],
    rng: np.random.Generator,
) -> list[Seed]:
    """Choose where tumors start and how large they grow, with room between them; fewer if there is no room."""
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
    grid: VoxelGrid,
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
    crop = (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))
    places = [(origin[a] + np.arange(first[a], last[a]) * spacing[a] - low[a]) / cell_mm for a in range(3)]
    mesh = np.meshgrid(*places, indexing="ij")
    cover = ndimage.map_coordinates(share, mesh, order=1) * habitat[crop]
    return Grown(crop, cover, ndimage.map_coordinates(hu, mesh, order=1))


class GrownCase(NamedTuple):
    """A case with label 0 background, 1 host, 2 tumor."""

    image: Case
    label: Case


def grow_in_case(
    image: Case,
    host: Bool[np.ndarray, "z y x"],
    lesions: int,
    seed: list[int],
    family: str | None = None,
    diameter_mm: tuple[float, float] = DIAMETER_MM,
) -> GrownCase:
    """Grow up to `lesions` tumors in the host of a real CT.

    Args:
        image: the CT in HU.
        host: the organ, on the same voxels.
        lesions: how many; fewer if there is no room for more.
        seed: determines the tumors.
        family: one of tumors.FAMILIES or HELD_OUT_FAMILIES; drawn from FAMILIES by default.
        diameter_mm: bounds of the tumors' equivalent diameter.
    """
    rng = np.random.default_rng(seed)
    family = family or str(rng.choice(tumors.FAMILIES))
    z_mm, y_mm, x_mm = image.spacing_mm
    z, y, x = host.shape
    grid = VoxelGrid((z, y, x), (z_mm, y_mm, x_mm), (0.0, 0.0, 0.0))
    hu, label = image.array.astype(np.float32), host.astype(np.uint8)
    host_hu = float(np.median(hu[host]))
    phase = _PORTAL_VENOUS if host_hu >= ENHANCED_FROM_HU else _UNENHANCED
    biology = tumors.draw_biology(family, phase, host_hu, rng)
    structure = _structure(hu, host, image.spacing_mm)
    for start in choose_seeds(host, grid, count=lesions, diameter_mm=diameter_mm, rng=rng):
        crop, cover, grown_hu = grow_at(start, host, grid=grid, family=family, biology=biology, rng=rng)
        hu[crop] += cover * (grown_hu - structure[crop])
        structure[crop] += cover * (grown_hu - structure[crop])
        label[crop][cover >= 0.5] = 2
    values = np.clip(np.round(hu), -1024, 3071).astype(image.array.dtype)
    return GrownCase(image.with_array(values), image.with_array(label))


def _structure(
    hu: Float[np.ndarray, "z y x"], host: Bool[np.ndarray, "z y x"], spacing_mm: tuple[float, ...]
) -> Float[np.ndarray, "z y x"]:
    """Smooth the organ, over its own voxels only."""
    sigma = [_STRUCTURE_MM / step for step in spacing_mm]
    weight = ndimage.gaussian_filter(host.astype(np.float32), sigma)
    summed = ndimage.gaussian_filter(np.where(host, hu, 0.0).astype(np.float32), sigma)
    return np.where(host, summed / np.maximum(weight, 1e-3), hu)
