"""The results of comparing real and planted lesions, as JSON, CSV and tables."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.evaluation.files import as_json
from nnunetv2_freetumor.evaluation.results import difference_text, estimate_text, p_text
from nnunetv2_freetumor.evaluation.scores import Difference, Estimate
from nnunetv2_freetumor.experiments.realism.classifier import Realism
from nnunetv2_freetumor.experiments.realism.features import FEATURE_GROUPS, FEATURES
from nnunetv2_freetumor.experiments.realism.lesions import Lesions
from nnunetv2_freetumor.files.cases import replacing, write_json

_WORST = 3  # features named in the table
_LISTED = 12  # features listed for each generator
READING = (
    "AUC 0.5: the classifier cannot tell planted lesions from real ones; 1: it always can. Brackets: 95 % interval, "
    "bootstrap over patients. AUC is that of a random forest; the groups are the forest with these features alone."
)


class PairedLesions(NamedTuple):
    """The pairs that every generator has."""

    case: list[str]  # of each pair
    patients: int
    left_out: int  # real lesions without a planted partner
    real: Lesions
    planted: dict[str, Lesions]  # by generator


class Outcome(NamedTuple):
    """All results."""

    cohort: PairedLesions
    generators: tuple[Realism, ...]
    differences: dict[tuple[str, str], Difference]  # the first's AUC minus the second's
    control: Estimate | None  # real lesions against real ones
    settings: dict[str, Any]


def generator_rows(outcome: Outcome) -> list[list[str]]:
    """Return the table of generators; the first row is the head."""
    head = ["generator", "pairs", "AUC", "logistic regression", *FEATURE_GROUPS, "what gives it away (AUC alone)"]
    rows = [
        [
            item.name,
            str(item.auc.count),
            *map(estimate_text, (item.auc, item.auc_linear)),
            *(f"{item.by_group[group].value:.2f}" for group in FEATURE_GROUPS),
            "; ".join(f"{clue.feature} ({_alone(clue.auc):.2f})" for clue in item.clues[:_WORST]),
        ]
        for item in outcome.generators
    ]
    if outcome.control:
        nothing = ["-"] * (len(FEATURE_GROUPS) + 2)
        rows.append(
            ["control: real against real", str(outcome.control.count), estimate_text(outcome.control), *nothing]
        )
    return [head, *rows]


def difference_rows(outcome: Outcome) -> list[list[str]]:
    """Return the table of paired differences; the first row is the head."""
    rows = [
        [f"{first} - {second}", difference_text(difference), p_text(difference.p)]
        for (first, second), difference in outcome.differences.items()
    ]
    return [["AUC", "difference", "p"], *rows] if rows else []


def clue_rows(item: Realism) -> list[list[str]]:
    """Return the table of features that give a generator away, worst first; the first row is the head."""
    head = ["feature", "group", "AUC alone", "in planted lesions", "median real", "median planted", "KS", "shift in SD",
            "AUC lost when shuffled"]  # fmt: skip
    return [
        head,
        *(
            [
                clue.feature,
                clue.group,
                f"{_alone(clue.auc):.2f}",
                "lower" if clue.auc > 0.5 else "higher",
                f"{clue.real_median:.2f}",
                f"{clue.planted_median:.2f}",
                f"{clue.ks:.2f}",
                f"{clue.shift_sd:.2f}",
                f"{clue.importance:+.3f}",
            ]
            for clue in item.clues[:_LISTED]
        ),
    ]


def realism_text(outcome: Outcome) -> str:
    """Return all tables as Markdown, which is readable in a terminal as well."""
    cohort = outcome.cohort
    blocks = [
        f"{len(cohort.case)} pairs of a real and a planted lesion in {cohort.patients} patients; {cohort.left_out} "
        "real lesions without room for a partner are left out.",
        _markdown(generator_rows(outcome)),
        _markdown(difference_rows(outcome)),
    ]
    for item in outcome.generators:
        blocks += [f"What gives {item.name} away:", _markdown(clue_rows(item))]
    return "\n\n".join([*(block for block in blocks if block), READING])


def write_files(outcome: Outcome, folder: Path) -> None:
    """Write realism.json, realism.csv with a line per lesion, and realism.md."""
    cohort = outcome.cohort
    write_json(
        as_json(
            {
                "version": __version__,
                "settings": outcome.settings,
                "pairs": len(cohort.case),
                "patients": cohort.patients,
                "left_out": cohort.left_out,
                "generators": [
                    {key: value for key, value in item._asdict().items() if key != "votes"}
                    for item in outcome.generators
                ],
                "differences": [
                    {"first": first, "second": second, **difference._asdict()}
                    for (first, second), difference in outcome.differences.items()
                ],
                "control_real_against_real": outcome.control,
            }
        ),
        folder / "realism.json",
    )
    with replacing(folder / "realism.csv") as unfinished, unfinished.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "pair", "source", "diameter_mm", "votes", *FEATURES])
        for source, lesions, votes in _sources(outcome):
            for pair, (case, size) in enumerate(zip(cohort.case, lesions.diameter_mm)):
                numbers = [f"{value:.6g}" for value in (size, votes[pair], *lesions.features[pair])]
                writer.writerow([case, pair, source, *numbers])
    with replacing(folder / "realism.md") as unfinished:
        unfinished.write_text(f"# How real is it?\n\n{realism_text(outcome)}\n", encoding="utf-8")


def _sources(outcome: Outcome) -> list[tuple[str, Lesions, np.ndarray]]:
    """Return each source with its lesions and their votes; for real ones, the mean vote over the generators."""
    of_real = np.mean([item.votes.real for item in outcome.generators], axis=0)
    planted = [(item.name, outcome.cohort.planted[item.name], item.votes.planted) for item in outcome.generators]
    return [("real", outcome.cohort.real, of_real), *planted]


def _alone(auc: float) -> float:
    return max(auc, 1 - auc)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
