"""Write the demo's report: one HTML page that needs no other file."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_freetumor.pages.page import html_table, picture, save_page
from nnunetv2_freetumor.pages.slices import (
    PREDICTION_COLOR,
    REFERENCE_COLOR,
    cohort_figure,
    predictions_figure,
)

_EVALUATION_PAGE = "evaluation.html"
_OWN_DATA = """export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
nnUNetv2_plan_and_preprocess -d ID --no_pp --verify_dataset_integrity   # your dataset's number
nnUNetv2_freetumor plan -d ID                                           # what will be planted; optional, but check it
nnUNetv2_preprocess -d ID -c 3d_fullres
nnUNetv2_freetumor preview -d ID -o preview                             # pictures of planted tumors
nnUNetv2_train ID 3d_fullres 0 -tr nnUNetTrainerFreeTumor
nnUNetv2_predict -i IMAGES -o PREDICTIONS -d ID -c 3d_fullres -f 0 -tr nnUNetTrainerFreeTumor --save_probabilities
nnUNetv2_freetumor evaluate -ref LABELS -pred PREDICTIONS -djfile dataset.json -images IMAGES"""


class PairEvaluation(NamedTuple):
    """The scores of the predictions, from evaluation.json."""

    pair: dict[str, Any]
    rule: dict[str, Any]  # when a lesion counts as found
    folder: str  # relative to the page


class Scans(NamedTuple):
    """The cohort: a few training images, and the folders of the test cases."""

    training: Sequence[Path]
    test: Path
    references: Path
    predictions: Path


class PlantingPictures(NamedTuple):
    """Pictures of what was planted; the trainer's exist only if it planted something."""

    preview: Path
    first_batch: Path
    curve: Path


class Contents(NamedTuple):
    """Everything that the page shows."""

    evaluation: PairEvaluation
    scans: Scans
    planting: PlantingPictures
    steps: Sequence[tuple[str, str, float]]  # title, command, seconds
    prior_sources: Sequence[str]


def write_report(contents: Contents, path: Path) -> Path:
    """Write the page and return its path."""
    parts = [
        _introduction(contents),
        "<h2>The cohort</h2>",
        picture(
            cohort_figure(contents.scans.training, contents.scans.training[0].parent.parent / "labelsTr"),
            "Four of the training CTs, generated in this run (window W 400 L 40): axial slice with the most tumor, "
            "coronal slice. Their tumors were grown cell by cell, with necrosis and capsule, not by the synthesizer.",
        ),
        "<h2>What was planted</h2>",
        *_planted(contents),
        "<h2>Predictions on test cases</h2>",
        picture(
            predictions_figure(contents.scans.test, contents.scans.references, contents.scans.predictions),
            f"Test CTs, and the same slices with the reference tumor (<b style='color:{REFERENCE_COLOR}'>blue</b>) and "
            f"the predicted tumor (<b style='color:{PREDICTION_COLOR}'>orange</b>). Window: 220 HU around the liver's "
            "median.",
        ),
        _case_table(contents.evaluation.pair),
        _size_table(contents),
        "<h2>On your own data</h2>",
        f"<p>nnU-Net's own commands, and this package's trainer:</p><pre>{html.escape(_OWN_DATA)}</pre>",
        "<h2>Commands of this run</h2>",
        _step_table(contents.steps),
    ]
    return save_page("nnUNetv2_freetumor: demo", parts, path)


def _planted(contents: Contents) -> list[str]:
    sources = html.escape("; ".join(contents.prior_sources))
    return [
        picture(
            contents.planting.preview.read_bytes(),
            "<code>nnUNetv2_freetumor preview</code>: lesions in preprocessed training cases, before, after, and with "
            f"their label outlined. Source of the prior: {sources}. The generator is the bundled <code>lite</code>, "
            "which was trained on other phantoms whose tumors were grown in the same way.",
        ),
        *_optional_figure(
            contents.planting.first_batch, "The first training batch with a planted lesion, as trained on."
        ),
        *_optional_figure(
            contents.planting.curve, "Samples with room for a lesion, and planted lesions, by epoch.", "small"
        ),
    ]


def _introduction(contents: Contents) -> str:
    cases = contents.evaluation.pair["cases"]["predictions"]
    lesions = [lesion for case in cases for lesion in case["lesions"]]
    found, alarms = sum(lesion["found"] for lesion in lesions), sum(map(_alarms, cases))
    minutes = sum(seconds for _, _, seconds in contents.steps) / 60
    return (
        "<h1>nnU-Net with synthetic tumors: demo</h1>"
        "<p>nnU-Net's own commands planned, preprocessed, trained, and predicted on CT phantoms; synthetic tumors were "
        "planted into the training batches. The full pipeline took "
        f"{minutes:.1f} minutes. On {len(cases)} test cases the network found <b>{found} of {len(lesions)}"
        f"</b> tumors, with {alarms} false positive{'' if alarms == 1 else 's'}.</p>"
        "<p class='note'>This shows that everything runs, and nothing about how well it works on patients: a small "
        "network was trained for a few minutes on a few phantoms at coarse resolution, and not compared with training "
        "without synthetic tumors. Small lesions are missed, and the numbers change from run to run.</p>"
    )


def _case_table(evaluation: dict[str, Any]) -> str:
    cases, summary = evaluation["cases"]["predictions"], evaluation["summaries"]["predictions"]
    rows = [
        [
            case["case"],
            _number(case["host_dice"]),
            _number(case["dice"]),
            f"{sum(lesion['found'] for lesion in case['lesions'])} of {len(case['lesions'])}",
            str(_alarms(case)),
        ]
        for case in cases
    ]
    means = [_number(summary[name]["value"]) for name in ("host_dice", "dice")]
    rows.append(["mean, total", *means, "", str(sum(map(_alarms, cases)))])
    head = ["case", "Dice liver with tumors", "Dice tumor", "tumors found", "false positives"]
    return html_table(head, rows)


def _size_table(contents: Contents) -> str:
    sensitivity = contents.evaluation.pair["summaries"]["predictions"]["sensitivity"]
    rows = [[name, str(value["count"]), _estimate(value)] for name, value in sensitivity.items()]
    return html_table(["diameter", "tumors", "share found [95 % interval]"], rows) + (
        "<p>A tumor counts as found if a connected prediction overlaps it with an intersection over union of at "
        f"least {contents.evaluation.rule['min_iou']:g}; one with less than a tenth of its volume on tumors is a false "
        "positive. A dash means that there was nothing to measure. More, with pictures of what was missed: "
        f"<a href='{contents.evaluation.folder}/{_EVALUATION_PAGE}'>the evaluation</a>.</p>"
    )


def _step_table(steps: Sequence[tuple[str, str, float]]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(title)}</td><td class='number'>{seconds:.0f} s</td><td><code>{html.escape(command)}"
        "</code></td></tr>"
        for title, command, seconds in steps
    )
    return f"<table>{rows}</table>"


def _alarms(case: dict[str, Any]) -> int:
    return sum(prediction["kind"] == "false positive" for prediction in case["predictions"])


def _estimate(value: dict[str, Any]) -> str:
    """Format a value of evaluation.json, where null means that it does not exist."""
    if value["value"] is None:
        return "-"
    return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _optional_figure(path: Path, caption: str, style: str = "") -> list[str]:
    """Show a picture that exists only if something was planted."""
    return [picture(path.read_bytes(), caption, style)] if path.is_file() else []
