"""Summaries and comparisons of many cases: values counted by hand, intervals and p-values by what they must satisfy."""

import math
import time
from itertools import chain

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from nnunetv2_freetumor.evaluation.comparison import Rate, compare_at, compare_models, gap, sensitivity_at
from nnunetv2_freetumor.evaluation.patients import readings_with_probability
from nnunetv2_freetumor.evaluation.resampling import Ratio, estimate, resample_patients
from nnunetv2_freetumor.evaluation.scores import (
    ALL_SIZES,
    THRESHOLDS,
    CaseScore,
    Difference,
    Estimate,
    PredictedLesion,
    ReferenceLesion,
    Rule,
    Sweep,
)
from nnunetv2_freetumor.evaluation.summary import _weighted_auroc, summarize_pair

RULE = Rule()
SIZES = ("<10 mm", "10-20 mm", "20-50 mm", ">=50 mm")
ANYWHERE = (0, 0, 0)


def case(name, lesions=(), alarms_ml=(), patient=None, dice=0.5, probability=math.nan, sweep=None):
    """Return a case with (diameter in mm, found) lesions and false positives of some ml."""
    return CaseScore(
        case=name,
        patient=patient or name,
        pair="liver tumor",
        dice=dice,
        surface_dice=dice,
        host_dice=0.9,
        lesions=tuple(
            ReferenceLesion(number, ANYWHERE, float(mm), 1.0, bool(found), 0.5 * found, 0.6 * found, 0.5, 1.0)
            for number, (mm, found) in enumerate(lesions, start=1)
        ),
        predictions=tuple(
            PredictedLesion(number, ANYWHERE, 5.0, float(ml), "false positive", math.nan)
            for number, ml in enumerate(alarms_ml, start=1)
        ),
        probability=probability,
        sweep=sweep,
    )


ALARMS = ("false positives per scan", "false positives per scan in the organ")


def sweep(found, false_positives, size=0, in_host=0):
    """Return counts for the thresholds from the highest to the lowest; what is missing repeats the last one.

    Of the false positives `in_host` lie on the organ, where there are so many.
    """
    counts = np.zeros((len(THRESHOLDS), 4), int)
    rest = len(THRESHOLDS) - len(found)
    counts[:, size] = [*found, *[found[-1]] * rest][::-1]
    alarms = np.array([*false_positives, *[false_positives[-1]] * rest][::-1])
    return Sweep(counts, alarms, np.minimum(alarms, in_host).astype(float))


def random_cases(patients, chance, seed, alarms=1.0, prefix="p"):
    rng = np.random.default_rng(seed)
    return [
        case(
            f"{prefix}{index}",
            [(mm, rng.random() < chance) for mm in rng.uniform(3, 40, rng.integers(0, 6))],
            [0.5] * int(rng.poisson(alarms)),
            dice=float(rng.random()),
            probability=float(rng.random()),
            sweep=sweep(np.sort(rng.integers(0, 3, 11)), np.sort(rng.integers(0, 5, 11))),
        )
        for index in range(patients)
    ]


def same(first, second):
    return first == pytest.approx(second, nan_ok=True)


# values


def test_a_summary_counts_lesions_false_positives_and_patients():
    scores = [
        case("a", [(5, True), (5, False), (15, True)], [0.2]),
        case("b", [(5, False), (60, False)]),
        case("c", alarms_ml=[1.0, 3.0], dice=0.0),
        case("d", dice=math.nan),
        case("e", dice=math.nan),
    ]
    summary = summarize_pair("liver tumor", scores, RULE)
    assert (summary.cases, summary.tumor_free_cases, summary.lesions) == (5, 3, 5)
    assert [summary.sensitivity[size].value for size in SIZES[:2]] == [1 / 3, 1]
    assert [summary.sensitivity[size].count for size in (*SIZES, ALL_SIZES)] == [3, 1, 0, 1, 5]
    assert summary.sensitivity[ALL_SIZES].value == 0.4
    assert summary.false_positives_per_scan.value == 3 / 5 and summary.false_positives_per_scan.count == 5
    assert summary.false_positive_ml_per_scan.value == pytest.approx(4.2 / 5)
    assert (summary.patient_sensitivity.value, summary.patient_sensitivity.count) == (0.5, 2)
    assert (summary.patient_specificity.value, summary.patient_specificity.count) == (2 / 3, 3)
    assert summary.dice.value == 0.5 and summary.dice.count == 2  # of the scans with tumors
    assert summary.host_dice.value == pytest.approx(0.9) and summary.host_dice.count == 5
    assert summary.froc == () and summary.auroc.count == 0


