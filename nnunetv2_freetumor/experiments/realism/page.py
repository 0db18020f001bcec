"""The page about how real planted lesions look, in one file."""

import html
from collections.abc import Mapping
from pathlib import Path

from nnunetv2_freetumor.experiments.realism.results import READING, Outcome, clue_rows, difference_rows, main_rows
from nnunetv2_freetumor.pages.page import picture, save_page, table


def write_page(outcome: Outcome, sheets: Mapping[str, bytes], path: Path) -> Path:
    """Write the tables and each generator's sheet, and give the page's path."""
    cohort = outcome.cohort
    settings = "".join(
        f"<li>{html.escape(key)}: <code>{html.escape(str(value))}</code></li>"
        for key, value in outcome.settings.items()
    )
    parts = [
        "<h1>How real is it?</h1>",
        f"<p>{len(cohort.case)} real lesions of {cohort.patients} patients, each with a planted partner in the same "
        "case, the same host and of the same diameter. A classifier that has not seen the patient tells which of the "
        f"lesions are real, from what is measured on them. {cohort.left_out} real lesions without a place for a "
        f"partner are left out.</p><p>{html.escape(READING)}</p>",
        _table(main_rows(outcome)),
        _table(difference_rows(outcome)),
    ]
    for item in outcome.generators:
        caption = (
            "Left: planted lesions that the classifier takes for real most. Right: those that give themselves away. "
            "Beside each, without and with its outline, its real partner. Axial, the front up."
        )
        parts += [f"<h2>{html.escape(item.name)}</h2>", picture(sheets[item.name], caption), _table(clue_rows(item))]
    parts += [f"<h2>Settings</h2><ul>{settings}</ul>"]
    return save_page("How real is it?", [part for part in parts if part], path)


def _table(rows: list[list[str]]) -> str:
    return table(rows[0], rows[1:]) if rows else ""
