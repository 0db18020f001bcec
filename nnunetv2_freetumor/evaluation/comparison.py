"""Compare two models on the same patients, or one model on two cohorts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_freetumor.evaluation.patients import (
    DICE,
    FALSE_POSITIVES,
    FALSE_POSITIVES_IN_HOST,
    PATIENT_SENSITIVITY,
    PATIENT_SPECIFICITY,
    SURFACE_DICE,
    Curve,
    curve_by_patient,
    number_readings,
    patient_names,
    ratios_by_patient,
)
from nnunetv2_freetumor.evaluation.resampling import (
    Values,
    Weights,
    bound,
    estimate,
    everyone,
    paired_difference,
    resample_patients,
    swap,
    unpaired_difference,
)
from nnunetv2_freetumor.evaluation.scores import ALL_SIZES, CaseScore, Difference, Estimate, Rule, size_names

Scores = Sequence[CaseScore]


def compare_models(ours: Scores, other: Scores, rule: Rule, seed: int = 0) -> dict[str, Difference]:
    """Subtract the other model's values from ours, by name, over the cases that both have.

    The k-th reading of a case is compared with the k-th of the other model.
    """
    ours, other = _pair_up(ours, other)
    patients = len(patient_names(ours))
    resamples, swaps = resample_patients(patients, seed), swap(patients, seed)
    mine, others = ratios_by_patient(ours, rule), ratios_by_patient(other, rule)
    names = (*_names_for_cohorts(rule), DICE, SURFACE_DICE, PATIENT_SENSITIVITY, PATIENT_SPECIFICITY)
    return {
        name: paired_difference(
            mine[name].followed_by(others[name]).at, resamples, swaps, round(float(mine[name].bottom.sum()))
        )
        for name in names
    }


def gap(internal: Scores, external: Scores, rule: Rule, seed: int = 0) -> dict[str, Difference]:
    """Subtract a model's values on internal cases from those on external cases, by name."""
    inside, outside = ratios_by_patient(internal, rule), ratios_by_patient(external, rule)
    inner, outer = (
        resample_patients(len(patient_names(internal)), seed),
        resample_patients(len(patient_names(external)), seed + 1),
    )
    return {
        name: unpaired_difference(estimate(inside[name], inner), estimate(outside[name], outer))
        for name in _names_for_cohorts(rule)
    }


class Rate(NamedTuple):
    """The number of false positives per scan at which sensitivity is read off, and for which lesions."""

    false_positives_per_scan: float
    size_name: str = ALL_SIZES
    in_host: bool = False  # count the false positives on the organ only


def sensitivity_at(runs: Sequence[Scores], rate: Rate, rule: Rule, seed: int = 0) -> Estimate:
    """Compute the sensitivity at a rate of false positives, read off the curve as `Curve.sensitivity_at` says.

    Each of the runs (trainings that predicted the same patients) has its own threshold; their mean counts.
    """
    curves = [curve_by_patient(scores, rule) for scores in runs]
    patients = len(curves[0].scans)
    value = float(_mean_sensitivity(curves, everyone(patients), rate, rule)[0])
    resampled = _mean_sensitivity(curves, resample_patients(patients, seed), rate, rule)
    return bound(value, _lesions(curves[0], rate, rule), resampled, "share")


def compare_at(ours: Sequence[Scores], others: Sequence[Scores], rate: Rate, rule: Rule, seed: int = 0) -> Difference:
    """Subtract the other model's sensitivity at a rate of false positives from ours, run by run.

    Each run has its own threshold, which is determined anew in every resample and every swap.
    """
    pairs = [_pair_up(*both) for both in zip(ours, others)]
    mine = [curve_by_patient(first, rule) for first, _ in pairs]
    both = [curve.followed_by(curve_by_patient(second, rule)) for curve, (_, second) in zip(mine, pairs)]
    patients = len(mine[0].scans)
    return paired_difference(
        lambda weights: _mean_sensitivity(both, weights, rate, rule),
        resample_patients(patients, seed),
        swap(patients, seed),
        _lesions(mine[0], rate, rule),
    )


def _mean_sensitivity(curves: Sequence[Curve], weights: Weights, rate: Rate, rule: Rule) -> Values:
    size, (wanted, _, in_host) = _size(rule, rate.size_name), rate
    return np.mean([curve.sensitivity_at(weights, wanted, size, in_host) for curve in curves], axis=0)


def _lesions(curve: Curve, rate: Rate, rule: Rule) -> int:
    return round(float(curve.lesions[:, _size(rule, rate.size_name)].sum()))


def _names_for_cohorts(rule: Rule) -> tuple[str, ...]:
    return (
        *(f"sensitivity {name}" for name in (*size_names(rule.bounds_mm), ALL_SIZES)),
        FALSE_POSITIVES,
        FALSE_POSITIVES_IN_HOST,
    )


def _size(rule: Rule, size_name: str) -> int:
    names = (*size_names(rule.bounds_mm), ALL_SIZES)
    if size_name not in names:
        raise ValueError(f"There is no size class '{size_name}'. Choose one of {', '.join(names)}.")
    return names.index(size_name)


def _pair_up(ours: Scores, other: Scores) -> tuple[list[CaseScore], list[CaseScore]]:
    """Keep the readings that both have, in the same order and with the same patients."""
    mine, others = ({key: score for key, score in zip(_keys(scores), scores)} for scores in (ours, other))
    both = sorted(mine.keys() & others.keys())
    if not both:
        named = (f"{min((score.case for score in scores), default='nothing')} ..." for scores in (ours, other))
        raise ValueError(
            f"The two models have no case in common: {' against '.join(named)}. Give predictions of the same cases."
        )
    return [mine[key] for key in both], [others[key]._replace(patient=mine[key].patient) for key in both]


def _keys(scores: Scores) -> list[tuple[str, int]]:
    return [(score.case, number) for score, number in zip(scores, number_readings(scores))]
