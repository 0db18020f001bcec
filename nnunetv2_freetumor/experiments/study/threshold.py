"""The study's arm without learning: thresholding inside the organ, given the reference organ mask of every case."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from nnunetv2_freetumor.evaluation.case_scores import score_case
from nnunetv2_freetumor.evaluation.scores import CaseScore, Pair
from nnunetv2_freetumor.experiments.study.design import Run
from nnunetv2_freetumor.experiments.study.thresholding import LabeledCase, Thresholding, threshold_case, tune
from nnunetv2_freetumor.experiments.study.trials import RULE, Place, Trial, save_scores, seconds
from nnunetv2_freetumor.files.cases import Case, read_case, read_label

TITLE = "thresholding inside the given organ, no learning"


class Loaded(NamedTuple):
    """One raw case."""

    name: str
    image: Case
    label: Integer[np.ndarray, "z y x"]


def run_threshold(place: Place, trial: Trial, run: Run) -> float:
    """Tune the threshold on the run's training cases, apply it to the test cases, and return the seconds taken."""
    start, raw = time.monotonic(), place.images.parent
    training = list(_load(raw / "imagesTr", raw / "labelsTr", place, run.training))
    tuned = {pair: tune([_labeled(case, pair) for case in training]) for pair in place.labels.pairs}
    scores = [
        _score(case, pair, settings, place)
        for case in _load(place.images, place.references, place, None)
        for pair, settings in tuned.items()
    ]
    save_scores(place, trial, scores, time.monotonic() - start)
    return seconds(place, trial)


def _load(images: Path, labels: Path, place: Place, names: tuple[str, ...] | None) -> Iterator[Loaded]:
    ending = place.labels.file_ending
    for path in sorted(labels.glob(f"*{ending}")):
        name = path.name.removesuffix(ending)
        if names is None or name in names:
            label = read_label(path).array.astype(np.int32)
            yield Loaded(name, read_case(images / f"{name}_0000{ending}"), label)


def _host(label: Integer[np.ndarray, "z y x"], pair: Pair) -> Bool[np.ndarray, "z y x"]:
    return np.isin(label, (*pair.host, *pair.tumor))


def _labeled(case: Loaded, pair: Pair) -> LabeledCase:
    tumor = np.isin(case.label, pair.tumor)
    return LabeledCase(case.image.array, _host(case.label, pair), tumor, case.image.spacing_mm)


def _score(case: Loaded, pair: Pair, settings: Thresholding, place: Place) -> CaseScore:
    host, spacing_mm = _host(case.label, pair), case.image.spacing_mm
    found = threshold_case(case.image.array, host, spacing_mm, settings)
    prediction = np.where(found.prediction, pair.tumor[0], 0).astype(np.int32)
    return score_case(
        case.name, case.name, pair, case.label, prediction, spacing_mm, RULE, found.probability, place.labels.ignore
    )
