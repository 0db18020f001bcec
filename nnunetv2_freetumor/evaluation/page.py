"""The evaluation as one HTML page for people who read scans: tables, plots, the worst misses and false positives."""

import html
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_freetumor.evaluation.inputs import Cohort
from nnunetv2_freetumor.evaluation.pictures import Mistake, mistakes_sheet, worst_alarms, worst_misses
from nnunetv2_freetumor.evaluation.results import (
    EXTERNAL,
    NOT_THERE,
    OTHER,
    OURS,
    Evaluation,
    PairResult,
    gap_rows,
    heading,
    prediction_rows,
)
from nnunetv2_freetumor.evaluation.scores import ALL_SIZES, CaseScore, Estimate, FrocPoint, Rule, size_names
from nnunetv2_freetumor.pages.page import html_table, picture, save_page
from nnunetv2_freetumor.pages.slices import PREDICTION_COLOR, REFERENCE_COLOR, png

_WHOSE = {
    OURS: "the predictions",
    OTHER: "another model's predictions of the same cases",
    EXTERNAL: "an external cohort",
}


_COLORS = {OURS: "#0072b2", OTHER: "#d55e00", EXTERNAL: "#009e73"}
_SIZE_COLORS = ("#56b4e9", "#0072b2", "#e69f00", "#cc79a7", "#009e73", "#999999")
_GRID_COLOR = "#dddddd"


def write_evaluation_page(evaluation: Evaluation, cohort: Cohort, images: Path | None, path: Path) -> Path:
    """Write the page and return its path.

    Args:
        cohort: the files behind the predictions, for the pictures.
        images: folder with CASE_0000 images; without it the pictures show only label maps.
    """
    parts = ["<h1>Tumors found, missed, and falsely predicted</h1>", _introduction(evaluation)]
    for result in evaluation.pairs:
        parts += _pair(result, evaluation.rule, cohort, images)
    return save_page("nnUNetv2_freetumor: evaluation", parts, path)


def _introduction(evaluation: Evaluation) -> str:
    rule = evaluation.rule
    scored = "".join(
        f"<li><b>{name}</b>: {_WHOSE.get(name, 'the reference label maps')} (<code>{html.escape(folder)}</code>)</li>"
        for name, folder in evaluation.folders.items()
    )
    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in evaluation.notes)
    smallest = f" Lesions and predictions below {rule.min_voxels} voxels are left out." if rule.min_voxels > 1 else ""
    return (
        f"<ul>{scored}</ul><p>A lesion is a connected piece of tumor in the reference. Each is assigned at most one "
        "connected prediction, and each prediction at most one lesion. The lesion counts as <b>found</b> if the two "
        f"share at least {rule.min_iou:.0%} of the volume that they cover together (intersection over union). A "
        "prediction with less than a tenth of its volume on tumors is a <b>false positive</b>; one with more that is "
        "not assigned to a lesion counts as neither. A lesion's diameter is that of a sphere of the same volume."
        f"{smallest}</p>"
        "<p>Brackets and bars are 95 % intervals, from resampling the patients with replacement. With few patients or "
        "few lesions they are wide, and a difference whose interval contains 0 may be due to chance. p is the "
        "probability of a difference this large if the two models were equally good (their results swapped at random, "
        "patient by patient). Surface Dice is the share of the two surfaces within "
        f"{rule.tolerance_mm:g} mm of each other. A dash means that there was nothing to measure.</p>{notes}"
    )


def _pair(result: PairResult, rule: Rule, cohort: Cohort, images: Path | None) -> list[str]:
    tables = [html_table(rows[0], rows[1:]) for rows in (prediction_rows(result, rule), gap_rows(result, rule)) if rows]
    parts = [f"<h2>{html.escape(heading(result))}</h2>", *tables]
    plots = (
        (sensitivity_figure(result, rule), "Share of lesions found, by diameter; n lesions behind each bar.", ""),
        (froc_figure(result, rule), _froc_caption(), ""),
        (dice_figure(result), *_dice_caption(result)),
    )
    parts += [picture(png, caption, size) for png, caption, size in plots if png is not None]
    mine = result.scores[OURS]
    parts += _mistakes("Largest missed lesions", worst_misses(mine), result=result, cohort=cohort, images=images)
    parts += _mistakes("Largest false positives", worst_alarms(mine), result=result, cohort=cohort, images=images)
    return [*parts, _case_table(mine)]


def _mistakes(
    title: str, mistakes: list[Mistake], result: PairResult, cohort: Cohort, images: Path | None
) -> list[str]:
    if not mistakes:
        return [f"<h3>{title}</h3><p>None.</p>"]
    background = "the CT" if images else "the organ's label (for the CT, give -images)"
    caption = (
        f"Three planes through each, on {background}: <b style='color:{REFERENCE_COLOR}'>reference tumor</b> and "
        f"<b style='color:{PREDICTION_COLOR}'>predicted tumor</b>, with case, diameter and voxel. Axial: the patient's "
        "left is on the right; sagittal: the front is on the left."
    )
    sheet = mistakes_sheet(mistakes, cohort, result.pair, images)
    return [f"<h3>{title}</h3>", picture(sheet, caption, "small" if len(mistakes) == 1 else "")]


