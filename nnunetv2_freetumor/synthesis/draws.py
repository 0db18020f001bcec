"""Draw all chance of a batch, and design its lesions: how many, how large, which shape.

Everything here runs on the CPU and is drawn sample by sample, so that a sample's lesions depend on its own draw alone.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nnunetv2_freetumor.plan import Prior, Section, SizeClass
from nnunetv2_freetumor.synthesis import shapes
from nnunetv2_freetumor.synthesis.shapes import Body, ShapeDraw
from nnunetv2_freetumor.synthesis.volume import Spacing

CANDIDATES = 24
MIN_VOXELS = 2.5  # a lesion's extent along each axis, so that at least two voxels of each axis are hit
LOOK_CHANCES = 12
_TILE = 24


class Draw(NamedTuple):
    """All chance in a batch, on the CPU; every tensor starts with the batch's axis, then the lesion's."""

    decide: Float[Tensor, "b 3"]  # uniform: plant?, which target, how many
    size: Float[Tensor, "b l 2"]  # uniform: size class, quantile
    rank: Float[Tensor, "b l k"]  # uniform: which host voxels to try as centers
    jitter: Float[Tensor, "b l 3"]  # uniform: the center's place inside its voxel
    shape: ShapeDraw
    look: Float[Tensor, "b l n"]  # uniform: what the lesion looks like
    contrast: Float[Tensor, "b l"]  # normal
    texture: Float[Tensor, "b l 2 n n n"]  # normal: two noise tiles

    def sample(self, index: int) -> "Draw":
        """Give one sample's draw, as a batch of one."""
        one = slice(index, index + 1)
        parts = {name: part[one] for name, part in self._asdict().items() if name != "shape"}
        return Draw(shape=ShapeDraw(*(part[one] for part in self.shape)), **parts)


class Blueprint(NamedTuple):
    """A lesion before it has a place."""

    diameter_mm: float
    body: Body


def draw(batch_size: int, lesions: int, candidates: int, rng: torch.Generator) -> Draw:
    """Draw all chance for a batch, sample by sample, for at most `lesions` lesions each."""
    samples = [_draw_sample(lesions, candidates, rng) for _ in range(batch_size)]
    shape = ShapeDraw(*(torch.stack(parts) for parts in zip(*(s.shape for s in samples))))
    return Draw(*(torch.stack(p) if isinstance(p[0], Tensor) else shape for p in zip(*samples)))  # type: ignore[arg-type]


def _draw_sample(lesions: int, candidates: int, rng: torch.Generator) -> Draw:
    return Draw(
        decide=torch.rand(3, generator=rng),
        size=torch.rand(lesions, 2, generator=rng),
        rank=torch.rand(lesions, candidates, generator=rng),
        jitter=torch.rand(lesions, 3, generator=rng),
        shape=shapes.draw_shape((lesions,), rng),
        look=torch.rand(lesions, LOOK_CHANCES, generator=rng),
        contrast=torch.randn(lesions, generator=rng),
        texture=torch.randn(lesions, 2, _TILE, _TILE, _TILE, generator=rng),
    )


def diameter_mm(prior: Prior, size: Float[Tensor, "2"]) -> float:
    """Turn a size draw into an equivalent diameter in mm."""
    weights = torch.tensor([c.weight for c in prior.sizes]).cumsum(0)
    pick = int((size[0] * weights[-1] >= weights).sum().clamp_max(len(prior.sizes) - 1))
    return _from_class(prior.sizes[pick], float(size[1]))


def _from_class(size: SizeClass, uniform: float) -> float:
    """Read the quantile of the class's distribution, cut at its bounds."""
    low, high = math.log(size.min_mm), math.log(size.max_mm)
    if size.distribution == "log_uniform":
        return math.exp(low + uniform * (high - low))
    normal = NormalDist(size.ln_mm_mean, max(size.ln_mm_sd, 1e-6))
    below, above = normal.cdf(low), normal.cdf(high)
    quantile = min(max(below + uniform * (above - below), 1e-9), 1 - 1e-9)
    return math.exp(min(max(normal.inv_cdf(quantile), low), high))


def plan_sample(section: Section, spacing_mm: Spacing, draw: Draw, index: int) -> list[list[Blueprint]]:
    """Design the lesions that a sample could get, for each target; none where the draw cannot plant any."""
    most = max(probability(section, True), probability(section, False))
    if float(draw.decide[index, 0]) >= most:
        return [[] for _ in section.targets]
    return [_plan_target(target.prior, spacing_mm, draw, index) for target in section.targets]


def _plan_target(prior: Prior, spacing_mm: Spacing, draw: Draw, index: int) -> list[Blueprint]:
    count = lesion_count(prior, draw.decide[index, 2])
    return [_blueprint(prior, spacing_mm, draw, index, lesion) for lesion in range(count)]


def lesion_count(prior: Prior, uniform: Float[Tensor, ""]) -> int:
    """Turn a uniform draw into the number of lesions of a patch that gets any."""
    weights = torch.tensor(prior.lesions_per_patch).cumsum(0)
    return 1 + int((uniform * weights[-1] >= weights).sum().clamp_max(len(weights) - 1))


def _blueprint(prior: Prior, spacing_mm: Spacing, draw: Draw, index: int, lesion: int) -> Blueprint:
    chance = ShapeDraw(*(part[index, lesion] for part in draw.shape))
    diameter = diameter_mm(prior, draw.size[index, lesion])
    body = shapes.build(prior.shape, diameter, chance)
    growth = max(MIN_VOXELS * step / (2 * reach) for step, reach in zip(spacing_mm, body.reach_mm))
    if growth > 1:  # too flat for the voxels: the same lesion, larger
        diameter *= growth
        body = shapes.build(prior.shape, diameter, chance)
    return Blueprint(diameter, body)


def probability(section: Section, tumor_free: bool) -> float:
    """Give the probability that a patch with, or without, real tumors gets lesions."""
    if tumor_free:
        return min(section.probability_tumor_free, 1 - section.untouched_share)
    return 0.0 if section.tumor_free_patches_only else section.probability_tumor_bearing