def test_a_size_class_without_lesions_has_no_sensitivity():
    summary = summarize_pair("liver tumor", [case("a", [(5, True)])], RULE)
    assert same(tuple(summary.sensitivity[">=50 mm"]), (math.nan, math.nan, math.nan, 0))


def test_the_sizes_are_those_of_the_rule():
    summary = summarize_pair("liver tumor", [case("a", [(5, True), (30, False)])], Rule(bounds_mm=(30.0,)))
    assert {name: value.count for name, value in summary.sensitivity.items()} == {"<30 mm": 1, ">=30 mm": 1, "all": 2}


def test_all_cases_of_a_patient_are_one_patient():
    scores = [
        case("a1", [(5, False)], patient="a"),
        case("a2", [(5, True)], patient="a"),
        case("b1", patient="b"),
        case("b2", alarms_ml=[1.0], patient="b"),
        case("c1", patient="c"),
        case("c2", [(5, False)], patient="c"),
    ]
    summary = summarize_pair("liver tumor", scores, RULE)
    assert (summary.patient_sensitivity.value, summary.patient_sensitivity.count) == (0.5, 2)
    assert (summary.patient_specificity.value, summary.patient_specificity.count) == (0.0, 1)


def test_a_case_read_twice_counts_as_two_readings_of_one_patient():
    readings = [case("a", [(5, True)]), case("a", [(5, False)]), case("b"), case("b", alarms_ml=[1.0])]
    summary = summarize_pair("liver tumor", readings, RULE)
    assert (summary.patient_sensitivity.value, summary.patient_sensitivity.count) == (0.5, 2)
    assert (summary.patient_specificity.value, summary.patient_specificity.count) == (0.5, 2)
    assert (summary.sensitivity[ALL_SIZES].value, summary.sensitivity[ALL_SIZES].count) == (0.5, 2)


def test_the_auroc_is_that_of_the_highest_probability_of_each_patient():
    scores = random_cases(30, 0.5, seed=4)
    scores.append(case("later", patient="p3", probability=0.99))
    readings = readings_with_probability(scores)
    assert len(readings.patients) == 30  # the later case joins the first reading of its patient
    summary = summarize_pair("liver tumor", scores, RULE)
    assert summary.auroc.value == roc_auc_score(readings.has_tumor, readings.probability)
    assert summary.auroc.low < summary.auroc.value < summary.auroc.high and summary.auroc.count == 30


def test_the_auroc_of_separated_groups_is_1_with_an_interval_and_of_one_group_it_does_not_exist():
    ill = [case(f"i{index}", [(5, True)], probability=0.8) for index in range(10)]
    well = [case(f"w{index}", probability=0.2) for index in range(20)]
    auroc = summarize_pair("liver tumor", ill + well, RULE).auroc
    assert auroc.value == auroc.high == 1.0 and 0.7 < auroc.low < 0.75  # Wilson's of 10 of 10
    assert same(tuple(summarize_pair("liver tumor", ill, RULE).auroc), (math.nan, math.nan, math.nan, 0))


def test_the_auroc_of_a_resample_is_that_of_its_weighted_patients():
    readings = readings_with_probability(random_cases(30, 0.5, seed=10) + random_cases(30, 0.5, seed=11))
    weights = resample_patients(30, 1)[:20]
    expected = [
        roc_auc_score(readings.has_tumor, readings.probability, sample_weight=row[readings.patients]) for row in weights
    ]
    assert _weighted_auroc(readings, weights) == pytest.approx(np.array(expected))


def test_ties_of_probability_are_half_a_win():
    scores = [case(f"i{index}", [(5, True)], probability=0.5) for index in range(4)]
    scores += [case(f"w{index}", probability=0.5) for index in range(4)]
    assert summarize_pair("liver tumor", scores, RULE).auroc.value == 0.5


def test_the_froc_has_a_point_for_each_threshold_over_the_cases_with_probabilities():
    with_sweep = case("a", [(5, True), (5, False)], sweep=sweep([0, 1, 2], [0, 0, 4]))
    summary = summarize_pair("liver tumor", [with_sweep, case("b", [(5, True)])], RULE)
    assert [point.threshold for point in summary.froc] == list(THRESHOLDS)
    assert [point.false_positives_per_scan for point in summary.froc] == [4] * 9 + [0, 0]
    assert [point.sensitivity["<10 mm"].value for point in summary.froc] == [1.0] * 9 + [0.5, 0.0]
    assert summary.froc[0].sensitivity[ALL_SIZES].count == 2


