"""Prepare what a study runs on: a phantom cohort of its own, or a dataset that nnU-Net has preprocessed."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_freetumor import startup
from nnunetv2_freetumor.evaluation.inputs import read_scored_labels
from nnunetv2_freetumor.experiments.steps import COARSE_CONFIGURATION, PLANS, RESULTS, Runner
from nnunetv2_freetumor.experiments.steps import environment as own_environment
from nnunetv2_freetumor.experiments.study import data
from nnunetv2_freetumor.experiments.study.design import Budget
from nnunetv2_freetumor.experiments.study.trials import HeldOutCases, StudyContext
from nnunetv2_freetumor.files.cases import check_writable


class DatasetChoice(NamedTuple):
    """The dataset that the user asks for."""

    dataset: str | None  # None: phantoms
    configuration: str
    plans_name: str


class Prepared(NamedTuple):
    """A study's data, before its test cases exist."""

    context: StudyContext
    folder: Path  # preprocessed
    plans: dict[str, Any]
    test: str  # how the test cases are made, or where they are


def prepare_study(root: Path, choice: DatasetChoice, budget: Budget, device: str, jobs: int) -> Prepared:
    """Make the phantom cohort, or check the dataset.

    Raises:
        ValueError: something is missing or does not fit.
    """
    environment = _environment(root, choice.dataset is None, device, jobs)
    os.environ.update(environment)
    if choice.dataset is None:
        dataset, configuration, name = data.PHANTOM_DATASET, COARSE_CONFIGURATION, PLANS
        steps = data.phantom_steps(root)
        runner = Runner(root, environment, len(steps))
        for step in steps:
            runner.run(step)
    else:
        dataset, configuration, name = choice.dataset, choice.configuration, choice.plans_name
    folder, plans, _ = data.read_prepared(dataset, name, configuration)
    raw = Path(environment["nnUNet_raw"]) / folder.name
    context = StudyContext(
        root=root,
        dataset=folder.name,
        configuration=configuration,
        device=device,
        mirroring=budget.recipe == "nnunet",
        test=HeldOutCases(
            images=raw / "imagesTs",
            references=raw / "labelsTs",
            labels=read_scored_labels(folder / "dataset.json", folder / f"{name}.json"),
        ),
        environment=environment,
    )
    test = data.test_step(root).command if choice.dataset is None else f"{raw}/imagesTs and labelsTs"
    return Prepared(context, folder, plans, test)


def make_test_cases(prepared: Prepared, choice: DatasetChoice) -> None:
    """Make the phantom test cohort, or check that the dataset has test cases with references.

    Raises:
        ValueError: the dataset has none.
    """
    context = prepared.context
    if choice.dataset is None:
        runner = Runner(check_writable(context.root / "test"), context.environment, 1)
        return runner.run(data.test_step(context.root))
    for folder, what in ((context.test.images, "images"), (context.test.references, "label maps")):
        if not any(folder.glob(f"*{context.test.labels.file_ending}")):
            raise ValueError(
                f"{folder} holds no test {what}, but a study is scored on cases that no training sees. Add labeled "
                "cases that are not in imagesTr, as imagesTs/CASE_0000 and labelsTs/CASE."
            )


def _environment(root: Path, phantoms: bool, device: str, jobs: int) -> dict[str, str]:
    """Return the environment of nnU-Net's commands; the study's models never mix with the user's own."""
    if phantoms:
        environment = own_environment(root)
    else:
        startup.extend()
        environment = {**os.environ, RESULTS: str(check_writable(root / RESULTS))}
    if device == "cpu":
        environment |= {"nnUNet_n_proc_DA": "1"} | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})
    return environment
