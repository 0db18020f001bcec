"""The page on how real planted lesions look: one file with tables and pictures."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunetv2_freetumor.experiments.realism.classifier import Votes
from nnunetv2_freetumor.experiments.realism.lesions import Lesions
from nnunetv2_freetumor.experiments.realism.results import READING, Outcome, clue_rows, difference_rows, generator_rows
from nnunetv2_freetumor.pages.page import html_table, picture, save_page
from nnunetv2_freetumor.pages.sheets import BACKGROUND, OUTLINE, TEXT, scale_bar, write_on
from nnunetv2_freetumor.pages.slices import png

_ROWS = 6
_WINDOW_WIDTH_HU = 220.0  # narrower than radiologists use, to show more detail
_PLAIN_HU = (-150.0, 300.0)  # what the window's level is read from: neither air nor bone
_PANEL, _CAPTION, _TITLE, _GAP = 1.35, 0.22, 0.55, 0.18  # inches
_KINDS = ("planted", "planted", "real", "real")
_HALVES = ("most convincing", "least convincing")


def write_realism_page(outcome: Outcome, sheets: Mapping[str, bytes], path: Path) -> Path:
    """Write the tables and each generator's sheet, and return the page's path."""
    cohort = outcome.cohort
    settings = "".join(
        f"<li>{html.escape(key)}: <code>{html.escape(str(value))}</code></li>"
        for key, value in outcome.settings.items()
    )
    parts = [
        "<h1>How real is it?</h1>",
        f"<p>{len(cohort.case)} real lesions of {cohort.patients} patients, each with a planted partner in the same "
        "host of the same case and of the same diameter. A classifier that has not seen the patient predicts which of "
        f"the lesions are real, from what is measured on them. {cohort.left_out} real lesions without room for a "
        f"partner are left out.</p><p>{html.escape(READING)}</p>",
        _table(generator_rows(outcome)),
        _table(difference_rows(outcome)),
    ]
    for item in outcome.generators:
        caption = (
            "Left: the most convincing planted lesions. Right: the least convincing. Next to each, its real partner; "
            "both without and with outline. Axial, anterior at the top."
        )
        parts += [f"<h2>{html.escape(item.name)}</h2>", picture(sheets[item.name], caption), _table(clue_rows(item))]
    parts += [f"<h2>Settings</h2><ul>{settings}</ul>"]
    return save_page("How real is it?", [part for part in parts if part], path)


def _table(rows: list[list[str]]) -> str:
    return html_table(rows[0], rows[1:]) if rows else ""


@style.context("default")
def sheet(name: str, real: Lesions, planted: Lesions, votes: Votes, names: Sequence[str]) -> bytes:
    """Plot the pairs with the most and the least convincing planted lesions, and return the PNG."""
    order = np.argsort(-votes.planted, kind="stable")
    rows = min(_ROWS, max(len(order) // 2, 1))
    width, height = 8 * _PANEL + 3 * _GAP, _TITLE + rows * (_PANEL + _CAPTION)
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    for half, (title, chosen) in enumerate(zip(_HALVES, (order[:rows], order[::-1][:rows]))):
        left = _GAP + half * (4 * _PANEL + _GAP)
        figure.text(left / width, 1 - 0.14 / height, f"{name}: {title}", color=TEXT, fontsize=10, va="top")
        for row, index in enumerate(chosen.tolist()):
            top = height - _TITLE - row * (_PANEL + _CAPTION)
            text = (
                f"{names[index]}: planted {planted.diameter_mm[index]:.0f} mm, {votes.planted[index]:.0%} real; "
                f"partner {real.diameter_mm[index]:.0f} mm, {votes.real[index]:.0%} real"
            )
            figure.text(left / width, (top + _CAPTION / 3) / height, text, color=TEXT, fontsize=6.5, va="center")
            for column in range(4):
                place = (
                    (left + column * _PANEL) / width,
                    (top - _PANEL) / height,
                    0.97 * _PANEL / width,
                    0.97 * _PANEL / height,
                )
                axes = figure.add_axes(place, xticks=[], yticks=[])
                _show(
                    axes,
                    planted if column < 2 else real,
                    index=index,
                    window=_window(real, planted, index),
                    column=column,
                )
    return png(figure)


def _window(real: Lesions, planted: Lesions, index: int) -> tuple[float, float]:
    """Choose one window for a pair, centered on the tissue around both lesions."""
    levels = [_around(lesions.tiles_hu[index], lesions.outlines[index]) for lesions in (real, planted)]
    level = round(float(np.mean(levels)) / 10) * 10.0
    return level - _WINDOW_WIDTH_HU / 2, level + _WINDOW_WIDTH_HU / 2


def _around(hu: Int[np.ndarray, "n n"], outline: Float[np.ndarray, "n n"]) -> float:
    side = len(hu) // 4
    middle = slice(side, -side)
    host = hu[middle, middle][outline[middle, middle] < 0.01]
    plain = host[(host > _PLAIN_HU[0]) & (host < _PLAIN_HU[1])]
    return float(np.median(plain if len(plain) else hu))


def _show(axes: Axes, lesions: Lesions, index: int, window: tuple[float, float], column: int) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.imshow(lesions.tiles_hu[index], cmap="gray", vmin=window[0], vmax=window[1], interpolation="bilinear")
    if column % 2:
        axes.contour(lesions.outlines[index], levels=[0.5], colors=OUTLINE, linewidths=0.8)
    else:
        scale_bar(axes, float(lesions.side_mm[index]) / 2)
    write_on(axes, 0.03, 0.93, _KINDS[column])
