"""Measure what was planted from the voxels themselves: where it lies, how large it is, how it differs from its host."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

_NEAR_MM = 10.0  # the host around a lesion that its contrast is measured against


class BeforeAfter(NamedTuple):
    """A volume before and after; all four arrays have one shape."""

    before_hu: np.ndarray
    after_hu: np.ndarray
    label_before: np.ndarray
    label_after: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Mark the voxels that became lesion."""
        return self.label_before != self.label_after


class Aim(NamedTuple):
    """Where a lesion was meant to go, to tell lesions apart; a lesion may consist of several islands."""

    center: Sequence[float]  # voxel index
    diameter_mm: float
    name: str = ""


class Planted(NamedTuple):
    """One lesion; `contrast_hu` is its core's median less the host's median at the same place before."""

    center: tuple[float, ...]  # voxel index of its centroid
    volume_mm3: float
    contrast_hu: float
    host_hu: float
    name: str

    @property
    def diameter_mm(self) -> float:
        """Return the diameter of the sphere of the same volume."""
        return (6 * self.volume_mm3 / math.pi) ** (1 / 3)


def measure_planted(change: BeforeAfter, aims: Sequence[Aim], spacing_mm: Sequence[float]) -> list[Planted]:
    """Measure each aim's share of the voxels whose label changed, in the order of the aims.

    A changed voxel belongs to the aim that is nearest in units of its diameter; an aim without any is left out.
    """
    changed = np.argwhere(change.mask)
    owner = _nearest(changed, aims, spacing_mm)
    return [
        _measure(change, aim.name, changed[owner == index], spacing_mm)
        for index, aim in enumerate(aims)
        if (owner == index).any()
    ]


def _nearest(voxels: np.ndarray, aims: Sequence[Aim], spacing_mm: Sequence[float]) -> np.ndarray:
    nearest, owner = np.full(len(voxels), np.inf), np.full(len(voxels), -1)
    for index, aim in enumerate(aims):
        distance = np.linalg.norm((voxels - np.asarray(aim.center)) * spacing_mm, axis=1) / aim.diameter_mm
        owner[distance < nearest] = index
        nearest = np.minimum(nearest, distance)
    return owner


def _measure(change: BeforeAfter, name: str, voxels: np.ndarray, spacing_mm: Sequence[float]) -> Planted:
    reach = np.ceil(_NEAR_MM / np.asarray(spacing_mm)).astype(int)
    start, stop = np.maximum(voxels.min(0) - reach, 0), voxels.max(0) + reach + 1
    box = tuple(map(slice, start.tolist(), np.minimum(stop, change.before_hu.shape).tolist()))
    mask = np.zeros_like(change.before_hu[box], dtype=bool)
    mask[tuple((voxels - start).T)] = True
    host_hu = float(np.median(change.before_hu[box][_host(mask, change.label_before[box])]))
    core_hu = float(np.median(change.after_hu[box][_core(mask, spacing_mm)]))
    volume_mm3 = len(voxels) * math.prod(spacing_mm)
    return Planted(
        tuple(voxels.mean(0).tolist()), volume_mm3, contrast_hu=core_hu - host_hu, host_hu=host_hu, name=name
    )


def _core(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Mark the inner half of a lesion, where its edge no longer blends it with the host."""
    depth_mm = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    return depth_mm >= 0.5 * depth_mm.max()


def _host(mask: np.ndarray, label_before: np.ndarray) -> np.ndarray:
    """Mark the host around a lesion; a lesion in unlabeled tissue is compared with what was in its own place."""
    values, counts = np.unique(label_before[mask & (label_before > 0)], return_counts=True)
    return label_before == values[counts.argmax()] if len(values) else mask
