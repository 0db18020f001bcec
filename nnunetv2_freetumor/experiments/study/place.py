"""Prepare what a study runs on: a phantom cohort of its own, or a dataset that nnU-Net has preprocessed."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_freetumor import startup
from nnunetv2_freetumor.evaluation.inputs import read_scored_labels
from nnunetv2_freetumor.experiments.steps import RESULTS, Runner
from nnunetv2_freetumor.experiments.steps import environment as own_environment
from nnunetv2_freetumor.experiments.study import data
from nnunetv2_freetumor.experiments.study.design import Budget
from nnunetv2_freetumor.experiments.study.trials import Place
from nnunetv2_freetumor.files.cases import check_writable


class Wish(NamedTuple):
    """What a study is to run on, as the user gave it."""

    dataset: str | None  # None: phantoms
    configuration: str
    plans_name: str


class Prepared(NamedTuple):
    """A study's data, without its test cases."""

    place: Place
    folder: Path  # preprocessed
    plans: dict[str, Any]
    test: str  # what the test cases are


def prepare(root: Path, wish: Wish, budget: Budget, device: str, jobs: int) -> Prepared:
    """Make the phantom cohort, or check the dataset.

    Raises:
        ValueError: something is missing or does not fit; the text has the way out.
    """
    environment = _environment(root, wish.dataset is None, device, jobs)
    os.environ.update(environment)
    if wish.dataset is None:
        dataset, configuration, name = data.DATASET_NAME, data.CONFIGURATION, data.PLANS
        steps = data.phantom_steps(root)
        runner = Runner(root, environment, len(steps))
        for step in steps:
            runner.run(step)
    else:
        dataset, configuration, name = wish.dataset, wish.configuration, wish.plans_name
    folder, plans, _ = data.read_prepared(dataset, name, configuration)
    raw = Path(environment["nnUNet_raw"]) / folder.name
    place = Place(
        root=root,
        dataset=folder.name,
        configuration=configuration,
        device=device,
        mirroring=budget.recipe == "nnunet",
        images=raw / "imagesTs",
        references=raw / "labelsTs",
        labels=read_scored_labels(folder / "dataset.json", folder / f"{name}.json"),
        environment=environment,
    )
    test = data.test_step(root).command if wish.dataset is None else f"{raw}/imagesTs and labelsTs"
    return Prepared(place, folder, plans, test)


def make_test_cases(prepared: Prepared, wish: Wish) -> None:
    """Make the phantom test cohort, or check that the dataset has test cases with references.

    Raises:
        ValueError: the dataset has none.
    """
    place = prepared.place
    if wish.dataset is None:
        runner = Runner(check_writable(place.root / "test"), place.environment, 1)
        return runner.run(data.test_step(place.root))
    for folder, what in ((place.images, "images"), (place.references, "label maps")):
        if not any(folder.glob(f"*{place.labels.file_ending}")):
            raise ValueError(
                f"{folder} holds no test {what}, and a study is judged on cases that no training sees. Put labeled "
                "cases that are not in imagesTr there: imagesTs/CASE_0000 and labelsTs/CASE."
            )


def _environment(root: Path, phantoms: bool, device: str, jobs: int) -> dict[str, str]:
    """Give nnU-Net's commands their folders; the study's models never mix with the user's own."""
    if phantoms:
        environment = own_environment(root)
    else:
        startup.extend()
        environment = {**os.environ, RESULTS: str(check_writable(root / RESULTS))}
    if device == "cpu":
        environment |= {"nnUNet_n_proc_DA": "1"} | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})
    return environment
