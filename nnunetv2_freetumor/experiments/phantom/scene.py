"""Paint bodies, given by their signed distance in mm, into a CT volume with partial volume at every edge.

Coordinates are in mm, x to the patient's left, y to the back, z to the head; arrays are (z, y, x). A scene knows every
voxel's place in the *model* body, which is the world's place after a scale and a smooth random warp: so one
description of the anatomy makes a different patient for every seed.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import interpolate, ndimage

EVERYWHERE = (slice(None), slice(None), slice(None))
Crop = tuple[slice, slice, slice]
LengthMm = int | float
Point = tuple[LengthMm, LengthMm, LengthMm]
_Point2D = tuple[LengthMm, LengthMm]


class VoxelGrid(NamedTuple):
    """A voxel grid: shape (z, y, x), spacing (z, y, x) in mm, world position of voxel 0 (z, y, x) in mm."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    def axis(self, number: int) -> NDArray[np.float32]:
        """Return the world positions in mm along one axis."""
        steps = np.arange(self.shape[number], dtype=np.float32)
        return (self.origin_mm[number] + self.spacing_mm[number] * steps).astype(np.float32)


class Scene:
    """A volume in HU that is being painted, and the organ label of every voxel."""

    def __init__(self, grid: VoxelGrid, scale: float, shift: list[NDArray[np.float32]]) -> None:
        self.grid = grid
        self.scale = scale
        self.shift = shift
        self.hu = np.full(grid.shape, -1000.0, dtype=np.float32)
        self.organ = np.zeros(grid.shape, dtype=np.uint8)
        world = np.meshgrid(*(grid.axis(i) for i in range(3)), indexing="ij", sparse=True)
        self.z, self.y, self.x = (w / np.float32(scale) + s for w, s in zip(world, shift))

    def middle(self, thin: int) -> "Scene":
        """Return an empty scene of every `thin`-th layer, for what hardly changes along z."""
        (depth, height, width), (dz, dy, dx), (z, y, x) = self.grid
        grid = VoxelGrid((depth // thin, height, width), (dz * thin, dy, dx), (z + dz * (thin // 2), y, x))
        return Scene(grid, self.scale, [shift[thin // 2 :: thin] for shift in self.shift])

    def crop(self, low: Point, high: Point, margin_mm: float = 12.0) -> Crop:
        """Return the voxels that a box of the model body, with corners (x, y, z), can reach."""
        slices = []
        for axis, (a, b) in enumerate(zip(low[::-1], high[::-1])):
            spacing, origin = self.grid.spacing_mm[axis], self.grid.origin_mm[axis]
            first = int((a * self.scale - margin_mm - origin) / spacing)
            last = int((b * self.scale + margin_mm - origin) / spacing) + 1
            slices.append(slice(max(first, 0), max(min(last, self.grid.shape[axis]), 0)))
        return slices[0], slices[1], slices[2]

    def coordinates(self, crop: Crop) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return the model coordinates x, y, z of a crop's voxels."""
        return self.x[crop], self.y[crop], self.z[crop]

    def to_world(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Find where model points (x, y, z) lie in the world, to about half a millimeter."""
        index = [
            (points[:, 2 - axis] * self.scale - self.grid.origin_mm[axis]) / self.grid.spacing_mm[axis]
            for axis in range(3)
        ]
        moved = [ndimage.map_coordinates(shift, index, order=1, mode="nearest") for shift in self.shift[::-1]]
        return (points - np.stack(moved, axis=1)) * self.scale

    def paint(self, crop: Crop, distance: NDArray, hu: float | NDArray, organ: int | None = None) -> None:
        """Cover what lies at negative distances (mm) with `hu`; mix voxels on the edge by their share."""
        pixel = np.float32(self.grid.spacing_mm[2])
        near = distance < 0.5 * pixel
        here = self.hu[crop]
        below = here[near]
        above = hu if np.ndim(hu) == 0 else np.broadcast_to(hu, near.shape)[near]
        here[near] = below + np.minimum(0.5 - distance[near] / pixel, 1.0) * (above - below)
        if organ is not None:
            self.organ[crop][distance < 0] = organ


def random_warp(
    grid: VoxelGrid, rng: np.random.Generator, coarse_mm: float = 4.0, fine_mm: float = 1.0
) -> list[NDArray]:
    """Draw a smooth displacement field (z, y, x) in mm that makes one patient differ from the next."""
    return [smooth_noise(grid, 55.0, rng) * coarse_mm + smooth_noise(grid, 20.0, rng) * fine_mm for _ in range(3)]


def smooth_noise(grid: VoxelGrid, scale_mm: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw noise of unit variance that changes over about `scale_mm`."""
    coarse = [int(n * s / scale_mm) + 4 for n, s in zip(grid.shape, grid.spacing_mm)]
    values = rng.standard_normal(coarse)
    for axis, (n, s) in enumerate(zip(grid.shape, grid.spacing_mm)):
        places = 1.0 + np.arange(n) * s / scale_mm
        values = interpolate.make_interp_spline(np.arange(coarse[axis]), values, k=3, axis=axis)(places)
    return (values / max(float(values.std()), 1e-6)).astype(np.float32)


def ellipsoid(x: NDArray, y: NDArray, z: NDArray, center: Point, radii: Point) -> NDArray:
    """Compute the distance to an ellipsoid (first order, as used in distance-field rendering)."""
    square = [((axis - np.float32(c)) / np.float32(r)) ** 2 for axis, c, r in zip((x, y, z), center, radii)]
    k = np.sqrt(square[0] + square[1] + square[2])
    slope = np.sqrt(sum(q * np.float32(r**-2) for q, r in zip(square, radii)))
    return k * (k - 1) / np.maximum(slope, 1e-6)


def ellipse(x: NDArray, y: NDArray, center: _Point2D, radii: _Point2D) -> NDArray:
    """Compute the distance to a column of elliptic section along z; accurate for nearly round columns."""
    p, q = (x - np.float32(center[0])) / np.float32(radii[0]), (y - np.float32(center[1])) / np.float32(radii[1])
    return (np.sqrt(p * p + q * q) - 1) * np.float32(min(radii))


def capsule(x: NDArray, y: NDArray, z: NDArray, a: Point, b: Point, radii: _Point2D) -> NDArray:
    """Compute the distance to a rounded segment from a to b whose radius changes from one end to the other."""
    axis = np.subtract(b, a).astype(np.float32)
    t = sum((p - np.float32(q)) * d for p, q, d in zip((x, y, z), a, axis)) / np.float32(max(axis @ axis, 1e-6))
    t = np.clip(t, 0.0, 1.0)
    square = sum((p - np.float32(q) - t * d) ** 2 for p, q, d in zip((x, y, z), a, axis))
    return np.sqrt(square) - (np.float32(radii[0]) + t * np.float32(radii[1] - radii[0]))


def unite(a: NDArray, b: NDArray, round_mm: LengthMm) -> NDArray:
    """Unite two bodies with a rounded seam."""
    h = np.maximum(np.float32(round_mm) - np.abs(a - b), 0.0)
    return np.minimum(a, b) - h * h / np.float32(4 * round_mm)


def intersect(a: NDArray, b: NDArray, round_mm: LengthMm) -> NDArray:
    """Intersect two bodies with a rounded edge."""
    return -unite(-a, -b, round_mm)


class Tube(NamedTuple):
    """The distance to a curved tube in a crop."""

    crop: Crop
    distance: NDArray


def tube(scene: Scene, points: NDArray | list, radii: NDArray | list, step_mm: float = 9.0) -> Tube:
    """Compute the distance to a tube that runs smoothly through model points (x, y, z) with the radii there."""
    path, width = curve(np.asarray(points, dtype=float), np.asarray(radii, dtype=float), step_mm)
    reach = float(width.max())
    crop = scene.crop(tuple(path.min(0) - reach), tuple(path.max(0) + reach))
    distance = np.full(scene.hu[crop].shape, 1e3, dtype=np.float32)
    for a, b, ra, rb in zip(path[:-1], path[1:], width[:-1], width[1:]):
        reach = max(ra, rb)
        part = scene.crop(tuple(np.minimum(a, b) - reach), tuple(np.maximum(a, b) + reach))
        inner = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, crop))
        new = capsule(*scene.coordinates(part), tuple(a), tuple(b), (ra, rb))
        np.minimum(distance[inner], new, out=distance[inner])
    return Tube(crop, distance)


def curve(points: NDArray, radii: NDArray, step_mm: float) -> tuple[NDArray, NDArray]:
    """Lay a smooth curve through points; return its points, at most `step_mm` apart, and the radii there."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    count = int(length[-1] / step_mm) + 2
    places = np.linspace(0.0, length[-1], count)
    along = interpolate.make_interp_spline(length, points, k=min(3, len(points) - 1))(places)
    return along, np.interp(places, length, radii)
