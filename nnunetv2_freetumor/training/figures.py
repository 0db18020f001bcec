"""Pictures of a training: the first planted batch, and what each epoch planted."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from nnunetv2_freetumor.files.cases import replacing
from nnunetv2_freetumor.pages.sheets import (
    MOST_ROWS,
    SIZE_CLASS_COLORS,
    lesion_sheet,
    pictures_of,
    save_figure,
)
from nnunetv2_freetumor.plan import SIZE_NAMES
from nnunetv2_freetumor.synthesis.planted import Aim, BeforeAfter
from nnunetv2_freetumor.synthesis.planter import ACCEPTED, JUDGED, Planter, Synthesis
from nnunetv2_freetumor.training.recognition import RECOGNIZED, WATCHED


def batch_preview(
    image: Float[Tensor, "b 1 x y z"],
    label: Int[Tensor, "b 1 x y z"],
    synthesis: Synthesis,
    planter: Planter,
    path: str | Path,
) -> bool:
    """Plot what was planted into a batch, if anything was: images in z-scores, axes as nnU-Net loads them."""
    kept = [lesion.site for lesion in synthesis.lesions if lesion.change.kept]
    pictures = []
    for sample in sorted({site.sample for site in kept}):
        images = (planter.intensity.to_hu(z[sample, 0].float()).cpu().numpy() for z in (image, synthesis.image))
        labels = (values[sample, 0].cpu().numpy() for values in (label, synthesis.label))
        aims = [Aim(s.center, s.diameter_mm, f"sample {sample + 1}") for s in kept if s.sample == sample]
        pictures += pictures_of(BeforeAfter(*images, *labels), aims, planter.spacing_mm)
    if not pictures:
        return False
    lesion_sheet(pictures[:MOST_ROWS], path, "Planted into the first batch that got a lesion")
    return True


DPI = 100  # of the panel below nnU-Net's progress figure
_LARGE = {"font.size": 24.0, "lines.linewidth": 4.0, "lines.markersize": 12.0}  # as in nnU-Net's progress figure


@style.context("default")  # nnU-Net's own figure leaves very large fonts behind
def counts_curve(history: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Plot what every epoch saw, planted by size class and, with a judge, how much of each size it accepted."""
    judged = any(np.nansum(history[name]) for name in JUDGED)
    figure = Figure(figsize=(9, 11 if judged else 8.5), facecolor="white", layout="constrained")
    samples, sizes, recognized, *shares = panels = figure.subplots(4 if judged else 3, 1, sharex=True)
    for name, color in (("eligible", "#999999"), ("planted", "#0072b2"), *([("rejected", "#d55e00")] * judged)):
        samples.plot(range(len(history[name])), history[name], marker=".", color=color, label=name)
    floor = np.zeros(len(history["planted"]))
    for name, color in zip(SIZE_NAMES, SIZE_CLASS_COLORS):
        sizes.bar(range(len(floor)), np.nan_to_num(history[name]), bottom=floor, width=1.0, color=color, label=name)
        floor = floor + np.nan_to_num(history[name])
    _plot_shares(recognized, history, RECOGNIZED, WATCHED)
    recognized.set_ylabel("recognized by\nthe network [%]")
    for axes in shares:
        _plot_shares(axes, history, ACCEPTED, JUDGED)
        axes.set_ylabel("accepted by\nthe judge [%]")
    samples.xaxis.set_major_locator(MaxNLocator(integer=True))
    samples.set_ylabel("samples per epoch")
    sizes.set_ylabel("lesions per epoch")
    panels[-1].set_xlabel("epoch")
    for axes in (samples, sizes):
        axes.set_ylim(0, 1.05 * max(axes.get_ylim()[1], 1))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels:
        if axes.has_data():
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        axes.grid(axis="y", color="#dddddd")
        axes.set_axisbelow(True)
    save_figure(figure, path)


def _plot_shares(
    axes: Axes, history: Mapping[str, Sequence[float]], parts: Sequence[str], wholes: Sequence[str]
) -> None:
    """Plot the share of each size class by epoch; a class without lesions in an epoch has none."""
    for name, color, part, whole in zip(SIZE_NAMES, SIZE_CLASS_COLORS, parts, wholes):
        epochs = np.asarray(history[whole], dtype=float)
        share = np.divide(history[part], epochs, out=np.full(len(epochs), np.nan), where=epochs > 0)
        if np.isfinite(share).any():
            axes.plot(range(len(share)), 100 * share, marker=".", color=color, label=name)
    axes.set_ylim(-3, 105)  # a line of zeros stays in sight


def add_to_progress(history: Mapping[str, Sequence[float]], progress: str | Path) -> None:
    """Put the recognized shares below nnU-Net's own progress figure, if there is one; above them it stays as it is."""
    if not Path(progress).is_file():
        return
    with Image.open(progress) as own:
        above = own.convert("RGB")
    size = (above.width / DPI, above.width / DPI / 4)
    below = io.BytesIO()
    with style.context(["default", _LARGE]):  # whatever nnU-Net's figure has set
        figure = Figure(figsize=size, facecolor="white", layout="constrained", dpi=DPI)
        axes = figure.subplots()
        _plot_shares(axes, history, RECOGNIZED, WATCHED)
        axes.set(title="planted lesions that the network recognizes", xlabel="epoch", ylabel="share [%]")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.has_data():
            axes.legend(loc="upper left", frameon=False)
        FigureCanvasAgg(figure).print_png(below)
    with Image.open(below) as panel:
        joined = Image.new("RGB", (above.width, above.height + panel.height), "white")
        joined.paste(above, (0, 0))
        joined.paste(panel.convert("RGB"), (0, above.height))
    with replacing(progress) as unfinished:
        joined.save(unfinished, format="PNG")
