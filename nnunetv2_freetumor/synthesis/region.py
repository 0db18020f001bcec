"""The surroundings of one lesion, and the interface behind which a generator draws its contrast there."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from nnunetv2_freetumor.plan import Texture
from nnunetv2_freetumor.synthesis.volume import (
    Spacing,
    masked_mean,
    pool,
)

RESOLUTION_MM = 1.5  # finer voxels than this hold no more information
TAIL_MM = 3.0  # how far outside its surface a lesion may change the host
_MEAN_TO_SD = 1.2533  # from the mean absolute deviation of a normal distribution to its standard deviation
Volume = Float[Tensor, "x y z"]


class Region(NamedTuple):
    """The surroundings of one lesion."""

    hu: Volume
    host: Bool[Tensor, "x y z"]
    allowed: Bool[Tensor, "x y z"]  # the host and the fat that the lesion may grow into
    distance_mm: Float[Tensor, "fx fy fz"]  # signed distance to the surface at the subvoxels, negative inside
    fold: tuple[int, int, int]  # subvoxels along each axis
    offsets_mm: Float[Tensor, "x y z 3"]  # position relative to the lesion's center
    spacing_mm: Spacing


class Look(NamedTuple):
    """One lesion's size and its draw of what it looks like."""

    diameter_mm: float
    uniform: list[float]  # LOOK_CHANCES numbers
    contrast: float  # standard normal
    tiles: Float[Tensor, "2 n n n"]  # white noise


@runtime_checkable
class Generator(Protocol):
    """One interface for every kind of generator."""

    window_mm: float  # the region's side, at least; 0: the lesion and 12 mm around it

    def __call__(self, region: Region, texture: Texture, look: Look) -> Volume:
        """Return the contrast map in HU, to be added to the region's image."""
        ...


def visibility(region: Region, contrast_hu: Volume, lesion: Bool[Tensor, "x y z"]) -> Float[Tensor, ""]:
    """Measure how far a lesion stands out of the host's noise: |mean contrast| x sqrt(resolution elements) / noise.

    The signal-to-noise ratio of A. Rose (J. Opt. Soc. Am. 38:196, 1948), who found that an eye needs 3 to 5 of it. The
    noise is the spread of the host around the lesion, vessels and all; a resolution element is a voxel, or a cube of
    1.5 mm where voxels are finer than what CT resolves. A lesion that nobody can see would only teach the segmenter to
    invent tumors.
    """
    around = (region.host & (pool(region.distance_mm, region.fold) > TAIL_MM)).float()
    middle = masked_mean(region.hu, around)
    noise = _MEAN_TO_SD * masked_mean((region.hu - middle).abs(), around)
    shrink = math.prod(min(step / RESOLUTION_MM, 1.0) for step in region.spacing_mm)
    marked = lesion.float()
    return masked_mean(contrast_hu, marked).abs() * (marked.sum() * shrink).sqrt() / noise.clamp_min(1.0)


def support(region: Region) -> Bool[Tensor, "x y z"]:
    """Mark the voxels that a lesion may change: allowed, and inside it or at most 3 mm outside."""
    return region.allowed & (pool(region.distance_mm, region.fold) < TAIL_MM)