def _froc_caption() -> str:
    return (
        "FROC: sensitivity against false positives if only predictions are kept whose tumor probability reaches a "
        "threshold; each point is one threshold."
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
    return f"<details><summary>Every case ({len(scores)})</summary>{html_table(head, rows)}</details>"


def _number(value: float) -> str:
    return NOT_THERE if math.isnan(value) else f"{value:.2f}"


@style.context("default")
def sensitivity_figure(result: PairResult, rule: Rule) -> bytes:
    """Plot the share of found lesions by size, with intervals, for each set of predictions."""
    names = (*size_names(rule.bounds_mm), ALL_SIZES)
    figure, axes = _axes()
    step = 0.8 / max(len(result.summaries), 2)
    for place, (source, summary) in enumerate(result.summaries.items()):
        offset = (place - (len(result.summaries) - 1) / 2) * step
        estimates = [summary.sensitivity[name] for name in names]
        at = np.arange(len(names)) + offset
        axes.bar(at, [_zero(e.value) for e in estimates], step * 0.9, color=_COLORS[source], alpha=0.55, label=source)
        axes.errorbar(at, [e.value for e in estimates], _whiskers(estimates), fmt="o", ms=4, lw=1.5, color="#1a1a1a")
        for x, estimate in zip(at, estimates):
            axes.text(x, -0.03, f"n={estimate.count}", ha="center", va="top", fontsize=7, color=_COLORS[source])
    axes.set(ylim=(0, 1.02), ylabel="share of lesions found")
    axes.set_xticks(range(len(names)), [f"\n{name}" for name in names])
    axes.tick_params(axis="x", length=0)
    return _finish(figure, axes, len(result.summaries) > 1)


@style.context("default")
def froc_figure(result: PairResult, rule: Rule) -> bytes | None:
    """Plot sensitivity against false positives over probability thresholds; None without probabilities."""
    curves = {source: summary.froc for source, summary in result.summaries.items() if summary.froc}
    if not curves:
        return None
    figure = Figure(figsize=(9, 3.8), facecolor="white", layout="constrained")
    whole, by_size = figure.subplots(1, 2, sharey=True)
    for source, points in curves.items():
        _plot_curve(whole, points, name=ALL_SIZES, color=_COLORS[source], title=source, band=True)
    source, points = next(iter(curves.items()))
    for name, color in zip(size_names(rule.bounds_mm), _SIZE_COLORS * 9):
        if points[0].sensitivity[name].count:
            title = f"{name} (n={points[0].sensitivity[name].count})"
            _plot_curve(by_size, points, name=name, color=color, title=title, band=False)
    whole.set(ylabel="share of lesions found", title="all lesions, with interval")
    by_size.set(title=f"by size ({source})")
    for axes in (whole, by_size):
        axes.set(ylim=(0, 1.02), xlabel="false positives per scan")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=8, loc="best")
        axes.grid(color=_GRID_COLOR)
    return png(figure)


@style.context("default")
def dice_figure(result: PairResult) -> bytes | None:
    """Plot the Dice of the scans with tumors, against the other model's if given; None without such scans."""
    pairs = _paired(result.scores[OURS], result.scores.get(OTHER, ()))
    figure, axes = _axes(4.2 if OTHER in result.scores else 9)
    if OTHER in result.scores:
        axes.plot([0, 1], [0, 1], color="#999999", lw=1)
        axes.plot(*zip(*pairs), "o", ms=5, alpha=0.6, color=_COLORS[OURS]) if pairs else None
        axes.set(
            xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=f"Dice, {OTHER}", ylabel=f"Dice, {OURS}", aspect="equal"
        )
        axes.text(0.03, 0.95, f"{OURS} better", fontsize=8, color="#444444")
        axes.text(0.97, 0.03, f"{OTHER} better", fontsize=8, color="#444444", ha="right")
        return _finish(figure, axes, False) if pairs else None
    values = {source: _dice(scores) for source, scores in result.scores.items() if _dice(scores)}
    for source, dice in values.items():
        axes.hist(
            dice, np.linspace(0, 1, 21).tolist(), color=_COLORS[source], alpha=0.55, label=f"{source} (n={len(dice)})"
        )
    axes.set(xlim=(0, 1), xlabel="Dice of the tumor, by case", ylabel="cases")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(figure, axes, True) if values else None


def _axes(width: float = 9) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 3.8), facecolor="white", layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Figure, axes: Axes, legend: bool) -> bytes:
    axes.grid(axis="y", color=_GRID_COLOR)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if legend:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return png(figure)


def _plot_curve(axes: Axes, points: Sequence[FrocPoint], name: str, color: str, title: str, band: bool) -> None:
    ordered = sorted(points, key=lambda point: -point.threshold)
    alarms = [point.false_positives_per_scan for point in ordered]
    estimates = [point.sensitivity[name] for point in ordered]
    axes.plot(alarms, [e.value for e in estimates], "o-", ms=3, lw=1.5, color=color, label=title)
    if band:
        axes.fill_between(alarms, [e.low for e in estimates], [e.high for e in estimates], color=color, alpha=0.15)


def _whiskers(estimates: Sequence[Estimate]) -> np.ndarray:
    return np.array([[max(e.value - e.low, 0), max(e.high - e.value, 0)] for e in estimates]).T


def _zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _dice(scores: Sequence[CaseScore]) -> list[float]:
    return [score.dice for score in scores if score.lesions]


def _paired(ours: Sequence[CaseScore], other: Sequence[CaseScore]) -> list[tuple[float, float]]:
    """Return (other, ours) for each case with tumors that both have."""
    others = {score.case: score.dice for score in other}
    return [(others[score.case], score.dice) for score in ours if score.lesions and score.case in others]
