"""Distances between the surfaces of two masks, in mm.

A mask's surface is its voxels with a face on the outside; everything beyond the volume is outside. Distances run from
voxel center to voxel center, to the nearest voxel of the other surface. They come from a k-d tree of the surface
voxels: the same numbers as from a distance transform, without a transform of the whole box.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from scipy.spatial import KDTree

_ROUNDING = 1 + 1e-9  # two sums of the same millimeters differ in their last digits


def find_surface(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Mark the voxels of a mask that have a face on the outside."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        inner, cut = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        inner[1:] &= cut[:-1]
        inner[:-1] &= cut[1:]
        inner[0] = inner[-1] = False
    return mask & ~inside


def positions_by_label(
    labels: Integer[np.ndarray, "z y x"], where: Bool[np.ndarray, "z y x"], number: int
) -> list[Int[np.ndarray, "_ 3"]]:
    """List the voxels of each of the labels 1 to `number`, of those that `where` marks."""
    owner = labels[where]
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(1, number + 1))
    return np.split(np.argwhere(where)[order], starts)[1:]


def mean_surface_distance(a_mm: Float[np.ndarray, "n 3"], b_mm: Float[np.ndarray, "m 3"]) -> float:
    """Average the distances of all voxels of two surfaces, each to the other surface."""
    to_b, _ = KDTree(b_mm).query(a_mm)
    to_a, _ = KDTree(a_mm).query(b_mm)
    return float(np.concatenate([to_a, to_b]).mean())


def normalized_surface_dice(
    a: Bool[np.ndarray, "z y x"], b: Bool[np.ndarray, "z y x"], spacing_mm: tuple[float, ...], tolerance_mm: float
) -> float:
    """Compute the share of both surfaces' voxels within the tolerance of the other surface.

    It is NaN if both masks are empty, and 0 if one is. Every surface voxel counts the same, whatever its area.
    """
    a_mm, b_mm = (np.argwhere(find_surface(mask)) * np.array(spacing_mm) for mask in (a, b))
    if not len(a_mm) or not len(b_mm):
        return 0.0 if len(a_mm) + len(b_mm) else math.nan
    return (_count_near(a_mm, b_mm, tolerance_mm) + _count_near(b_mm, a_mm, tolerance_mm)) / (len(a_mm) + len(b_mm))


def _count_near(points_mm: Float[np.ndarray, "n 3"], others_mm: Float[np.ndarray, "m 3"], tolerance_mm: float) -> int:
    limit_mm = tolerance_mm * _ROUNDING
    distance_mm, _ = KDTree(others_mm).query(points_mm, distance_upper_bound=np.nextafter(limit_mm, np.inf))
    return int(np.isfinite(distance_mm).sum())
