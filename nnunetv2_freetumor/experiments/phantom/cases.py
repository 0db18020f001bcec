"""Grow tumors in a real patient's organ: real noise, real vessels, a tumor that is made up.

A generator that is to learn how tumors sit in real tissue needs such cases where real tumors are not to be had. It can
at best learn to imitate the process that grew them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from nnunetv2_freetumor.experiments.phantom import tumors
from nnunetv2_freetumor.experiments.phantom.growing import choose_seeds, grow_at
from nnunetv2_freetumor.experiments.phantom.scene import Grid
from nnunetv2_freetumor.files.cases import Case

UNENHANCED, PORTAL_VENOUS = 0, 2  # places in grown_tumors.CONTRAST_HU
ENHANCED_FROM_HU = 80.0  # median of a liver with contrast agent
STRUCTURE_MM = 1.2  # what is finer stays in place: the scanner's noise
DIAMETER_MM = (7.0, 42.0)


class GrownCase(NamedTuple):
    """A case with label 0 background, 1 host, 2 tumor."""

    image: Case
    label: Case


def grow_in_case(
    image: Case,
    host: Bool[np.ndarray, "z y x"],
    lesions: int,
    seed: list[int],
    family: str | None = None,
    diameter_mm: tuple[float, float] = DIAMETER_MM,
) -> GrownCase:
    """Grow up to `lesions` tumors in the host of a real CT.

    Args:
        image: the CT in HU.
        host: the organ, on the same voxels.
        lesions: how many; fewer where there is no room for more.
        seed: what the tumors follow from.
        family: one of grown_tumors.FAMILIES or HELD_OUT_FAMILIES; drawn from FAMILIES by default.
        diameter_mm: bounds of the tumors' equivalent diameter.
    """
    rng = np.random.default_rng(seed)
    family = family or str(rng.choice(tumors.FAMILIES))
    z_mm, y_mm, x_mm = image.spacing_mm
    z, y, x = host.shape
    grid = Grid((z, y, x), (z_mm, y_mm, x_mm), (0.0, 0.0, 0.0))
    hu, label = image.array.astype(np.float32), host.astype(np.uint8)
    host_hu = float(np.median(hu[host]))
    phase = PORTAL_VENOUS if host_hu >= ENHANCED_FROM_HU else UNENHANCED
    biology = tumors.draw_biology(family, phase, host_hu, rng)
    structure = _structure(hu, host, image.spacing_mm)
    for start in choose_seeds(host, grid, lesions, diameter_mm, rng):
        window, cover, grown_hu = grow_at(start, host, grid, family, biology, rng)
        hu[window] += cover * (grown_hu - structure[window])
        structure[window] += cover * (grown_hu - structure[window])
        label[window][cover >= 0.5] = 2
    values = np.clip(np.round(hu), -1024, 3071).astype(image.array.dtype)
    return GrownCase(image.with_array(values), image.with_array(label))


def _structure(
    hu: Float[np.ndarray, "z y x"], host: Bool[np.ndarray, "z y x"], spacing_mm: tuple[float, ...]
) -> Float[np.ndarray, "z y x"]:
    """Smooth the organ, over its own voxels only."""
    sigma = [STRUCTURE_MM / step for step in spacing_mm]
    weight = ndimage.gaussian_filter(host.astype(np.float32), sigma)
    summed = ndimage.gaussian_filter(np.where(host, hu, 0.0).astype(np.float32), sigma)
    return np.where(host, summed / np.maximum(weight, 1e-3), hu)
