"""Compare two models on the same patients, or one model on two cohorts."""

from collections.abc import Sequence

from nnunetv2_freetumor.patients import (
    DICE,
    FALSE_POSITIVES,
    PATIENT_SENSITIVITY,
    PATIENT_SPECIFICITY,
    SURFACE_DICE,
    curve_by_patient,
    number_readings,
    patient_names,
    ratios_by_patient,
)
from nnunetv2_freetumor.resampling import (
    bound,
    estimate,
    everyone,
    paired_difference,
    resample,
    swap,
    unpaired_difference,
)
from nnunetv2_freetumor.scores import ALL_SIZES, CaseScore, Difference, Estimate, Rule, size_names

Scores = Sequence[CaseScore]


def compare(ours: Scores, other: Scores, rule: Rule, seed: int = 0) -> dict[str, Difference]:
    """Subtract the other model's values from ours, by name, over the cases that both have.

    The k-th reading of a case is compared with the k-th of the other model.
    """
    ours, other = _pair_up(ours, other)
    patients = len(patient_names(ours))
    resamples, swaps = resample(patients, seed), swap(patients, seed)
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
    inner, outer = resample(len(patient_names(internal)), seed), resample(len(patient_names(external)), seed + 1)
    return {
        name: unpaired_difference(estimate(inside[name], inner), estimate(outside[name], outer))
        for name in _names_for_cohorts(rule)
    }


def sensitivity_at(
    scores: Scores, false_positives_per_scan: float, rule: Rule, size_name: str = ALL_SIZES, seed: int = 0
) -> Estimate:
    """Give the sensitivity at a rate of false positives, read off the curve as `Curve.sensitivity_at` says."""
    curve, size = curve_by_patient(scores, rule), _size(rule, size_name)
    patients = len(curve.scans)
    value = float(curve.sensitivity_at(everyone(patients), false_positives_per_scan, size)[0])
    resampled = curve.sensitivity_at(resample(patients, seed), false_positives_per_scan, size)
    return bound(value, round(float(curve.lesions[:, size].sum())), resampled, "share")


def compare_at(
    ours: Scores,
    other: Scores,
    false_positives_per_scan: float,
    rule: Rule,
    size_name: str = ALL_SIZES,
    seed: int = 0,
) -> Difference:
    """Subtract the other model's sensitivity from ours, each at its own threshold for a rate of false positives.

    In every resample and every swap both models find their thresholds anew.
    """
    ours, other = _pair_up(ours, other)
    mine, others = curve_by_patient(ours, rule), curve_by_patient(other, rule)
    size, both = _size(rule, size_name), mine.followed_by(others)
    return paired_difference(
        lambda weights: both.sensitivity_at(weights, false_positives_per_scan, size),
        resample(len(mine.scans), seed),
        swap(len(mine.scans), seed),
        round(float(mine.lesions[:, size].sum())),
    )


def _names_for_cohorts(rule: Rule) -> tuple[str, ...]:
    return *(f"sensitivity {name}" for name in (*size_names(rule.bounds_mm), ALL_SIZES)), FALSE_POSITIVES


def _size(rule: Rule, size_name: str) -> int:
    names = (*size_names(rule.bounds_mm), ALL_SIZES)
    if size_name not in names:
        raise ValueError(f"there is no size class '{size_name}'; choose one of {', '.join(names)}")
    return names.index(size_name)


def _pair_up(ours: Scores, other: Scores) -> tuple[list[CaseScore], list[CaseScore]]:
    """Keep the readings that both have, in the same order and under the same patient's name."""
    mine, others = ({key: score for key, score in zip(_keys(scores), scores)} for scores in (ours, other))
    both = sorted(mine.keys() & others.keys())
    if not both:
        named = (f"{min((score.case for score in scores), default='nothing')} ..." for scores in (ours, other))
        raise ValueError(f"the two models share no case: {' against '.join(named)}; give predictions of the same cases")
    return [mine[key] for key in both], [others[key]._replace(patient=mine[key].patient) for key in both]


def _keys(scores: Scores) -> list[tuple[str, int]]:
    return [(score.case, number) for score, number in zip(scores, number_readings(scores))]
