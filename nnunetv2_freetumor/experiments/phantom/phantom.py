"""Make CT phantoms: a trunk with organs, vessels, grown tumors and scanner noise, each case from a seed.

The anatomy is good enough to recognize, not good enough to learn medicine from: it shows that a pipeline runs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int16, UInt8
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_freetumor.experiments.phantom import tumors, vessels
from nnunetv2_freetumor.experiments.phantom.anatomy import (
    ORGANS,
    PHASES,
    Trunk,
    paint_bones,
    paint_chest,
    paint_trunk,
    tissue_hu,
)
from nnunetv2_freetumor.experiments.phantom.growing import Seed, choose_seeds, grow_at
from nnunetv2_freetumor.experiments.phantom.organs import paint_abdomen
from nnunetv2_freetumor.experiments.phantom.scene import Point, Scene, VoxelGrid, random_warp

THIN = 3  # layers rendered for each CT slice
EXTENT_MM = (215.0, 265.0, 345.0)  # of the scan (z, y, x)
HOST_TISSUE = {"liver": "liver", "pancreas": "pancreas", "kidney": "cortex", "lung": "muscle"}
OUTGROWING = ("pancreas", "kidney")  # hosts whose tumors also grow into the fat around


class GrownTumor(NamedTuple):
    """A grown tumor: its label among the case's tumors, center in world mm (x, y, z), and size in the label."""

    number: int
    center_mm: tuple[float, float, float]
    diameter_mm: float


class Phantom(NamedTuple):
    """One case. Arrays are (z, y, x); world axes are x to the left, y to the back, z to the head (LPS)."""

    image: Int16[np.ndarray, "z y x"]
    organ: UInt8[np.ndarray, "z y x"]  # see ORGANS; the host's label continues below its tumors
    tumor: UInt8[np.ndarray, "z y x"]  # 0 or the lesion's number
    grid: VoxelGrid
    phase: str
    family: str
    lesions: tuple[GrownTumor, ...]


def make_phantom(
    seed: int | list[int],
    *,
    lesions: int,
    phase: str | None = None,
    family: str | None = None,
    host: str = "liver",
    pixel_mm: tuple[float, float] = (1.2, 1.6),
    slice_mm: tuple[float, float] = (3.0, 5.0),
    diameter_mm: tuple[float, float] = (7.0, 42.0),
) -> Phantom:
    """Make one case with a number of tumors grown in one organ; draw what is not given.

    Args:
        seed: determines the case; the same seed gives the same voxels.
        phase: one of PHASES.
        family: one of tumors.FAMILIES, or of HELD_OUT_FAMILIES, which are never drawn.
        host: the organ that tumors grow in, one of HOST_TISSUE.
        pixel_mm: bounds of the pixel size.
        slice_mm: bounds of the slice thickness.
        diameter_mm: bounds of the tumors' equivalent diameter.
    """
    if host not in HOST_TISSUE:
        raise ValueError(f"Phantom tumors grow in {', '.join(HOST_TISSUE)}, but the host is '{host}'.")
    rng = np.random.default_rng(seed)
    phase = phase or PHASES[int(rng.choice(3, p=(0.2, 0.2, 0.6)))]
    family = family or str(rng.choice(tumors.FAMILIES))
    grid = _draw_grid(pixel_mm, slice_mm, rng)
    scale = rng.uniform(0.93, 1.06)
    scene = Scene(grid, scale, random_warp(grid, rng))
    hu = tissue_hu(phase, rng)
    trunk = paint_trunk(scene, THIN, hu, rng)
    for paint in (paint_chest, paint_abdomen, paint_bones):
        paint(trunk)
    seeds = choose_seeds(scene.organ == ORGANS[host], scene.grid, count=lesions, diameter_mm=diameter_mm, rng=rng)
    _paint_trees(trunk, seeds, rng)
    biology = tumors.draw_biology(family, PHASES.index(phase), hu[HOST_TISSUE[host]], rng)
    tumor = np.zeros(grid.shape, dtype=np.uint8)
    for seed_ in seeds:
        _grow(scene, tumor, seed=seed_, host=host, family=family, biology=biology, rng=rng)
    return _develop(scene, tumor, phase=phase, family=family, rng=rng)