# intervals


def test_the_interval_of_independent_patients_is_close_to_the_binomial_one():
    scores = [case(f"p{index}", [(5, index < 60)]) for index in range(100)]
    found = summarize_pair("liver tumor", scores, RULE).sensitivity[ALL_SIZES]
    error = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert found.value == 0.6
    assert found.low == pytest.approx(0.6 - error, abs=0.02) and found.high == pytest.approx(0.6 + error, abs=0.02)


def test_lesions_of_one_patient_widen_the_interval():
    single = [case(f"p{index}", [(5, index % 2)]) for index in range(60)]
    grouped = [case(f"p{index}", [(5, index % 2)], patient=f"g{index % 6}") for index in range(60)]
    narrow, wide = (summarize_pair("liver tumor", scores, RULE).sensitivity[ALL_SIZES] for scores in (single, grouped))
    assert narrow.value == wide.value == 0.5
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_nine_in_ten_intervals_hold_the_true_share():
    rng = np.random.default_rng(0)
    resamples = resample_patients(60, 0)
    shares = (rng.random((300, 60)) < 0.7).astype(float)
    estimates = [estimate(Ratio(share, np.ones(60), "share"), resamples) for share in shares]
    assert 0.90 <= np.mean([interval.low <= 0.7 <= interval.high for interval in estimates]) <= 0.98


@pytest.mark.parametrize("found, share", [(True, 1.0), (False, 0.0)])
def test_where_all_or_none_are_found_the_interval_is_wilson_s(found, share):
    scores = [case(f"p{index}", [(5, found)]) for index in range(20)]
    interval = stats.binomtest(20 * found, 20).proportion_ci(method="wilson")
    summary = summarize_pair("liver tumor", scores, RULE)
    assert summary.sensitivity[ALL_SIZES] == Estimate(share, interval.low, interval.high, 20)
    assert summary.patient_sensitivity == Estimate(share, interval.low, interval.high, 20)


def test_without_any_false_positive_the_rate_has_the_poisson_interval():
    rate = summarize_pair("liver tumor", [case(f"p{index}") for index in range(10)], RULE).false_positives_per_scan
    assert (rate.value, rate.low) == (0, 0)
    assert rate.high == pytest.approx(-math.log(0.025) / 10)


def test_one_patient_has_wilson_s_interval_for_lesions_and_none_for_a_mean():
    summary = summarize_pair("liver tumor", [case("a", [(5, True), (6, True), (7, False)])], RULE)
    interval = stats.binomtest(2, 3).proportion_ci(method="wilson")
    assert summary.sensitivity[ALL_SIZES] == Estimate(2 / 3, interval.low, interval.high, 3)
    assert summary.dice.value == 0.5 and math.isnan(summary.dice.low) and math.isnan(summary.dice.high)


def test_the_same_seed_gives_the_same_intervals():
    scores = random_cases(20, 0.5, seed=1)
    first, again, other = (summarize_pair("liver tumor", scores, RULE, seed).dice for seed in (3, 3, 4))
    assert first == again and first != other


# two models


def test_a_model_does_not_differ_from_itself():
    scores = random_cases(20, 0.5, seed=2)
    differences = compare_models(scores, scores, RULE)
    assert set(differences) == {
        *(f"sensitivity {size}" for size in (*SIZES, ALL_SIZES)),
        *ALARMS,
        *("dice", "surface dice", "patient sensitivity", "patient specificity"),
    }
    for name, difference in differences.items():
        if difference.count:
            assert difference[:4] == (0, 0, 0, 1), name
    assert compare_at([scores], [scores], Rate(1.0), RULE)[:4] == (0, 0, 0, 1)


def test_all_against_nothing_with_twelve_patients_is_unlikely_to_be_chance():
    ours = [case(f"p{index}", [(5, True)]) for index in range(12)]
    other = [case(f"p{index}", [(5, False)]) for index in range(12)]
    difference = compare_models(ours, other, RULE)["sensitivity all"]
    assert difference == Difference(1.0, 1.0, 1.0, 2 / 2**12, 12)


def test_swapping_the_models_changes_the_sign_and_nothing_else():
    ours, other = random_cases(10, 0.7, seed=3), random_cases(10, 0.4, seed=3)
    there, back = compare_models(ours, other, RULE), compare_models(other, ours, RULE)
    for name in there:
        mirrored = (-there[name].value, -there[name].high, -there[name].low, there[name].p, there[name].count)
        assert same(tuple(back[name]), mirrored), name


