"""The study's runner: what is done is not done again, the budget holds, the commands are nnU-Net's own."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_freetumor.evaluation.inputs import Labels
from nnunetv2_freetumor.evaluation.scores import CaseScore, Pair, PredictedLesion, ReferenceLesion, Sweep
from nnunetv2_freetumor.experiments import steps
from nnunetv2_freetumor.experiments.study import trials as study_trials
from nnunetv2_freetumor.experiments.study.trials import HeldOutCases, StudyContext, Trial

SCORE = CaseScore(
    case="test_000",
    patient="test_000",
    pair="tumor",
    dice=0.5,
    surface_dice=math.nan,
    host_dice=0.9,
    lesions=(ReferenceLesion(1, (3, 4, 5), 12.5, 1.0, False, 0.0, 0.0, 0.0, math.nan),),
    predictions=(PredictedLesion(1, (1, 2, 3), 8.0, 0.3, "false positive", 0.7, 0.25),),
    probability=0.7,
    sweep=Sweep(np.arange(6).reshape(2, 3), np.array([4, 1]), np.array([2, 0])),
)


@pytest.fixture
def context(tmp_path):
    """Make a study's context; nothing in it can be trained."""
    labels = Labels((Pair("tumor", (2,), (1,)),), frozenset({0, 1, 2}), None, ".nii.gz", ((0,), (1,), (2,)))
    environment = {"nnUNet_results": str(tmp_path / "results")}
    return StudyContext(
        tmp_path, "Dataset001_A", "3d_fullres", "cpu", False, HeldOutCases(Path("im"), Path("la"), labels), environment
    )


def trials(count):
    """List trials that differ in their seed."""
    return [Trial("texture", "Trainer", "freetumor_study_texture", "4 labeled", seed, seed) for seed in range(count)]


def pretend(context, trial):
    """Note a trial as done, as a run does, without training."""
    study_trials.save_scores(context, trial, [SCORE], 60.0)
    return 60.0


def fail(context, trial):
    """Fail as a run does whose command failed."""
    raise ValueError("'nnUNetv2_train' ended with code 1")


def run(context, wanted, hours=None, function=pretend, jobs=1):
    """Run trials; return what is left and how often a report was written."""
    reports = []
    with ThreadPoolExecutor(jobs) as executor:
        left = study_trials.run_trials(context, wanted, function, executor, jobs, hours, lambda: reports.append(1))
    return left, len(reports)


def test_every_trial_is_run_once_and_reported(context):
    assert run(context, trials(3), jobs=2) == ([], 3)
    assert run(context, trials(3)) == ([], 0)
    assert run(context, trials(4)) == ([], 1)


def test_no_trial_starts_that_would_end_after_the_budget(context):
    run(context, trials(1))
    left, _ = run(context, trials(3), hours=30 / 3600)  # a trial takes 60 s
    assert [trial.seed for trial in left] == [1, 2]


def test_the_first_trial_runs_whatever_it_takes(context):
    left, _ = run(context, trials(3), hours=0.001)
    assert len(left) == 2


def test_a_judged_trial_waits_until_its_judge_has_been_trained(context):
    started, looked = [], threading.Event()

    def slow(context, trial):
        started.append((trial.arm, study_trials.is_finished(context, "4_labeled/real/seed_0")))
        if trial.arm == "texture":
            looked.set()
        assert trial.arm != "real" or looked.wait(60)
        return pretend(context, trial)

    real = trials(1)[0]._replace(arm="real")
    judged = trials(1)[0]._replace(arm="texture_judged", after=real.name)
    other = trials(1)[0]
    assert run(context, [judged, real, other], function=slow, jobs=2) == ([], 3)
    assert sorted(started) == [("real", False), ("texture", False), ("texture_judged", True)]


def test_a_failed_command_ends_the_study_with_its_text(context):
    with pytest.raises(ValueError, match="ended with code 1"):
        run(context, trials(2), function=fail)


def test_scores_survive_the_file(context):
    pretend(context, trials(1)[0])
    (read,) = study_trials.load_scores(context, trials(1)[0])
    assert np.array_equal(read.sweep.found, SCORE.sweep.found)
    assert math.isnan(read.surface_dice) and math.isnan(read.lesions[0].surface_distance_mm)
    assert study_trials.scores_to_json([read]) == study_trials.scores_to_json([SCORE])


def test_the_commands_are_what_a_user_would_type(context):
    (trial,) = trials(1)
    assert " ".join(study_trials._train_command(context, trial)) == (
        "nnUNetv2_train Dataset001_A 3d_fullres 0 -tr Trainer -p freetumor_study_texture -device cpu"
    )
    assert " ".join(study_trials._predict_command(context, trial, Path("out"))) == (
        "nnUNetv2_predict -i im -o out -d Dataset001_A -c 3d_fullres -f 0 -tr Trainer -p freetumor_study_texture "
        "--disable_tta -step_size 0.75 -npp 1 -nps 1 --save_probabilities -device cpu"
    )


def test_a_stopped_training_goes_on_from_its_checkpoint(context):
    (trial,) = trials(1)
    model = study_trials._model(context, trial)
    model.mkdir(parents=True)
    (model / "checkpoint_latest.pth").touch()
    assert study_trials._train_command(context, trial)[-1] == "--c"


def test_a_failed_command_shows_the_end_of_its_log(context, tmp_path):
    with pytest.raises(ValueError, match=r"nnUNetv2_train --nonsense' ended with code .*train.log:\n"):
        steps.call(["nnUNetv2_train", "--nonsense"], tmp_path / "train.log", context.environment)
