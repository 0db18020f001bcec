"""The demo: its scores counted by hand, its steps, its coarse configuration, its page, and the whole run."""

import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_freetumor import demo, demo_trainer, report
from nnunetv2_freetumor.demo_scores import CaseScore, LesionScore, SizeRow, rows_by_size, score_case
from nnunetv2_freetumor.demo_steps import Runner, Step, program, progress
from nnunetv2_freetumor.phantom_cohort import write_cohort
from nnunetv2_freetumor.report_figures import cohort_figure

ROOT = Path(__file__).parent.parent


def test_a_case_is_scored_as_counted_by_hand():
    reference = np.zeros((3, 10, 10), dtype=np.uint8)
    reference[1, :8, :] = 1
    reference[1, 1, 1:5] = 2  # four voxels, one of them predicted
    reference[1, 4, 4:6] = 2  # two voxels, missed
    prediction = np.zeros_like(reference)
    prediction[1, :, :] = 1
    prediction[1, 1, 1] = 2
    prediction[1, 7, 7:9] = 2  # touches no tumor
    prediction[2, 9, 0] = 2  # touches none either
    score = score_case("hand", reference, prediction, (1.0, 1.0, 1.0))
    assert score.organ_dice == pytest.approx(2 * 80 / (80 + 101))
    assert score.tumor_dice == pytest.approx(2 * 1 / (6 + 4))
    assert [lesion.found for lesion in score.lesions] == [True, False]
    assert score.lesions[0].diameter_mm == pytest.approx((24 / math.pi) ** (1 / 3))
    assert score.false_positives == 2


def test_a_lesion_is_found_from_a_tenth_of_its_voxels_on():
    reference = np.full((1, 1, 40), 2, dtype=np.uint8)
    prediction = np.ones_like(reference)
    prediction[..., :3] = 2
    assert not score_case("few", reference, prediction, (1.0, 1.0, 1.0)).lesions[0].found
    prediction[..., :4] = 2
    assert score_case("tenth", reference, prediction, (1.0, 1.0, 1.0)).lesions[0].found


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    reference = np.zeros((2, 2, 2), dtype=np.uint8)
    reference[0, 0, 0] = reference[1, 1, 1] = 2
    assert len(score_case("corner", reference, reference, (1.0, 1.0, 1.0)).lesions) == 1


def test_a_case_without_tumor_has_no_tumor_dice_and_only_false_positives():
    reference = np.ones((2, 4, 4), dtype=np.uint8)
    prediction = reference.copy()
    assert math.isnan(score_case("free", reference, prediction, (1.0, 1.0, 1.0)).tumor_dice)
    prediction[0, 0, 0] = 2
    score = score_case("alarm", reference, prediction, (1.0, 1.0, 1.0))
    assert (score.tumor_dice, score.lesions, score.false_positives) == (0.0, (), 1)


def test_lesions_are_counted_by_size_over_all_cases():
    scores = [
        CaseScore("a", 1.0, 1.0, (LesionScore(8.0, False), LesionScore(15.0, True)), 0),
        CaseScore("b", 1.0, 1.0, (LesionScore(10.0, False), LesionScore(60.0, True)), 0),
    ]
    assert rows_by_size(scores) == [
        SizeRow("<10 mm", 1, 0),
        SizeRow("10-20 mm", 2, 1),
        SizeRow("20-50 mm", 0, 0),
        SizeRow(">=50 mm", 1, 1),
    ]


def test_finished_steps_are_skipped_until_one_is_new_or_has_changed(tmp_path):
    ran = []

    def steps(second):
        return [Step(n, n, c, lambda n=n: ran.append(n)) for n, c in (("one", "1"), ("two", second), ("three", "3"))]

    for second in ("2", "2", "2 changed"):
        runner = Runner(tmp_path, {}, 3)
        for step in steps(second):
            runner.run(step)
    assert ran == ["one", "two", "three", "two", "three"]
    assert list(runner.seconds) == ["one", "two", "three"]


def test_a_step_that_failed_is_not_finished_and_its_error_ends_its_log(tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "sick.json").write_text(json.dumps({"command": "another", "seconds": 1}))
    runner = Runner(tmp_path, {"PYTHONPATH": str(ROOT)}, 1)
    with pytest.raises(ValueError, match=r"ended with code 2\. The end of .*sick\.log:\n(.*\n)*.*invalid choice"):
        runner.run(Step("sick", "sick", "nnUNetv2_freetumor nonsense"))
    assert not (tmp_path / "steps" / "sick.json").exists()


def test_a_command_that_is_not_installed_is_named():
    with pytest.raises(ValueError, match="nnUNetv2_nonsense is not installed .* Run 'pip install nnunetv2'"):
        program("nnUNetv2_nonsense")


