"""Place lesions: which samples, which host, and where.

Nothing here reads a value back from the device.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from nnunetv2_freetumor.plan import Section, Target
from nnunetv2_freetumor.synthesis import hosts, shapes
from nnunetv2_freetumor.synthesis.draws import Blueprint, CenterDraw, Draw, probability
from nnunetv2_freetumor.synthesis.volume import Spacing

MAX_CUT = 0.2  # share of a lesion's volume that the host may cut off
MIN_IN_PATCH = 0.5  # share of a lesion that must lie inside the patch
_SURE_CUT = 0.15  # what the candidates' 64 points may show, so that few lesions fail the exact test
_SHELL_MM = 8.0  # how deep below the host's surface subpleural lesions have their centers
_APART_MM = 2.0  # between two synthetic lesions
_CELLS = 8192


class Samples(NamedTuple):
    """What the samples of a batch show, and which of them are to get lesions."""

    host: Bool[Tensor, "b"]
    tumor_free: Bool[Tensor, "b"]  # no real tumor or cyst
    eligible: Bool[Tensor, "b"]
    chosen: Bool[Tensor, "b"]  # by the draw


class Placement(NamedTuple):
    """Where a batch's lesions go, on the device."""

    samples: Samples
    target: Int[Tensor, "b"]
    center: Float[Tensor, "b l 3"]  # voxels
    placed: Bool[Tensor, "b l"]
    hosts: list[Bool[Tensor, "b 1 x y z"]]  # by target


class _Scene(NamedTuple):
    """What all targets of a batch share."""

    hu: Float[Tensor, "b 1 x y z"]
    label: Int[Tensor, "b 1 x y z"]
    spacing_mm: Spacing
    clearance_mm: float
    real: "_Cells"
    center: CenterDraw


class _Wanted(NamedTuple):
    """The lesions that a batch could get for one target."""

    lesion: Bool[Tensor, "b l"]
    radius_mm: Float[Tensor, "b l"]
    points_mm: Float[Tensor, "b l p 3"]  # spread evenly through each lesion


class _Found(NamedTuple):
    """The centers of one target's lesions."""

    center: Float[Tensor, "b l 3"]  # voxels
    placed: Bool[Tensor, "b l"]


def place(
    section: Section,
    spacing_mm: Spacing,
    hu: Float[Tensor, "b 1 x y z"],
    label: Int[Tensor, "b 1 x y z"],
    draw: Draw,
    blueprints: list[list[list[Blueprint]]],
) -> Placement:
    """Choose samples, targets and centers for the lesions of `blueprints_of` (by sample, target, lesion)."""
    real = hosts.has_label(label, tuple({value for target in section.targets for value in target.lesion_labels}))
    tumor_free = ~real.flatten(1).any(1)
    plant, pick = (part.to(hu.device, non_blocking=True) for part in draw.decision[:2])
    center = CenterDraw(*(part.to(hu.device, non_blocking=True) for part in draw.center))
    scene = _Scene(
        hu, label, spacing_mm=spacing_mm, clearance_mm=section.clearance_mm, real=_lesion_cells(real), center=center
    )
    organs = [hosts.host_mask(target, hu, label, spacing_mm) for target in section.targets]
    usable = torch.stack([_is_large_enough(*pair, spacing_mm) for pair in zip(section.targets, organs)], 1)
    found = [
        _place_target(target, host, scene, [sample[index] for sample in blueprints])
        for index, (target, host) in enumerate(zip(section.targets, organs))
    ]
    index, rows = _pick(usable, pick), torch.arange(len(hu), device=hu.device)
    eligible = usable.any(1) & (tumor_free | (not section.tumor_free_patches_only))
    chance = torch.where(tumor_free, probability(section, True), probability(section, False))
    chosen = eligible & (plant < chance)
    placed = torch.stack([one.placed for one in found], 1)[rows, index] & chosen[:, None]
    centers = torch.stack([one.center for one in found], 1)[rows, index]
    return Placement(
        Samples(usable.any(1), tumor_free, eligible, chosen), index, center=centers, placed=placed, hosts=organs
    )


def _is_large_enough(target: Target, host: Bool[Tensor, "b 1 x y z"], spacing_mm: Spacing) -> Bool[Tensor, "b"]:
    """Find the samples that show at least as much host as the smallest lesion takes."""
    smallest_mm = min(size.min_mm for size in target.prior.sizes if size.weight > 0)
    return host.flatten(1).sum(1) * math.prod(spacing_mm) >= math.pi / 6 * smallest_mm**3


def _pick(usable: Bool[Tensor, "b t"], uniform: Float[Tensor, "b"]) -> Int[Tensor, "b"]:
    count = usable.cumsum(1)
    wanted = (uniform * count[:, -1]).floor()[:, None] + 1
    return (count < wanted).sum(1).clamp_max(usable.shape[1] - 1)


class _Cells(NamedTuple):
    stride: int  # voxels
    far: Float[Tensor, "b cx cy cz"]  # 0 where a real lesion touches the cell, infinite elsewhere


def _lesion_cells(real: Bool[Tensor, "b 1 x y z"]) -> _Cells:
    """Summarize where real lesions lie in coarse cells: a distance to an occupied cell never exceeds the true one."""
    stride = max(2, math.ceil((math.prod(real.shape[2:]) / _CELLS) ** (1 / 3)))
    occupied = functional.max_pool3d(real.float(), stride, ceil_mode=True)[:, 0]
    return _Cells(stride, torch.where(occupied > 0, 0.0, torch.inf))


