"""What an evaluation reports: lesions, cases, and the summary of many cases with its intervals.

A diameter is the equivalent one, (6 volume / pi)^(1/3). NaN means that a value does not exist: the surface distance of
a missed lesion, the Dice of two empty masks, a probability if none was given. `host` in a name means the organ that
the tumors lie in, as labeled in the reference; tables for people call it the organ.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nnunetv2_freetumor.plan import DIAMETER_BOUNDS_MM

ALL_SIZES = "all"
IN_HOST = 0.5  # share of a prediction's voxels on the organ or its tumors, from which on it counts as inside
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the tumor probability, for FROC


class Pair(NamedTuple):
    """What is scored: a tumor and its host, the organ it lies in, by the labels of dataset.json."""

    name: str  # of the tumor
    tumor: tuple[int, ...]  # label values that are this tumor
    host: tuple[int, ...]  # label values of the organ without its tumor; empty where the dataset has none


class Rule(NamedTuple):
    """When a lesion counts as found, how sizes are grouped, and how close surfaces must be.

    Field names are a file format: evaluation.json and protocol.json.
    """

    min_iou: float = 0.1  # of a lesion and the one prediction that is assigned to it
    bounds_mm: tuple[float, ...] = DIAMETER_BOUNDS_MM
    tolerance_mm: float = 2.0  # of the normalized surface Dice
    min_voxels: int = 1  # smaller components, in reference and prediction alike, are left out


class ReferenceLesion(NamedTuple):
    """One connected tumor of the reference.

    Field names are a file format: evaluation.json, lesions.csv and run.json.
    """

    number: int
    center: tuple[int, int, int]  # one of its voxels, close to its middle, in the array's axes
    diameter_mm: float
    volume_ml: float
    found: bool
    iou: float  # with the prediction assigned to it; 0 when missed
    dice: float  # likewise
    covered: float  # share of its voxels that any prediction covers
    surface_distance_mm: float  # mean symmetric distance to the surface of the prediction assigned to it


class PredictedLesion(NamedTuple):
    """One connected prediction. Field names are a file format: evaluation.json, lesions.csv and run.json."""

    number: int
    center: tuple[int, int, int]
    diameter_mm: float
    volume_ml: float
    kind: str  # "true positive", "false positive", or "touching": overlaps a lesion, but is not assigned to it
    probability: float  # the highest inside it
    in_host: float = math.nan  # share of its voxels on the organ or its tumors; NaN for a tumor without organ label


class Sweep(NamedTuple):
    """One case's counts at each of THRESHOLDS.

    Field names are a file format: evaluation.json; their order is that of run.json.
    """

    found: Int[np.ndarray, "thresholds sizes"]
    false_positives: Int[np.ndarray, "thresholds"]
    false_positives_in_host: Float[np.ndarray, "thresholds"]  # at least IN_HOST on the organ; NaN without organ


class CaseScore(NamedTuple):
    """One case and one tumor/host pair. Field names are a file format: evaluation.json and run.json."""

    case: str
    patient: str
    pair: str
    dice: float
    surface_dice: float  # normalized, at the rule's tolerance
    host_dice: float  # of the organ together with its tumors
    lesions: tuple[ReferenceLesion, ...]
    predictions: tuple[PredictedLesion, ...]
    probability: float  # highest tumor probability of the case
    sweep: Sweep | None  # if probabilities were given


class Estimate(NamedTuple):
    """A value with its 95 % interval, and the number of lesions or cases behind it.

    Field names are a file format: evaluation.json, results.json and realism.json.
    """

    value: float
    low: float
    high: float
    count: int  # type: ignore[assignment]  # rather than tuple's method


class Difference(NamedTuple):
    """A paired or unpaired difference with its 95 % interval and, if paired, its p-value.

    Field names are a file format: evaluation.json, results.json and realism.json.
    """

    value: float
    low: float
    high: float
    p: float
    count: int  # type: ignore[assignment]  # rather than tuple's method


class FrocPoint(NamedTuple):
    """Sensitivity and false positives if predictions are cut at one probability.

    Field names are a file format: evaluation.json.
    """

    threshold: float
    false_positives_per_scan: float
    sensitivity: dict[str, Estimate]  # by size name, and ALL_SIZES


class Summary(NamedTuple):
    """All cases of one pair. Field names are a file format: evaluation.json."""

    pair: str
    cases: int
    tumor_free_cases: int
    lesions: int
    sensitivity: dict[str, Estimate]  # by size name, and ALL_SIZES
    false_positives_per_scan: Estimate
    false_positives_in_host: Estimate  # per scan, only those on the organ
    false_positive_ml_per_scan: Estimate
    patient_sensitivity: Estimate  # share of patients with tumors in whom at least one lesion is found
    patient_specificity: Estimate  # share of patients without tumors in whom nothing is predicted
    auroc: Estimate  # of the highest tumor probability, patients with tumors against those without
    dice: Estimate
    surface_dice: Estimate
    host_dice: Estimate
    froc: tuple[FrocPoint, ...]  # empty if no probabilities were given


def size_names(bounds_mm: tuple[float, ...]) -> tuple[str, ...]:
    """Return the names of the size classes between the bounds, like `plan.SIZE_NAMES`.

    Example: (10, 20) gives "<10 mm", "10-20 mm", ">=20 mm".
    """
    marks = [f"{bound:g}" for bound in bounds_mm]
    middle = [f"{low}-{high} mm" for low, high in zip(marks, marks[1:])]
    return (f"<{marks[0]} mm", *middle, f">={marks[-1]} mm")
