"""Draw a study: what each arm finds at matched false positives, with intervals and every seed."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunetv2_freetumor.cases import replacing
from nnunetv2_freetumor.scores import ALL_SIZES
from nnunetv2_freetumor.study_results import MATCHED, Row

ROW_INCHES, COLORS = 0.42, {"real": "0.35", "texture": "#c0392b"}
OTHER_COLOR = "#2c6fad"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw one panel for each setting; a dot is the pooled sensitivity, a tick one seed, the bar the 95 % interval."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    if not settings:
        return
    heights = [sum(row.setting == setting for row in rows) for setting in settings]
    size = (8.5, ROW_INCHES * sum(heights) + 0.45 * len(settings) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(settings), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axis, setting in zip(axes[:, 0], settings):
        _panel(axis, setting, [row for row in rows if row.setting == setting])
    axes[-1, 0].set_xlabel(f"share of lesions found at {MATCHED:g} false positive per scan, 95 % interval by patient")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")


def _panel(axis: Axes, setting: str, rows: Sequence[Row]) -> None:
    axis.set_title(setting, loc="left", fontsize=10, fontweight="bold")
    axis.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    for place, row in enumerate(rows):
        estimate, color = row.matched[ALL_SIZES], COLORS.get(row.arm, OTHER_COLOR)
        if math.isnan(estimate.value):
            axis.text(0.01, place, "no value", va="center", fontsize=8, color="0.5")
            continue
        axis.plot([estimate.low, estimate.high], [place, place], color=color, linewidth=2)
        axis.plot(estimate.value, place, "o", color=color, markersize=6)
        axis.plot(row.by_seed, [place] * len(row.by_seed), "|", color=color, markersize=12, alpha=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
