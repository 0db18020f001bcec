"""Sum up a study: one row for each setting and arm, with intervals, and its difference to training on real labels."""

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.evaluation.comparison import Rate, compare_at, sensitivity_at
from nnunetv2_freetumor.evaluation.scores import ALL_SIZES, CaseScore, Difference, Estimate, Rule, size_names
from nnunetv2_freetumor.evaluation.summary import summarize_pair
from nnunetv2_freetumor.experiments.study.design import BASELINE

MATCHED = 1.0  # false positives per scan at which sensitivities are compared


class Row(NamedTuple):
    """One arm in one setting, all its seeds together; what is matched is the mean of the seeds' own values."""

    setting: str
    arm: str
    title: str
    seeds: tuple[int, ...]
    matched: dict[str, Estimate]  # sensitivity at MATCHED false positives per scan, by size
    by_seed: tuple[float, ...]  # the same for all sizes, each seed alone
    gain: Difference | None  # of the matched sensitivity, all sizes, over the baseline with the same seeds
    in_host: dict[str, Estimate]  # sensitivity at MATCHED false positives per scan on the organ, by size
    in_host_by_seed: tuple[float, ...]
    in_host_gain: Difference | None
    sensitivity: Estimate  # at probability .5, as nnU-Net predicts
    false_positives: Estimate  # per scan, at probability .5
    false_positives_in_host: Estimate  # of these on the organ
    specificity: Estimate  # share of tumor-free scans without any prediction, at probability .5
    dice: Estimate


class Readings(NamedTuple):
    """What an arm's trials scored in one setting, by seed."""

    title: str
    scores: dict[int, list[CaseScore]]


def rows_of(readings: Mapping[tuple[str, str], Readings], rule: Rule, baseline: str = BASELINE) -> list[Row]:
    """Sum up all readings; keys are (setting, arm), and gains are over the baseline arm."""
    return [
        _row(setting, arm, read, None if arm == baseline else readings.get((setting, baseline)), rule)
        for (setting, arm), read in readings.items()
        if read.scores
    ]


def _row(setting: str, arm: str, read: Readings, baseline: Readings | None, rule: Rule) -> Row:
    runs = list(read.scores.values())
    summary = summarize_pair(arm, [score for scores in runs for score in scores], rule)
    names = (*size_names(rule.bounds_mm), ALL_SIZES)
    found, in_host = (
        {name: sensitivity_at(runs, Rate(MATCHED, name, inside), rule) for name in names} for inside in (False, True)
    )
    each, in_host_each = (
        tuple(sensitivity_at([scores], Rate(MATCHED, in_host=inside), rule).value for scores in runs)
        for inside in (False, True)
    )
    gain, in_host_gain = (
        None if baseline is None else _gain(read, baseline, Rate(MATCHED, in_host=inside), rule)
        for inside in (False, True)
    )
    return Row(
        setting=setting,
        arm=arm,
        title=read.title,
        seeds=tuple(read.scores),
        matched=found,
        by_seed=each,
        gain=gain,
        in_host=in_host,
        in_host_by_seed=in_host_each,
        in_host_gain=in_host_gain,
        sensitivity=summary.sensitivity[ALL_SIZES],
        false_positives=summary.false_positives_per_scan,
        false_positives_in_host=summary.false_positives_in_host,
        specificity=summary.patient_specificity,
        dice=summary.dice,
    )


def _gain(read: Readings, baseline: Readings, rate: Rate, rule: Rule) -> Difference | None:
    """Compare the seeds that both have."""
    shared = [seed for seed in read.scores if seed in baseline.scores]
    if not shared:
        return None
    ours, others = ([side.scores[seed] for seed in shared] for side in (read, baseline))
    return compare_at(ours, others, rate, rule)


def table(rows: Sequence[Row], baseline: str = BASELINE) -> str:
    """Write the rows as a Markdown table.

    Found at MATCHED false positives per scan, with the 95 % interval by patient, then each seed alone and the gain in
    percent points over the baseline; the same at MATCHED false positives per scan on the organ, then by size; the rest
    at probability .5, where nnU-Net predicts: found, false positives per scan on the organ and elsewhere, Dice of the
    scans with tumors.
    """
    small = [name for name in rows[0].in_host if name != ALL_SIZES][:2] if rows else []
    head = ["training labels", "arm", f"found at {MATCHED:g} FP/scan", "each seed", f"over {baseline}"]
    head += [f"found at {MATCHED:g} FP/scan on the organ", "each seed", f"over {baseline}", *small]
    head += ["as predicted", "FP/scan on the organ", "FP/scan elsewhere", "Dice"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [
            row.setting,
            row.title,
            _share(row.matched[ALL_SIZES]),
            _each(row.by_seed),
            _gain_text(row.gain),
            _share(row.in_host[ALL_SIZES]),
            _each(row.in_host_by_seed),
            _gain_text(row.in_host_gain),
            *(_share(row.in_host[name], interval=False) for name in small),
            _share(row.sensitivity, interval=False),
            f"{row.false_positives_in_host.value:.1f}",
            f"{row.false_positives.value - row.false_positives_in_host.value:.1f}",
            f"{row.dice.value:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _each(values: Sequence[float]) -> str:
    return ", ".join("-" if math.isnan(value) else f"{100 * value:.0f}" for value in values)


def _share(estimate: Estimate, interval: bool = True) -> str:
    if estimate.value != estimate.value:
        return "-"
    bounds = f" ({100 * estimate.low:.0f}-{100 * estimate.high:.0f})" if interval else ""
    return f"{100 * estimate.value:.0f} %{bounds}"


def _gain_text(gain: Difference | None) -> str:
    if gain is None or gain.value != gain.value:
        return "-"
    low, high = 100 * gain.low, 100 * gain.high
    chance = "" if gain.p != gain.p else ", p < .001" if gain.p < 0.001 else f", p {gain.p:.3f}".replace("0.", ".")
    return f"{100 * gain.value:+.0f} ({low:+.0f} to {high:+.0f}){chance}"


def machine(device: str) -> dict[str, Any]:
    """Tell on what a study ran."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nnunetv2": version("nnunetv2"),
        "nnunetv2_freetumor": __version__,
    }


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Turn the rows into what `json.dump` takes; NaN becomes null."""
    return [_plain(row._asdict()) for row in rows]


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
