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

EVALUATION_PAGE = "evaluation.html"
OWN_DATA = """export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
nnUNetv2_plan_and_preprocess -d ID --no_pp --verify_dataset_integrity   # your dataset's number
nnUNetv2_freetumor plan -d ID                                           # what will be planted; optional, but look at it
nnUNetv2_preprocess -d ID -c 3d_fullres
nnUNetv2_freetumor preview -d ID -o preview                             # pictures of it
nnUNetv2_train ID 3d_fullres 0 -tr nnUNetTrainerFreeTumor
nnUNetv2_predict -i IMAGES -o PREDICTIONS -d ID -c 3d_fullres -f 0 -tr nnUNetTrainerFreeTumor --save_probabilities
nnUNetv2_freetumor evaluate -ref LABELS -pred PREDICTIONS -djfile dataset.json -images IMAGES"""


class Contents(NamedTuple):
    """What the page shows."""

    evaluation: dict[str, Any]  # one pair of evaluation.json
    evaluation_folder: str  # relative to the page
    rule: dict[str, Any]  # evaluation.json's: when a lesion counts as found
    training_images: Sequence[Path]
    test_images: Path
    references: Path
    predictions: Path
    preview: Path
    first_batch: Path
    curve: Path
    steps: Sequence[tuple[str, str, float]]  # title, command, seconds
    prior_sources: Sequence[str]


def write_report(contents: Contents, path: Path) -> Path:
    """Write the page and give its path."""
    parts = [
        _introduction(contents),
        "<h2>The cohort</h2>",
        picture(
            cohort_figure(contents.training_images, contents.training_images[0].parent.parent / "labelsTr"),
            "Four of the training CTs, made on the spot (window W 400 L 40): axial slice with the most tumor, coronal "
            "slice. Their tumors were grown cell by cell, with necrosis and capsule; not by the synthesizer.",
        ),
        "<h2>What was planted</h2>",
        *_planted(contents),
        "<h2>Predictions on test cases</h2>",
        picture(
            predictions_figure(contents.test_images, contents.references, contents.predictions),
            f"Test CTs, and the same slices with the reference tumor (<b style='color:{REFERENCE_COLOR}'>blue</b>) and "
            f"the predicted one (<b style='color:{PREDICTION_COLOR}'>orange</b>). Window: 220 HU around the liver's "
            "median.",
        ),
        _case_table(contents.evaluation),
        _size_table(contents),
        "<h2>On your own data</h2>",
        f"<p>nnU-Net's own commands, and this package's trainer:</p><pre>{html.escape(OWN_DATA)}</pre>",
        "<h2>What ran here</h2>",
        _step_table(contents.steps),
    ]
    return save_page("nnUNetv2_freetumor: demo", parts, path)


def _planted(contents: Contents) -> list[str]:
    sources = html.escape("; ".join(contents.prior_sources))
    return [
        picture(
            contents.preview.read_bytes(),
            "<code>nnUNetv2_freetumor preview</code>: lesions in preprocessed training cases, before, after, and with "
            f"their label outlined. Where the numbers come from: {sources}. The generator is <code>lite</code>, which "
            "comes with the package; it learned from other phantoms, whose tumors grew in the same way.",
        ),
        *_optional_figure(contents.first_batch, "The first training batch that got a lesion, as the trainer saw it."),
        *_optional_figure(
            contents.curve, "Samples that could carry a lesion, and what was planted, epoch by epoch.", "small"
        ),
    ]


def _introduction(contents: Contents) -> str:
    cases = contents.evaluation["cases"]["predictions"]
    lesions = [lesion for case in cases for lesion in case["lesions"]]
    found, alarms = sum(lesion["found"] for lesion in lesions), sum(map(_alarms, cases))
    minutes = sum(seconds for _, _, seconds in contents.steps) / 60
    return (
        "<h1>nnU-Net with synthetic tumors: demo</h1>"
        "<p>CT phantoms were made, and nnU-Net was planned, preprocessed, trained and run on them by its own commands. "
        "During training, synthetic tumors were planted into its batches. The whole line took "
        f"{minutes:.1f} minutes. On {len(cases)} test cases the network found <b>{found} of {len(lesions)}"
        f"</b> tumors, with {alarms} false positive{'' if alarms == 1 else 's'}.</p>"
        "<p class='note'>This shows that everything runs, and nothing about how well it works on patients: a small "
        "network, trained for a few minutes on a few phantoms at coarse resolution, without a comparison to training "
        "without synthetic tumors. Small lesions are missed here, and the numbers change from run to run.</p>"
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
    sensitivity = contents.evaluation["summaries"]["predictions"]["sensitivity"]
    rows = [[name, str(value["count"]), _estimate(value)] for name, value in sensitivity.items()]
    return html_table(["diameter", "tumors", "share found [95 % interval]"], rows) + (
        "<p>A tumor counts as found when a connected prediction overlaps it with an intersection over union of at "
        f"least {contents.rule['min_iou']:g}; one with less than a tenth of its volume on tumors is a false positive. "
        "A dash: nothing to measure. More, with pictures of what was missed: "
        f"<a href='{contents.evaluation_folder}/{EVALUATION_PAGE}'>the evaluation</a>.</p>"
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
    """Write a value of evaluation.json, where null stands for what does not exist."""
    if value["value"] is None:
        return "-"
    return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _optional_figure(path: Path, caption: str, style: str = "") -> list[str]:
    """Show a picture that only exists when something was planted."""
    return [picture(path.read_bytes(), caption, style)] if path.is_file() else []
