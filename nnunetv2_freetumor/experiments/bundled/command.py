"""Train the bundled generator `lite` on phantoms and on real CT with grown tumors."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_freetumor import __version__, plan, priors
from nnunetv2_freetumor.experiments.phantom.cohort import write_cohort
from nnunetv2_freetumor.experiments.phantom.growing import grow_in_case
from nnunetv2_freetumor.experiments.steps import (
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
from nnunetv2_freetumor.files.cases import (
    check_same_geometry,
    check_writable,
    read_case,
    read_label,
    write_case,
    write_json,
)
from nnunetv2_freetumor.generators import weights
from nnunetv2_freetumor.training.device import choose_device

_NUMBER, _DATASET, _CONFIGURATION, _TRAINER = (
    "902",
    "Dataset902_GrownTumors",
    "3d_fine",
    "nnUNetTrainerFreeTumorGenerator",
)
_PHANTOM_CASES, _SEED = 24, 902
VARIANTS, _LESIONS = 4, (3, 6)  # of each real CT; tumors in each case
_FINE = {"spacing": [3.0, 1.5, 1.5], "patch_size": [32, 96, 96], "batch_size": 2}  # z, y, x
_HOST_LABEL, _CROP_MM = 1, 20.0
_NAME = "lite_phantom"
_PURPOSE = "Synthetic liver tumors where no generator has been trained on real ones; the demo; a baseline to beat."
_NOT_SEEN = (
    "No real tumor: every tumor in the training data was grown by a program, which this generator can at best imitate. "
    "No organ but the liver, no contrast phase but unenhanced, late arterial and portal venous, no tumor "
    "of the growth family 'invading', which is kept for tests."
)
CPU_CHANGES = {
    "epochs": 50,
    "iterations_per_epoch": 60,
    "lesions_per_step": 4,
    "side_voxels": [24, 24, 24],  # 2.4 times the steps in the same time
    "judge_weight": 0.0,
    "generator_rate": 3e-4,
    "adversarial_weight": 0.3,  # in so few steps a critic learns less than the moments say
    "moment_weight": 3.0,
    "ema_decay": 0.99,
}
CUDA_CHANGES = {"epochs": 100, "iterations_per_epoch": 250, "lesions_per_step": 16, "judge_weight": 0.0}


def make_bundled_command(
    output: str | Path, real: Sequence[str] = (), attribution: str = "", device: str | None = None
) -> None:
    """Grow tumors in phantoms and, if given, in real CT; train `lite` on them and write it with its card.

    A stopped run continues when the same command is given again.

    Args:
        output: folder for everything; the generator is written to OUTPUT/lite_phantom.safetensors.
        real: CT, label map, CT, label map ...: real patients' livers (label 1) without tumors.
        attribution: source and license of the real CT, for the card.
        device: cpu or cuda.

    Raises:
        ValueError: a file or setting that cannot work, or a step that failed.
    """
    pairs = _pairs(real, attribution)
    chosen = choose_device(device).type
    root = check_writable(output).resolve()
    raw, plans_file = _folders(root)
    steps = _steps(
        raw, plans_file, pairs=pairs, changes=CUDA_CHANGES if chosen == "cuda" else CPU_CHANGES, device=chosen
    )
    runner = Runner(root, environment(root), len(steps))
    for step in steps:
        runner.run(step)
    model = root / RESULTS / _DATASET / f"{_TRAINER}__{PLANS}__{_CONFIGURATION}" / "fold_all"
    loaded = weights.load_generator(model / "generator.safetensors", "cpu")
    card = finish_card(loaded.card, len(pairs), attribution)
    path = root / f"{_NAME}.safetensors"
    weights.save_generator(loaded.network, card, path)
    print(f"Generator:\n{path}")


def finish_card(card: weights.Card, real_cases: int, attribution: str) -> weights.Card:
    """Fill in the card of a trained generator as the bundled one."""
    real = f" and {VARIANTS} variants of each of {real_cases} real CTs ({attribution})" if real_cases else ""
    return dataclasses.replace(
        card,
        name=_NAME,
        hosts=("liver",),
        real_tumors=(),
        training_data=f"{_PHANTOM_CASES} CT phantoms of this package{real}, all with tumors grown by this package",
        purpose=_PURPOSE,
        not_seen=_NOT_SEEN,
        license="Apache-2.0",
        date=date.today().isoformat(),
        version=__version__,
        dataset="",
        plans="",
        configuration="",
        fold="",
        training_cases=(),
    )


def _pairs(real: Sequence[str], attribution: str) -> list[tuple[Path, Path]]:
    if len(real) % 2:
        raise ValueError(f"--real takes pairs of files, CT LABEL CT LABEL ..., but {len(real)} were given.")
    if real and not attribution:
        raise ValueError(
            "--attribution is missing: the card must give source and license of the CT that a generator was trained on."
        )
    if missing := [path for path in real if not Path(path).is_file()]:
        raise ValueError(f"--real: there is no file {missing[0]}.")
    return [(Path(image), Path(label)) for image, label in zip(real[::2], real[1::2])]


def _folders(root: Path) -> tuple[Path, Path]:
    return (
        root / RAW / _DATASET,
        root / PREPROCESSED / _DATASET / f"{PLANS}.json",
    )


def _steps(
    raw: Path, plans_file: Path, pairs: list[tuple[Path, Path]], changes: dict[str, Any], device: str
) -> list[Step]:
    names = ", ".join(image.name for image, _ in pairs)
    return [
        Step(
            "cohort",
            f"make {_PHANTOM_CASES} CT phantoms",
            f"write_cohort({_DATASET}, cases={_PHANTOM_CASES}, seed={_SEED}, crop_mm={_CROP_MM})",
            lambda: write_cohort(
                raw, _PHANTOM_CASES, _SEED, processes=2, lesions=_LESIONS, tumor_free_every=0, crop_mm=_CROP_MM
            ),
        ),
        Step(
            "real",
            f"grow tumors in {len(pairs)} real CTs",
            f"write_grown_cases({_DATASET}, [{names}], variants={VARIANTS}, seed={_SEED})",
            lambda: write_grown_cases(raw, pairs),
        ),
        Step("plan", "nnU-Net plans", f"nnUNetv2_plan_and_preprocess -d {_NUMBER} --no_pp -npfp 2"),
        Step(
            "fine",
            "add a configuration at the generator's resolution",
            f"add_coarse_configuration({plans_file.name}): {_CONFIGURATION}, {_FINE}",
            lambda: add_coarse_configuration(plans_file, COARSE_FEATURES, _CONFIGURATION, **_FINE),
        ),
        Step("freetumor", "write the freetumor section", f"nnUNetv2_freetumor plan -d {_NUMBER}"),
        Step(
            "recipe",
            "choose the recipe",
            f"recipe lite, {changes}, judge off, measured and bundled prior",
            lambda: _write_recipe(plans_file, changes),
        ),
        Step("preprocess", "nnU-Net preprocesses", f"nnUNetv2_preprocess -d {_NUMBER} -c {_CONFIGURATION} -np 2"),
        Step(
            "train",
            "nnU-Net trains the generator",
            f"nnUNetv2_train {_NUMBER} {_CONFIGURATION} all -tr {_TRAINER} -device {device}",
            mark="Epoch time",
            total=changes["epochs"],
        ),
    ]


def write_grown_cases(raw: Path, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Add cases real_NUMBER_VARIANT with grown tumors to a raw dataset, and note in dataset.json that none is real.

    Raises:
        ValueError: a file cannot be read, two do not fit together, or a label map holds no liver (label 1).
    """
    for number, (image_path, label_path) in enumerate(pairs):
        image, label = read_case(image_path), read_label(label_path)
        check_same_geometry(image, label)
        host = label.array == _HOST_LABEL
        if not host.any():
            raise ValueError(f"{label_path} has no voxel of label {_HOST_LABEL}, the liver. Give the liver this label.")
        for variant in range(VARIANTS):
            few, most = _LESIONS
            count = int(np.random.default_rng((_SEED, number, variant)).integers(few, most + 1))
            grown = grow_in_case(image, host, count, [_SEED, number, variant])
            write_case(grown.image, raw / "imagesTr" / f"real_{number:02d}_{variant}_0000.nii.gz")
            write_case(grown.label, raw / "labelsTr" / f"real_{number:02d}_{variant}.nii.gz")
    dataset = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    cases = len(list((raw / "labelsTr").glob("*.nii.gz")))
    write_json(dataset | {"numTraining": cases, "phantoms": True}, raw / "dataset.json")


def _write_recipe(plans_file: Path, changes: dict[str, Any]) -> None:
    """Write the recipe, and the bundled prior as a second target, so that `lite` learns to correct either's edges."""
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    (measured,) = plan.read_section(plans[plan.SECTION]).targets
    bundled = dataclasses.replace(
        measured, name="liver, bundled prior", prior=priors.load(measured.prior.name), source="bundled prior"
    )
    targets = [plan.to_json(target) for target in (measured, bundled)]
    plans[plan.SECTION] |= {"recipe": "lite", "recipe_changes": changes, "judge": "off", "targets": targets}
    plan.read_section(plans[plan.SECTION])
    write_json(plans, plans_file)
