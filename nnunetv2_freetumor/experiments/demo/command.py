"""Run the full pipeline on CT phantoms: nnU-Net's own commands, then a page that shows the results."""

import json
from pathlib import Path
from typing import Any

from nnunetv2_freetumor.experiments.demo import report
from nnunetv2_freetumor.experiments.phantom.cohort import write_cohort
from nnunetv2_freetumor.experiments.steps import (
    COARSE,
    COARSE_CONFIGURATION,
    COARSE_FEATURES,
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

_NUMBER, _DATASET = 900, "Dataset900_Phantom"
_TRAINING_CASES, _TEST_CASES, _SEED = 12, 5, 1
_PIXEL_MM, _SLICE_MM = (1.3, 1.5), (4.0, 5.0)
EPOCHS = 20
_GENERATOR = "lite"
_PREVIEW_LESIONS = 4
_EVALUATION = "evaluation"  # folder
DEMO_TRAINER, _FOLD = "nnUNetTrainerFreeTumor_demo", 0


def demo_command(output: str | Path, device: str | None = None) -> None:
    """Make a cohort of CT phantoms, train nnU-Net with synthetic tumors on it, predict, and write a report.

    A stopped demo continues when the same command is given again: finished steps are kept, the interrupted one starts
    over. Delete the folder to start from scratch.

    Args:
        output: folder for everything, with its own nnUNet_raw, nnUNet_preprocessed and nnUNet_results.
        device: cpu or cuda; by default cuda if there is one.

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
    raw, plans_file = root / RAW / _DATASET, root / PREPROCESSED / _DATASET / f"{PLANS}.json"
    return [
        Step(
            "cohort",
            f"make {_TRAINING_CASES} training and {_TEST_CASES} test CTs",
            f"write_cohort({RAW}/{_DATASET}, cases={_TRAINING_CASES}, seed={_SEED}, test_cases={_TEST_CASES})",
            lambda: write_cohort(
                raw, _TRAINING_CASES, _SEED, test_cases=_TEST_CASES, processes=2, pixel_mm=_PIXEL_MM, slice_mm=_SLICE_MM
            ),
        ),
        Step("plan", "nnU-Net plans", f"nnUNetv2_plan_and_preprocess -d {_NUMBER} --no_pp -npfp 2"),
        Step(
            "coarse",
            "add a configuration for two cores to the plans",
            f"add_coarse_configuration({plans_file.name}): {COARSE_CONFIGURATION} with {COARSE}",
            lambda: add_coarse_configuration(plans_file, COARSE_FEATURES),
        ),
        Step(
            "freetumor", "measure the tumors and write the freetumor section", f"nnUNetv2_freetumor plan -d {_NUMBER}"
        ),
        Step(
            "generator",
            "choose the bundled generator",
            f'{plans_file.name}: "freetumor": {{"generator": "{_GENERATOR}"}}',
            lambda: choose_generator(plans_file, _GENERATOR),
        ),
        Step(
            "preprocess",
            "nnU-Net preprocesses",
            f"nnUNetv2_preprocess -d {_NUMBER} -c {COARSE_CONFIGURATION} -np 2",
            mark=rf"(\d+)/{_TRAINING_CASES} \[",
            total=_TRAINING_CASES,
        ),
    ]


def _training(device: str) -> list[Step]:
    model = f"-d {_NUMBER} -c {COARSE_CONFIGURATION}"
    return [
        Step(
            "preview",
            "preview what will be planted",
            f"nnUNetv2_freetumor preview {model} -o preview -n {_PREVIEW_LESIONS}",
        ),
        Step(
            "train",
            "nnU-Net trains with synthetic tumors",
            f"nnUNetv2_train {_NUMBER} {COARSE_CONFIGURATION} {_FOLD} -tr {DEMO_TRAINER} -device {device}",
            mark="Epoch time",
            total=EPOCHS,
        ),
        Step(
            "predict",
            "nnU-Net predicts the test cases",
            f"nnUNetv2_predict -i {RAW}/{_DATASET}/imagesTs -o predictions {model} -f {_FOLD} -tr {DEMO_TRAINER} "
            f"--disable_tta --save_probabilities -npp 1 -nps 1 -device {device}",
            mark="done with",
            total=_TEST_CASES,
        ),
        Step(
            "evaluate",
            "score the predictions lesion by lesion",
            f"nnUNetv2_freetumor evaluate -ref {RAW}/{_DATASET}/labelsTs -pred predictions -djfile "
            f"{RAW}/{_DATASET}/dataset.json -pfile {PREPROCESSED}/{_DATASET}/{PLANS}.json -images "
            f"{RAW}/{_DATASET}/imagesTs -o {_EVALUATION} -np 2",
            mark=rf"scoring: .* (\d+)/{_TEST_CASES} \[",
            total=_TEST_CASES,
        ),
    ]


def choose_generator(plans_file: Path, name: str) -> None:
    """Write a generator's name into the plans' freetumor section."""
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    plans["freetumor"]["generator"] = name
    write_json(plans, plans_file)


def _contents(root: Path, steps: list[Step], seconds: dict[str, float]) -> report.Contents:
    raw, plans_file = root / RAW / _DATASET, root / PREPROCESSED / _DATASET / f"{PLANS}.json"
    model = root / RESULTS / _DATASET / f"{DEMO_TRAINER}__{PLANS}__{COARSE_CONFIGURATION}" / f"fold_{_FOLD}"
    section: dict[str, Any] = json.loads(plans_file.read_text(encoding="utf-8"))["freetumor"]
    evaluation: dict[str, Any] = json.loads((root / _EVALUATION / "evaluation.json").read_text(encoding="utf-8"))
    (pair,) = evaluation["pairs"].values()
    return report.Contents(
        evaluation=report.PairEvaluation(pair, rule=evaluation["rule"], folder=_EVALUATION),
        scans=report.Scans(
            training=sorted((raw / "imagesTr").glob("*.nii.gz"))[:4],
            test=raw / "imagesTs",
            references=raw / "labelsTs",
            predictions=root / "predictions",
        ),
        planting=report.PlantingPictures(
            preview=next((root / "preview").glob("*.png")),
            first_batch=model / "freetumor_first_batch.png",
            curve=model / "freetumor_planted.png",
        ),
        steps=[(step.title, step.command, seconds[step.name]) for step in steps],
        prior_sources=[target["source"] for target in section["targets"]],
    )
