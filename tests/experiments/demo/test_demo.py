"""The demo: its steps, its coarse configuration, its page, and the whole run."""

import inspect
import json
import re
from pathlib import Path

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_freetumor.experiments import steps
from nnunetv2_freetumor.experiments.demo import command, report, trainer
from nnunetv2_freetumor.experiments.phantom.cohort import write_cohort
from nnunetv2_freetumor.experiments.steps import (
    COARSE_FEATURES,
    Runner,
    Step,
    add_coarse_configuration,
    program,
    progress,
)
from nnunetv2_freetumor.pages.slices import cohort_figure
from nnunetv2_freetumor.startup import EXT_TRAINER, VARIABLE

ROOT = Path(__file__).parents[3]


def test_finished_steps_are_skipped_until_one_is_new_or_has_changed(tmp_path):
    ran = []

    def three(second):
        return [Step(n, n, c, lambda n=n: ran.append(n)) for n, c in (("one", "1"), ("two", second), ("three", "3"))]

    for second in ("2", "2", "2 changed"):
        runner = Runner(tmp_path, {}, 3)
        for step in three(second):
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
    add_coarse_configuration(path, COARSE_FEATURES)
    changed = json.loads(path.read_text())["configurations"]
    assert changed["3d_fullres"] == plans["configurations"]["3d_fullres"]
    coarse = changed["3d_coarse"]
    assert coarse["inherits_from"] == "3d_fullres" and coarse["architecture"]["arch_kwargs"]["conv_bias"]
    assert len(coarse["architecture"]["arch_kwargs"]["strides"]) == coarse["architecture"]["arch_kwargs"]["n_stages"]


def _evaluation():
    """Return one pair of evaluation.json: a case with a found and a missed lesion and a false positive, one without."""
    estimate = {"value": 0.5, "low": 0.1, "high": 0.9, "count": 2}
    missing = {"value": None, "low": None, "high": None, "count": 0}
    alarm = [{"kind": "false positive"}, {"kind": "true positive"}, {"kind": "touching"}]
    cases = [
        {"case": "a<b", "host_dice": 0.9, "dice": None, "lesions": [], "predictions": []},
        {"case": "c", "host_dice": 0.7, "dice": 0.6, "lesions": [{"found": True}, {"found": False}]},
    ]
    summary = {
        "host_dice": estimate | {"value": 0.8},
        "dice": estimate | {"value": 0.6},
        "sensitivity": {"<10 mm": estimate, ">=10 mm": missing},
    }
    cases[1]["predictions"] = alarm
    return {"cases": {"predictions": cases}, "summaries": {"predictions": summary}}


def test_the_page_needs_no_other_file_and_says_what_it_is_not(tmp_path):
    write_cohort(tmp_path / "raw", 1, seed=3, test_cases=1, pixel_mm=(4.0, 4.0), slice_mm=(8.0, 8.0))
    case = tmp_path / "raw" / "labelsTs" / "phantom_001.nii.gz"
    picture = tmp_path / "picture.png"
    images = sorted((tmp_path / "raw" / "imagesTr").glob("*.nii.gz"))
    picture.write_bytes(cohort_figure(images, tmp_path / "raw" / "labelsTr"))
    contents = report.Contents(
        evaluation=report.PairEvaluation(_evaluation(), rule={"min_iou": 0.1}, folder="evaluation"),
        scans=report.Scans(
            training=images, test=tmp_path / "raw" / "imagesTs", references=case.parent, predictions=case.parent
        ),
        planting=report.PlantingPictures(preview=picture, first_batch=tmp_path / "not there.png", curve=picture),
        steps=[("plan", "nnUNetv2_plan", 30.0), ("train", "nnUNetv2_train", 90.0)],
        prior_sources=["9 measured tumors"],
    )
    page = report.write_report(contents, tmp_path / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"src=['\"](.{10})", page)) == {"data:image"}
    assert re.findall(r"href=['\"](.*?)['\"]", page) == ["evaluation/evaluation.html"]
    assert "found <b>1 of 2</b> tumors, with 1 false positive." in page and "took 2.0 minutes" in page
    assert "nothing about how well it works on patients" in page and "a&lt;b" in page
    assert "<td>mean, total</td><td class=number>0.80</td><td class=number>0.60</td>" in page
    assert "<td>&lt;10 mm</td><td class=number>2</td><td class=number>0.50 [0.10, 0.90]</td>" in page
    assert "<td>&gt;=10 mm</td><td class=number>0</td><td class=number>-</td>" in page


def test_the_demos_trainer_is_found_and_as_long_as_the_progress_bar_says(monkeypatch):
    assert f"= {command.EPOCHS}, " in inspect.getsource(getattr(trainer, command.DEMO_TRAINER).initialize)
    monkeypatch.setenv(VARIABLE, EXT_TRAINER)
    assert recursive_find_trainer_class_by_name(command.DEMO_TRAINER) is getattr(trainer, command.DEMO_TRAINER)


def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="-device must be cpu or cuda, but it is 'tpu'"):
        command.demo_command(tmp_path, "tpu")
    assert not any(tmp_path.iterdir())


SHORT_TRAINER = """
from nnunetv2_freetumor.experiments.demo.trainer import nnUNetTrainerFreeTumor_demo


class nnUNetTrainerFreeTumor_shorter(nnUNetTrainerFreeTumor_demo):
    def initialize(self):
        super().initialize()
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 3, 1
"""
SHORT = {
    "DEMO_TRAINER": "nnUNetTrainerFreeTumor_shorter",
    "EPOCHS": 1,
    "_TRAINING_CASES": 5,
    "_TEST_CASES": 1,
    "_PIXEL_MM": (3.0, 3.0),
    "_SLICE_MM": (6.0, 6.0),
    "COARSE_FEATURES": [4, 8, 8],
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
        monkeypatch.setattr(command, name, value)
    monkeypatch.setattr(steps, "COARSE", SHORT["COARSE"])
    output = tmp_path / "a folder"
    command.demo_command(output, "cpu")
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == str(output / "report.html")
    assert (output / "evaluation" / "evaluation.html").is_file() and (output / "evaluation" / "lesions.csv").is_file()
    assert list(output.glob("nnUNet_results/*/*/fold_0/validation/freetumor_evaluation/evaluation.json"))
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "nnUNetv2_train 900 3d_coarse 0 -tr nnUNetTrainerFreeTumor_shorter" in page
    assert "generator lite_phantom" in (output / "steps" / "train.log").read_text(encoding="utf-8")
    command.demo_command(output, "cpu")
    assert capsys.readouterr().out.count("done in an earlier run") == 10
