"""Pictures of the worst misses and false positives: three planes through each, with both outlines."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from nnunetv2_freetumor.evaluation.inputs import Cohort, Labels, PredictedCase
from nnunetv2_freetumor.evaluation.scores import CaseScore, Pair
from nnunetv2_freetumor.pages.sheets import ANATOMICAL_PLANES, BACKGROUND, TEXT, scale_bar, window_hu, write_on
from nnunetv2_freetumor.pages.slices import PREDICTION_COLOR, REFERENCE_COLOR, png

_MOST_PICTURES = 6
_PER_ROW = 2
_FIELD_OF_VIEW_MM = (60.0, 200.0)  # of a picture: three diameters, within these bounds
_PANEL, _CAPTION = 1.75, 0.42  # inches


class Mistake(NamedTuple):
    """A lesion that was missed, or a false positive."""

    case: str
    number: int
    center: tuple[int, int, int]  # voxel index
    diameter_mm: float


class _View(NamedTuple):
    """A case with its axes turned to superior, posterior and left."""

    background: np.ndarray  # HU; without an image, 1 in the host
    window: tuple[float, float]
    reference: np.ndarray  # tumor
    prediction: np.ndarray
    center: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    slice_text: str


def check_images(images: Path, cohort: Cohort, labels: Labels) -> None:
    """Refuse a folder that lacks the image of a case, or holds images of another size than their reference.

    Raises:
        ValueError: an image is missing, or has another size.
    """
    missing = [path for files in cohort.files if not (path := image_of(images, files)).is_file()]
    if missing:
        raise ValueError(
            f"-images {images} must hold the image CASE_0000{labels.file_ending} of each case, but {missing[0].name} "
            f"is missing ({len(missing)} of {len(cohort.files)} are). Without -images, pictures show only label maps."
        )
    for files in cohort.files:
        path = image_of(images, files)
        size, wanted = (_size(file) for file in (path, files.reference))
        if size != wanted:
            raise ValueError(
                f"Image {path} and reference {files.reference} must have the same size (x, y, z), but they have "
                f"{size} and {wanted}. Give the images that the references were drawn on, or leave out -images."
            )


def image_of(images: Path, files: PredictedCase) -> Path:
    """Return the path of a case's first image channel."""
    return images / files.reference.name.replace(files.case, f"{files.case}_0000", 1)


def worst_misses(scores: Sequence[CaseScore]) -> list[Mistake]:
    """Return the largest lesions that were missed."""
    return _largest(
        Mistake(s.case, a.number, a.center, a.diameter_mm) for s in scores for a in s.lesions if not a.found
    )


def worst_alarms(scores: Sequence[CaseScore]) -> list[Mistake]:
    """Return the largest false positives."""
    return _largest(
        Mistake(s.case, a.number, a.center, a.diameter_mm)
        for s in scores
        for a in s.predictions
        if a.kind == "false positive"
    )


@style.context("default")
def mistakes_sheet(mistakes: Sequence[Mistake], cohort: Cohort, pair: Pair, images: Path | None) -> bytes:
    """Plot three planes through each mistake, with the outlines of reference and prediction."""
    files = {item.case: item for item in cohort.files}
    columns = min(_PER_ROW, len(mistakes))
    rows = -(-len(mistakes) // columns)
    size = (columns * 3 * _PANEL + 0.1, rows * (_PANEL + _CAPTION))
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.03, wspace=0.005, hspace=0.02)
    figure = Figure(figsize=size, facecolor=BACKGROUND, layout=layout)
    cells = figure.subfigures(rows, columns, squeeze=False).ravel()
    for cell, mistake in zip(cells, mistakes):
        view = _view(files[mistake.case], pair, mistake, images)
        half_mm = float(np.clip(3 * mistake.diameter_mm, *_FIELD_OF_VIEW_MM)) / 2
        cell.set_facecolor(BACKGROUND)
        cell.suptitle(
            f"{mistake.case}, {mistake.diameter_mm:.1f} mm, {view.slice_text}",
            color=TEXT,
            fontsize=8,
            x=0.02,
            ha="left",
        )
        for axis, axes in enumerate(cell.subplots(1, 3)):
            _plot_plane(axes, view, axis, half_mm)
    for cell in cells[len(mistakes) :]:
        cell.set_facecolor(BACKGROUND)
    return png(figure)