def test_p_values_equal_those_of_scipy():
    ours, other = random_cases(10, 0.8, seed=5), random_cases(10, 0.5, seed=5, alarms=3.0)
    alarms = [[float(len(score.predictions)) for score in scores] for scores in (ours, other)]
    expected = stats.permutation_test(
        alarms, lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", vectorized=True
    )
    difference = compare_models(ours, other, RULE)["false positives per scan"]
    assert difference.value == pytest.approx(expected.statistic) and difference.p == pytest.approx(expected.pvalue)


def test_many_patients_are_swapped_at_random_and_p_is_never_0():
    ours = [case(f"p{index}", [(5, True)]) for index in range(40)]
    other = [case(f"p{index}", [(5, False)]) for index in range(40)]
    assert 0 < compare_models(ours, other, RULE)["sensitivity all"].p < 0.001


def test_models_are_compared_over_the_cases_that_both_have():
    ours = [case("a", [(5, True)]), case("b", [(5, True)]), case("only ours", [(5, True)])]
    other = [case("only theirs", [(5, False)]), case("b", [(5, False)]), case("a", [(5, True)], patient="renamed")]
    difference = compare_models(ours, other, RULE)["sensitivity <10 mm"]
    assert (difference.value, difference.count) == (0.5, 2)


def test_the_other_model_s_patients_are_ours_whatever_it_calls_them():
    ours, other = random_cases(8, 0.7, seed=9), random_cases(8, 0.4, seed=9)
    renamed = [score._replace(patient=f"q{7 - index}") for index, score in enumerate(other)]
    assert same(*(list(chain(*compare_models(ours, them, RULE).values())) for them in (other, renamed)))


def test_dice_is_compared_over_scans_with_tumors_whatever_is_predicted_in_the_others():
    ours = [case("a", [(5, True)], dice=0.8), case("b", dice=math.nan)]
    other = [case("a", [(5, True)], dice=0.6), case("b", dice=0.0)]
    difference = compare_models(ours, other, RULE)["dice"]
    assert difference.value == pytest.approx(0.2) and difference.count == 1


def test_models_without_a_common_case_are_refused():
    with pytest.raises(
        ValueError, match=r"no case in common: a \.\.\. against b \.\.\.\. Give predictions of the same cases"
    ):
        compare_models([case("a")], [case("b")], RULE)


def test_what_no_case_has_is_not_compared():
    difference = compare_models([case("a", [(5, True)])], [case("a", [(5, False)])], RULE)
    assert same(tuple(difference["sensitivity >=50 mm"]), (math.nan,) * 4 + (0,))
    assert difference["sensitivity all"].p == 1 and math.isnan(difference["sensitivity all"].low)


# matched false positives


def test_sensitivity_at_a_rate_of_false_positives_lies_on_the_line_between_two_thresholds():
    scores = [case("a", [(5, True)] * 4, sweep=sweep([0, 1, 3], [0, 1, 3]))]
    rates = (0.0, 0.5, 1.0, 2.0, 3.0, 99.0)
    assert [sensitivity_at([scores], Rate(rate), RULE).value for rate in rates] == [0, 0.125, 0.25, 0.5, 0.75, 0.75]
    assert sensitivity_at([scores], Rate(2.0, "<10 mm"), RULE).count == 4
    assert sensitivity_at([scores], Rate(2.0, "10-20 mm"), RULE).count == 0


def test_below_the_first_false_positives_the_curve_starts_at_nothing():
    scores = [case("a", [(5, True)] * 4, sweep=sweep([2], [4]))]
    assert [sensitivity_at([scores], Rate(rate), RULE).value for rate in (0, 2, 4)] == [0, 0.25, 0.5]


def test_a_lower_threshold_that_finds_less_does_not_take_back_what_was_found():
    scores = [case("a", [(5, True)] * 4, sweep=sweep([1, 3, 2], [0, 1, 2]))]
    assert [sensitivity_at([scores], Rate(rate), RULE).value for rate in (1, 2)] == [0.75, 0.75]


def test_false_positives_off_the_organ_can_be_left_out_of_the_rate():
    scores = [case("a", [(5, True)] * 4, sweep=sweep([1, 4], [1, 4], in_host=1))]
    assert sensitivity_at([scores], Rate(1.0), RULE).value == 0.25
    assert sensitivity_at([scores], Rate(1.0, in_host=True), RULE).value == 1.0


