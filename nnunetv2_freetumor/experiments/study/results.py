"""Sum up a study: each arm in each setting, with intervals, and its gain over training on real labels."""

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


class Matched(NamedTuple):
    """Sensitivity at MATCHED false positives per scan, each seed at its own threshold."""

    by_size: dict[str, Estimate]  # the mean of the seeds
    by_seed: tuple[float, ...]  # for all sizes
    gain: Difference | None  # for all sizes, over the baseline with the same seeds


class Predicted(NamedTuple):
    """The predictions as nnU-Net makes them, at probability .5. Field names are a file format: results.json."""

    sensitivity: Estimate
    false_positives: Estimate  # per scan
    false_positives_in_host: Estimate  # of these on the organ
    specificity: Estimate  # share of tumor-free scans without any prediction
    dice: Estimate


class ArmResult(NamedTuple):
    """One arm in one setting, with all its seeds."""

    setting: str
    arm: str
    title: str
    seeds: tuple[int, ...]
    anywhere: Matched  # all false positives count
    in_host: Matched  # only those on the organ count
    predicted: Predicted


class ArmScores(NamedTuple):
    """The scores of an arm's trials in one setting."""

    title: str
    by_seed: dict[int, list[CaseScore]]


def arm_results(scores: Mapping[tuple[str, str], ArmScores], rule: Rule, baseline: str = BASELINE) -> list[ArmResult]:
    """Sum up all scores; keys are (setting, arm), and gains are over the baseline arm."""
    return [
        _arm_result(
            setting, arm, own=own, baseline=None if arm == baseline else scores.get((setting, baseline)), rule=rule
        )
        for (setting, arm), own in scores.items()
        if own.by_seed
    ]


def _arm_result(setting: str, arm: str, own: ArmScores, baseline: ArmScores | None, rule: Rule) -> ArmResult:
    summary = summarize_pair(arm, [score for scores in own.by_seed.values() for score in scores], rule)
    return ArmResult(
        setting=setting,
        arm=arm,
        title=own.title,
        seeds=tuple(own.by_seed),
        anywhere=_match(own, baseline, rule, in_host=False),
        in_host=_match(own, baseline, rule, in_host=True),
        predicted=Predicted(
            sensitivity=summary.sensitivity[ALL_SIZES],
            false_positives=summary.false_positives_per_scan,
            false_positives_in_host=summary.false_positives_in_host,
            specificity=summary.patient_specificity,
            dice=summary.dice,
        ),
    )


def _match(own: ArmScores, baseline: ArmScores | None, rule: Rule, in_host: bool) -> Matched:
    runs, names = list(own.by_seed.values()), (*size_names(rule.bounds_mm), ALL_SIZES)
    overall = Rate(MATCHED, in_host=in_host)
    return Matched(
        by_size={name: sensitivity_at(runs, Rate(MATCHED, name, in_host), rule) for name in names},
        by_seed=tuple(sensitivity_at([scores], overall, rule).value for scores in runs),
        gain=None if baseline is None else _gain(own, baseline, overall, rule),
    )


def _gain(own: ArmScores, baseline: ArmScores, rate: Rate, rule: Rule) -> Difference | None:
    """Compare the seeds that both have."""
    shared = [seed for seed in own.by_seed if seed in baseline.by_seed]
    if not shared:
        return None
    ours, others = ([side.by_seed[seed] for seed in shared] for side in (own, baseline))
    return compare_at(ours, others, rate, rule)


def markdown_table(results: Sequence[ArmResult], baseline: str = BASELINE) -> str:
    """Return a Markdown table with a line for each arm in each setting.

    First sensitivity at MATCHED false positives per scan, with the 95 % interval by patient, each seed, and the gain in
    percentage points over the baseline; then the same counting only false positives on the organ, also by size; then
    the predictions at probability .5, as nnU-Net makes them: sensitivity, false positives per scan on the organ and
    elsewhere, Dice of the scans with tumors.
    """
    small = [name for name in results[0].in_host.by_size if name != ALL_SIZES][:2] if results else []
    head = ["training labels", "arm", f"found at {MATCHED:g} FP/scan", "each seed", f"over {baseline}"]
    head += [f"found at {MATCHED:g} FP/scan on the organ", "each seed", f"over {baseline}", *small]
    head += ["as predicted", "FP/scan on the organ", "FP/scan elsewhere", "Dice"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for result in results:
        predicted = result.predicted
        cells = [
            result.setting,
            result.title,
            *_matched_cells(result.anywhere),
            *_matched_cells(result.in_host),
            *(_share(result.in_host.by_size[name], interval=False) for name in small),
            _share(predicted.sensitivity, interval=False),
            f"{predicted.false_positives_in_host.value:.1f}",
            f"{predicted.false_positives.value - predicted.false_positives_in_host.value:.1f}",
            f"{predicted.dice.value:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _matched_cells(matched: Matched) -> tuple[str, str, str]:
    return _share(matched.by_size[ALL_SIZES]), _each(matched.by_seed), _gain_text(matched.gain)


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
    """Describe the machine and the versions that a study runs on."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nnunetv2": version("nnunetv2"),
        "nnunetv2_freetumor": __version__,
    }


def results_to_json(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Convert results to the rows of results.json; NaN becomes null."""
    return [
        _plain(
            {
                "setting": result.setting,
                "arm": result.arm,
                "title": result.title,
                "seeds": result.seeds,
                "matched": result.anywhere.by_size,
                "by_seed": result.anywhere.by_seed,
                "gain": result.anywhere.gain,
                "in_host": result.in_host.by_size,
                "in_host_by_seed": result.in_host.by_seed,
                "in_host_gain": result.in_host.gain,
                **result.predicted._asdict(),
            }
        )
        for result in results
    ]


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
