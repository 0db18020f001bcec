"""Pictures people look at: planted lesions beside what was there before.

Arrays are HU with axes (z y x). The first axis points up in the second and third plane, as radiologists hang them, once
`upright` has turned the arrays the way the patient lies.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from scipy.optimize import linear_sum_assignment

from nnunetv2_freetumor.files.cases import replacing
from nnunetv2_freetumor.synthesis.planted import Aim, BeforeAfter, measure_planted

ANATOMICAL_PLANES = ("axial", "coronal", "sagittal")
ARRAY_PLANES = ("across axis 1", "across axis 2", "across axis 3")
STAGES = ("before", "after", "mask")
LUNG_WINDOW_HU = (-1350.0, 150.0)  # W 1500 L -600
LUNG_BELOW_HU = -400.0
SOFT_TISSUE_WIDTH_HU = 350.0
FIELD_OF_VIEW_BOUNDS_MM = (70.0, 200.0)  # of a picture: three diameters, within these bounds
MOST_ROWS = 8
VIEW_INCHES, _GAP, _CAPTION, _TITLE = 1.75, 0.04, 0.28, 0.32  # inches
BACKGROUND, TEXT, OUTLINE = "#101010", "#e8e8e8", "#ffb000"
HALO = [Stroke(linewidth=2, foreground=BACKGROUND), Normal()]  # keeps letters legible on bright tissue
BAR_HALO = [Stroke(linewidth=4, foreground=BACKGROUND), Normal()]
SIZE_CLASS_COLORS = ("#56b4e9", "#009e73", "#e69f00", "#cc79a7")


class Views(NamedTuple):
    """A volume before and after; the arrays share one shape."""

    before_hu: np.ndarray
    after_hu: np.ndarray
    mask: np.ndarray  # what gets the outline
    spacing_mm: tuple[float, ...]
    planes: tuple[str, str, str] = ARRAY_PLANES

    def turned(self, turn: "Turn") -> "Views":
        """Turn the arrays upright, and name the planes as radiologists do."""
        before_hu, after_hu, mask = (np.flip(array.transpose(turn.order), turn.flips) for array in self[:3])
        spacing_mm = tuple(self.spacing_mm[axis] for axis in turn.order)
        return Views(before_hu, after_hu, mask=mask, spacing_mm=spacing_mm, planes=ANATOMICAL_PLANES)


class Turn(NamedTuple):
    """How array axes are reordered and flipped to point to superior, posterior and left."""

    order: tuple[int, ...]
    flips: tuple[int, ...]  # of the reordered axes


def upright(direction: Sequence[float], transpose_forward: Sequence[int] = (0, 1, 2)) -> Turn:
    """Find the turn that hangs arrays as radiologists do.

    `direction` is SimpleITK's; the plans' `transpose_forward` names the axis of (z y x) behind each array axis.
    """
    columns = [2 - axis for axis in transpose_forward]
    axes_in_patient = np.reshape(direction, (3, 3))[::-1, columns]  # rows superior, posterior, left
    _, order = linear_sum_assignment(-np.abs(axes_in_patient))
    flips = tuple(k for k in range(3) if axes_in_patient[k, order[k]] < 0)
    return Turn(tuple(order.tolist()), flips)


class Picture(NamedTuple):
    """One lesion in a volume before and after."""

    views: Views
    center: tuple[float, ...]  # voxel index
    diameter_mm: float
    host_hu: float  # median of the host; sets the window
    caption: str

    def turned(self, turn: Turn) -> "Picture":
        """Turn the arrays upright, and the lesion's center with them."""
        last = [size - 1 for size in self.views.mask.shape]
        center = tuple(
            last[a] - self.center[a] if k in turn.flips else self.center[a] for k, a in enumerate(turn.order)
        )
        return self._replace(views=self.views.turned(turn), center=center)


def window_hu(host_hu: float) -> tuple[float, float]:
    """Choose the HU window for a host: the lung's, or 350 HU around the host's median, rounded to 10 HU."""
    if host_hu < LUNG_BELOW_HU:
        return LUNG_WINDOW_HU
    level = round(host_hu / 10) * 10.0
    return level - SOFT_TISSUE_WIDTH_HU / 2, level + SOFT_TISSUE_WIDTH_HU / 2


