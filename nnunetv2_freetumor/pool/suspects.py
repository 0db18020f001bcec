"""Take out of hosts and loss what must not be taught: undrawn lesions, holes, islands, unannotated background.

`exclude` does it to a raw case by its masks, `judge_case` to a preprocessed case by a trained model.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask, pad_bbox
from scipy import ndimage

from nnunetv2_freetumor.files.cases import Case
from nnunetv2_freetumor.pool.context import JobContext
from nnunetv2_freetumor.pool.counts import milliliters
from nnunetv2_freetumor.pool.images import NO_HOST, Unfit
from nnunetv2_freetumor.pool.masks import Masks
from nnunetv2_freetumor.pool.model import predict_lesions
from nnunetv2_freetumor.pool.store import Volumes
from nnunetv2_freetumor.pool.target import DatasetPlans

_HOLE_MM = 3.0  # equivalent diameter; smaller holes are noise of the mask
_MARGIN_MM = 5.0  # taken out around suspects and holes
_ISLAND_SHARE = 0.1  # of the largest part; a second kidney is larger


class Excluded(NamedTuple):
    """A raw label map without what must not be taught, and how much that is."""

    label: np.ndarray  # (z y x): the ignore value on islands and unannotated background, one above it on lesions, holes
    complete: bool  # the masks annotate every class, so what they leave is background
    drawn_ml: float  # lesions that the masks show
    holes_ml: float
    islands_ml: float


def exclude(context: JobContext, image: Case, masks: Masks) -> Excluded:
    """Take unannotated background, islands, and lesions and holes with their margin out of a raw case's label map.

    Lesions and holes go before resampling, which could swallow what is small, but not what has its margin around it.
    """
    known, hosts, spacing_mm = context.dataset.labels, context.job.asked.hosts, image.spacing_mm
    complete = known.organs() <= masks.annotated | {known.named(name) for name in hosts.annotates}
    label = masks.label if complete else np.where(masks.label == 0, known.ignore, masks.label)
    islands = find_islands(masks.label, sorted(known.hosts) if hosts.model else [])
    label = np.where(islands, np.int16(known.ignore), label)
    drawn = np.isin(masks.label, sorted(known.lesions))
    holes = find_holes(masks.label, sorted(known.hosts), known.ignore, spacing_mm)
    label = take_out(label, drawn | holes, known.ignore + 1, spacing_mm)
    return Excluded(label, complete, *(milliliters(int(mask.sum()), spacing_mm) for mask in (drawn, holes, islands)))


class Judged(NamedTuple):
    """A preprocessed case without its suspects, and how much they are."""

    volumes: Volumes
    taken_out: int  # voxels, with their margin
    suspects_ml: float


def judge_case(context: JobContext, volumes: Volumes) -> Judged:
    """Take out of a preprocessed case what the judge, if there is one, calls a lesion.

    Raises:
        Unfit: nothing of the hosts is left.
    """
    return without(context.dataset, volumes, find_suspects(context, volumes))


def find_suspects(context: JobContext, volumes: Volumes) -> np.ndarray:
    """Mark the voxels (x y z) of a preprocessed case that the judge calls a lesion; none without a judge."""
    if context.judge is None:
        return np.zeros(volumes.label.shape[1:], dtype=bool)
    return predict_lesions(context.judge, volumes.image, context.dataset.labels.lesion_names())


def without(dataset: DatasetPlans, volumes: Volumes, suspects: np.ndarray) -> Judged:
    """Take suspects (x y z) with their margin out of a preprocessed case's hosts and loss.

    Raises:
        Unfit: nothing of the hosts is left.
    """
    hosts, spacing_mm = sorted(dataset.labels.hosts), dataset.configuration.spacing
    label = take_out(volumes.label[0], suspects, dataset.labels.ignore, spacing_mm)
    if hosts and not np.isin(label, hosts).any():
        raise Unfit(NO_HOST, "all of it may be tumor")
    locations = keep_locations(volumes.properties["class_locations"], label[None])
    left = volumes._replace(label=label[None], properties=volumes.properties | {"class_locations": locations})
    return Judged(left, int((left.label != volumes.label).sum()), milliliters(int(suspects.sum()), spacing_mm))


def take_out(label: np.ndarray, marked: np.ndarray, ignore: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """Write the ignore value on marked voxels and 5 mm around them, in a copy of a label map.

    Args:
        label: (x y z), the dataset's values.
        marked: (x y z), suspects and holes.
        ignore: value that is left out of the loss.
        spacing_mm: voxel size in the arrays' axis order.
    """
    return np.where(within_mm(marked, _MARGIN_MM, spacing_mm), np.array(ignore, label.dtype), label)


def find_holes(label: np.ndarray, hosts: Sequence[int], ignore: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """Mark holes: unlabeled regions that the hosts enclose, if larger than a sphere of 3 mm diameter.

    Regions that the hosts enclose within one of the scan's outermost slices count: a scan may cut an organ.
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
    large = np.bincount(parts.ravel()) * math.prod(spacing_mm) > math.pi / 6 * _HOLE_MM**3
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
    """Mark islands: parts of a predicted host far smaller than its largest part, often bits of other organs."""
    islands = np.zeros(label.shape, dtype=bool)
    for value in hosts:
        parts, _ = ndimage.label(label == value, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        small = (sizes > 0) & (sizes < _ISLAND_SHARE * sizes.max())
        islands |= small[parts]
    return islands


def within_mm(mask: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Mark the voxels within a distance of a mask, the mask included."""
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


def keep_locations(locations: dict[Any, Any], label: np.ndarray) -> dict[Any, Any]:
    """Remove from nnU-Net's `class_locations` the voxels whose label (1 x y z) has changed."""
    kept = {}
    for key, found in locations.items():
        values = key if isinstance(key, tuple) else (key,)
        kept[key] = [] if len(found) == 0 else found[np.isin(label[tuple(np.asarray(found).T)], values)]
    return kept
