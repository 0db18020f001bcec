"""The study's data: a phantom cohort or a prepared dataset, the cases of each fold, and the arms' plans."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_freetumor import plan
from nnunetv2_freetumor.experiments import steps
from nnunetv2_freetumor.experiments.phantom.cohort import write_cohort, write_test_cases
from nnunetv2_freetumor.experiments.steps import Step
from nnunetv2_freetumor.experiments.study.design import (
    ALL_ARMS,
    ASSIGNMENT_KEY,
    Budget,
    FoldCases,
    Setting,
    assignment_of,
    bundled,
    plans_name,
)
from nnunetv2_freetumor.files.cases import read_label, write_json
from nnunetv2_freetumor.generators.choice import choose_generators
from nnunetv2_freetumor.planning import section as planning

_NUMBER, PHANTOM_DATASET = "901", "Dataset901_PhantomStudy"
_TRAINING_CASES, _TRAINING_TUMOR_FREE_EVERY, _TRAINING_SEED = 24, 3, 11
_TEST_CASES, _TEST_TUMOR_FREE_EVERY, _TEST_SEED = 80, 4, 4711
_TEST_LESIONS, _TEST_FAMILY = (7, 10), "invading"
_CROP_MM = 15.0
_SCANNER: dict[str, Any] = {"pixel_mm": (1.3, 1.5), "slice_mm": (4.0, 5.0)}
_PATCH, _FEATURES = [24, 48, 48], [8, 16, 32, 64]  # of the small network
_VALIDATION_CASES = 2  # for nnU-Net's own validation, which decides nothing
SETTING_STRIDE = 100  # a fold is setting x 100 + seed


class TrainingCases(NamedTuple):
    """All labeled training cases, to choose from."""

    bearing: tuple[str, ...]  # with real tumors
    free: tuple[str, ...]


def phantom_steps(root: Path) -> list[Step]:
    """Return the steps that make and prepare the phantom cohort, without its test cases."""
    raw, plans_file = (
        root / steps.RAW / PHANTOM_DATASET,
        root / steps.PREPROCESSED / PHANTOM_DATASET / f"{steps.PLANS}.json",
    )
    return [
        Step(
            "cohort",
            f"make {_TRAINING_CASES} training CTs",
            f"write_cohort({PHANTOM_DATASET}, cases={_TRAINING_CASES}, seed={_TRAINING_SEED}, crop_mm={_CROP_MM})",
            lambda: write_cohort(
                raw,
                _TRAINING_CASES,
                _TRAINING_SEED,
                processes=2,
                tumor_free_every=_TRAINING_TUMOR_FREE_EVERY,
                crop_mm=_CROP_MM,
                **_SCANNER,
            ),
        ),
        Step("plan", "nnU-Net plans", f"nnUNetv2_plan_and_preprocess -d {_NUMBER} --no_pp -npfp 2"),
        Step(
            "coarse",
            "add a configuration for two cores to the plans",
            f"add_coarse_configuration({plans_file.name}): {steps.COARSE_CONFIGURATION}, patch {_PATCH}, "
            f"features {_FEATURES}",
            lambda: steps.add_coarse_configuration(plans_file, _FEATURES, patch_size=_PATCH),
        ),
        Step("freetumor", "write the freetumor section", f"nnUNetv2_freetumor plan -d {_NUMBER}"),
        Step(
            "preprocess",
            "nnU-Net preprocesses",
            f"nnUNetv2_preprocess -d {_NUMBER} -c {steps.COARSE_CONFIGURATION} -np 2",
        ),
    ]


def test_step(root: Path) -> Step:
    """Return the step that makes the test cohort, with tumors of a growth family that no training case has."""
    raw = root / steps.RAW / PHANTOM_DATASET
    return Step(
        "test",
        f"make {_TEST_CASES} test CTs of the growth family '{_TEST_FAMILY}'",
        f"write_test_cases({PHANTOM_DATASET}, cases={_TEST_CASES}, seed={_TEST_SEED}, family={_TEST_FAMILY})",
        lambda: write_test_cases(
            raw,
            _TEST_CASES,
            _TEST_SEED,
            processes=2,
            lesions=_TEST_LESIONS,
            tumor_free_every=_TEST_TUMOR_FREE_EVERY,
            crop_mm=_CROP_MM,
            family=_TEST_FAMILY,
            **_SCANNER,
        ),
    )


def read_training_cases(labels: Path, file_ending: str, tumor_labels: Sequence[int]) -> TrainingCases:
    """Sort the training cases by their label maps into those with tumors and those without.

    Raises:
        ValueError: the folder holds no label map.
    """
    files = sorted(labels.glob(f"*{file_ending}"))
    if not files:
        raise ValueError(f"{labels} holds no label map (*{file_ending}). Run nnU-Net's preprocessing first.")
    bearing = {file: bool(np.isin(read_label(file).array, tumor_labels).any()) for file in files}
    names = {file: file.name.removesuffix(file_ending) for file in files}
    return TrainingCases(
        tuple(name for file, name in names.items() if bearing[file]),
        tuple(name for file, name in names.items() if not bearing[file]),
    )


def choose_cases(labeled: TrainingCases, settings: Sequence[Setting], seeds: int) -> tuple[FoldCases, ...]:
    """Choose the cases of each fold: a quarter of them tumor-free, or all in a label-free setting.

    Raises:
        ValueError: there are too few cases for a setting.
    """
    return tuple(
        _choose_fold(labeled, setting, SETTING_STRIDE * index + seed, seed)
        for index, setting in enumerate(settings)
        for seed in range(seeds)
    )


def _choose_fold(labeled: TrainingCases, setting: Setting, fold: int, seed: int) -> FoldCases:
    rng = np.random.default_rng((seed, setting.cases, setting.label_free))
    bearing, free = rng.permutation(labeled.bearing).tolist(), rng.permutation(labeled.free).tolist()
    healthy = setting.cases if setting.label_free else min(setting.cases // 4, len(free))
    sick = setting.cases - healthy
    rest = bearing[sick:] + free[healthy:]
    if len(free) < healthy or len(bearing) < sick or not rest:
        raise ValueError(
            f"The setting '{setting.name}' needs {sick} training cases with tumors, {healthy} without, and one more to "
            f"validate on, but the dataset has {len(bearing)} and {len(free)}. Lower --labeled or --label-free-cases."
        )
    return FoldCases(
        fold=fold,
        setting=setting.name,
        seed=seed,
        training=tuple(sorted(bearing[:sick] + free[:healthy])),
        validation=tuple(sorted((bearing[sick:][:1] + free[healthy:][:1] + rest)[:_VALIDATION_CASES])),
    )


def arm_plans(plans: dict[str, Any], budget: Budget, folds: tuple[FoldCases, ...]) -> dict[str, dict[str, Any]]:
    """Derive each arm's plans from the dataset's; they share its preprocessed data."""
    section = bundled(plan.read_section(plans[plan.SECTION]))
    made = {}
    for name, arm in ALL_ARMS.items():
        made[name] = json.loads(json.dumps(plans)) | {
            "plans_name": plans_name(name),
            plan.SECTION: plan.to_json(arm.change(section)),
            ASSIGNMENT_KEY: plan.to_json(assignment_of(arm, budget, folds)),
        }
    return made


def servable(plans: dict[str, Any], arms: Sequence[str], asked: bool) -> list[str]:
    """Leave out arms whose generator does not serve the dataset's targets, with a note.

    Raises:
        ValueError: such an arm was asked for.
    """
    section, kept = bundled(plan.read_section(plans[plan.SECTION])), []
    for arm in arms:
        try:
            if arm in ALL_ARMS:
                choose_generators(ALL_ARMS[arm].change(section), {}, configuration="", fold=None, validation_cases=())
            kept.append(arm)
        except ValueError as error:
            if asked:
                raise ValueError(f"--arms: '{arm}' cannot run on this dataset. {error}") from error
            print(f"Leaving out the arm '{arm}'. {error}")
    return kept


def write_arm_plans(folder: Path, made: dict[str, dict[str, Any]]) -> None:
    """Write the arms' plans next to the dataset's own."""
    for plans in made.values():
        write_json(plans, folder / f"{plans['plans_name']}.json")


def read_prepared(dataset: str, name: str, configuration: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Read plans and dataset.json of a dataset that is planned, preprocessed, and has a freetumor section.

    Raises:
        ValueError: something is missing.
    """
    folder, plans, dataset_json = planning.load_plans(dataset, name)
    if plan.SECTION not in plans:
        raise ValueError(
            f"{name}.json of {folder.name} has no freetumor section. Run 'nnUNetv2_freetumor plan -d {dataset} -p "
            f"{name}', then 'nnUNetv2_preprocess -d {dataset} -plans_name {name} -c {configuration}'."
        )
    planning.check_configuration(plans, configuration, dataset_json)
    planning.section_for_training(plans, dataset_json)
    return folder, plans, dataset_json