def lesion_sheet(pictures: Sequence[Picture], path: str | Path, title: str = "") -> None:
    """Plot a row per lesion: before, after, and after with the outline, in three planes through its center."""
    height = _TITLE + len(pictures) * (_CAPTION + VIEW_INCHES + _GAP)
    figure = Figure(figsize=(9 * VIEW_INCHES + 12 * _GAP, height), facecolor=BACKGROUND)
    figure.text(_GAP / 9 / VIEW_INCHES, 1 - _TITLE / 2 / height, title, color=TEXT, fontsize=11, va="center")
    for row, picture in enumerate(pictures):
        top = height - _TITLE - row * (_CAPTION + VIEW_INCHES + _GAP)
        low, high = window_hu(picture.host_hu)
        caption = f"{picture.caption}   window {low:.0f}..{high:.0f} HU"
        figure.text(_GAP / 9 / VIEW_INCHES, (top - _CAPTION / 2) / height, caption, color=TEXT, fontsize=9, va="center")
        for column in range(9):
            left = _GAP + column * (VIEW_INCHES + _GAP) + column // 3 * _GAP
            axes = _add_axes(figure, left, top - _CAPTION - VIEW_INCHES)
            _plot_plane(axes, picture, column // 3, STAGES[column % 3])
    save_figure(figure, path)


def pictures_of(change: BeforeAfter, aims: Sequence[Aim], spacing_mm: Sequence[float]) -> list[Picture]:
    """Measure the lesions planted into one volume and make a picture of each."""
    views = Views(change.before_hu, change.after_hu, change.mask, tuple(spacing_mm))
    return [
        Picture(
            views=views,
            center=lesion.center,
            diameter_mm=lesion.diameter_mm,
            host_hu=lesion.host_hu,
            caption=f"{lesion.name}   {lesion.diameter_mm:.1f} mm   {lesion.contrast_hu:+.0f} HU",
        )
        for lesion in measure_planted(change, aims, spacing_mm)
    ]


def _add_axes(figure: Figure, left: float, bottom: float) -> Axes:
    width, height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / width, bottom / height, VIEW_INCHES / width, VIEW_INCHES / height), facecolor="black"
    )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _plot_plane(axes: Axes, picture: Picture, axis: int, stage: str) -> None:
    down, across = (other for other in range(3) if other != axis)
    half_mm = float(np.clip(3 * picture.diameter_mm, *FIELD_OF_VIEW_BOUNDS_MM)) / 2
    axes.set(xlim=(-half_mm, half_mm), ylim=(half_mm, -half_mm) if axis == 0 else (-half_mm, half_mm))
    boxes = [_near(picture, a, half_mm) for a in range(3)]
    index = round(picture.center[axis])
    cut = tuple(index if a == axis else slice(*boxes[a]) for a in range(3))
    views = picture.views
    volume = views.before_hu if stage == "before" else views.after_hu
    low, high = window_hu(picture.host_hu)
    (top, bottom), (left, right) = (_edges_mm(picture, a, boxes[a]) for a in (down, across))
    axes.imshow(
        volume[cut], cmap="gray", vmin=low, vmax=high, extent=(left, right, bottom, top), interpolation="bilinear",
        aspect="equal", origin="upper",
    )  # fmt: skip
    if stage == "mask" and min(views.mask[cut].shape) > 1 and views.mask[cut].any():
        x_mm, y_mm = (_centers_mm(picture, a, boxes[a]) for a in (across, down))
        axes.contour(x_mm, y_mm, views.mask[cut].astype(float), levels=[0.5], colors=OUTLINE, linewidths=0.9)
    write_on(axes, 0.02, 0.95, f"{views.planes[axis]}, {stage}")
    if stage == "before":
        scale_bar(axes, half_mm)


def _near(picture: Picture, axis: int, half_mm: float) -> tuple[int, int]:
    reach = half_mm / picture.views.spacing_mm[axis] + 1
    center = picture.center[axis]
    return max(0, int(center - reach)), min(picture.views.before_hu.shape[axis], int(center + reach) + 2)


def _edges_mm(picture: Picture, axis: int, box: tuple[int, int]) -> tuple[float, float]:
    start, stop = ((edge - 0.5 - picture.center[axis]) * picture.views.spacing_mm[axis] for edge in box)
    return start, stop


def _centers_mm(picture: Picture, axis: int, box: tuple[int, int]) -> np.ndarray:
    return (np.arange(*box) - picture.center[axis]) * picture.views.spacing_mm[axis]


def scale_bar(axes: Axes, half_mm: float) -> None:
    """Plot a bar into the lower left corner of a square picture with half of this side length."""
    length_mm = 20 if half_mm < 60 else 50
    left, level = 0.05, 0.06
    right = left + length_mm / (2 * half_mm)
    axes.plot([left, right], [level, level], color=TEXT, linewidth=2, transform=axes.transAxes, path_effects=BAR_HALO)
    write_on(axes, right + 0.03, level, f"{length_mm} mm")


def write_on(axes: Axes, x: float, y: float, text: str) -> None:
    """Write into a picture, at shares of its width and height."""
    axes.text(x, y, text, color=TEXT, fontsize=7, va="center", transform=axes.transAxes, path_effects=HALO)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=140, facecolor=figure.get_facecolor())
