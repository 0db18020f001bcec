"""Summarize many cases of one tumor/host pair, with intervals by patient."""

import math
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from nnunetv2_freetumor.evaluation.patients import (
    DICE,
    FALSE_POSITIVE_ML,
    FALSE_POSITIVES,
    FALSE_POSITIVES_IN_HOST,
    HOST_DICE,
    PATIENT_SENSITIVITY,
    PATIENT_SPECIFICITY,
    SURFACE_DICE,
    Readings,
    curve_by_patient,
    patient_names,
    ratios_by_patient,
    readings_with_probability,
)
from nnunetv2_freetumor.evaluation.resampling import Ratio, Values, Weights, bound, estimate, resample_patients
from nnunetv2_freetumor.evaluation.scores import (
    ALL_SIZES,
    THRESHOLDS,
    CaseScore,
    Estimate,
    FrocPoint,
    Rule,
    Summary,
    size_names,
)


def summarize_pair(pair_name: str, scores: Sequence[CaseScore], rule: Rule, seed: int = 0) -> Summary:
    """Summarize the cases of one pair; a case may occur several times, once for each reading."""
    resamples = resample_patients(len(patient_names(scores)), seed)
    values = {name: estimate(ratio, resamples) for name, ratio in ratios_by_patient(scores, rule).items()}
    return Summary(
        pair=pair_name,
        cases=len(scores),
        tumor_free_cases=sum(not score.lesions for score in scores),
        lesions=sum(len(score.lesions) for score in scores),
        sensitivity={size: values[f"sensitivity {size}"] for size in (*size_names(rule.bounds_mm), ALL_SIZES)},
        false_positives_per_scan=values[FALSE_POSITIVES],
        false_positives_in_host=values[FALSE_POSITIVES_IN_HOST],
        false_positive_ml_per_scan=values[FALSE_POSITIVE_ML],
        patient_sensitivity=values[PATIENT_SENSITIVITY],
        patient_specificity=values[PATIENT_SPECIFICITY],
        auroc=_auroc(readings_with_probability(scores), resamples),
        dice=values[DICE],
        surface_dice=values[SURFACE_DICE],
        host_dice=values[HOST_DICE],
        froc=_froc(scores, rule, resamples),
    )


def _froc(scores: Sequence[CaseScore], rule: Rule, resamples: Weights) -> tuple[FrocPoint, ...]:
    curve = curve_by_patient(scores, rule)
    if not curve.scans.sum():
        return ()
    sizes = (*size_names(rule.bounds_mm), ALL_SIZES)
    return tuple(
        FrocPoint(
            threshold,
            float(curve.false_positives[:, at].sum() / curve.scans.sum()),
            {
                name: estimate(Ratio(curve.found[:, at, size], curve.lesions[:, size], "share"), resamples)
                for size, name in enumerate(sizes)
            },
        )
        for at, threshold in enumerate(THRESHOLDS)
    )


def _auroc(readings: Readings, resamples: Weights) -> Estimate:
    """Compare the highest probability of patients with tumors with that of patients without.

    If all resamples agree, for example when the two groups do not overlap, Wilson's interval for the smaller group is
    used instead, as if each of its readings were compared with one of the other group; that is cautious.
    """
    smaller = int(min(readings.has_tumor.sum(), (~readings.has_tumor).sum()))
    if not smaller:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(roc_auc_score(readings.has_tumor, readings.probability))
    low_high = bound(value, smaller, _weighted_auroc(readings, resamples), "share")
    return low_high._replace(count=len(readings.patients))


def _weighted_auroc(readings: Readings, weights: Weights) -> Values:
    """Compute the share of pairs, one reading with and one without a tumor, in which the first is the more probable."""
    ill, well = readings.has_tumor, ~readings.has_tumor
    ahead = np.sign(readings.probability[ill, None] - readings.probability[None, well]) / 2 + 0.5  # a tie is a half
    of_ill, of_well = weights[:, readings.patients[ill]], weights[:, readings.patients[well]]
    pairs = of_ill.sum(1) * of_well.sum(1)
    won = ((of_ill @ ahead) * of_well).sum(1)
    return np.divide(won, pairs, out=np.full(len(weights), math.nan), where=pairs > 0)
