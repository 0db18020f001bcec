"""Find tumors without learning: threshold the deviation from the organ's median, inside the organ.

The baseline that a method with training has to beat. It is given the reference mask of the organ (tumors included),
which no segmenter gets: an advantage, meant to make it a strong baseline. A voxel's deviation is
|HU - median| / spread, darker and brighter alike, after smoothing; median and spread (1.4826 x the median absolute
deviation) are the organ's own in this case. The outer few millimeters of the organ, where neighboring tissue
shines in, take their value from the nearest voxel inside; bright structures as thin as vessels are removed by opening.
Components below a minimum size are removed at each of the FROC's thresholds, so that one map serves the whole curve.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask, pad_bbox
from jaxtyping import Bool, Float, Float32, Integer, Real
from scipy import ndimage
from skimage.morphology import opening

from nnunetv2_freetumor.evaluation.case_scores import score_case
from nnunetv2_freetumor.evaluation.matching import find_components, match
from nnunetv2_freetumor.evaluation.scores import THRESHOLDS, CaseScore, Pair
from nnunetv2_freetumor.experiments.study.design import FoldCases
from nnunetv2_freetumor.experiments.study.trials import RULE, StudyContext, Trial, save_scores, seconds
from nnunetv2_freetumor.files.cases import Case, read_case, read_label

_CUTS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
_MIN_DIAMETERS_MM = (4.0, 6.0, 8.0, 10.0, 12.0)
_STEEPNESS = 3.0  # probability 0.05 at no deviation, 0.5 at the cut, 0.95 at twice the cut
_MIN_SPREAD_HU = 4.0  # so that in an organ without noise no small difference makes a tumor


ARM_TITLE = "thresholding inside the given organ, no learning"


@dataclass(frozen=True, kw_only=True)
class Thresholding:
    """How tumors are distinguished from the organ."""

    smooth_mm: float = 2.0  # sigma of the Gaussian
    border_mm: float = 5.0  # at the organ's surface, where neighboring tissue shines in: a thick slice
    vessel_mm: float = 4.0  # radius of the bright structures that are opened away
    cut: float = 4.0  # deviation, in spreads, that makes a tumor: probability 0.5
    min_diameter_mm: float = 8.0  # equivalent diameter of the smallest tumor


class Thresholded(NamedTuple):
    """The tumor candidates found in one case."""

    probability: Float32[np.ndarray, "z y x"]  # rises with the deviation; 0 outside the organ
    prediction: Bool[np.ndarray, "z y x"]  # probability >= 0.5


class LabeledCase(NamedTuple):
    """One training case to tune on."""

    image_hu: Real[np.ndarray, "z y x"]
    host: Bool[np.ndarray, "z y x"]  # the organ with its tumors
    tumor: Bool[np.ndarray, "z y x"]
    spacing_mm: tuple[float, ...]  # z, y, x


def threshold_case(
    image_hu: Real[np.ndarray, "z y x"],
    host: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, ...],
    settings: Thresholding = Thresholding(),
) -> Thresholded:
    """Find tumor candidates in one case.

    Args:
        image_hu: the CT.
        host: the organ with its tumors, holes filled.
        spacing_mm: the voxel size, in the arrays' axis order.
        settings: as tuned, or the defaults.
    """
    probability = np.zeros(host.shape, dtype=np.float32)
    if host.any():
        box = _box(host)
        odds = _STEEPNESS * (deviation(image_hu[box], host[box], spacing_mm, settings) / settings.cut - 1)
        raw = np.where(host[box], 1 / (1 + np.exp(-odds)), 0)
        probability[box] = _without_small(raw, _least_voxels(settings.min_diameter_mm, spacing_mm))
    return Thresholded(probability, probability >= np.float32(0.5))


def _without_small(probability: Float[np.ndarray, "z y x"], least_voxels: int) -> Float32[np.ndarray, "z y x"]:
    """Round down to the thresholds of the FROC, each without its components that are too small."""
    kept = np.zeros(probability.shape, dtype=np.float32)
    for threshold in THRESHOLDS:
        kept[find_components(probability >= threshold, least_voxels).labels > 0] = threshold
    return kept


def deviation(
    image_hu: Real[np.ndarray, "z y x"],
    host: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, ...],
    settings: Thresholding,
) -> Float[np.ndarray, "z y x"]:
    """Measure how far each voxel of the organ is from its median, in spreads; values outside mean nothing."""
    depth = ndimage.distance_transform_edt(np.pad(host, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    inside = depth > min(settings.border_mm, 0.5 * depth.max())
    sigma = [settings.smooth_mm / step for step in spacing_mm]
    share = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    smooth = ndimage.gaussian_filter(np.where(inside, image_hu, 0).astype(np.float32), sigma) / np.maximum(share, 1e-3)
    nearest = ndimage.distance_transform_edt(~inside, sampling=spacing_mm, return_distances=False, return_indices=True)
    smooth = _without_vessels(smooth[tuple(nearest)], settings.vessel_mm, spacing_mm)
    median = np.median(smooth[inside])
    spread = 1.4826 * np.median(np.abs(smooth[inside] - median))
    return np.abs(smooth - median) / max(float(spread), _MIN_SPREAD_HU)


def tune(
    cases: Sequence[LabeledCase], settings: Thresholding = Thresholding(), *, min_iou: float = 0.1
) -> Thresholding:
    """Choose cut and minimum size by lesion-wise F1 on labeled cases; without any tumor, keep the settings.

    A lesion is found if a prediction is assigned to it with at least `min_iou`; predictions that touch a tumor
    without being assigned count neither way. Among equals, the choice closest to the given cut wins.
    """
    if not any(case.tumor.any() for case in cases):
        return settings
    cropped = [_cropped(case) for case in cases]
    deviations = [deviation(case.image_hu, case.host, case.spacing_mm, settings) for case in cropped]
    scores = {}
    for cut, diameter in itertools.product(_CUTS, _MIN_DIAMETERS_MM):
        counts = [
            _count(d, case, cut=cut, diameter_mm=diameter, min_iou=min_iou) for d, case in zip(deviations, cropped)
        ]
        found, false, missed = np.sum(counts, axis=0)
        scores[cut, diameter] = (2 * found / max(2 * found + false + missed, 1), -abs(cut - settings.cut), diameter)
    cut, diameter = max(scores, key=lambda key: scores[key])
    return dataclasses.replace(settings, cut=cut, min_diameter_mm=diameter)


def _cropped(case: LabeledCase) -> LabeledCase:
    box = _box(case.host)
    return LabeledCase(case.image_hu[box], case.host[box], case.tumor[box], case.spacing_mm)


def _count(
    deviations: Float[np.ndarray, "z y x"], case: LabeledCase, cut: float, diameter_mm: float, min_iou: float
) -> tuple[int, int, int]:
    """Count found lesions, false positives and missed lesions of one case."""
    least = _least_voxels(diameter_mm, case.spacing_mm)
    lesions, predictions = find_components(case.tumor), find_components((deviations >= cut) & case.host, least)
    matching = match(lesions, predictions, min_iou)
    found = int((matching.partners >= 0).sum())
    return found, matching.kinds.count("false positive"), len(matching.partners) - found


def _without_vessels(
    hu: Float[np.ndarray, "z y x"], radius_mm: float, spacing_mm: tuple[float, ...]
) -> Float[np.ndarray, "z y x"]:
    """Remove bright structures that a ball of this radius does not fit into, by opening."""
    reach = [int(radius_mm / step) for step in spacing_mm]
    grid = np.meshgrid(*(np.arange(-n, n + 1) * step for n, step in zip(reach, spacing_mm)), indexing="ij")
    return opening(hu, footprint=sum(axis**2 for axis in grid) <= radius_mm**2)


def _least_voxels(diameter_mm: float, spacing_mm: tuple[float, ...]) -> int:
    return max(math.ceil(math.pi / 6 * diameter_mm**3 / math.prod(spacing_mm)), 1)


def _box(host: Bool[np.ndarray, "z y x"]) -> tuple[slice, ...]:
    """Return the organ's bounds with a margin of one voxel, or everything if there is no organ."""
    bounds = get_bbox_from_mask(host) if host.any() else [[0, size] for size in host.shape]
    return bounding_box_to_slice(pad_bbox(bounds, 1, host.shape))


