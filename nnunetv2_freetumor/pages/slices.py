"""Axial CT slices for reports, with reference and prediction outlined."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunetv2_freetumor.files.cases import Case, read_case, read_label
from nnunetv2_freetumor.pages.sheets import BACKGROUND, TEXT

_DISPLAY_WINDOW_HU = (-160.0, 240.0)  # W 400 L 40
_ORGAN_WINDOW_WIDTH_HU = 220.0  # around the organ's median
REFERENCE_COLOR, PREDICTION_COLOR = "#35c4f0", "#ffb000"
_PANEL_INCHES = 3.0


def cohort_figure(images: Sequence[Path], labels: Path) -> bytes:
    """Plot each CT twice: the axial slice with the most tumor (or organ), and a coronal slice through its middle."""
    figure, panels = _panels(2, len(images), 0.78)
    for column, path in enumerate(images):
        image, label = read_case(path), read_label(label_path(path, labels))
        level = show_slice(label.array, label.array)
        _plot(panels[0, column], image.array[level], _aspect(image, 1, 2), _DISPLAY_WINDOW_HU)
        coronal = image.array[::-1, image.array.shape[1] // 2]
        _plot(panels[1, column], coronal, _aspect(image, 0, 2), _DISPLAY_WINDOW_HU)
        thickness, pixel = image.spacing_mm[0], image.spacing_mm[2]
        name = label_path(path, labels).name.removesuffix(".nii.gz")
        panels[0, column].set_title(f"{name}, {pixel:.2g} x {thickness:.2g} mm", color=TEXT, fontsize=9)
    return png(figure)


def predictions_figure(images: Path, references: Path, predictions: Path) -> bytes:
    """Plot a column per test case: the slice alone, and with reference and predicted tumor outlined."""
    paths = sorted(images.glob("*_0000.nii.gz"))
    figure, panels = _panels(2, len(paths), 0.78)
    for column, path in enumerate(paths):
        image = read_case(path)
        reference, prediction = (read_label(label_path(path, folder)).array for folder in (references, predictions))
        level = show_slice(reference, prediction)
        box = _around(reference[level] > 0)
        window = _organ_window(image.array[reference == 1])
        for row in range(2):
            axes = panels[row, column]
            _plot(axes, image.array[level], _aspect(image, 1, 2), window)
            if row == 1:
                _outline(axes, reference[level] == 2, REFERENCE_COLOR)
                _outline(axes, prediction[level] == 2, PREDICTION_COLOR)
            axes.set(xlim=box[0], ylim=box[1])
        name = label_path(path, references).name.removesuffix(".nii.gz")
        title = name if (reference == 2).any() else f"{name} (no tumor)"
        panels[0, column].set_title(title, color=TEXT, fontsize=9)
    return png(figure)


def show_slice(reference: NDArray, prediction: NDArray) -> int:
    """Choose the slice with the most reference tumor, or else the most predicted tumor, or else the most organ."""
    for mask in (reference == 2, prediction == 2, reference > 0):
        if mask.any():
            return int(mask.sum(axis=(1, 2)).argmax())
    return len(reference) // 2


def label_path(image: Path, folder: Path) -> Path:
    """Return the path of the label map that belongs to an nnU-Net image."""
    return folder / image.name.replace("_0000.nii.gz", ".nii.gz")


def _panels(rows: int, columns: int, height: float) -> tuple[Figure, NDArray]:
    figure = Figure(
        figsize=(columns * _PANEL_INCHES, rows * _PANEL_INCHES * height), facecolor=BACKGROUND, layout="constrained"
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def _plot(axes: Axes, slice_hu: NDArray, aspect: float, window: tuple[float, float]) -> None:
    axes.imshow(slice_hu, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect, interpolation="bilinear")
    axes.axis("off")


def _organ_window(organ_hu: NDArray) -> tuple[float, float]:
    level = float(np.median(organ_hu)) if organ_hu.size else 40.0
    return level - _ORGAN_WINDOW_WIDTH_HU / 2, level + _ORGAN_WINDOW_WIDTH_HU / 2


def _outline(axes: Axes, mask: NDArray[np.bool_], color: str) -> None:
    if mask.any():
        axes.contour(mask.astype(float), levels=[0.5], colors=color, linewidths=1.3)


def _around(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find axis limits, y downwards, that hold a mask with some margin."""
    if not mask.any():
        return (0, mask.shape[1]), (mask.shape[0], 0)
    rows, columns = (np.nonzero(mask.any(axis=axis))[0].tolist() for axis in (1, 0))
    return (columns[0] - 8, columns[-1] + 8), (rows[-1] + 8, rows[0] - 8)


def _aspect(image: Case, down: int, across: int) -> float:
    return image.spacing_mm[down] / image.spacing_mm[across]


def png(figure: Figure) -> bytes:
    """Render a figure."""
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, facecolor=figure.get_facecolor())
    return stream.getvalue()
