"""Score one case: its lesions, its predictions, and the overlap of the masks.

Lesions and predictions follow the rule's smallest size; Dice and surface Dice are those of the masks as they are.
Voxels of the ignore label belong to no mask and have no probability.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask
from jaxtyping import Bool, Float, Int, Integer

from nnunetv2_freetumor.evaluation.matching import FALSE_POSITIVE, MISSED, Components, Matching, find_components, match
from nnunetv2_freetumor.evaluation.scores import (
    IN_HOST,
    THRESHOLDS,
    CaseScore,
    Pair,
    PredictedLesion,
    ReferenceLesion,
    Rule,
    Sweep,
)
from nnunetv2_freetumor.evaluation.surfaces import (
    find_surface,
    mean_surface_distance,
    normalized_surface_dice,
    positions_by_label,
)


class _CropGeometry(NamedTuple):
    """Where the voxels of a crop lie."""

    start: tuple[int, ...]  # in the whole volume
    spacing_mm: tuple[float, ...]

    @property
    def voxel_ml(self) -> float:
        return math.prod(self.spacing_mm) / 1000


def score_case(
    case: str,
    patient: str,
    pair: Pair,
    reference: Integer[np.ndarray, "z y x"],
    prediction: Integer[np.ndarray, "z y x"],
    spacing_mm: Sequence[float],
    rule: Rule,
    probability: Float[np.ndarray, "z y x"] | None = None,
    ignore: int | None = None,
) -> CaseScore:
    """Compare a case's prediction with its reference, for one tumor and its host.

    `probability` is the tumor's, summed over its labels; `ignore` is the value of the ignore label in the reference.
    """
    if ignore is not None:
        prediction = np.where(reference == ignore, 0, prediction)
        probability = None if probability is None else np.where(reference == ignore, 0, probability)
    truth, guess = _mark(reference, pair.tumor), _mark(prediction, pair.tumor)
    organ = truth | _mark(reference, pair.host)
    host_dice = dice(organ, guess | _mark(prediction, pair.host))
    box = _box(truth | guess)
    grid = _CropGeometry(tuple(int(part.start) for part in box), tuple(float(mm) for mm in spacing_mm))
    lesions, predictions = (find_components(mask[box], rule.min_voxels) for mask in (truth, guess))
    matching = match(lesions, predictions, rule.min_iou)
    return CaseScore(
        case=case,
        patient=patient,
        pair=pair.name,
        dice=dice(truth[box], guess[box]),
        surface_dice=normalized_surface_dice(truth[box], guess[box], grid.spacing_mm, rule.tolerance_mm),
        host_dice=host_dice if pair.host else math.nan,
        lesions=_describe_lesions(lesions, predictions, matching, grid),
        predictions=_describe_predictions(
            predictions,
            matching,
            likely=None if probability is None else probability[box],
            in_host=_shares_in(organ[box], predictions) if pair.host else np.full(len(predictions.voxels), math.nan),
            grid=grid,
        ),
        probability=math.nan if probability is None else float(probability.max()),
        sweep=None
        if probability is None
        else _sweep(truth, organ if pair.host else None, probability=probability, voxel_ml=grid.voxel_ml, rule=rule),
    )


def dice(a: Bool[np.ndarray, "z y x"], b: Bool[np.ndarray, "z y x"]) -> float:
    """Compute the Dice overlap of two masks; NaN if both are empty."""
    both, total = int((a & b).sum()), int(a.sum()) + int(b.sum())
    return 2 * both / total if total else math.nan


def size_classes(diameters_mm: Sequence[float], bounds_mm: tuple[float, ...]) -> Int[np.ndarray, "n"]:
    """Return the index into `scores.size_names` of each diameter; one on a bound belongs to the larger class."""
    return np.digitize(np.array(diameters_mm, dtype=float), bounds_mm)


def _mark(labels: Integer[np.ndarray, "z y x"], values: tuple[int, ...]) -> Bool[np.ndarray, "z y x"]:
    """Mark the voxels with one of the values; for a few values much faster than np.isin."""
    marked = np.zeros(labels.shape, dtype=bool)
    for value in values:
        marked |= labels == value
    return marked


def _box(mask: Bool[np.ndarray, "z y x"]) -> tuple[slice, ...]:
    """Return the bounds of a mask, or one voxel if it is empty."""
    return bounding_box_to_slice(get_bbox_from_mask(mask) if mask.any() else [[0, 1]] * 3)


def _diameter_mm(volume_ml: float) -> float:
    return (6 / math.pi * 1000 * volume_ml) ** (1 / 3)


def _central_voxel(voxels: Int[np.ndarray, "n 3"], grid: _CropGeometry) -> tuple[int, int, int]:
    """Return the voxel that is closest to the center of mass."""
    distance_mm = np.linalg.norm((voxels - voxels.mean(0)) * np.array(grid.spacing_mm), axis=1)
    z, y, x = (voxels[distance_mm.argmin()] + np.array(grid.start)).tolist()
    return z, y, x


def _describe_lesions(
    lesions: Components, predictions: Components, matching: Matching, grid: _CropGeometry
) -> tuple[ReferenceLesion, ...]:
    inside = positions_by_label(lesions.labels, lesions.labels > 0, len(lesions.voxels))
    surfaces, guesses = (_surfaces_mm(components, grid) for components in (lesions, predictions))
    described = []
    for index, voxels in enumerate(lesions.voxels.tolist()):
        partner, shared = int(matching.partners[index]), int(matching.shared_voxels[index])
        found = partner != MISSED
        described.append(
            ReferenceLesion(
                number=index + 1,
                center=_central_voxel(inside[index], grid),
                diameter_mm=_diameter_mm(voxels * grid.voxel_ml),
                volume_ml=voxels * grid.voxel_ml,
                found=found,
                iou=float(matching.iou[index]),
                dice=2 * shared / (voxels + int(predictions.voxels[partner])) if found else 0.0,
                covered=int(matching.covered_voxels[index]) / voxels,
                surface_distance_mm=mean_surface_distance(surfaces[index], guesses[partner]) if found else math.nan,
            )
        )
    return tuple(described)


def _surfaces_mm(components: Components, grid: _CropGeometry) -> list[Float[np.ndarray, "_ 3"]]:
    surface = find_surface(components.labels > 0)
    voxels = positions_by_label(components.labels, surface, len(components.voxels))
    return [positions * np.array(grid.spacing_mm) for positions in voxels]


def _describe_predictions(
    predictions: Components,
    matching: Matching,
    likely: Float[np.ndarray, "z y x"] | None,
    in_host: Float[np.ndarray, "n"],
    grid: _CropGeometry,
) -> tuple[PredictedLesion, ...]:
    inside = positions_by_label(predictions.labels, predictions.labels > 0, len(predictions.voxels))
    return tuple(
        PredictedLesion(
            number=number,
            center=_central_voxel(voxels, grid),
            diameter_mm=_diameter_mm(len(voxels) * grid.voxel_ml),
            volume_ml=len(voxels) * grid.voxel_ml,
            kind=kind,
            probability=math.nan if likely is None else float(likely[tuple(voxels.T)].max()),
            in_host=float(share),
        )
        for number, (voxels, kind, share) in enumerate(zip(inside, matching.kinds, in_host), start=1)
    )


def _shares_in(organ: Bool[np.ndarray, "z y x"], predictions: Components) -> Float[np.ndarray, "n"]:
    """Compute the share of each prediction's voxels that lies on the organ or its tumors."""
    inside = np.bincount(predictions.labels[organ].astype(int), minlength=len(predictions.voxels) + 1)[1:]
    return inside / predictions.voxels


