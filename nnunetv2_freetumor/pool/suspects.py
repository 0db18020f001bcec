"""Take out of host and loss what may be a tumor that nobody has drawn: suspects, and holes in host masks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask, pad_bbox
from scipy import ndimage

HOLE_MM = 3.0  # equivalent diameter; smaller holes are noise of the mask
MARGIN_MM = 5.0  # taken out around suspects and holes
ISLAND_SHARE = 0.1  # of the largest part; a second kidney is larger


def take_out(label: np.ndarray, marked: np.ndarray, ignore: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """Put the ignore value on marked voxels and 5 mm around them, in a copy of a label map.

    Args:
        label: (x y z), the dataset's values.
        marked: (x y z), suspects and holes.
        ignore: value that is left out of the loss.
        spacing_mm: voxel size in the arrays' axis order.
    """
    return np.where(within_mm(marked, MARGIN_MM, spacing_mm), np.array(ignore, label.dtype), label)


def find_holes(label: np.ndarray, hosts: Sequence[int], ignore: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """Mark what the hosts enclose and no label claims, where it is larger than a ball of 3 mm.

    What they enclose in the scan's outermost slices counts: a scan may begin in the middle of an organ.
    """
    holes = np.zeros(label.shape, dtype=bool)
    host = np.isin(label, list(hosts))
    if not host.any():
        return holes
    box = bounding_box_to_slice(get_bbox_from_mask(host))
    open_ = np.isin(label[box], [0, -1, ignore])
    parts, _ = ndimage.label(
        ndimage.binary_fill_holes(_closed(~open_, _outermost(box, label.shape))) & open_, np.ones((3, 3, 3))
    )
    large = np.bincount(parts.ravel()) * math.prod(spacing_mm) > math.pi / 6 * HOLE_MM**3
    large[0] = False
    holes[box] = large[parts]
    return holes


def _outermost(box: Sequence[slice], shape: Sequence[int]) -> list[tuple[int, int]]:
    """List axis and index of a box's slices that are the first or last ones of the volume."""
    first = [(axis, 0) for axis, side in enumerate(box) if side.start == 0]
    return first + [(axis, -1) for axis, side in enumerate(box) if side.stop == shape[axis]]


def _closed(mask: np.ndarray, slices: Sequence[tuple[int, int]]) -> np.ndarray:
    """Fill the holes within some slices of a mask (x y z)."""
    closed = mask.copy()
    for axis, at in slices:
        along = closed.swapaxes(0, axis)  # a view
        along[at] = ndimage.binary_fill_holes(along[at])
    return closed


def find_islands(label: np.ndarray, hosts: Sequence[int]) -> np.ndarray:
    """Mark a predicted host's parts that are far smaller than its largest one: models find bits of it elsewhere."""
    islands = np.zeros(label.shape, dtype=bool)
    for value in hosts:
        parts, _ = ndimage.label(label == value, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        small = (sizes > 0) & (sizes < ISLAND_SHARE * sizes.max())
        islands |= small[parts]
    return islands


def within_mm(mask: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Mark what lies within a distance of a mask, the mask included."""
    grown = mask.copy()
    if not mask.any():
        return grown
    reach = [math.ceil(radius_mm / step) for step in spacing_mm]
    whole = bounding_box_to_slice(pad_bbox(get_bbox_from_mask(mask), reach, mask.shape))
    parts, _ = ndimage.label(mask[whole], np.ones((3, 3, 3)))
    for part in ndimage.find_objects(parts):  # one by one: a single distance map would span the whole scan
        bounds = [[side.start, side.stop] for side in part]
        box = bounding_box_to_slice(pad_bbox(bounds, reach, parts.shape))
        near = ndimage.distance_transform_edt(parts[box] == 0, sampling=tuple(spacing_mm)) <= radius_mm
        grown[whole][box] |= near
    return grown


def keep_places(locations: dict[Any, Any], label: np.ndarray) -> dict[Any, Any]:
    """Leave out of nnU-Net's `class_locations` the voxels whose label (1 x y z) has changed."""
    kept = {}
    for key, places in locations.items():
        values = key if isinstance(key, tuple) else (key,)
        kept[key] = [] if len(places) == 0 else places[np.isin(label[tuple(np.asarray(places).T)], values)]
    return kept
