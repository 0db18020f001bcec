"""Intervals and p-values by patient: a patient's lesions, cases and readings are drawn, left out or swapped together.

Intervals are the 2.5th and 97.5th percentile over RESAMPLES bootstrap resamples of the patients; a resample in which a
value does not exist (no lesion of that size was drawn) is left out. If every resample gives the same value, the
bootstrap says nothing, and the textbook interval replaces it: Wilson's for a share, which takes its lesions or patients
as independent, and the exact Poisson interval (Garwood, Biometrika 1936) for a rate. The mean of a single patient has
no interval.

p-values are two-sided and come from swapping the two models within patients: all ways to swap if there are at most
SWAPS of them (12 patients), else SWAPS random ones and the observed one, so that no p-value is 0.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from nnunetv2_freetumor.evaluation.scores import Difference, Estimate

RESAMPLES = 2000
SWAPS = 5000
_PERCENTILES = (2.5, 97.5)
_ROUNDING = 1e-12

Weights = Float[np.ndarray, "draws patients"]
Values = Float[np.ndarray, "draws"]
Kind = Literal["share", "rate", "mean"]


class Ratio(NamedTuple):
    """A sum over patients divided by another: lesions found of lesions, false positives per scan, the mean Dice."""

    top: Float[np.ndarray, "patients"]
    bottom: Float[np.ndarray, "patients"]
    kind: Kind

    def at(self, weights: Weights) -> Values:
        """Weight the patients; NaN where nothing is left to divide by."""
        bottom = weights @ self.bottom
        return np.divide(weights @ self.top, bottom, out=np.full(len(weights), math.nan), where=bottom > 0)

    def followed_by(self, other: "Ratio") -> "Ratio":
        """Append the patients of another ratio."""
        return Ratio(np.append(self.top, other.top), np.append(self.bottom, other.bottom), self.kind)


def resample_patients(patients: int, seed: int) -> Weights:
    """Draw how often each patient occurs in each resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(patients, np.full(patients, 1 / patients), size=RESAMPLES).astype(float)


def swap(patients: int, seed: int) -> Weights:
    """Draw for which patients the models are exchanged (1) in each swap; the first swap exchanges none."""
    if 2**patients <= SWAPS:
        return ((np.arange(2**patients)[:, None] >> np.arange(patients)) & 1).astype(float)
    swaps = np.random.default_rng(seed).integers(0, 2, (SWAPS + 1, patients)).astype(float)
    swaps[0] = 0
    return swaps


def everyone(patients: int) -> Weights:
    """Return weights that count every patient once."""
    return np.ones((1, patients))


def estimate(ratio: Ratio, resamples: Weights) -> Estimate:
    """Return a ratio with its interval."""
    value = float(ratio.at(everyone(len(ratio.top)))[0])
    count = round(float(ratio.bottom.sum()))
    return bound(value, count, ratio.at(resamples), ratio.kind)


def bound(value: float, count: int, resampled: Values, kind: Kind) -> Estimate:
    """Add the interval to a value that is based on `count` lesions, scans or patients."""
    if math.isnan(value):
        return Estimate(math.nan, math.nan, math.nan, 0)
    if np.nanmax(resampled) - np.nanmin(resampled) > _ROUNDING:
        low, high = np.nanpercentile(resampled, _PERCENTILES).tolist()
    else:
        low, high = _INTERVALS_OF_A_CONSTANT[kind](value, count)
    return Estimate(value, low, high, count)


def paired_difference(
    statistic: Callable[[Weights], Values],
    resamples: Weights,
    swaps: Float[np.ndarray, "swaps patients"],
    count: int,
) -> Difference:
    """Compare two models on the same patients.

    `statistic` takes weights for the patients of our model, followed by the same patients of the other model; a patient
    with weight 0 takes no part.
    """
    nobody = np.zeros_like(resamples)
    resampled = statistic(np.hstack([resamples, nobody])) - statistic(np.hstack([nobody, resamples]))
    swapped = statistic(np.hstack([1 - swaps, swaps])) - statistic(np.hstack([swaps, 1 - swaps]))
    value = float(swapped[0])
    if math.isnan(value):
        return Difference(math.nan, math.nan, high=math.nan, p=math.nan, count=0)
    low, high = np.nanpercentile(resampled, _PERCENTILES).tolist() if resamples.shape[1] > 1 else (math.nan, math.nan)
    p = float(np.mean(np.abs(swapped) >= abs(value) - _ROUNDING))
    return Difference(value, low, high=high, p=p, count=count)


def unpaired_difference(first: Estimate, second: Estimate) -> Difference:
    """Subtract the first value from the second, of other patients; keep the second's count.

    The interval is composed of those of both (MOVER: Zou and Donner, Statistics in Medicine 2008), so that a cohort
    whose share is 0 or 1 contributes its uncertainty as well. There is no p-value: there are no pairs to swap.
    """
    value = second.value - first.value
    down = math.hypot(second.value - second.low, first.high - first.value)
    up = math.hypot(second.high - second.value, first.value - first.low)
    count = 0 if math.isnan(value) else second.count
    return Difference(value, value - down, high=value + up, p=math.nan, count=count)


def _wilson(share: float, count: int) -> tuple[float, float]:
    interval = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _poisson(rate: float, count: int) -> tuple[float, float]:
    events = round(rate * count)
    low = stats.chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    return float(low / count), float(stats.chi2.ppf(0.975, 2 * events + 2) / 2 / count)


def _unchanged(mean: float, count: int) -> tuple[float, float]:
    return (mean, mean) if count > 1 else (math.nan, math.nan)


_INTERVALS_OF_A_CONSTANT = {"share": _wilson, "rate": _poisson, "mean": _unchanged}
