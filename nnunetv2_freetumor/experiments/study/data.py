"""The study's data: a phantom cohort or a prepared dataset, the cases of each run, and the arms' plans."""

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
    KEY,
    Budget,
    Run,
    Setting,
    bundled,
    order_of,
    plans_name,
)
from nnunetv2_freetumor.files.cases import read_label, write_json
from nnunetv2_freetumor.generators.choice import choose_generators
from nnunetv2_freetumor.planning import section as planning

DATASET, DATASET_NAME, CONFIGURATION, PLANS = "901", "Dataset901_PhantomStudy", "3d_coarse", "nnUNetPlans"
POOL_CASES, POOL_TUMOR_FREE_EVERY, POOL_SEED = 24, 3, 11
TEST_CASES, TEST_TUMOR_FREE_EVERY, TEST_SEED = 80, 4, 4711
TEST_LESIONS, TEST_FAMILY = (7, 10), "invading"
CROP_MM = 15.0
SCANNER: dict[str, Any] = {"pixel_mm": (1.3, 1.5), "slice_mm": (4.0, 5.0)}
PATCH, FEATURES = [24, 48, 48], [8, 16, 32, 64]  # of the small network
VALIDATION_CASES = 2  # for nnU-Net's own validation; nothing is chosen by it
SETTING_STRIDE = 100  # a run's fold is setting x 100 + seed


class Pool(NamedTuple):
    """The training cases to choose from."""

    bearing: tuple[str, ...]  # with real tumors
    free: tuple[str, ...]


def phantom_steps(root: Path) -> list[Step]:
    """List what makes and prepares the phantom cohort; its test cases come later."""
    raw, plans_file = root / steps.RAW / DATASET_NAME, root / steps.PREPROCESSED / DATASET_NAME / f"{PLANS}.json"
    return [
        Step(
            "cohort",
            f"make {POOL_CASES} training CTs",
            f"write_cohort({DATASET_NAME}, cases={POOL_CASES}, seed={POOL_SEED}, crop_mm={CROP_MM})",
            lambda: write_cohort(
                raw,
                POOL_CASES,
                POOL_SEED,
                processes=2,
                tumor_free_every=POOL_TUMOR_FREE_EVERY,
                crop_mm=CROP_MM,
                **SCANNER,
            ),
        ),
        Step("plan", "nnU-Net plans", f"nnUNetv2_plan_and_preprocess -d {DATASET} --no_pp -npfp 2"),
        Step(
            "coarse",
            "add a configuration for two cores to the plans",
            f"add_coarse_configuration({plans_file.name}): {CONFIGURATION}, patch {PATCH}, features {FEATURES}",
            lambda: steps.add_coarse_configuration(plans_file, FEATURES, patch_size=PATCH),
        ),
        Step("freetumor", "write the freetumor section", f"nnUNetv2_freetumor plan -d {DATASET}"),
        Step("preprocess", "nnU-Net preprocesses", f"nnUNetv2_preprocess -d {DATASET} -c {CONFIGURATION} -np 2"),
    ]


def test_step(root: Path) -> Step:
    """Make the test cohort: tumors of a growth family that no training case has."""
    raw = root / steps.RAW / DATASET_NAME
    return Step(
        "test",
        f"make {TEST_CASES} test CTs of the growth family '{TEST_FAMILY}'",
        f"write_test_cases({DATASET_NAME}, cases={TEST_CASES}, seed={TEST_SEED}, family={TEST_FAMILY})",
        lambda: write_test_cases(
            raw,
            TEST_CASES,
            TEST_SEED,
            processes=2,
            lesions=TEST_LESIONS,
            tumor_free_every=TEST_TUMOR_FREE_EVERY,
            crop_mm=CROP_MM,
            family=TEST_FAMILY,
            **SCANNER,
        ),
    )