def _sweep(
    truth: Bool[np.ndarray, "z y x"],
    organ: Bool[np.ndarray, "z y x"] | None,
    probability: Float[np.ndarray, "z y x"],
    voxel_ml: float,
    rule: Rule,
) -> Sweep:
    """Match again at each threshold; above the highest probability nothing is predicted."""
    box = _box(truth | (probability >= THRESHOLDS[0]))
    lesions, likely = find_components(truth[box], rule.min_voxels), probability[box]
    classes = size_classes([_diameter_mm(voxels * voxel_ml) for voxels in lesions.voxels.tolist()], rule.bounds_mm)
    found = np.zeros((len(THRESHOLDS), len(rule.bounds_mm) + 1), dtype=int)
    false_positives = np.zeros(len(THRESHOLDS), dtype=int)
    in_host = np.full(len(THRESHOLDS), math.nan if organ is None else 0.0)
    for index, threshold in enumerate(THRESHOLDS):
        predicted = likely >= threshold
        if not predicted.any():
            break
        components = find_components(predicted, rule.min_voxels)
        matching = match(lesions, components, rule.min_iou)
        found[index] = np.bincount(classes[matching.partners != MISSED], minlength=found.shape[1])
        alarm = np.array([kind == FALSE_POSITIVE for kind in matching.kinds], dtype=bool)
        false_positives[index] = alarm.sum()
        if organ is not None:
            in_host[index] = (alarm & (_shares_in(organ[box], components) >= IN_HOST)).sum()
    return Sweep(found, false_positives, in_host)
