"""Run the study's trials: nnU-Net trains and predicts the test cases, and every lesion is scored.

Each trial leaves a folder with its logs, its predictions and, once it is complete, `run.json`.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_freetumor.evaluation.inputs import Labels, open_cohort
from nnunetv2_freetumor.evaluation.scores import CaseScore, PredictedLesion, ReferenceLesion, Rule, Sweep
from nnunetv2_freetumor.evaluation.volumes import score_files
from nnunetv2_freetumor.experiments.steps import call
from nnunetv2_freetumor.files.cases import check_writable, write_json

_DONE = "run.json"
RULE = Rule(bounds_mm=(10.0, 20.0))


class HeldOutCases(NamedTuple):
    """The test cases, which no training sees."""

    images: Path
    references: Path
    labels: Labels


class StudyContext(NamedTuple):
    """The study's folder, and what all its trials share."""

    root: Path
    dataset: str  # full name
    configuration: str
    device: str
    mirroring: bool  # at test time
    test: HeldOutCases
    environment: dict[str, str]  # of nnU-Net's commands


class Trial(NamedTuple):
    """One training to be scored: one arm on the cases of one fold, that is, of one setting with one seed."""

    arm: str
    trainer: str  # empty for the arm without learning
    plans: str
    setting: str
    seed: int
    fold: int
    after: str = ""  # name of the trial whose network this one needs

    @property
    def name(self) -> str:
        """Return the name of the trial's folder."""
        return trial_name(self.setting, self.arm, self.seed)


def trial_name(setting: str, arm: str, seed: int) -> str:
    """Return the name of a trial's folder."""
    return f"{setting.replace(' ', '_')}/{arm}/seed_{seed}"


def run_trials(
    context: StudyContext,
    trials: Sequence[Trial],
    run: Callable[[StudyContext, Trial], float],
    executor: Executor,
    jobs: int,
    hours: float | None,
    after_each: Callable[[], object],
) -> list[Trial]:
    """Run the trials that are not finished yet, and return those that no time is left for.

    Args:
        run: runs one trial and returns its seconds.
        executor: runs the trials.
        jobs: how many at a time.
        hours: start no trial that would likely end later; None: run all.
        after_each: called after each trial.

    Raises:
        ValueError: a command failed; the text has the end of its log. Trials that are running are finished first.
    """
    start, waiting = time.monotonic(), [trial for trial in trials if not is_finished(context, trial.name)]
    taken = [seconds(context, trial) for trial in trials if trial.trainer and is_finished(context, trial.name)]
    total, running = len(waiting), dict[Future[float], Trial]()
    while waiting or running:
        while len(running) < jobs and fits(time.monotonic() - start, taken, hours):
            trial = next((t for t in waiting if not t.after or is_finished(context, t.after)), None)
            if trial is None:
                break
            waiting.remove(trial)
            running[executor.submit(run, context, trial)] = trial
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            trial = running.pop(future)
            taken += [future.result()] if trial.trainer else []
            print(f"[{total - len(waiting) - len(running)}/{total}] {trial.name}: {future.result():.0f} s", flush=True)
            after_each()
    return waiting


def fits(elapsed_s: float, taken_s: Sequence[float], hours: float | None) -> bool:
    """Return whether one more trial would likely end in time."""
    return hours is None or elapsed_s + (median(taken_s) if taken_s else 0.0) <= 3600 * hours


def run_trial(context: StudyContext, trial: Trial) -> float:
    """Train, predict and score one trial, and return its seconds; a stopped training is continued.

    Raises:
        ValueError: a command failed; the text has the end of its log.
    """
    start, folder = time.monotonic(), check_writable(context.root / "runs" / trial.name)
    if not (_model(context, trial) / "checkpoint_final.pth").is_file():
        call(_train_command(context, trial), folder / "train.log", environment=context.environment)
    predictions = folder / "predictions"
    call(_predict_command(context, trial, predictions), folder / "predict.log", environment=context.environment)
    save_scores(context, trial, score_predictions(context, predictions), time.monotonic() - start)
    for file in (*predictions.glob("*.npz"), *predictions.glob("*.pkl")):
        file.unlink()  # large, and no longer needed
    shutil.rmtree(_model(context, trial) / "validation", ignore_errors=True)
    return seconds(context, trial)


