"""Plot a study: sensitivity of each arm at matched false positives, with intervals and every seed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunetv2_freetumor.evaluation.scores import ALL_SIZES
from nnunetv2_freetumor.experiments.study.results import MATCHED, ArmResult, Matched
from nnunetv2_freetumor.files.cases import replacing

_ROW_INCHES, _COLORS = 0.42, {"real": "0.35", "texture": "#c0392b"}
_OTHER_COLOR = "#2c6fad"


class _Bar(NamedTuple):
    title: str
    arm: str
    matched: Matched


def plot_study(results: Sequence[ArmResult], path: Path) -> None:
    """Plot a row of panels for each setting: left counting all false positives, right only those on the organ.

    A dot is the mean of the seeds, a tick one seed, the bar the 95 % interval.
    """
    settings = list(dict.fromkeys(result.setting for result in results))
    if not settings:
        return
    heights = [sum(result.setting == setting for result in results) for setting in settings]
    size = (11.5, _ROW_INCHES * sum(heights) + 0.45 * len(settings) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(settings), 2, sharex=True, squeeze=False, height_ratios=heights)
    for (left, right), setting in zip(axes, settings):
        shown = [result for result in results if result.setting == setting]
        _panel(left, [_Bar(result.title, result.arm, result.anywhere) for result in shown])
        _panel(right, [_Bar("", result.arm, result.in_host) for result in shown])
        left.set_title(setting, loc="left", fontsize=10, fontweight="bold")
    share = f"share of lesions found at {MATCHED:g} false positive per scan,\n"
    axes[-1, 0].set_xlabel(f"{share}wherever it lies", fontsize=9)
    axes[-1, 1].set_xlabel(f"{share}counting only those on the organ", fontsize=9)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")


def _panel(axis: Axes, bars: Sequence[_Bar]) -> None:
    axis.set_yticks(range(len(bars)), [bar.title for bar in bars], fontsize=8)
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    for place, (_, arm, matched) in enumerate(bars):
        estimate, by_seed = matched.by_size[ALL_SIZES], matched.by_seed
        color = _COLORS.get(arm, _OTHER_COLOR)
        axis.plot(by_seed, [place] * len(by_seed), "|", color=color, markersize=12, alpha=0.6)
        if math.isnan(estimate.value):
            axis.text(0.01, place, "not all seeds" if by_seed else "no value", va="center", fontsize=8, color="0.5")
            continue
        axis.plot([estimate.low, estimate.high], [place, place], color=color, linewidth=2)
        axis.plot(estimate.value, place, "o", color=color, markersize=6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