def _develop(scene: Scene, tumor: NDArray[np.uint8], phase: str, family: str, rng: np.random.Generator) -> Phantom:
    """Scan the painted scene; each slice gets the labels of its middle layer."""
    fine, middle = scene.grid, slice(THIN // 2, None, THIN)
    found = tumor[middle].copy()
    (thin_mm, dy, dx), (z, y, x) = fine.spacing_mm, fine.origin_mm
    grid = VoxelGrid(found.shape, (thin_mm * THIN, dy, dx), (z + thin_mm * (THIN // 2), y, x))
    image = scan(scene.hu, THIN, grid.spacing_mm, rng)
    return Phantom(
        image,
        scene.organ[middle].copy(),
        tumor=found,
        grid=grid,
        phase=phase,
        family=family,
        lesions=_measure(found, grid),
    )


def _draw_grid(pixel_mm: tuple[float, float], slice_mm: tuple[float, float], rng: np.random.Generator) -> VoxelGrid:
    pixel, thickness = round(rng.uniform(*pixel_mm), 2), round(rng.uniform(*slice_mm) * 2) / 2
    shape = (int(EXTENT_MM[0] / thickness), int(EXTENT_MM[1] / pixel), int(EXTENT_MM[2] / pixel))
    bottom = round(rng.uniform(-112, -98), 1)
    side, front = -pixel * (shape[2] - 1) / 2, -pixel * (shape[1] - 1) / 2
    return VoxelGrid((shape[0] * THIN, *shape[1:]), (thickness / THIN, pixel, pixel), (bottom, front, side))


class TreeSpec(NamedTuple):
    """One vessel tree: where it enters the organ (model mm x, y, z), how many ends, their radius, and what it holds."""

    organ: str
    root: Point
    ends: int
    tip_mm: float
    blood: str
    low: Point  # corners of the box in which it grows
    high: Point


_TREES = (
    TreeSpec(
        "liver", (-36, -16, 18), ends=190, tip_mm=0.92, blood="portal_vein", low=(-145, -100, -115), high=(95, 100, 140)
    ),
    TreeSpec(
        "liver", (-22, 8, 66), ends=120, tip_mm=1.0, blood="hepatic_vein", low=(-145, -100, -115), high=(95, 100, 140)
    ),
    TreeSpec("lung", (-34, 4, 105), ends=130, tip_mm=0.55, blood="gut_wall", low=(-145, -100, -30), high=(0, 100, 300)),
    TreeSpec("lung", (40, 4, 105), ends=110, tip_mm=0.55, blood="gut_wall", low=(0, -100, -30), high=(145, 100, 300)),
)


def _paint_trees(trunk: Trunk, seeds: list[Seed], rng: np.random.Generator) -> None:
    scene = trunk.scene
    centers = np.asarray([seed.place_mm[::-1] for seed in seeds]).reshape(-1, 3)
    radii = np.asarray([seed.diameter_mm / 2 for seed in seeds])
    for spec in _TREES:
        crop = scene.crop(spec.low, spec.high)
        host = scene.organ[crop] == ORGANS[spec.organ]
        places = np.argwhere(host)
        chosen = places[rng.integers(0, len(places), spec.ends)] + [w.start for w in crop]
        ends = (np.asarray(scene.grid.origin_mm) + chosen * scene.grid.spacing_mm)[:, ::-1]
        root = scene.to_world(np.asarray([spec.root], dtype=float))[0]
        tree = vessels.grow_tree(root, ends, spec.tip_mm, rng)
        tree = vessels.push_aside(tree, centers, radii)
        vessels.paint_tree(scene, crop, tree=tree, hu=trunk.hu[spec.blood], host=host)


def _grow(
    scene: Scene,
    tumor: NDArray[np.uint8],
    seed: Seed,
    host: str,
    family: str,
    biology: tumors.Biology,
    rng: np.random.Generator,
) -> None:
    """Grow one tumor and put it into the scene."""
    crop, cover, grown_hu = grow_at(
        seed, _habitat(scene, host), grid=scene.grid, family=family, biology=biology, rng=rng
    )
    scene.hu[crop] += cover * (grown_hu - scene.hu[crop])
    tumor[crop][(cover >= 0.5) & (tumor[crop] == 0)] = seed.number


def _habitat(scene: Scene, host: str) -> NDArray[np.bool_]:
    """Mark where tumors may grow: the host and, for some hosts, the fat around it."""
    habitat = scene.organ == ORGANS[host]
    if host in OUTGROWING:
        habitat |= (scene.organ == 0) & (scene.hu > -150) & (scene.hu < -30)
    return habitat


def _measure(tumor: NDArray, grid: VoxelGrid) -> tuple[GrownTumor, ...]:
    found = []
    for number in range(1, int(tumor.max(initial=0)) + 1):
        places = np.argwhere(tumor == number)
        if len(places):
            z, y, x = np.asarray(grid.origin_mm) + places.mean(0) * grid.spacing_mm
            diameter = float((len(places) * np.prod(grid.spacing_mm) * 6 / np.pi) ** (1 / 3))
            found.append(GrownTumor(number, (float(x), float(y), float(z)), diameter))
    return tuple(found)


def scan(hu: NDArray, thin: int, spacing_mm: tuple[float, ...], rng: np.random.Generator) -> NDArray[np.int16]:
    """Turn layers into CT slices: average over the slice, blur by the scanner, add noise of a reconstruction kernel."""
    slices = hu.reshape(-1, thin, *hu.shape[1:]).mean(axis=1)
    sigma = rng.uniform(0.45, 0.75) / spacing_mm[2]
    slices = ndimage.gaussian_filter(slices, (0, sigma, sigma))
    strength = rng.uniform(7.0, 14.0) * np.sqrt(5.0 / spacing_mm[0])
    body = ndimage.gaussian_filter((slices > -300).astype(np.float32), (0, 12, 12))
    noise = kernel_noise(slices.shape, spacing_mm, rng) * np.float32(strength) * (0.45 + 0.6 * body)
    return np.clip(np.round(slices + noise), -1024, 3071).astype(np.int16)


def kernel_noise(shape: tuple[int, ...], spacing_mm: tuple[float, ...], rng: np.random.Generator) -> NDArray:
    """Draw CT noise of unit variance: the ramp filter raises its power with frequency, the kernel ends it."""
    white = rng.standard_normal(shape, dtype=np.float32)
    white[1:] += 0.35 * white[:-1]
    fy = np.fft.fftfreq(shape[1], spacing_mm[1])[:, None]
    fx = np.fft.rfftfreq(shape[2], spacing_mm[2])[None]
    frequency = np.sqrt(fy**2 + fx**2)
    gain = np.sqrt(frequency + 0.01) * np.exp(-((frequency / rng.uniform(0.24, 0.36)) ** 2))
    noise = np.fft.irfft2(np.fft.rfft2(white) * gain.astype(np.float32), s=shape[1:])
    return (noise / noise.std()).astype(np.float32)
