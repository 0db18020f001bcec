"""Run the whole line on a made-up CT cohort: nnU-Net's own commands, then a page that shows what came out."""

import json
from pathlib import Path
from typing import Any

from nnunetv2_freetumor.experiments.demo import report
from nnunetv2_freetumor.experiments.phantom.cohort import write_cohort
from nnunetv2_freetumor.experiments.steps import (
    COARSE,
    CONFIGURATION,
    FEATURES,
    PLANS,
    PREPROCESSED,
    RAW,
    RESULTS,
    Runner,
    Step,
    add_coarse_configuration,
    environment,
)
from nnunetv2_freetumor.files.cases import check_writable, write_json
from nnunetv2_freetumor.training.device import choose_device

DATASET, DATASET_NAME = 900, "Dataset900_Phantom"
TRAINING_CASES, TEST_CASES, SEED = 12, 5, 1
PIXEL_MM, SLICE_MM = (1.3, 1.5), (4.0, 5.0)
EPOCHS = 20
GENERATOR = "lite"
PREVIEW_LESIONS = 4
EVALUATION = "evaluation"  # folder
TRAINER, FOLD = "nnUNetTrainerFreeTumor_demo", 0


def demo_command(output: str | Path, device: str | None = None) -> None:
    """Make a cohort of CT phantoms, train nnU-Net with synthetic tumors on it, predict, and write a report.

    Stopped runs can be started again: finished steps are kept, the one that was interrupted starts anew. Delete the
    folder to start from nothing.

    Args:
        output: folder for everything, with its own nnUNet_raw, nnUNet_preprocessed and nnUNet_results.
        device: cpu or cuda; by default cuda where there is one.

    Raises:
        ValueError: the folder cannot be written to, or a step failed.
    """
    chosen = choose_device(device).type
    root = check_writable(output).resolve()
    steps = [*_preparation(root), *_training(chosen)]
    runner = Runner(root, environment(root), len(steps))
    for step in steps:
        runner.run(step)
    print(f"Report:\n{report.write_report(_contents(root, steps, runner.seconds), root / 'report.html')}")


def _preparation(root: Path) -> list[Step]:
    raw, plans_file = root / RAW / DATASET_NAME, root / PREPROCESSED / DATASET_NAME / f"{PLANS}.json"
    return [
        Step(
            "cohort",
            f"make {TRAINING_CASES} training and {TEST_CASES} test CTs",
            f"write_cohort({RAW}/{DATASET_NAME}, cases={TRAINING_CASES}, seed={SEED}, test_cases={TEST_CASES})",
            lambda: write_cohort(
                raw, TRAINING_CASES, SEED, test_cases=TEST_CASES, processes=2, pixel_mm=PIXEL_MM, slice_mm=SLICE_MM
            ),
        ),
        Step("plan", "nnU-Net plans", f"nnUNetv2_plan_and_preprocess -d {DATASET} --no_pp -npfp 2"),
        Step(
            "coarse",
            "add a configuration for two cores to the plans",
            f"add_coarse_configuration({plans_file.name}): {CONFIGURATION} with {COARSE}",
            lambda: add_coarse_configuration(plans_file, FEATURES),
        ),
        Step("freetumor", "measure the tumors, write the freetumor section", f"nnUNetv2_freetumor plan -d {DATASET}"),
        Step(
            "generator",
            "choose the generator that comes with the package",
            f'{plans_file.name}: "freetumor": {{"generator": "{GENERATOR}"}}',
            lambda: choose_generator(plans_file, GENERATOR),
        ),
        Step(
            "preprocess",
            "nnU-Net preprocesses",
            f"nnUNetv2_preprocess -d {DATASET} -c {CONFIGURATION} -np 2",
            mark=rf"(\d+)/{TRAINING_CASES} \[",
            total=TRAINING_CASES,
        ),
    ]


def _training(device: str) -> list[Step]:
    model = f"-d {DATASET} -c {CONFIGURATION}"
    return [
        Step(
            "preview",
            "look at what will be planted",
            f"nnUNetv2_freetumor preview {model} -o preview -n {PREVIEW_LESIONS}",
        ),
        Step(
            "train",
            "nnU-Net trains with synthetic tumors",
            f"nnUNetv2_train {DATASET} {CONFIGURATION} {FOLD} -tr {TRAINER} -device {device}",
            mark="Epoch time",
            total=EPOCHS,
        ),
        Step(
            "predict",
            "nnU-Net predicts the test cases",
            f"nnUNetv2_predict -i {RAW}/{DATASET_NAME}/imagesTs -o predictions {model} -f {FOLD} -tr {TRAINER} "
            f"--disable_tta --save_probabilities -npp 1 -nps 1 -device {device}",
            mark="done with",
            total=TEST_CASES,
        ),
        Step(
            "evaluate",
            "score the predictions, lesion by lesion",
            f"nnUNetv2_freetumor evaluate -ref {RAW}/{DATASET_NAME}/labelsTs -pred predictions -djfile "
            f"{RAW}/{DATASET_NAME}/dataset.json -pfile {PREPROCESSED}/{DATASET_NAME}/{PLANS}.json -images "
            f"{RAW}/{DATASET_NAME}/imagesTs -o {EVALUATION} -np 2",
            mark=rf"scoring: .* (\d+)/{TEST_CASES} \[",
            total=TEST_CASES,
        ),
    ]


def choose_generator(plans_file: Path, name: str) -> None:
    """Write a generator's name into the plans' freetumor section."""
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    plans["freetumor"]["generator"] = name
    write_json(plans, plans_file)


def _contents(root: Path, steps: list[Step], seconds: dict[str, float]) -> report.Contents:
    raw, plans_file = root / RAW / DATASET_NAME, root / PREPROCESSED / DATASET_NAME / f"{PLANS}.json"
    model = root / RESULTS / DATASET_NAME / f"{TRAINER}__{PLANS}__{CONFIGURATION}" / f"fold_{FOLD}"
    section: dict[str, Any] = json.loads(plans_file.read_text(encoding="utf-8"))["freetumor"]
    evaluation: dict[str, Any] = json.loads((root / EVALUATION / "evaluation.json").read_text(encoding="utf-8"))
    (pair,) = evaluation["pairs"].values()
    return report.Contents(
        evaluation=pair,
        evaluation_folder=EVALUATION,
        rule=evaluation["rule"],
        training_images=sorted((raw / "imagesTr").glob("*.nii.gz"))[:4],
        test_images=raw / "imagesTs",
        references=raw / "labelsTs",
        predictions=root / "predictions",
        preview=next((root / "preview").glob("*.png")),
        first_batch=model / "freetumor_first_batch.png",
        curve=model / "freetumor_planted.png",
        steps=[(step.title, step.command, seconds[step.name]) for step in steps],
        prior_sources=[target["source"] for target in section["targets"]],
    )
