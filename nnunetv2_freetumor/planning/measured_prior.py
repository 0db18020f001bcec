"""Put a dataset's own measurements into a target's prior."""

import dataclasses
from typing import Any

from nnunetv2_freetumor.plan import Prior, Shape, SizeClass, Target, Texture
from nnunetv2_freetumor.planning.measurement import WIDTH_10_90

MIN_TUMORS = 10  # fewer say too little: the bundled prior's numbers stay
# Mean and standard deviation of the masks' logits that each bundled shape was fitted to (tumor_shapes.csv). Drawn and
# measured ratios differ, because a rough surface with lobes is longer and flatter than its ellipsoid.
_FITTED_TO = {
    "liver": {"elongation_logit": (1.32, 0.88), "flatness_logit": (1.41, 0.93)},
    "pancreas": {"elongation_logit": (1.39, 0.88), "flatness_logit": (1.58, 0.76)},
    "kidney": {"elongation_logit": (1.81, 0.89), "flatness_logit": (2.07, 0.84)},
    "lung": {"elongation_logit": (1.47, 0.81), "flatness_logit": (1.56, 0.84)},
}
_SD_PER_P95 = 1.645  # the 95th percentile of a normal distribution lies this many standard deviations above its mean

Measured = dict[str, Any]  # one target's summary in the fingerprint


def with_measurements(target: Target, measured: Measured, cases: int) -> Target:
    """Replace what ten or more real tumors tell, and say in `source` which numbers come from where."""
    count, prior = measured["tumors"], target.prior
    if count < MIN_TUMORS:
        source = f"prior {prior.name}: only {count} real tumors in {cases} training cases, {MIN_TUMORS} are needed"
        return dataclasses.replace(target, source=source)
    sizes = (_measured_size(measured, prior.sizes[0]), *prior.sizes[1:])
    shape, of_shape = _measured_shape(measured, prior)
    texture, of_texture = _measured_texture(measured, prior.texture)
    source = (
        f"{', '.join(['sizes', *of_shape, *of_texture])} measured on {count} tumors in "
        f"{measured['cases_with_tumor']} of {cases} training cases; the rest from prior {prior.name}"
    )
    prior = dataclasses.replace(prior, sizes=sizes, shape=shape, texture=texture)
    return dataclasses.replace(target, prior=prior, source=source)


def _measured_size(measured: Measured, size: SizeClass) -> SizeClass:
    """Replace the log-normal; its bounds lie a little beyond the measured 5th and 95th percentile."""
    diameter_mm, ln_mm = measured["diameter_mm"], measured["ln_diameter"]
    return dataclasses.replace(
        size,
        min_mm=round(max(2.0, 0.7 * diameter_mm["p05"]), 1),
        max_mm=round(max(4.0, 1.4 * diameter_mm["p95"]), 1),
        ln_mm_mean=ln_mm["mean"],
        ln_mm_sd=ln_mm["sd"],
    )


def _measured_shape(measured: Measured, prior: Prior) -> tuple[Shape, list[str]]:
    """Move the axis ratios by what these tumors differ from the masks that the prior was fitted to."""
    if prior.name not in _FITTED_TO:  # patchy lesions are no ellipsoids
        return prior.shape, []
    elongation, flatness = (
        (
            round(drawn[0] + measured[name]["mean"] - fitted[0], 3),
            round(drawn[1] * min(max(measured[name]["sd"] / fitted[1], 0.5), 2.0), 3),
        )
        for name, fitted in _FITTED_TO[prior.name].items()
        for drawn in [getattr(prior.shape, name)]
    )
    return dataclasses.replace(prior.shape, elongation_logit=elongation, flatness_logit=flatness), ["axis ratios"]


def _measured_texture(measured: Measured, texture: Texture) -> tuple[Texture, list[str]]:
    changes: dict[str, Any] = {}
    known = []
    if strength := _enough(measured["k"]):
        known.append("contrast")
        if texture.ground_glass_share == 1:
            changes["opacity"] = tuple(min(max(strength[name], 0.05), 1.0) for name in ("p05", "p95"))
        else:
            changes["k_mean"], changes["k_sd"] = strength["p50"], _one_sided_sd(strength)
    if width_mm := _enough(measured["edge_width_mm"]):
        known.append("edge")
        changes["edge_scale_mm"] = round(min(max(width_mm["p50"] / WIDTH_10_90, 0.2), 2.0), 3)
        changes["edge_depth_mm"] = round(min(max(measured["edge_depth_mm"]["p50"], 0.0), 3.0), 3)
    return dataclasses.replace(texture, **changes), known


def _enough(numbers: Measured | None) -> Measured | None:
    return numbers if numbers and numbers["n"] >= MIN_TUMORS else None


def _one_sided_sd(numbers: Measured) -> float:
    """Take the tighter side: necrosis widens one side, ground glass the other, and both have settings of their own."""
    spread = min(numbers["p95"] - numbers["p50"], numbers["p50"] - numbers["p05"]) / _SD_PER_P95
    return round(max(spread, 0.03), 4)
