"""Write the demo's report: one HTML page that needs no other file."""

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nnunetv2_freetumor.cases import replacing
from nnunetv2_freetumor.demo_scores import FOUND_SHARE, CaseScore, rows_by_size
from nnunetv2_freetumor.report_figures import (
    PREDICTION_COLOR,
    REFERENCE_COLOR,
    cohort_figure,
    predictions_figure,
)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1080px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.7em; } h2 { font-size: 1.25em; margin-top: 2.2em; border-bottom: 1px solid #ddd; }
figure { margin: 1em 0; } figure img { width: 100%; height: auto; background: #101010; }
figure.small { max-width: 640px; } figcaption { font-size: .9em; color: #444; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .3em .9em; border-bottom: 1px solid #ddd;
        text-align: left; } td.number, th.number { text-align: right; white-space: nowrap; }
pre { background: #f4f4f4; padding: .8em 1em; overflow-x: auto; font-size: .9em; }
.note { background: #fff6e0; border-left: 4px solid #ffb000; padding: .6em 1em; }
code { font-size: .9em; } td code { word-break: break-all; }
"""
HEAD = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    f"<title>nnUNetv2_freetumor: demo</title><style>{STYLE}</style></head><body>\n"
)
OWN_DATA = """export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
nnUNetv2_plan_and_preprocess -d ID --no_pp --verify_dataset_integrity   # your dataset's number
nnUNetv2_freetumor plan -d ID                                           # what will be planted; optional, but look at it
nnUNetv2_preprocess -d ID -c 3d_fullres
nnUNetv2_freetumor preview -d ID -o preview                             # pictures of it
nnUNetv2_train ID 3d_fullres 0 -tr nnUNetTrainerFreeTumor
nnUNetv2_predict -i IMAGES -o PREDICTIONS -d ID -c 3d_fullres -f 0 -tr nnUNetTrainerFreeTumor"""


class Contents(NamedTuple):
    """What the page shows."""

    scores: Sequence[CaseScore]
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
        _figure(
            cohort_figure(contents.training_images, contents.training_images[0].parent.parent / "labelsTr"),
            "Four of the training CTs, made on the spot (window W 400 L 40): axial slice with the most tumor, coronal "
            "slice. Their tumors were grown cell by cell, with necrosis and capsule; not by the synthesizer.",
        ),
        "<h2>What was planted</h2>",
        *_planted(contents),
        "<h2>Predictions on test cases</h2>",
        _figure(
            predictions_figure(contents.test_images, contents.references, contents.predictions),
            f"Test CTs, and the same slices with the reference tumor (<b style='color:{REFERENCE_COLOR}'>blue</b>) and "
            f"the predicted one (<b style='color:{PREDICTION_COLOR}'>orange</b>). Window: 220 HU around the liver's "
            "median.",
        ),
        _case_table(contents.scores),
        _size_table(contents.scores),
        "<h2>On your own data</h2>",
        f"<p>nnU-Net's own commands, and this package's trainer:</p><pre>{html.escape(OWN_DATA)}</pre>",
        "<h2>What ran here</h2>",
        _step_table(contents.steps),
    ]
    with replacing(path) as unfinished:
        unfinished.write_text(HEAD + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8")
    return path


def _planted(contents: Contents) -> list[str]:
    sources = html.escape("; ".join(contents.prior_sources))
    return [
        _figure(
            contents.preview.read_bytes(),
            "<code>nnUNetv2_freetumor preview</code>: lesions in preprocessed training cases, before, after, and with "
            f"their label outlined. Where the numbers come from: {sources}.",
        ),
        *_optional_figure(contents.first_batch, "The first training batch that got a lesion, as the trainer saw it."),
        *_optional_figure(
            contents.curve, "Samples that could carry a lesion, and what was planted, epoch by epoch.", "small"
        ),
    ]


def _introduction(contents: Contents) -> str:
    lesions = [lesion for score in contents.scores for lesion in score.lesions]
    found, alarms = sum(lesion.found for lesion in lesions), sum(score.false_positives for score in contents.scores)
    minutes = sum(seconds for _, _, seconds in contents.steps) / 60
    return (
        "<h1>nnU-Net with synthetic tumors: demo</h1>"
        "<p>CT phantoms were made, and nnU-Net was planned, preprocessed, trained and run on them by its own commands. "
        "During training, synthetic tumors were planted into its batches. The whole line took "
        f"{minutes:.1f} minutes. On {len(contents.scores)} test cases the network found <b>{found} of {len(lesions)}"
        f"</b> tumors, with {alarms} false positive{'' if alarms == 1 else 's'}.</p>"
        "<p class='note'>This shows that everything runs, and nothing about how well it works on patients: a small "
        "network, trained for a few minutes on a few phantoms at coarse resolution, without a comparison to training "
        "without synthetic tumors. Small lesions are missed here, and the numbers change from run to run.</p>"
    )


def _case_table(scores: Sequence[CaseScore]) -> str:
    rows = [
        [
            score.case,
            _number(score.organ_dice),
            _number(score.tumor_dice),
            f"{sum(lesion.found for lesion in score.lesions)} of {len(score.lesions)}",
            str(score.false_positives),
        ]
        for score in scores
    ]
    mean = [sum(values) / max(len(values), 1) for values in map(_present, zip(*(s[1:3] for s in scores)))]
    rows.append(["mean, total", *map(_number, mean), "", str(sum(score.false_positives for score in scores))])
    head = ["case", "Dice liver with tumors", "Dice tumor", "tumors found", "false positives"]
    return _table(head, rows) + (
        f"<p>A tumor counts as found when at least {FOUND_SHARE:.0%} of its voxels are predicted as tumor; a connected "
        "prediction that touches no tumor is a false positive. A dash: no tumor, and none predicted.</p>"
    )


def _size_table(scores: Sequence[CaseScore]) -> str:
    rows = [[row.name, str(row.lesions), str(row.found)] for row in rows_by_size(scores)]
    return _table(["diameter", "tumors", "found"], rows)


def _step_table(steps: Sequence[tuple[str, str, float]]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(title)}</td><td class='number'>{seconds:.0f} s</td><td><code>{html.escape(command)}"
        "</code></td></tr>"
        for title, command, seconds in steps
    )
    return f"<table>{rows}</table>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        first, *rest = map(html.escape, cells)
        return f"<tr><{tag}>{first}</{tag}>{''.join(f'<{tag} class=number>{cell}</{tag}>' for cell in rest)}</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"


def _present(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _figure(png: bytes, caption: str, style: str = "") -> str:
    data = base64.b64encode(png).decode()
    image = f"<img src='data:image/png;base64,{data}' alt=''>"
    return f"<figure class='{style}'>{image}<figcaption>{caption}</figcaption></figure>"


def _optional_figure(path: Path, caption: str, style: str = "") -> list[str]:
    """Show a picture that only exists when something was planted."""
    return [_figure(path.read_bytes(), caption, style)] if path.is_file() else []