class RawCase(NamedTuple):
    """One raw case."""

    name: str
    image: Case
    label: Integer[np.ndarray, "z y x"]


def run_threshold(context: StudyContext, trial: Trial, fold: FoldCases) -> float:
    """Tune the threshold on the fold's training cases, apply it to the test cases, and return the seconds taken."""
    start, raw = time.monotonic(), context.test.images.parent
    training = list(_load(raw / "imagesTr", raw / "labelsTr", context, fold.training))
    tuned = {pair: tune([_labeled(case, pair) for case in training]) for pair in context.test.labels.pairs}
    scores = [
        _score(case, pair, settings, context)
        for case in _load(context.test.images, context.test.references, context, None)
        for pair, settings in tuned.items()
    ]
    save_scores(context, trial, scores, time.monotonic() - start)
    return seconds(context, trial)


def _load(images: Path, labels: Path, context: StudyContext, names: tuple[str, ...] | None) -> Iterator[RawCase]:
    ending = context.test.labels.file_ending
    for path in sorted(labels.glob(f"*{ending}")):
        name = path.name.removesuffix(ending)
        if names is None or name in names:
            label = read_label(path).array.astype(np.int32)
            yield RawCase(name, read_case(images / f"{name}_0000{ending}"), label)


def _host(label: Integer[np.ndarray, "z y x"], pair: Pair) -> Bool[np.ndarray, "z y x"]:
    return np.isin(label, (*pair.host, *pair.tumor))


def _labeled(case: RawCase, pair: Pair) -> LabeledCase:
    tumor = np.isin(case.label, pair.tumor)
    return LabeledCase(case.image.array, _host(case.label, pair), tumor, case.image.spacing_mm)


def _score(case: RawCase, pair: Pair, settings: Thresholding, context: StudyContext) -> CaseScore:
    host, spacing_mm = _host(case.label, pair), case.image.spacing_mm
    found = threshold_case(case.image.array, host, spacing_mm, settings)
    prediction = np.where(found.prediction, pair.tumor[0], 0).astype(np.int32)
    return score_case(
        case.name,
        case.name,
        pair=pair,
        reference=case.label,
        prediction=prediction,
        spacing_mm=spacing_mm,
        rule=RULE,
        probability=found.probability,
        ignore=context.test.labels.ignore,
    )
