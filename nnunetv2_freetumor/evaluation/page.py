"""The evaluation as one HTML page for people who read scans: tables, plots, the worst misses and false alarms."""

import html
import math
from pathlib import Path

from nnunetv2_freetumor.evaluation.figures import dice_figure, froc_figure, sensitivity_figure
from nnunetv2_freetumor.evaluation.inputs import Cohort
from nnunetv2_freetumor.evaluation.pictures import Finding, findings_sheet, worst_alarms, worst_misses
from nnunetv2_freetumor.evaluation.results import EXTERNAL, OTHER, OURS, Evaluation, PairResult
from nnunetv2_freetumor.evaluation.scores import CaseScore, Rule
from nnunetv2_freetumor.evaluation.table import NOT_THERE, gap_rows, heading, main_rows
from nnunetv2_freetumor.pages.page import picture, save_page, table
from nnunetv2_freetumor.pages.slices import PREDICTION_COLOR, REFERENCE_COLOR

WHOSE = {OURS: "the predictions", OTHER: "another model's predictions of the same cases", EXTERNAL: "another cohort"}


def write_page(evaluation: Evaluation, cohort: Cohort, images: Path | None, path: Path) -> Path:
    """Write the page and give its path.

    Args:
        cohort: the files behind the predictions, for the pictures.
        images: folder with CASE_0000 images; without it the pictures show label maps alone.
    """
    parts = ["<h1>Tumors found, missed and invented</h1>", _introduction(evaluation)]
    for result in evaluation.pairs:
        parts += _pair(result, evaluation.rule, cohort, images)
    return save_page("nnUNetv2_freetumor: evaluation", parts, path)


def _introduction(evaluation: Evaluation) -> str:
    rule = evaluation.rule
    scored = "".join(
        f"<li><b>{name}</b>: {WHOSE.get(name, 'label maps that the predictions are compared with')} "
        f"(<code>{html.escape(folder)}</code>)</li>"
        for name, folder in evaluation.folders.items()
    )
    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in evaluation.notes)
    smallest = f" Lesions and predictions below {rule.min_voxels} voxels are left out." if rule.min_voxels > 1 else ""
    return (
        f"<ul>{scored}</ul><p>A lesion is a connected piece of tumor in the reference. Each is assigned at most one "
        "connected prediction, and each prediction at most one lesion. The lesion counts as <b>found</b> when the two "
        f"share at least {rule.min_iou:.0%} of the volume that they cover together (intersection over union). A "
        "prediction with less than a tenth of its volume on tumors is a <b>false positive</b>; one with more that is "
        "not assigned to a lesion is neither. A lesion's diameter is that of the ball with its volume."
        f"{smallest}</p>"
        "<p>Brackets and bars are 95 % intervals: patients were drawn again and again with replacement, and 95 % of "
        "the results lie within. Few patients or few lesions make them wide, and a difference whose interval holds 0 "
        "may be chance. p is the chance of a difference this large if the two models were equally good (their results "
        "swapped at random, patient by patient). Surface Dice is the share of the two surfaces that lie within "
        f"{rule.tolerance_mm:g} mm of each other. A dash: there was nothing to measure.</p>{notes}"
    )


def _pair(result: PairResult, rule: Rule, cohort: Cohort, images: Path | None) -> list[str]:
    tables = [table(rows[0], rows[1:]) for rows in (main_rows(result, rule), gap_rows(result, rule)) if rows]
    parts = [f"<h2>{html.escape(heading(result))}</h2>", *tables]
    plots = (
        (sensitivity_figure(result, rule), "Share of lesions found, by diameter; n lesions behind each bar.", ""),
        (froc_figure(result, rule), _froc_caption(), ""),
        (dice_figure(result), *_dice_caption(result)),
    )
    parts += [picture(png, caption, size) for png, caption, size in plots if png is not None]
    mine = result.scores[OURS]
    parts += _findings("Largest lesions that were missed", worst_misses(mine), result, cohort, images)
    parts += _findings("Largest false positives", worst_alarms(mine), result, cohort, images)
    return [*parts, _case_table(mine)]


def _findings(
    title: str, findings: list[Finding], result: PairResult, cohort: Cohort, images: Path | None
) -> list[str]:
    if not findings:
        return [f"<h3>{title}</h3><p>None.</p>"]
    background = "the CT" if images else "the organ's label (give the CT with -images)"
    caption = (
        f"Three planes through each, on {background}: <b style='color:{REFERENCE_COLOR}'>reference tumor</b> and "
        f"<b style='color:{PREDICTION_COLOR}'>predicted tumor</b>, with case, diameter and voxel. Axial: the patient's "
        "left is on the right; sagittal: the front is on the left."
    )
    sheet = findings_sheet(findings, cohort, result.pair, images)
    return [f"<h3>{title}</h3>", picture(sheet, caption, "small" if len(findings) == 1 else "")]


def _froc_caption() -> str:
    return (
        "FROC: what is found, and how many false positives that costs, when only predictions are kept whose tumor "
        "probability reaches a threshold; each point is one threshold."
    )


def _dice_caption(result: PairResult) -> tuple[str, str]:
    if OTHER in result.scores:
        return "Dice of the tumor, one point per scan with tumors.", "small"
    return "Dice of the tumor over the scans with tumors.", ""


def _case_table(scores: tuple[CaseScore, ...]) -> str:
    rows = [
        [
            score.case,
            score.patient,
            f"{sum(lesion.found for lesion in score.lesions)} of {len(score.lesions)}",
            str(sum(item.kind == "false positive" for item in score.predictions)),
            *map(_number, (score.dice, score.surface_dice, score.host_dice)),
        ]
        for score in scores
    ]
    head = ["case", "patient", "lesions found", "false positives", "Dice", "surface Dice", "Dice of organ with tumor"]
    return f"<details><summary>Every case ({len(scores)})</summary>{table(head, rows)}</details>"


def _number(value: float) -> str:
    return NOT_THERE if math.isnan(value) else f"{value:.2f}"