def _clearance_mm(cells: _Cells, centers: Float[Tensor, "b n 3"], spacing_mm: Spacing) -> Float[Tensor, "b n"]:
    """Measure how far each center is from the nearest occupied cell; squared gaps add up axis by axis."""
    square = cells.far[:, None]
    for axis, step in enumerate(spacing_mm):
        low = torch.arange(cells.far.shape[axis + 1], device=centers.device) * cells.stride
        at = centers[..., axis, None]
        gap = (low - at).clamp_min(0) + (at - low - (cells.stride - 1)).clamp_min(0)
        shape = [*gap.shape[:2], 1, 1, 1]
        shape[2 + axis] = -1
        square = square + ((gap * step) ** 2).reshape(shape)
    return square.flatten(2).amin(2).sqrt()


def _place_target(
    target: Target, host: Bool[Tensor, "b 1 x y z"], scene: _Scene, blueprints: list[list[Blueprint]]
) -> _Found:
    """Find a center for each lesion of one target; the first candidate that fits, none where none does."""
    candidate, jitter = scene.center
    wanted = _tabulate(blueprints, candidate.shape[1], host.device)
    seeds = hosts.shell(host, _SHELL_MM, scene.spacing_mm) if target.prior.subpleural else host
    centers = _host_voxels(seeds, candidate) + jitter[:, :, None] - 0.5
    fits = _has_room(
        _allowed(target, host, scene),
        centers,
        points_mm=wanted.points_mm,
        spacing_mm=scene.spacing_mm,
        anywhere=target.prior.subpleural,
    )
    gap = _clearance_mm(scene.real, centers.flatten(1, 2), scene.spacing_mm).reshape(candidate.shape)
    fits &= gap >= scene.clearance_mm + wanted.radius_mm[:, :, None]
    fits &= wanted.lesion[:, :, None] & seeds.flatten(1).any(1)[:, None, None]
    return _choose(centers, fits, wanted.radius_mm, scene.spacing_mm)


def _tabulate(blueprints: list[list[Blueprint]], most: int, device: torch.device) -> _Wanted:
    lesion = torch.zeros(len(blueprints), most, dtype=torch.bool)
    radius = torch.zeros(len(blueprints), most)
    points = torch.zeros(len(blueprints), most, shapes.INTERIOR_POINTS, 3)
    for i, sample in enumerate(blueprints):
        for j, (_, body) in enumerate(sample):
            lesion[i, j], radius[i, j], points[i, j] = True, body.radius_mm, body.interior_mm
    return _Wanted(*(part.to(device, non_blocking=True) for part in (lesion, radius, points)))


def _allowed(target: Target, host: Bool[Tensor, "b 1 x y z"], scene: _Scene) -> Bool[Tensor, "b 1 x y z"]:
    if not target.prior.exophytic_mm:
        return host
    near = hosts.dilate(host, target.prior.exophytic_mm, scene.spacing_mm)
    return host | (hosts.fat_mask(scene.hu, scene.label) & near)


def _host_voxels(host: Bool[Tensor, "b 1 x y z"], candidate: Float[Tensor, "b l k"]) -> Float[Tensor, "b l k 3"]:
    """Pick host voxels uniformly: a candidate is a share of their number, which is not read."""
    count = host.flatten(1).cumsum(1, dtype=torch.int32)
    wanted = (candidate.flatten(1) * count[:, -1:]).floor().to(torch.int32) + 1
    flat = torch.searchsorted(count, wanted).clamp_max(count.shape[1] - 1).reshape(candidate.shape)
    _, _, _, y, z = host.shape
    return torch.stack([flat // (y * z), flat // z % y, flat % z], -1).float()


def _has_room(
    allowed: Bool[Tensor, "b 1 x y z"],
    centers: Float[Tensor, "b l k 3"],
    points_mm: Float[Tensor, "b l p 3"],
    spacing_mm: Spacing,
    anywhere: bool,
) -> Bool[Tensor, "b l k"]:
    """Find the candidates that lie far enough inside the patch and, unless `anywhere`, inside what is allowed."""
    steps = torch.tensor(spacing_mm, device=centers.device)
    at = (centers[:, :, :, None] + (points_mm / steps)[:, :, None]).round().long()  # b l k p 3
    shape = torch.tensor(allowed.shape[2:], device=at.device)
    inside = ((at >= 0) & (at < shape)).all(-1)
    at = at.clamp_min(0).minimum(shape - 1)
    flat = (at[..., 0] * shape[1] + at[..., 1]) * shape[2] + at[..., 2]
    hit = allowed.flatten(1).gather(1, flat.flatten(1)).reshape(flat.shape) & inside
    share = hit.sum(-1) / inside.sum(-1).clamp_min(1)
    return (inside.float().mean(-1) >= MIN_IN_PATCH) & (anywhere | (share >= 1 - _SURE_CUT))


def _choose(
    centers: Float[Tensor, "b l k 3"], fits: Bool[Tensor, "b l k"], radius: Float[Tensor, "b l"], spacing_mm: Spacing
) -> _Found:
    """Take each lesion's first candidate that fits and keeps clear of the lesions before it."""
    steps = torch.tensor(spacing_mm, device=centers.device)
    chosen: list[Tensor] = []
    found: list[Tensor] = []
    for lesion in range(centers.shape[1]):
        ok = fits[:, lesion]
        for before in range(lesion):
            gap = ((centers[:, lesion] - chosen[before][:, None]) * steps).norm(dim=-1)
            apart = radius[:, lesion, None] + radius[:, before, None] + _APART_MM
            ok = ok & ((gap >= apart) | ~found[before][:, None])
        first = ok.int().argmax(1)
        chosen.append(centers[torch.arange(len(first), device=first.device), lesion, first])
        found.append(ok.any(1))
    return _Found(torch.stack(chosen, 1), torch.stack(found, 1))
