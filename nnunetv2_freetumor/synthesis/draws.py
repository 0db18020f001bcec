"""Draw all chance of a batch, and design its lesions: how many, how large, which shape.

Everything here runs on the CPU and is drawn sample by sample, so that a sample's lesions depend on its own draw alone.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nnunetv2_freetumor.plan import Prior, Section, SizeClass
from nnunetv2_freetumor.synthesis import shapes
from nnunetv2_freetumor.synthesis.shapes import Body, ShapeDraw
from nnunetv2_freetumor.synthesis.volume import Spacing

CANDIDATES = 24
MIN_EXTENT_VOXELS = 2.5  # a lesion's extent along each axis, so that at least two voxels of each axis are hit
_CHANCES = 12  # of a lesion; `Chances` names the seven that are used, and seeds count on all twelve
_TILE = 24


class Decision(NamedTuple):
    """The chance in what a sample gets: uniform."""

    plant: Float[Tensor, "b"]  # does it get lesions?
    target: Float[Tensor, "b"]  # of which target
    lesions: Float[Tensor, "b"]  # how many


class CenterDraw(NamedTuple):
    """The chance in where lesions lie: uniform."""

    candidate: Float[Tensor, "b l k"]  # which host voxels to try as centers
    jitter: Float[Tensor, "b l 3"]  # the center's place inside its voxel


class LookDraw(NamedTuple):
    """The chance in what lesions look like."""

    chances: Float[Tensor, "b l n"]  # uniform: `region.Chances`
    contrast: Float[Tensor, "b l"]  # normal
    noise: Float[Tensor, "b l 2 n n n"]  # normal: the tiles of two scales of heterogeneity


class Draw(NamedTuple):
    """All chance in a batch, on the CPU; every tensor starts with the batch's axis, then the lesion's."""

    decision: Decision
    size: Float[Tensor, "b l 2"]  # uniform: size class, quantile
    center: CenterDraw
    shape: ShapeDraw
    look: LookDraw

    def sample(self, index: int) -> "Draw":
        """Return one sample's draw, as a batch of one."""
        return _map_tensors(lambda part: part[index : index + 1], self)


class Blueprint(NamedTuple):
    """A lesion before it has a place."""

    diameter_mm: float
    body: Body


def draw(batch_size: int, lesions: int, candidates: int, rng: torch.Generator) -> Draw:
    """Draw all chance for a batch, sample by sample, for at most `lesions` lesions each."""
    return _map_tensors(
        lambda *parts: torch.stack(parts), *(_draw_one(lesions, candidates, rng) for _ in range(batch_size))
    )


def _draw_one(lesions: int, candidates: int, rng: torch.Generator) -> Draw:
    """Draw a sample's chance; another order would give every seed other tumors."""
    decision = Decision(*torch.rand(3, generator=rng))
    size = torch.rand(lesions, 2, generator=rng)
    candidate = torch.rand(lesions, candidates, generator=rng)
    center = CenterDraw(candidate, torch.rand(lesions, 3, generator=rng))
    shape = shapes.draw_shape((lesions,), rng)
    chances, contrast = torch.rand(lesions, _CHANCES, generator=rng), torch.randn(lesions, generator=rng)
    noise = torch.randn(lesions, 2, _TILE, _TILE, _TILE, generator=rng)
    return Draw(decision, size, center=center, shape=shape, look=LookDraw(chances, contrast, noise))


def _map_tensors(function: Callable[..., Tensor], *draws: Any) -> Any:
    """Apply a function to the tensors of one draw, or to the corresponding tensors of several."""
    if isinstance(draws[0], Tensor):
        return function(*draws)
    return type(draws[0])(*(_map_tensors(function, *parts) for parts in zip(*draws)))


def diameter_of(prior: Prior, size: Float[Tensor, "2"]) -> float:
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


def blueprints_of(section: Section, spacing_mm: Spacing, draw: Draw, index: int) -> list[list[Blueprint]]:
    """Design the lesions that a sample could get, for each target; none where the draw cannot plant any."""
    most = max(probability(section, True), probability(section, False))
    if float(draw.decision.plant[index]) >= most:
        return [[] for _ in section.targets]
    return [_blueprints_of_target(target.prior, spacing_mm, draw, index) for target in section.targets]


def _blueprints_of_target(prior: Prior, spacing_mm: Spacing, draw: Draw, index: int) -> list[Blueprint]:
    count = lesion_count(prior, draw.decision.lesions[index])
    return [_blueprint(prior, spacing_mm, draw=draw, index=index, lesion=lesion) for lesion in range(count)]


def lesion_count(prior: Prior, uniform: Float[Tensor, ""]) -> int:
    """Turn a uniform draw into the number of lesions of a patch that gets any."""
    weights = torch.tensor(prior.lesions_per_patch).cumsum(0)
    return 1 + int((uniform * weights[-1] >= weights).sum().clamp_max(len(weights) - 1))


def _blueprint(prior: Prior, spacing_mm: Spacing, draw: Draw, index: int, lesion: int) -> Blueprint:
    chance = ShapeDraw(*(part[index, lesion] for part in draw.shape))
    diameter = diameter_of(prior, draw.size[index, lesion])
    body = shapes.build(prior.shape, diameter, chance)
    growth = max(MIN_EXTENT_VOXELS * step / (2 * reach) for step, reach in zip(spacing_mm, body.reach_mm))
    if growth > 1:  # too flat for the voxels: the same lesion, larger
        diameter *= growth
        body = shapes.build(prior.shape, diameter, chance)
    return Blueprint(diameter, body)


def probability(section: Section, tumor_free: bool) -> float:
    """Return the probability that a patch with, or without, real tumors gets lesions."""
    if tumor_free:
        return min(section.probability_tumor_free, 1 - section.untouched_share)
    return 0.0 if section.tumor_free_patches_only else section.probability_tumor_bearing