def test_progress_is_read_from_a_number_or_counted():
    assert progress("0/12 [00:00\r 7/12 [00:03", r"(\d+)/12 \[") == 7
    assert progress("Epoch time: 3 s\n...\nEpoch time: 4 s", "Epoch time") == 2
    assert progress("anything", "") == progress("", "Epoch time") == 0


def test_the_coarse_configuration_inherits_from_nnunets_own_with_a_smaller_network(tmp_path):
    arch = {"network_class_name": "net", "arch_kwargs": {"n_stages": 6, "conv_bias": True}}
    plans = {"configurations": {"3d_fullres": {"spacing": [1, 1, 1], "architecture": arch}}}
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(plans))
    demo.add_coarse_configuration(path)
    changed = json.loads(path.read_text())["configurations"]
    assert changed["3d_fullres"] == plans["configurations"]["3d_fullres"]
    coarse = changed["3d_coarse"]
    assert coarse["inherits_from"] == "3d_fullres" and coarse["architecture"]["arch_kwargs"]["conv_bias"]
    assert len(coarse["architecture"]["arch_kwargs"]["strides"]) == coarse["architecture"]["arch_kwargs"]["n_stages"]


def test_the_page_needs_no_other_file_and_says_what_it_is_not(tmp_path):
    write_cohort(tmp_path / "raw", 1, seed=3, test_cases=1, pixel_mm=(4.0, 4.0), slice_mm=(8.0, 8.0))
    case = tmp_path / "raw" / "labelsTs" / "phantom_001.nii.gz"
    picture = tmp_path / "picture.png"
    images = sorted((tmp_path / "raw" / "imagesTr").glob("*.nii.gz"))
    picture.write_bytes(cohort_figure(images, tmp_path / "raw" / "labelsTr"))
    contents = report.Contents(
        scores=[
            CaseScore("a<b", 0.9, math.nan, (), 0),
            CaseScore("c", 0.7, 0.5, (LesionScore(30.0, True), LesionScore(5.0, False)), 1),
        ],
        training_images=images,
        test_images=tmp_path / "raw" / "imagesTs",
        references=case.parent,
        predictions=case.parent,
        preview=picture,
        first_batch=tmp_path / "not there.png",
        curve=picture,
        steps=[("plan", "nnUNetv2_plan", 30.0), ("train", "nnUNetv2_train", 90.0)],
        prior_sources=["9 measured tumors"],
    )
    page = report.write_report(contents, tmp_path / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"(?:src|href)=['\"](.{10})", page)) == {"data:image"}
    assert "found <b>1 of 2</b> tumors, with 1 false positive." in page and "took 2.0 minutes" in page
    assert "nothing about how well it works on patients" in page and "a&lt;b" in page
    assert "<td>mean, total</td><td class=number>0.80</td><td class=number>0.50</td>" in page


def test_the_demos_trainer_is_as_long_as_the_progress_bar_says():
    assert f"= {demo.EPOCHS}, " in inspect.getsource(getattr(demo_trainer, demo.TRAINER).initialize)
    assert demo.TRAINER in demo_trainer.__all__


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"-device must be one of cpu.* on this machine, but it is 'tpu'"):
        demo.choose_device("tpu")
    assert demo.choose_device("cpu") == "cpu"


SHORT_TRAINER = """
from nnunetv2_freetumor.demo_trainer import nnUNetTrainerFreeTumor_demo


class nnUNetTrainerFreeTumor_shorter(nnUNetTrainerFreeTumor_demo):
    def initialize(self):
        super().initialize()
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 3, 1
"""
SHORT = {
    "TRAINER": "nnUNetTrainerFreeTumor_shorter",
    "EPOCHS": 1,
    "TRAINING_CASES": 5,
    "TEST_CASES": 1,
    "PIXEL_MM": (3.0, 3.0),
    "SLICE_MM": (6.0, 6.0),
    "FEATURES": [4, 8, 8],
    "COARSE": {"spacing": [8.0, 5.0, 5.0], "patch_size": [16, 32, 32], "batch_size": 2},
}


@pytest.mark.slow
def test_the_demo_runs_from_phantoms_to_a_page_and_a_second_run_repeats_nothing(tmp_path, monkeypatch, capsys):
    extra = tmp_path / "trainers"
    extra.mkdir()
    (extra / "shorter.py").write_text(SHORT_TRAINER)
    monkeypatch.setenv("nnUNet_extTrainer", str(extra))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, value in SHORT.items():
        monkeypatch.setattr(demo, name, value)
    output = tmp_path / "a folder"
    demo.demo_command(output, "cpu")
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == str(output / "report.html")
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "nnUNetv2_train 900 3d_coarse 0 -tr nnUNetTrainerFreeTumor_shorter" in page
    demo.demo_command(output, "cpu")
    assert capsys.readouterr().out.count("done in an earlier run") == 8
