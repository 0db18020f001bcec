"""The adversarial stage in nnU-Net's logger and log: every loss term, and what the judge recognizes, epoch by epoch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_freetumor.generator_training.step import TERMS
from nnunetv2_freetumor.plan import SIZE_NAMES, size_index

LOGGER_PREFIX = "freetumor_generator/"  # in front of every name in nnU-Net's logger
RECOGNIZED = tuple(f"recognized {size}" for size in SIZE_NAMES)
NAMES = (*TERMS, "realism", "recognized", *RECOGNIZED)


class EpochTerms:
    """Sum an epoch's loss terms on the device, without reading them."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self.steps = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add a step."""
        row = torch.stack([terms[name].float() for name in TERMS])
        self._sum = row if self._sum is None else self._sum + row
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Return the means; NaN where no step could train."""
        if self._sum is None:
            return dict.fromkeys(TERMS, math.nan)
        return dict(zip(TERMS, (self._sum / self.steps).tolist()))


class Seen(NamedTuple):
    """What one validation step saw."""

    loss: float
    realism: float
    diameters_mm: list[float]
    recognized: list[float]  # by lesion; NaN without a judge


def epoch_means(steps: Sequence[Seen]) -> dict[str, float]:
    """Average over an epoch's validation steps; NaN for what none of them saw."""
    by_size: list[list[float]] = [[] for _ in SIZE_NAMES]
    for step in steps:
        for diameter, share in zip(step.diameters_mm, step.recognized):
            by_size[size_index(diameter)].append(share)
    shares = {name: _mean(values) for name, values in zip(RECOGNIZED, by_size)}
    everything = _mean([share for values in by_size for share in values])
    return {"realism": _mean([step.realism for step in steps]), "recognized": everything, **shares}


def terms_line(terms: dict[str, float], steps: int) -> str:
    """Report an epoch's loss terms for nnU-Net's log."""
    values = ", ".join(f"{name} {terms[name]:.3f}" for name in TERMS if name != "residual_hu")
    return f"FreeTumor generator: {steps} steps, {values}, mean residual {terms['residual_hu']:.1f} HU"


def seen_line(seen: dict[str, float], judged: bool) -> str:
    """Report what validation saw for nnU-Net's log."""
    if math.isnan(seen["realism"]):
        return "FreeTumor generator: no validation patch had room for a lesion"
    if not judged or math.isnan(seen["recognized"]):
        return f"FreeTumor generator: critic confusion {seen['realism']:.2f} (1 = indistinguishable); no judge"
    sizes = ", ".join(f"{size}: {_percent(seen[name])}" for size, name in zip(SIZE_NAMES, RECOGNIZED))
    return (
        f"FreeTumor generator: critic confusion {seen['realism']:.2f} (1 = indistinguishable); the judge recognizes "
        f"{_percent(seen['recognized'])} of a lesion on average ({sizes})"
    )


def realism(synthetic: Tensor, real: Tensor) -> float:
    """Return twice the share of pairs in which the critic calls the synthetic lesion more real, at most 1."""
    higher = (synthetic[:, None] > real[None]).float().mean() + 0.5 * (synthetic[:, None] == real[None]).float().mean()
    return float(2 * higher.clamp_max(0.5))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.0f} %"
