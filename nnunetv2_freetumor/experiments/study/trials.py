"""Run the study's trials: nnU-Net trains, nnU-Net predicts the test cases, every lesion is scored.

Each trial leaves a folder with its logs, its predictions and `run.json`; a trial that has one is not run again.
"""

import json
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_freetumor.evaluation.command import score_files
from nnunetv2_freetumor.evaluation.inputs import Labels, open_cohort
from nnunetv2_freetumor.evaluation.scores import CaseScore, PredictedLesion, ReferenceLesion, Rule, Sweep
from nnunetv2_freetumor.experiments.steps import end_process, last_lines, program
from nnunetv2_freetumor.files.cases import check_writable, write_json

DONE = "run.json"
RULE = Rule(bounds_mm=(10.0, 20.0))


class Place(NamedTuple):
    """Where a study lies, and what its trials share."""

    root: Path
    dataset: str  # full name
    configuration: str
    device: str
    mirroring: bool  # at test time
    images: Path
    references: Path
    labels: Labels
    environment: dict[str, str]  # of nnU-Net's commands


class Trial(NamedTuple):
    """One arm in one setting with one seed."""

    arm: str
    trainer: str  # empty for the arm without learning
    plans: str
    setting: str
    seed: int
    fold: int
    after: str = ""  # name of the trial whose network this one needs

    @property
    def name(self) -> str:
        """Name the trial's folder."""
        return trial_name(self.setting, self.arm, self.seed)


def trial_name(setting: str, arm: str, seed: int) -> str:
    """Name a trial's folder."""
    return f"{setting.replace(' ', '_')}/{arm}/seed_{seed}"


def run_trials(
    place: Place,
    trials: Sequence[Trial],
    run: Callable[[Place, Trial], float],
    pool: Executor,
    jobs: int,
    hours: float | None,
    after_each: Callable[[], object],
) -> list[Trial]:
    """Run what is not done yet, and give back what no time is left for.

    Args:
        run: runs one trial and gives its seconds.
        pool: where the trials run.
        jobs: how many at a time.
        hours: start no trial that would likely end later; None: run all.
        after_each: called when a trial is done.

    Raises:
        ValueError: a command failed; the text has the end of its log. Other trials that run are finished first.
    """
    start, waiting = time.monotonic(), [trial for trial in trials if not is_done(place, trial)]
    taken = [seconds(place, trial) for trial in trials if trial.trainer and is_done(place, trial)]
    total, running = len(waiting), dict[Future[float], Trial]()
    while waiting or running:
        while len(running) < jobs and fits(time.monotonic() - start, taken, hours):
            trial = next((t for t in waiting if not t.after or is_finished(place, t.after)), None)
            if trial is None:
                break
            waiting.remove(trial)
            running[pool.submit(run, place, trial)] = trial
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            trial = running.pop(future)
            taken += [future.result()] if trial.trainer else []
            print(f"[{total - len(waiting) - len(running)}/{total}] {trial.name}: {future.result():.0f} s", flush=True)
            after_each()
    return waiting


def fits(elapsed_s: float, taken_s: Sequence[float], hours: float | None) -> bool:
    """Tell whether one more trial would likely end in time."""
    return hours is None or elapsed_s + (median(taken_s) if taken_s else 0.0) <= 3600 * hours


def run_trial(place: Place, trial: Trial) -> float:
    """Train, predict and score one trial, and return its seconds; a training that was stopped goes on.

    Raises:
        ValueError: a command failed; the text has the end of its log.
    """
    start, folder = time.monotonic(), check_writable(place.root / "runs" / trial.name)
    if not (_model(place, trial) / "checkpoint_final.pth").is_file():
        _call(place, folder / "train.log", _train_command(place, trial))
    predictions = folder / "predictions"
    _call(place, folder / "predict.log", _predict_command(place, trial, predictions))
    save_scores(place, trial, score_predictions(place, predictions), time.monotonic() - start)
    for file in (*predictions.glob("*.npz"), *predictions.glob("*.pkl")):
        file.unlink()  # large, and what the study needs of them has been read
    shutil.rmtree(_model(place, trial) / "validation", ignore_errors=True)
    return seconds(place, trial)


def score_predictions(place: Place, predictions: Path) -> list[CaseScore]:
    """Score a folder of predictions of the test cases."""
    cohort = open_cohort(place.references, predictions, place.labels)
    return [score for files in cohort.files for score in score_files(files, place.labels, RULE)]


def save_scores(place: Place, trial: Trial, scores: Sequence[CaseScore], taken_s: float) -> None:
    """Note a trial as done."""
    folder = check_writable(place.root / "runs" / trial.name)
    write_json({"seconds": taken_s, "scores": scores_to_json(scores)}, folder / DONE)


def load_scores(place: Place, trial: Trial) -> list[CaseScore]:
    """Read what a finished trial scored."""
    return scores_from_json(_note(place, trial)["scores"])


def seconds(place: Place, trial: Trial) -> float:
    """Tell how long a finished trial took."""
    return _note(place, trial)["seconds"]


def is_done(place: Place, trial: Trial) -> bool:
    """Tell whether a trial was finished by an earlier call."""
    return is_finished(place, trial.name)


def is_finished(place: Place, name: str) -> bool:
    """Tell whether the trial of this name was finished."""
    return (place.root / "runs" / name / DONE).is_file()


def _note(place: Place, trial: Trial) -> dict:
    return json.loads((place.root / "runs" / trial.name / DONE).read_text(encoding="utf-8"))


def _model(place: Place, trial: Trial) -> Path:
    name = f"{trial.trainer}__{trial.plans}__{place.configuration}"
    return Path(place.environment["nnUNet_results"]) / place.dataset / name / f"fold_{trial.fold}"


def _train_command(place: Place, trial: Trial) -> list[str]:
    words = ["nnUNetv2_train", place.dataset, place.configuration, str(trial.fold), "-tr", trial.trainer]
    more = ["--c"] if (_model(place, trial) / "checkpoint_latest.pth").is_file() else []
    return [*words, "-p", trial.plans, "-device", place.device, *more]


def _predict_command(place: Place, trial: Trial, output: Path) -> list[str]:
    words = ["nnUNetv2_predict", "-i", str(place.images), "-o", str(output), "-d", place.dataset]
    words += ["-c", place.configuration, "-f", str(trial.fold), "-tr", trial.trainer, "-p", trial.plans]
    words += [] if place.mirroring else ["--disable_tta", "-step_size", "0.75"]
    return [*words, "-npp", "1", "-nps", "1", "--save_probabilities", "-device", place.device]


def _call(place: Place, log: Path, words: list[str]) -> None:
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [*program(words[0]), *words[1:]], stdout=stream, stderr=subprocess.STDOUT, env=place.environment
        )
        try:
            process.wait()
        finally:
            end_process(process)
    if process.returncode:
        raise ValueError(
            f"'{' '.join(words)}' ended with code {process.returncode}. The end of {log}:\n{last_lines(log)}"
        )


def scores_to_json(scores: Sequence[CaseScore]) -> list[dict[str, Any]]:
    """Turn scores into what `json.dump` takes; NaN becomes null."""
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
    """Read what `to_json` wrote."""
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
