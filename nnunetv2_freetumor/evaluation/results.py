"""The result of an evaluation: scores and summaries of every tumor/host pair, and their text tables."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from nnunetv2_freetumor.evaluation.scores import (
    ALL_SIZES,
    CaseScore,
    Difference,
    Estimate,
    Pair,
    Rule,
    Summary,
    size_names,
)

OURS, OTHER, EXTERNAL = "predictions", "other", "external"  # whose scores; the keys in evaluation.json


NOT_THERE = "-"


class PairResult(NamedTuple):
    """The results of one tumor/host pair; the dictionaries have a key for each set of predictions."""

    pair: Pair
    scores: dict[str, tuple[CaseScore, ...]]
    summaries: dict[str, Summary]
    comparison: dict[str, Difference]  # the predictions minus the other's; empty without -vs
    gap: dict[str, Difference]  # external minus internal cohort; empty without -external


class Evaluation(NamedTuple):
    """One evaluation, as it is written and plotted."""

    rule: Rule
    seed: int
    folders: dict[str, str]  # as the user gave them
    notes: tuple[str, ...]  # for people: what is missing and why
    pairs: tuple[PairResult, ...]


class NamedEstimate(NamedTuple):
    """One line in a table of results."""

    key: str  # of the comparison and the gap
    title: str
    estimate: Estimate


def named_estimates(summary: Summary, rule: Rule) -> list[NamedEstimate]:
    """Return a summary's estimates in the order of the tables."""
    sizes = [
        NamedEstimate(f"sensitivity {name}", f"sensitivity {name}", summary.sensitivity[name])
        for name in (*size_names(rule.bounds_mm), ALL_SIZES)
    ]
    return [
        *sizes,
        NamedEstimate("false positives per scan", "false positives per scan", summary.false_positives_per_scan),
        NamedEstimate(
            "false positives per scan in the organ", "  of these on the organ", summary.false_positives_in_host
        ),
        NamedEstimate("false positive ml per scan", "false positive ml per scan", summary.false_positive_ml_per_scan),
        NamedEstimate("patient sensitivity", "patient sensitivity", summary.patient_sensitivity),
        NamedEstimate("patient specificity", "patient specificity", summary.patient_specificity),
        NamedEstimate("auroc", "AUROC", summary.auroc),
        NamedEstimate("dice", "Dice, scans with tumor", summary.dice),
        NamedEstimate("surface dice", f"surface Dice {rule.tolerance_mm:g} mm", summary.surface_dice),
        NamedEstimate("host dice", "Dice of organ with tumor", summary.host_dice),
    ]


def evaluation_text(evaluation: Evaluation) -> str:
    """Return the tables of all pairs as text, with what the numbers mean and what is missing."""
    rule = evaluation.rule
    blocks = [_describe_pair(result, rule) for result in evaluation.pairs]
    blocks.append(
        f"A lesion is found if one connected prediction, assigned to it alone, overlaps it with an IoU of at least "
        f"{rule.min_iou:g}.\nBrackets: 95 % interval, bootstrap over patients. n: number of lesions, patients or scans "
        "behind the line."
    )
    return "\n\n".join([*blocks, *(f"Note: {note}" for note in evaluation.notes)])


def estimate_text(estimate: Estimate) -> str:
    """Format a value with its interval."""
    return _with_interval(estimate.value, estimate.low, estimate.high, "")


def difference_text(difference: Difference) -> str:
    """Format a signed difference with its interval."""
    return _with_interval(difference.value, difference.low, difference.high, "+")


def p_text(p: float) -> str:
    """Format a p-value."""
    return NOT_THERE if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def heading(result: PairResult) -> str:
    """Return a heading: the pair, its labels, and how many lesions and scans were scored."""
    summary, pair = result.summaries[OURS], result.pair
    host = f" in label {', '.join(map(str, pair.host))}" if pair.host else ""
    return (
        f"{pair.name} (label {', '.join(map(str, pair.tumor))}{host}): {summary.lesions} lesions in {summary.cases} "
        f"scans, {summary.tumor_free_cases} of them tumor-free"
    )


def prediction_rows(result: PairResult, rule: Rule) -> list[list[str]]:
    """Return the table of the predictions, with the other model's if given; the first row is the head.

    Example: ["sensitivity <10 mm", "12", "0.42 [0.20, 0.64]"].
    """
    rows = [["", "n", OURS] + [OTHER, "difference", "p"] * bool(result.comparison)]
    others = named_estimates(result.summaries.get(OTHER, result.summaries[OURS]), rule)
    for row, other in zip(named_estimates(result.summaries[OURS], rule), others):
        cells = [row.title, str(row.estimate.count), estimate_text(row.estimate)]
        if result.comparison:
            difference = result.comparison.get(row.key)
            cells += [estimate_text(other.estimate), *_difference_cells(difference)]
        rows.append(cells)
    return rows


def gap_rows(result: PairResult, rule: Rule) -> list[list[str]]:
    """Return the table of internal and external cohort; the first row is the head."""
    if EXTERNAL not in result.summaries:
        return []
    rows = [["", "n", "internal", "n", EXTERNAL, "external - internal"]]
    internal, external = (named_estimates(result.summaries[name], rule) for name in (OURS, EXTERNAL))
    for row, outside in zip(internal, external):
        cells = [text for e in (row.estimate, outside.estimate) for text in (str(e.count), estimate_text(e))]
        rows.append([row.title, *cells, _difference_cells(result.gap.get(row.key))[0]])
    return rows


def _describe_pair(result: PairResult, rule: Rule) -> str:
    tables = [_align(rows) for rows in (prediction_rows(result, rule), gap_rows(result, rule)) if rows]
    return "\n\n".join([f"{heading(result)}\n{tables[0]}", *tables[1:]])


def _difference_cells(difference: Difference | None) -> tuple[str, str]:
    return (NOT_THERE, NOT_THERE) if difference is None else (difference_text(difference), p_text(difference.p))


def _with_interval(value: float, low: float, high: float, sign: str) -> str:
    if math.isnan(value):
        return NOT_THERE
    digits = ".2f" if abs(value) < 100 else ".0f"
    between = "" if math.isnan(low) else f" [{low:{sign}{digits}}, {high:{sign}{digits}}]"
    return f"{value:{sign}{digits}}{between}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Align the first column left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]
    return "\n".join(f"  {line.rstrip()}" for line in lines)
