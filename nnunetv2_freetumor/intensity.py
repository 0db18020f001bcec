"""Convert between nnU-Net's z-scores, HU and a generator's window."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Intensity(NamedTuple):
    """How nnU-Net's CTNormalization maps HU to z-scores: clip to `low_hu..high_hu`, subtract `mean_hu`, divide."""

    mean_hu: float
    sd_hu: float
    low_hu: float
    high_hu: float

    def to_hu(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Recover HU from z-scores: z * std + mean."""
        return z * self.sd_hu + self.mean_hu

    def to_z(self, hu: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Clip HU as preprocessing did and turn them into z-scores."""
        return (hu.clamp(self.low_hu, self.high_hu) - self.mean_hu) / self.sd_hu


RAW_CT = Intensity(mean_hu=0.0, sd_hu=1.0, low_hu=-1024.0, high_hu=3071.0)
"""HU as they are: for images that nnU-Net has not normalized."""


def from_plans(plans: dict[str, Any]) -> Intensity:
    """Read the first channel's intensity properties, exactly as nnU-Net's CTNormalization uses them."""
    properties = plans["foreground_intensity_properties_per_channel"]["0"]
    return Intensity(
        mean_hu=float(properties["mean"]),
        sd_hu=max(float(properties["std"]), 1e-8),
        low_hu=float(properties["percentile_00_5"]),
        high_hu=float(properties["percentile_99_5"]),
    )


def scale_window(hu: Float[Tensor, "..."], window_hu: tuple[float, float]) -> Float[Tensor, "..."]:
    """Scale a window of HU to 0..1 and clip what lies outside."""
    low, high = window_hu
    return torch.clamp((hu - low) / (high - low), 0.0, 1.0)
