"""What an evaluation found: the scores and summaries of every tumor/host pair."""

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


class PairResult(NamedTuple):
    """One tumor/host pair; the dictionaries have a key for each of the predictions that were scored."""

    pair: Pair
    scores: dict[str, tuple[CaseScore, ...]]
    summaries: dict[str, Summary]
    comparison: dict[str, Difference]  # the predictions minus the other's; empty without -vs
    gap: dict[str, Difference]  # external minus internal cohort; empty without -external


class Evaluation(NamedTuple):
    """One evaluation, as it is written and drawn."""

    rule: Rule
    seed: int
    folders: dict[str, str]  # as the user gave them
    notes: tuple[str, ...]  # what is missing and why, for people to read
    pairs: tuple[PairResult, ...]


class Row(NamedTuple):
    """One line of a table of results."""

    key: str  # of the comparison and the gap
    title: str
    estimate: Estimate


def rows_of(summary: Summary, rule: Rule) -> list[Row]:
    """List a summary's estimates in the order in which people read them."""
    sizes = [
        Row(f"sensitivity {name}", f"sensitivity {name}", summary.sensitivity[name])
        for name in (*size_names(rule.bounds_mm), ALL_SIZES)
    ]
    return [
        *sizes,
        Row("false positives per scan", "false positives per scan", summary.false_positives_per_scan),
        Row("false positives per scan in the organ", "  of these on the organ", summary.false_positives_in_host),
        Row("false positive ml per scan", "false positive ml per scan", summary.false_positive_ml_per_scan),
        Row("patient sensitivity", "patient sensitivity", summary.patient_sensitivity),
        Row("patient specificity", "patient specificity", summary.patient_specificity),
        Row("auroc", "AUROC", summary.auroc),
        Row("dice", "Dice, scans with tumor", summary.dice),
        Row("surface dice", f"surface Dice {rule.tolerance_mm:g} mm", summary.surface_dice),
        Row("host dice", "Dice of organ with tumor", summary.host_dice),
    ]