def score_predictions(context: StudyContext, predictions: Path) -> list[CaseScore]:
    """Score a folder of predictions of the test cases."""
    cohort = open_cohort(context.test.references, predictions, context.test.labels)
    return [score for files in cohort.files for score in score_files(files, context.test.labels, RULE)]


def save_scores(context: StudyContext, trial: Trial, scores: Sequence[CaseScore], taken_s: float) -> None:
    """Write a trial's scores, which marks it as done."""
    folder = check_writable(context.root / "runs" / trial.name)
    write_json({"seconds": taken_s, "scores": scores_to_json(scores)}, folder / _DONE)


def load_scores(context: StudyContext, trial: Trial) -> list[CaseScore]:
    """Read the scores of a finished trial."""
    return scores_from_json(_note(context, trial)["scores"])


def seconds(context: StudyContext, trial: Trial) -> float:
    """Read how long a finished trial took."""
    return _note(context, trial)["seconds"]


def is_finished(context: StudyContext, name: str) -> bool:
    """Return whether the trial of this name is finished."""
    return (context.root / "runs" / name / _DONE).is_file()


def _note(context: StudyContext, trial: Trial) -> dict:
    return json.loads((context.root / "runs" / trial.name / _DONE).read_text(encoding="utf-8"))


def _model(context: StudyContext, trial: Trial) -> Path:
    name = f"{trial.trainer}__{trial.plans}__{context.configuration}"
    return Path(context.environment["nnUNet_results"]) / context.dataset / name / f"fold_{trial.fold}"


def _train_command(context: StudyContext, trial: Trial) -> list[str]:
    words = ["nnUNetv2_train", context.dataset, context.configuration, str(trial.fold), "-tr", trial.trainer]
    more = ["--c"] if (_model(context, trial) / "checkpoint_latest.pth").is_file() else []
    return [*words, "-p", trial.plans, "-device", context.device, *more]


def _predict_command(context: StudyContext, trial: Trial, output: Path) -> list[str]:
    words = ["nnUNetv2_predict", "-i", str(context.test.images), "-o", str(output), "-d", context.dataset]
    words += ["-c", context.configuration, "-f", str(trial.fold), "-tr", trial.trainer, "-p", trial.plans]
    words += [] if context.mirroring else ["--disable_tta", "-step_size", "0.75"]
    return [*words, "-npp", "1", "-nps", "1", "--save_probabilities", "-device", context.device]


def scores_to_json(scores: Sequence[CaseScore]) -> list[dict[str, Any]]:
    """Convert scores for `json.dump`; NaN becomes null."""
    return [
        _without_nan(score._asdict())
        | {
            "lesions": [_without_nan(lesion._asdict()) for lesion in score.lesions],
            "predictions": [_without_nan(lesion._asdict()) for lesion in score.predictions],
            "sweep": None if score.sweep is None else [part.tolist() for part in score.sweep],
        }
        for score in scores
    ]


def scores_from_json(data: Sequence[dict[str, Any]]) -> list[CaseScore]:
    """Convert back what `scores_to_json` returned."""
    return [
        CaseScore(
            **_with_nan(item)
            | {
                "lesions": tuple(_lesion(ReferenceLesion, lesion) for lesion in item["lesions"]),
                "predictions": tuple(_lesion(PredictedLesion, lesion) for lesion in item["predictions"]),
                "sweep": None if item["sweep"] is None else Sweep(*(np.array(part) for part in item["sweep"])),
            }
        )
        for item in data
    ]


def _lesion(kind: Any, data: dict[str, Any]) -> Any:
    return kind(**_with_nan(data) | {"center": tuple(data["center"])})


def _without_nan(data: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in data.items()}


def _with_nan(data: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in data.items()}
