"""Resample the surroundings of a lesion to the voxels that a generator's network was trained on, and back.

Resampling is a matrix for each axis: linear, exact where the spacings agree, and differentiable.
"""

import math
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from nnunetv2_freetumor.synthesis.region import Region, Volume
from nnunetv2_freetumor.synthesis.volume import Spacing

_Number = TypeVar("_Number", int, float)
VolumeBatch = Float[Tensor, "b 1 x y z"]  # a batch on the grid


class Grid(NamedTuple):
    """The voxels that a network sees of a region."""

    first_mm: Float[Tensor, "3"]  # the first voxel's position relative to the lesion's center
    spacing_mm: Spacing
    sides: tuple[int, int, int]  # voxels


def array_order(card_axes: tuple[_Number, _Number, _Number], slice_axis: int) -> tuple[_Number, _Number, _Number]:
    """Bring a card's (x, y, z) into the order of arrays whose `slice_axis` is z."""
    x, y, z = card_axes
    order = [y, x]
    order.insert(slice_axis, z)
    return order[0], order[1], order[2]


def make_grid(region: Region, spacing_mm: Spacing, multiple: int, sides: tuple[int, int, int] | None = None) -> Grid:
    """Lay a grid over a region, its sides rounded up to a multiple; or, with `sides`, around the lesion's center."""
    device = region.offsets_mm.device
    if sides is not None:
        first = [-(side - 1) / 2 * step for side, step in zip(sides, spacing_mm)]
        return Grid(torch.tensor(first).to(device, non_blocking=True), spacing_mm, sides)
    shift, rounded = [], []
    for size, own_mm, step_mm in zip(region.hu.shape, region.spacing_mm, spacing_mm):
        side = max(math.ceil(size * own_mm / step_mm - 1e-4), 1)
        shift.append(((size - 1) * own_mm - (side - 1) * step_mm) / 2)
        rounded.append(math.ceil(side / multiple) * multiple)
    first_mm = region.offsets_mm[0, 0, 0] + torch.tensor(shift).to(device, non_blocking=True)
    return Grid(first_mm, spacing_mm, (rounded[0], rounded[1], rounded[2]))


def to_grid(volume: Volume, region: Region, grid: Grid) -> Float[Tensor, "u v w"]:
    """Read a volume of the region at the grid's voxels: finer voxels are averaged, coarser ones interpolated.

    Beyond the region the nearest value counts.
    """
    weights = []
    starts = grid.first_mm - region.offsets_mm[0, 0, 0]
    for axis, (own_mm, step_mm) in enumerate(zip(region.spacing_mm, grid.spacing_mm)):
        positions = _positions(starts[axis], own_mm, step_mm, grid.sides[axis])
        weights.append(_weights(positions, volume.shape[axis], step_mm / own_mm))
    return _apply(volume, weights)


def from_grid(contrast: Float[Tensor, "u v w"], region: Region, grid: Grid) -> Volume:
    """Read a contrast map of the grid at the region's voxels; beyond the grid it is 0."""
    weights = []
    starts = region.offsets_mm[0, 0, 0] - grid.first_mm
    for axis, (own_mm, step_mm) in enumerate(zip(region.spacing_mm, grid.spacing_mm)):
        positions = _positions(starts[axis], step_mm, own_mm, region.hu.shape[axis])
        inside = (positions > -0.501) & (positions < grid.sides[axis] - 0.499)
        weights.append(_weights(positions, grid.sides[axis], own_mm / step_mm) * inside[:, None])
    return _apply(contrast, weights)


def grid_offsets_mm(grid: Grid) -> Float[Tensor, "u v w 3"]:
    """Return each voxel's position relative to the lesion's center."""
    axes = [
        _positions(grid.first_mm[axis], 1.0, step_mm, side)
        for axis, (step_mm, side) in enumerate(zip(grid.spacing_mm, grid.sides))
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _positions(start_mm: Float[Tensor, ""], source_mm: float, step_mm: float, count: int) -> Float[Tensor, "n"]:
    """Return `count` positions, `step_mm` apart, in source voxels of `source_mm`."""
    return start_mm / source_mm + torch.arange(count, device=start_mm.device) * (step_mm / source_mm)


def _weights(positions: Float[Tensor, "n"], size: int, step: float) -> Float[Tensor, "n m"]:
    """Weight an axis's voxels linearly around each position, as wide as the step where that is above one voxel."""
    voxels = torch.arange(size, device=positions.device)
    away = (positions.clamp(0, size - 1)[:, None] - voxels).abs() / max(step, 1.0)
    near = (1 - away).clamp_min(0)
    return near / near.sum(1, keepdim=True)


def _apply(volume: Volume, weights: list[Tensor]) -> Float[Tensor, "u v w"]:
    for matrix in weights:  # takes the first axis away and appends the resampled one: three turns restore the order
        volume = torch.tensordot(volume, matrix, dims=([0], [1]))
    return volume