def test_of_the_false_positives_those_with_half_of_their_voxels_on_the_organ_are_on_it():
    score = case("a", alarms_ml=[1] * 4)
    alarms = [alarm._replace(in_host=share) for alarm, share in zip(score.predictions, (1.0, 0.5, 0.49, 0.0))]
    summary = summarize_pair("p", [score._replace(predictions=tuple(alarms))], RULE)
    assert (summary.false_positives_per_scan.value, summary.false_positives_in_host.value) == (4, 2)


def test_without_an_organ_label_nothing_is_said_of_false_positives_on_the_organ():
    counts = sweep([1, 4], [1, 4])
    scores = [
        case("a", [(5, True)] * 4, sweep=counts._replace(false_positives_in_host=np.full(len(THRESHOLDS), np.nan)))
    ]
    assert math.isnan(sensitivity_at([scores], Rate(1.0, in_host=True), RULE).value)
    assert sensitivity_at([scores], Rate(1.0), RULE).value == 0.25


def test_each_training_has_its_own_threshold_and_their_mean_counts():
    # pooled at one threshold, the second training would spend all false positives of both
    first = [case(f"p{index}", [(5, True)] * 4, sweep=sweep([0, 4], [0, 1])) for index in range(8)]
    second = [case(f"p{index}", [(5, True)] * 4, sweep=sweep([0, 2], [0, 1])) for index in range(8)]
    both = sensitivity_at([first, second], Rate(1.0), RULE)
    assert (both.value, both.count) == (0.75, 32)
    assert sensitivity_at([first + second], Rate(1.0), RULE).value == 0.75
    noisy = [case(f"p{index}", [(5, True)] * 4, sweep=sweep([4], [3])) for index in range(8)]
    assert sensitivity_at([first, noisy], Rate(1.0), RULE).value == pytest.approx((1 + 1 / 3) / 2)
    assert sensitivity_at([first + noisy], Rate(1.0), RULE).value == pytest.approx(1 / 3)
    assert compare_at([first, second], [first, first], Rate(1.0), RULE).value == -0.25


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="no size class 'tiny'. Choose one of <10 mm, 10-20 mm"):
        sensitivity_at([[case("a")]], Rate(1.0, "tiny"), RULE)


def test_models_are_compared_at_their_own_thresholds():
    # the other model finds as much, but only where it raises twice as many false alarms
    ours = [case(f"p{index}", [(5, True)] * 4, sweep=sweep([0, 4], [0, 2])) for index in range(8)]
    other = [case(f"p{index}", [(5, True)] * 4, sweep=sweep([0, 4], [0, 4])) for index in range(8)]
    difference = compare_at([ours], [other], Rate(2.0, "<10 mm"), RULE)
    assert difference == Difference(0.5, 0.5, 0.5, 2 / 2**8, 32)
    assert compare_at([ours], [other], Rate(4.0), RULE).value == 0


def test_without_probabilities_there_is_nothing_to_match():
    scores = [case("a", [(5, True)])]
    assert same(tuple(sensitivity_at([scores], Rate(1.0), RULE)), (math.nan, math.nan, math.nan, 0))
    assert same(tuple(compare_at([scores], [scores], Rate(1.0), RULE)), (math.nan,) * 4 + (0,))


# two cohorts


def test_the_gap_is_what_the_external_cohort_loses():
    internal, external = random_cases(40, 0.9, seed=6), random_cases(40, 0.5, seed=7, alarms=2.0, prefix="x")
    differences = gap(internal, external, RULE)
    assert set(differences) == {*(f"sensitivity {s}" for s in (*SIZES, ALL_SIZES)), *ALARMS}
    found, alarms = differences["sensitivity all"], differences["false positives per scan"]
    values = [summarize_pair("liver tumor", scores, RULE).sensitivity["all"].value for scores in (internal, external)]
    assert found.value == pytest.approx(values[1] - values[0])
    assert found.low < found.value < found.high < 0 < alarms.low < alarms.high
    assert math.isnan(found.p) and alarms.count == 40


def test_the_gap_between_two_perfect_cohorts_has_an_interval():
    cohorts = [[case(f"{name}{index}", [(5, True)]) for index in range(20)] for name in "ix"]
    found = gap(*cohorts, RULE)["sensitivity all"]
    wilson = stats.binomtest(20, 20).proportion_ci(method="wilson").low
    assert (found.value, found.low, found.high) == pytest.approx((0, wilson - 1, 1 - wilson))


def test_a_hundred_patients_take_seconds_at_most():
    scores = random_cases(100, 0.5, seed=8)
    start = time.perf_counter()
    summarize_pair("liver tumor", scores, RULE)
    compare_models(scores, scores, RULE)
    compare_at([scores], [scores], Rate(1.0), RULE)
    assert time.perf_counter() - start < 10