def read_pool(labels: Path, file_ending: str, tumor_labels: Sequence[int]) -> Pool:
    """Tell the training cases with tumors from those without, by their label maps.

    Raises:
        ValueError: the folder holds no label map.
    """
    files = sorted(labels.glob(f"*{file_ending}"))
    if not files:
        raise ValueError(f"{labels} holds no label map (*{file_ending}). Run nnU-Net's preprocessing first.")
    bearing = {file: bool(np.isin(read_label(file).array, tumor_labels).any()) for file in files}
    names = {file: file.name.removesuffix(file_ending) for file in files}
    return Pool(
        tuple(name for file, name in names.items() if bearing[file]),
        tuple(name for file, name in names.items() if not bearing[file]),
    )


def plan_runs(pool: Pool, settings: Sequence[Setting], seeds: int) -> tuple[Run, ...]:
    """Choose each run's cases: a quarter without tumor, all of them in a label-free setting.

    Raises:
        ValueError: the pool has too few cases for a setting.
    """
    return tuple(
        _plan_run(pool, setting, SETTING_STRIDE * index + seed, seed)
        for index, setting in enumerate(settings)
        for seed in range(seeds)
    )


def _plan_run(pool: Pool, setting: Setting, fold: int, seed: int) -> Run:
    rng = np.random.default_rng((seed, setting.cases, setting.label_free))
    bearing, free = rng.permutation(pool.bearing).tolist(), rng.permutation(pool.free).tolist()
    healthy = setting.cases if setting.label_free else min(setting.cases // 4, len(free))
    sick = setting.cases - healthy
    rest = bearing[sick:] + free[healthy:]
    if len(free) < healthy or len(bearing) < sick or not rest:
        raise ValueError(
            f"The setting '{setting.name}' needs {sick} training cases with tumors, {healthy} without and one more to "
            f"validate on, but the dataset has {len(bearing)} and {len(free)}. Choose fewer with --labeled or "
            "--label-free-cases."
        )
    return Run(
        fold=fold,
        setting=setting.name,
        seed=seed,
        training=tuple(sorted(bearing[:sick] + free[:healthy])),
        validation=tuple(sorted((bearing[sick:][:1] + free[healthy:][:1] + rest)[:VALIDATION_CASES])),
    )


def arm_plans(plans: dict[str, Any], budget: Budget, runs: tuple[Run, ...]) -> dict[str, dict[str, Any]]:
    """Derive each arm's plans from the dataset's; they share its preprocessed data."""
    section = bundled(plan.read_section(plans[plan.SECTION]))
    made = {}
    for name, arm in ALL_ARMS.items():
        made[name] = json.loads(json.dumps(plans)) | {
            "plans_name": plans_name(name),
            plan.SECTION: plan.to_json(arm.change(section)),
            KEY: plan.to_json(order_of(arm, budget, runs)),
        }
    return made


def servable(plans: dict[str, Any], arms: Sequence[str], asked: bool) -> list[str]:
    """Leave out arms whose generator does not serve the dataset's targets, and say so.

    Raises:
        ValueError: such an arm was asked for.
    """
    section, kept = bundled(plan.read_section(plans[plan.SECTION])), []
    for arm in arms:
        try:
            if arm in ALL_ARMS:
                choose_generators(ALL_ARMS[arm].change(section), {}, "", None, ())
            kept.append(arm)
        except ValueError as error:
            if asked:
                raise ValueError(f"--arms: '{arm}' cannot be run here. {error}") from error
            print(f"The arm '{arm}' is left out. {error}")
    return kept


def write_arm_plans(folder: Path, made: dict[str, dict[str, Any]]) -> None:
    """Write the arms' plans beside the dataset's own."""
    for plans in made.values():
        write_json(plans, folder / f"{plans['plans_name']}.json")


def read_prepared(dataset: str, name: str, configuration: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Read plans and dataset.json of a dataset that is planned, preprocessed, and has a freetumor section.

    Raises:
        ValueError: something is missing; the text has the command that makes it.
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
