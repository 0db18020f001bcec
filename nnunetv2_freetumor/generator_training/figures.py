"""Pictures of a generator in training: lesions before, as `texture` and as learned; and the curves of every term."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_freetumor.files.cases import replacing
from nnunetv2_freetumor.generator_training.log import RECOGNIZED
from nnunetv2_freetumor.generator_training.step import TERMS
from nnunetv2_freetumor.pages.sheets import (
    BACKGROUND,
    OUTLINE,
    SIZE_CLASS_COLORS,
    TEXT,
    VIEW_INCHES,
    window_hu,
    write_on,
)
from nnunetv2_freetumor.plan import SIZE_NAMES

_COLUMNS = ("before", "texture", "learned", "mask")


class LesionSlices(NamedTuple):
    """One lesion's window, cut through its middle across the slice axis."""

    before_hu: np.ndarray
    texture_hu: np.ndarray
    learned_hu: np.ndarray
    mask: np.ndarray
    host_hu: float
    diameter_mm: float
    aspect: float  # height of a pixel over its width


def preview_sheet(rows: Sequence[LesionSlices], path: str | Path, title: str) -> None:
    """Plot a row per lesion: before, with `texture`, with the learned generator, and with its outline."""
    width, height = len(_COLUMNS) * VIEW_INCHES, len(rows) * VIEW_INCHES + 0.4
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    figure.text(0.01, 1 - 0.2 / height, title, color=TEXT, fontsize=9, va="center")
    grid = figure.subplots(len(rows), len(_COLUMNS), squeeze=False)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=1 - 0.4 / height, wspace=0.02, hspace=0.02)
    for axes_of_row, row in zip(grid, rows):
        low, high = window_hu(row.host_hu)
        images = (row.before_hu, row.texture_hu, row.learned_hu, row.learned_hu)
        for axes, name, image in zip(axes_of_row, _COLUMNS, images):
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", aspect=row.aspect)
            axes.set_axis_off()
            write_on(axes, 0.03, 0.94, f"{name}, {row.diameter_mm:.0f} mm" if name == "before" else name)
        if row.mask.any():
            axes_of_row[-1].contour(row.mask.astype(float), levels=[0.5], colors=OUTLINE, linewidths=0.9)
    _save(figure, path)


@style.context("default")  # nnU-Net's own figure leaves very large fonts behind
def training_curves(history: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Plot every loss term, the critic's confusion, and the recognized share by size class, epoch by epoch."""
    figure = Figure(figsize=(11, 9), facecolor="white", layout="constrained")
    *panels, shares, beside, last = figure.subplots(4, 3).flat[: len(TERMS) + 3]
    for axes, name in zip(panels, TERMS):
        axes.plot(range(len(history[name])), history[name], marker=".", color="#0072b2")
        axes.set_title(name.replace("_hu", ", HU"), fontsize=9)
    sizes = zip(RECOGNIZED, SIZE_NAMES, SIZE_CLASS_COLORS)
    judged = [size for size in sizes if any(map(math.isfinite, history[size[0]]))]
    for name, size, color in judged:
        shares.plot(range(len(history[name])), history[name], marker=".", color=color, label=size)
    shares.plot(range(len(history["realism"])), history["realism"], color="#999999", label="critic confusion")
    shares.set(ylim=(0, 1.05))
    shares.set_title("recognized share" if judged else "no judge", fontsize=9)
    beside.legend(*shares.get_legend_handles_labels(), loc="center left", frameon=False, fontsize=9)
    for axes in (*panels, shares):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#dddddd")
        axes.set_xlabel("epoch", fontsize=8)
    for axes in (beside, last):
        axes.set_axis_off()
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=110, facecolor=figure.get_facecolor())
