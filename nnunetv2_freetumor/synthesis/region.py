"""The surroundings of one lesion, and the interface behind which a generator renders its contrast there."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from nnunetv2_freetumor.plan import Texture
from nnunetv2_freetumor.synthesis.volume import (
    Box,
    Spacing,
    masked_mean,
    mean_of_subvoxels,
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
    distance_mm: Float[Tensor, "sx sy sz"]  # signed distance to the surface at the subvoxels, negative inside
    subvoxels: tuple[int, int, int]  # of a voxel, along each axis
    offsets_mm: Float[Tensor, "x y z 3"]  # position relative to the lesion's center
    spacing_mm: Spacing


class Site(NamedTuple):
    """Where a lesion lies, and how large it is."""

    sample: int  # of the batch
    target: int  # of the section
    center: list[float]  # voxels
    diameter_mm: float
    box: Box  # the surroundings that its look depends on


class Chances(NamedTuple):
    """What chance decides about a lesion's look, each uniform in 0..1; the published network reads them otherwise."""

    rim: float  # how bright its rim is
    necrosis: float  # whether its center is necrotic
    enhancement: float  # whether its rim enhances
    matter: float  # ground glass, part-solid or solid
    opacity: float  # of ground glass
    depth: float  # of the necrosis, or of the solid part, below the surface
    fluid: float  # HU of the necrosis


class Look(NamedTuple):
    """One lesion's size and its draw of what it looks like."""

    diameter_mm: float
    chances: Chances
    contrast: float  # standard normal
    noise: Float[Tensor, "2 n n n"]  # white: the tiles of the fine and the coarse heterogeneity


@runtime_checkable
class Generator(Protocol):
    """One interface for every kind of generator."""

    window_mm: float  # the region's side, at least; 0: the lesion and 12 mm around it

    def __call__(self, region: Region, texture: Texture, look: Look) -> Volume:
        """Render a lesion: return the contrast map in HU, to be added to the region's image."""
        ...


def visibility(region: Region, contrast_hu: Volume, lesion: Bool[Tensor, "x y z"]) -> Float[Tensor, ""]:
    """Measure how far a lesion stands out of the host's noise: |mean contrast| x sqrt(resolution elements) / noise.

    The signal-to-noise ratio of A. Rose (J. Opt. Soc. Am. 38:196, 1948), who found that an eye needs 3 to 5 of it. The
    noise is the spread of the host around the lesion, vessels and all; a resolution element is a voxel, or a cube of
    1.5 mm where voxels are finer than what CT resolves. A lesion that nobody can see would only teach the segmenter to
    invent tumors.
    """
    around = (region.host & (mean_of_subvoxels(region.distance_mm, region.subvoxels) > TAIL_MM)).float()
    middle = masked_mean(region.hu, around)
    noise = _MEAN_TO_SD * masked_mean((region.hu - middle).abs(), around)
    shrink = math.prod(min(step / RESOLUTION_MM, 1.0) for step in region.spacing_mm)
    marked = lesion.float()
    return masked_mean(contrast_hu, marked).abs() * (marked.sum() * shrink).sqrt() / noise.clamp_min(1.0)


def support(region: Region) -> Bool[Tensor, "x y z"]:
    """Mark the voxels that a lesion may change: allowed, and inside it or at most 3 mm outside."""
    return region.allowed & (mean_of_subvoxels(region.distance_mm, region.subvoxels) < TAIL_MM)
