"""Place lesions: which samples, which host, and where.

Nothing here reads a value back from the device.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from nnunetv2_freetumor import hosts, shapes
from nnunetv2_freetumor.draws import Blueprint, Draw, probability
from nnunetv2_freetumor.plan import Section, Target
from nnunetv2_freetumor.volume import Spacing

MAX_CUT = 0.2  # share of a lesion's volume that the host may cut off
MIN_IN_PATCH = 0.5  # share of a lesion that must lie inside the patch
_CELLS = 8192


class Placement(NamedTuple):
    """Where a batch's lesions go, on the device."""

    host: Bool[Tensor, "b"]  # the sample shows a host
    tumor_free: Bool[Tensor, "b"]  # the sample shows no real tumor or cyst
    eligible: Bool[Tensor, "b"]
    chosen: Bool[Tensor, "b"]  # the draw decided to plant here
    target: Int[Tensor, "b"]
    center: Float[Tensor, "b l 3"]  # voxels
    placed: Bool[Tensor, "b l"]
    hosts: list[Bool[Tensor, "b 1 x y z"]]  # by target


def place(
    section: Section,
    spacing_mm: Spacing,
    hu: Float[Tensor, "b 1 x y z"],
    label: Int[Tensor, "b 1 x y z"],
    draw: Draw,
    blueprints: list[list[list[Blueprint]]],
) -> Placement:
    """Choose samples, targets and centers for the lesions designed by `plan_sample` (by sample, target, lesion)."""
    lesion_labels = tuple(sorted({value for target in section.targets for value in target.lesion_labels}))
    real = hosts.has_label(label, lesion_labels)
    tumor_free = ~real.flatten(1).any(1)
    decide, rank, jitter = (part.to(hu.device, non_blocking=True) for part in (draw.decide, draw.rank, draw.jitter))
    blocked = _lesion_cells(real)
    shown, centers, placed = [], [], []
    organs = [hosts.host_mask(target, hu, label, spacing_mm) for target in section.targets]
    for index, (target, host) in enumerate(zip(section.targets, organs)):
        smallest = math.pi / 6 * min(size.min_mm for size in target.prior.sizes if size.weight > 0) ** 3
        shown.append(host.flatten(1).sum(1) * math.prod(spacing_mm) >= smallest)
        plans = [sample[index] for sample in blueprints]
        at, found = _place_target(
            target, section.clearance_mm, spacing_mm, hu, label, host, blocked, rank, jitter, plans
        )
        centers.append(at)
        placed.append(found)
    usable = torch.stack(shown, 1)
    pick = _pick(usable, decide[:, 1])
    eligible = usable.any(1) & (tumor_free | (not section.tumor_free_patches_only))
    chance = torch.where(tumor_free, probability(section, True), probability(section, False))
    chosen = eligible & (decide[:, 0] < chance)
    rows = torch.arange(len(pick), device=pick.device)
    found = torch.stack(placed, 1)[rows, pick] & chosen[:, None]
    at = torch.stack(centers, 1)[rows, pick]
    return Placement(usable.any(1), tumor_free, eligible, chosen, pick, at, found, organs)


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


def _place_target(target, clearance_mm, spacing_mm, hu, label, host, blocked, rank, jitter, plans):
    """Find a center for each lesion of one target; the first candidate that fits, none where none does."""
    batch, most, candidates = rank.shape
    wanted, radius, points = _tabulate(plans, most, hu.device)
    allowed = _allowed(target, hu, label, host, spacing_mm)
    seeds = hosts.shell(host, 8.0, spacing_mm) if target.prior.subpleural else host
    centers = _host_voxels(seeds, rank) + jitter[:, :, None] - 0.5
    share, inside = _shares(allowed, centers, points, spacing_mm)
    fits = (share >= 1 - 0.75 * MAX_CUT) & (inside >= MIN_IN_PATCH) & wanted[:, :, None]
    if target.prior.subpleural:
        fits = (inside >= MIN_IN_PATCH) & wanted[:, :, None]
    gap = _clearance_mm(blocked, centers.flatten(1, 2), spacing_mm).reshape(batch, most, candidates)
    fits &= (gap >= clearance_mm + radius[:, :, None]) & seeds.flatten(1).any(1)[:, None, None]
    return _choose(centers, fits, radius, spacing_mm)


def _tabulate(plans: list[list[Blueprint]], most: int, device: torch.device):
    wanted = torch.zeros(len(plans), most, dtype=torch.bool)
    radius = torch.zeros(len(plans), most)
    points = torch.zeros(len(plans), most, shapes.INTERIOR_POINTS, 3)
    for i, sample in enumerate(plans):
        for j, lesion in enumerate(sample):
            wanted[i, j], radius[i, j], points[i, j] = True, lesion.body.radius_mm, lesion.body.interior_mm
    return tuple(part.to(device, non_blocking=True) for part in (wanted, radius, points))


def _allowed(target: Target, hu, label, host, spacing_mm: Spacing):
    if not target.prior.exophytic_mm:
        return host
    near = hosts.dilate(host, target.prior.exophytic_mm, spacing_mm)
    return host | (hosts.fat_mask(hu, label) & near)


def _host_voxels(host: Bool[Tensor, "b 1 x y z"], rank: Float[Tensor, "b l k"]) -> Float[Tensor, "b l k 3"]:
    """Pick host voxels uniformly: the rank's place among them, without reading how many there are."""
    count = host.flatten(1).cumsum(1, dtype=torch.int32)
    wanted = (rank.flatten(1) * count[:, -1:]).floor().to(torch.int32) + 1
    flat = torch.searchsorted(count, wanted).clamp_max(count.shape[1] - 1).reshape(rank.shape)
    _, _, _, y, z = host.shape
    return torch.stack([flat // (y * z), flat // z % y, flat % z], -1).float()


def _shares(allowed, centers, points, spacing_mm: Spacing):
    """Tell which share of each candidate lesion is allowed, and which share lies inside the patch."""
    steps = torch.tensor(spacing_mm, device=centers.device)
    at = (centers[:, :, :, None] + (points / steps)[:, :, None]).round().long()  # b l k p 3
    shape = torch.tensor(allowed.shape[2:], device=at.device)
    inside = ((at >= 0) & (at < shape)).all(-1)
    at = at.clamp_min(0).minimum(shape - 1)
    flat = (at[..., 0] * shape[1] + at[..., 1]) * shape[2] + at[..., 2]
    hit = allowed.flatten(1).gather(1, flat.flatten(1)).reshape(flat.shape) & inside
    return hit.sum(-1) / inside.sum(-1).clamp_min(1), inside.float().mean(-1)


def _choose(centers, fits, radius, spacing_mm: Spacing):
    steps = torch.tensor(spacing_mm, device=centers.device)
    chosen: list[Tensor] = []
    found: list[Tensor] = []
    for lesion in range(centers.shape[1]):
        ok = fits[:, lesion]
        for before in range(lesion):
            gap = ((centers[:, lesion] - chosen[before][:, None]) * steps).norm(dim=-1)
            apart = radius[:, lesion, None] + radius[:, before, None] + 2.0
            ok = ok & ((gap >= apart) | ~found[before][:, None])
        first = ok.int().argmax(1)
        chosen.append(centers[torch.arange(len(first), device=first.device), lesion, first])
        found.append(ok.any(1))
    return torch.stack(chosen, 1), torch.stack(found, 1)
