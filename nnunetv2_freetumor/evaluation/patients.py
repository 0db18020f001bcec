"""Sum up scores by patient, for intervals, differences and curves.

A case may occur several times, for instance once per training run: each time is a reading. What is said of a patient,
for example that a tumor was found, is said of one reading of all the patient's cases.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from nnunetv2_freetumor.evaluation.case_scores import size_classes
from nnunetv2_freetumor.evaluation.matching import FALSE_POSITIVE
from nnunetv2_freetumor.evaluation.resampling import Kind, Ratio, Values, Weights
from nnunetv2_freetumor.evaluation.scores import (
    ALL_SIZES,
    IN_HOST,
    THRESHOLDS,
    CaseScore,
    PredictedLesion,
    Rule,
    size_names,
)

FALSE_POSITIVES, FALSE_POSITIVE_ML = "false positives per scan", "false positive ml per scan"
FALSE_POSITIVES_IN_HOST = "false positives per scan in the organ"
PATIENT_SENSITIVITY, PATIENT_SPECIFICITY = "patient sensitivity", "patient specificity"
DICE, SURFACE_DICE, HOST_DICE = "dice", "surface dice", "host dice"


class Curve(NamedTuple):
    """Found lesions and false positives at each of THRESHOLDS, over the cases with probabilities."""

    found: Float[np.ndarray, "patients thresholds sizes"]  # the last size is ALL_SIZES
    lesions: Float[np.ndarray, "patients sizes"]
    false_positives: Float[np.ndarray, "patients thresholds"]
    false_positives_in_host: Float[np.ndarray, "patients thresholds"]
    scans: Float[np.ndarray, "patients"]

    def sensitivity_at(
        self, weights: Weights, false_positives_per_scan: float, size: int, in_host: bool = False
    ) -> Values:
        """Read off the sensitivity at a rate of false positives; `in_host` counts only those on the organ.

        It is NaN if there are no lesions, or if it is unknown which false positives lie on the organ.

        The threshold falls from 1, where nothing is predicted. At each rate the best sensitivity reached so far counts;
        between two thresholds the curve is a straight line. If the rate is never reached, the curve's end at the
        lowest threshold counts.
        """
        found = _from_nothing(weights @ self.found[:, :, size])
        alarms = self.false_positives_in_host if in_host else self.false_positives
        false_positives = _from_nothing(weights @ alarms)
        lesions, scans = weights @ self.lesions[:, size], weights @ self.scans
        wanted = false_positives_per_scan * scans
        before = (false_positives <= wanted[:, None]).sum(1) - 1
        after = np.minimum(before + 1, false_positives.shape[1] - 1)
        row = np.arange(len(weights))
        step = false_positives[row, after] - false_positives[row, before]
        share = np.divide(wanted - false_positives[row, before], step, out=np.zeros(len(row)), where=step > 0)
        at_rate = found[row, before] + share * (found[row, after] - found[row, before])
        known = (lesions > 0) & ~np.isnan(false_positives).any(1)
        return np.divide(at_rate, lesions, out=np.full(len(row), math.nan), where=known)

    def followed_by(self, other: "Curve") -> "Curve":
        """Append the patients of another curve."""
        return Curve(*(np.concatenate(both) for both in zip(self, other)))


class Readings(NamedTuple):
    """All readings of the patients that have probabilities."""

    patients: Int[np.ndarray, "readings"]  # index into `patient_names`
    has_tumor: Bool[np.ndarray, "readings"]
    probability: Float[np.ndarray, "readings"]  # the highest


def patient_names(scores: Sequence[CaseScore]) -> list[str]:
    """Return the names of the patients, in the order of all arrays."""
    return sorted({score.patient for score in scores})


def number_readings(scores: Sequence[CaseScore]) -> list[int]:
    """Count for each score how often its case has occurred before."""
    seen: Counter[str] = Counter()
    numbers = []
    for score in scores:
        numbers.append(seen[score.case])
        seen[score.case] += 1
    return numbers


def ratios_by_patient(scores: Sequence[CaseScore], rule: Rule) -> dict[str, Ratio]:
    """Sum up everything that is a ratio, by name.

    Dice and surface Dice are averaged over the scans with tumors. (nnU-Net also counts a scan without tumor as 0 if
    something is predicted, so each model's mean is over other scans; here false positives are counted instead.)
    """
    patients = _rows_by_patient(scores)
    lesions, found = (patients.sums(counts) for counts in _lesions_by_size(scores, rule))
    names = (*size_names(rule.bounds_mm), ALL_SIZES)
    ratios = {f"sensitivity {name}": Ratio(found[:, i], lesions[:, i], "share") for i, name in enumerate(names)}
    ratios |= _patient_ratios(scores, patients)
    false = [[lesion for lesion in score.predictions if lesion.kind == FALSE_POSITIVE] for score in scores]
    alarms = [[lesion.volume_ml for lesion in lesions] for lesions in false]
    columns: dict[str, tuple[list[float], Kind]] = {
        FALSE_POSITIVES: ([float(len(volumes)) for volumes in alarms], "rate"),
        FALSE_POSITIVES_IN_HOST: ([_count_in_host(score, lesions) for score, lesions in zip(scores, false)], "rate"),
        FALSE_POSITIVE_ML: ([float(sum(volumes)) for volumes in alarms], "mean"),
        DICE: ([score.dice if score.lesions else math.nan for score in scores], "mean"),
        SURFACE_DICE: ([score.surface_dice if score.lesions else math.nan for score in scores], "mean"),
        HOST_DICE: ([score.host_dice for score in scores], "mean"),
    }
    for name, (column, kind) in columns.items():
        values = np.array(column)
        ratios[name] = Ratio(patients.sums(np.nan_to_num(values)), patients.sums(~np.isnan(values)), kind)
    return ratios


def _count_in_host(score: CaseScore, false_positives: Sequence[PredictedLesion]) -> float:
    """Count the false positives on the organ; NaN if the tumor has no organ label (then the organ's Dice is NaN)."""
    if math.isnan(score.host_dice):
        return math.nan
    return float(sum(lesion.in_host >= IN_HOST for lesion in false_positives))


def curve_by_patient(scores: Sequence[CaseScore], rule: Rule) -> Curve:
    """Sum up the sweeps of the cases that have one; the patients are those of all scores."""
    sizes, thresholds = len(rule.bounds_mm) + 2, len(THRESHOLDS)
    lesions, _ = _lesions_by_size(scores, rule)
    found, (alarms, in_host) = np.zeros((len(scores), thresholds, sizes)), np.zeros((2, len(scores), thresholds))
    swept = np.zeros(len(scores))
    for row, score in enumerate(scores):
        if score.sweep is not None:
            found[row] = np.column_stack([score.sweep.found, score.sweep.found.sum(1)])
            alarms[row], in_host[row], swept[row] = *score.sweep[1:], 1
    patients = _rows_by_patient(scores)
    sums = (found, lesions * swept[:, None], alarms, in_host, swept)
    return Curve(*(patients.sums(rows) for rows in sums))


def readings_with_probability(scores: Sequence[CaseScore]) -> Readings:
    """Return the readings of the cases that have a probability."""
    given = [score for score in scores if not math.isnan(score.probability)]
    order = {name: index for index, name in enumerate(patient_names(scores))}
    groups = _group_readings(given)
    return Readings(
        np.array([order[group[0].patient] for group in groups], dtype=int),
        np.array([any(score.lesions for score in group) for group in groups], dtype=bool),
        np.array([max(score.probability for score in group) for group in groups], dtype=float),
    )


class _PatientRows(NamedTuple):
    """The patient that each row belongs to."""

    of_rows: Int[np.ndarray, "rows"]
    patients: int

    def sums(self, rows: Shaped[np.ndarray, "rows *columns"]) -> Float[np.ndarray, "patients *columns"]:
        total = np.zeros((self.patients, *rows.shape[1:]))
        np.add.at(total, self.of_rows, rows)
        return total


def _rows_by_patient(scores: Sequence[CaseScore]) -> _PatientRows:
    names = patient_names(scores)
    return _PatientRows(np.searchsorted(names, [score.patient for score in scores]), len(names))


def _lesions_by_size(
    scores: Sequence[CaseScore], rule: Rule
) -> tuple[Int[np.ndarray, "scores sizes"], Int[np.ndarray, "scores sizes"]]:
    """Count each score's lesions, and the found ones, by size and in total."""
    counts = np.zeros((2, len(scores), len(rule.bounds_mm) + 2), dtype=int)
    for row, score in enumerate(scores):
        classes = size_classes([lesion.diameter_mm for lesion in score.lesions], rule.bounds_mm)
        for lesion, size in zip(score.lesions, classes):
            counts[:, row, [size, -1]] += np.array([[1], [lesion.found]])
    return counts[0], counts[1]


def _group_readings(scores: Sequence[CaseScore]) -> list[list[CaseScore]]:
    groups = defaultdict(list)
    for score, reading in zip(scores, number_readings(scores)):
        groups[score.patient, reading].append(score)
    return list(groups.values())


def _patient_ratios(scores: Sequence[CaseScore], patients: _PatientRows) -> dict[str, Ratio]:
    """Count the readings with a found tumor, and those without a tumor and without a false positive."""
    first_row = {score.patient: row for row, score in enumerate(scores)}
    tops, bottoms = np.zeros((len(scores), 2)), np.zeros((len(scores), 2))
    for group in _group_readings(scores):
        lesions = [lesion.found for score in group for lesion in score.lesions]
        alarms = [lesion.kind for score in group for lesion in score.predictions].count(FALSE_POSITIVE)
        row, column = first_row[group[0].patient], 0 if lesions else 1
        tops[row, column] += any(lesions) if lesions else not alarms
        bottoms[row, column] += 1
    top, bottom = patients.sums(tops), patients.sums(bottoms)
    return {
        PATIENT_SENSITIVITY: Ratio(top[:, 0], bottom[:, 0], "share"),
        PATIENT_SPECIFICITY: Ratio(top[:, 1], bottom[:, 1], "share"),
    }


def _from_nothing(counts: Float[np.ndarray, "draws thresholds"]) -> Float[np.ndarray, "draws steps"]:
    """Reverse counts, so that the threshold falls from 1, where nothing is predicted; keep the highest so far."""
    return np.maximum.accumulate(np.pad(counts[:, ::-1], ((0, 0), (1, 0))), axis=1)
