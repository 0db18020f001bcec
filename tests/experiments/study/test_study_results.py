"""The study's table and figure: seeds together, gains over the baseline with the same seeds, gaps shown as gaps."""

import json
import math

import numpy as np
import pytest

from nnunetv2_freetumor.evaluation.scores import (
    ALL_SIZES,
    THRESHOLDS,
    CaseScore,
    PredictedLesion,
    ReferenceLesion,
    Rule,
    Sweep,
)
from nnunetv2_freetumor.experiments.study import figure, results
from nnunetv2_freetumor.experiments.study.results import ArmScores

RULE = Rule(bounds_mm=(10.0, 20.0))
CASES = 8


def case(number, found, alarms=0):
    """Score one case with two lesions of 15 mm, of which the first `found` are found at any threshold."""
    sweep = Sweep(
        np.zeros((len(THRESHOLDS), 3), int), np.full(len(THRESHOLDS), alarms), np.full(len(THRESHOLDS), alarms // 2)
    )
    sweep.found[:, 1] = found
    lesions = tuple(ReferenceLesion(i + 1, (1, 1, 1), 15.0, 1.8, i < found, 0.5, 0.6, 0.6, 1.0) for i in range(2))
    predictions = (PredictedLesion(1, (1, 1, 1), 5.0, 0.1, "false positive", 0.9, 0.0),) * alarms
    name = f"test_{number}"
    return CaseScore(name, name, "tumor", 0.5, 0.5, 0.9, lesions, predictions, 0.9, sweep)


def arm_scores(found, seeds=(0, 1), alarms=0, title="an arm"):
    """Score the same cases for each seed."""
    return ArmScores(title, {seed: [case(number, found, alarms) for number in range(CASES)] for seed in seeds})


SCORES = {
    ("4 labeled", "real"): arm_scores(1, seeds=(0, 1, 2), title="real only"),
    ("4 labeled", "texture"): arm_scores(2, alarms=1, title="texture"),
    ("label-free", "texture"): arm_scores(2, seeds=(0,), title="texture"),
}


def test_a_result_sums_up_the_seeds_and_keeps_each_of_them():
    real, texture, _ = results.arm_results(SCORES, RULE)
    assert real.seeds == (0, 1, 2) and real.anywhere.by_seed == (0.5, 0.5, 0.5)
    assert real.anywhere.by_size[ALL_SIZES].value == 0.5 and real.anywhere.by_size[ALL_SIZES].count == 2 * CASES
    assert math.isnan(real.anywhere.by_size["<10 mm"].value)
    assert texture.predicted.false_positives.value == 1.0 and texture.anywhere.by_size["10-20 mm"].value == 1.0


def test_the_gain_is_over_the_baseline_of_the_same_setting_and_seeds():
    real, texture, label_free = results.arm_results(SCORES, RULE)
    assert real.anywhere.gain is None and label_free.anywhere.gain is None
    assert texture.anywhere.gain.value == 0.5 and texture.anywhere.gain.p < 0.05
    assert texture.anywhere.gain.count == 2 * CASES


def test_an_ablation_is_compared_with_its_own_baseline():
    scores = {("4 labeled", "texture"): arm_scores(2), ("4 labeled", "share_low"): arm_scores(1)}
    base, changed = results.arm_results(scores, RULE, "texture")
    assert base.anywhere.gain is None and changed.anywhere.gain.value == -0.5
    assert "over texture" in results.markdown_table([base, changed], "texture")


def test_the_table_has_a_line_for_each_row_and_a_dash_for_what_does_not_exist():
    lines = results.markdown_table(results.arm_results(SCORES, RULE)).splitlines()
    assert len(lines) == 2 + 3 and len({line.count("|") for line in lines}) == 1
    assert "| 50, 50, 50 | - | 50 % (28-72) | 50, 50, 50 | - | - | 50 % | 50 % | 0.0 | 0.0 |" in lines[2]


def test_the_results_are_strict_json():
    rows = results.results_to_json(results.arm_results(SCORES, RULE))
    text = json.dumps(rows, allow_nan=False)
    assert json.loads(text)[0]["matched"]["<10 mm"]["value"] is None


def test_the_figure_is_a_picture_and_nothing_is_plotted_of_nothing(tmp_path):
    figure.plot_study(results.arm_results(SCORES, RULE), tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes()[:4] == b"\x89PNG"
    figure.plot_study([], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


@pytest.mark.parametrize("rows", [[], results.arm_results(SCORES, RULE)])
def test_a_study_without_results_has_a_table_too(rows):
    assert results.markdown_table(rows).startswith("| training labels | arm |")