def _largest(mistakes: Iterable[Mistake]) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: -mistake.diameter_mm)[:_MOST_PICTURES]


def _view(files: PredictedCase, pair: Pair, mistake: Mistake, images: Path | None) -> _View:
    reference = sitk.ReadImage(str(files.reference))
    z, y, x = mistake.center
    upright = _upright(reference)
    point = reference.TransformIndexToPhysicalPoint((x, y, z))
    prediction = sitk.ReadImage(str(files.prediction))
    prediction.CopyInformation(reference)
    truth, guess = (sitk.GetArrayFromImage(_upright(label)) for label in (reference, prediction))
    host = np.isin(truth, (*pair.host, *pair.tumor))
    background, window = host.astype(np.float32), (0.0, 3.0)
    if images is not None:
        image = sitk.ReadImage(str(image_of(images, files)), sitk.sitkFloat32)
        image.CopyInformation(reference)
        background = sitk.GetArrayFromImage(_upright(image))
        window = window_hu(float(np.median(background[host]))) if host.any() else (-160.0, 240.0)
    return _View(
        background=background,
        window=window,
        reference=np.isin(truth, pair.tumor),
        prediction=np.isin(guess, pair.tumor),
        center=upright.TransformPhysicalPointToIndex(point)[::-1],
        spacing_mm=upright.GetSpacing()[::-1],
        slice_text=f"at voxel z {z}, y {y}, x {x}",
    )


def _size(path: Path) -> tuple[int, ...]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.GetSize()


def _upright(image: sitk.Image) -> sitk.Image:
    return sitk.DICOMOrient(image, "LPS")


def _plot_plane(axes: Axes, view: _View, axis: int, half_mm: float) -> None:
    down, across = (other for other in range(3) if other != axis)
    axes.set(
        xlim=(-half_mm, half_mm), ylim=(half_mm, -half_mm) if axis == 0 else (-half_mm, half_mm), xticks=[], yticks=[],
        facecolor="black", aspect="equal",
    )  # fmt: skip
    for spine in axes.spines.values():
        spine.set_visible(False)
    boxes = [_near(view, a, half_mm) for a in range(3)]
    cut = tuple(view.center[a] if a == axis else slice(*boxes[a]) for a in range(3))
    y_mm, x_mm = (_centers_mm(view, a, boxes[a]) for a in (down, across))
    half_y, half_x = view.spacing_mm[down] / 2, view.spacing_mm[across] / 2
    axes.imshow(
        view.background[cut], cmap="gray", vmin=view.window[0], vmax=view.window[1], aspect="equal", origin="upper",
        extent=(x_mm[0] - half_x, x_mm[-1] + half_x, y_mm[-1] + half_y, y_mm[0] - half_y), interpolation="bilinear",
    )  # fmt: skip
    for mask, color in ((view.reference, REFERENCE_COLOR), (view.prediction, PREDICTION_COLOR)):
        if min(mask[cut].shape) > 1 and mask[cut].any():
            axes.contour(x_mm, y_mm, mask[cut].astype(float), levels=[0.5], colors=color, linewidths=1.2)
    write_on(axes, 0.02, 0.95, ANATOMICAL_PLANES[axis])
    if axis == 0:
        scale_bar(axes, half_mm)


def _near(view: _View, axis: int, half_mm: float) -> tuple[int, int]:
    reach = half_mm / view.spacing_mm[axis] + 1
    return max(0, int(view.center[axis] - reach)), min(
        view.reference.shape[axis], int(view.center[axis] + reach) + 2
    )  # fmt: skip


def _centers_mm(view: _View, axis: int, box: tuple[int, int]) -> np.ndarray:
    return (np.arange(*box) - view.center[axis]) * view.spacing_mm[axis]
