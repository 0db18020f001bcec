"""Blur, distance, noise and boxes on volumes, with every length in mm.

Volumes here are `(n, 1, x, y, z)` or `(x, y, z)` tensors; `spacing_mm` follows the array's axes.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

Spacing = tuple[float, float, float]


class Box(NamedTuple):
    """A box of voxels, `start` included and `stop` excluded."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def slices(self) -> tuple[slice, slice, slice]:
        """Return the index that cuts the box out of an (x, y, z) volume."""
        return (
            slice(self.start[0], self.stop[0]),
            slice(self.start[1], self.stop[1]),
            slice(self.start[2], self.stop[2]),
        )


def box_around(center: list[float], half_mm: list[float], spacing_mm: Spacing, shape: tuple[int, ...]) -> Box:
    """Cut a box of `half_mm` on each side of a center (voxels) to the volume."""
    reach = [half / step for half, step in zip(half_mm, spacing_mm)]
    start = [min(max(math.floor(c - r), 0), n - 1) for c, r, n in zip(center, reach, shape)]
    stop = [min(math.ceil(c + r) + 1, n) for c, r, n in zip(center, reach, shape)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def offsets_mm(
    box: Box, center: list[float], spacing_mm: Spacing, subvoxels: tuple[int, int, int], device: torch.device
) -> Float[Tensor, "x y z 3"]:
    """Return each (sub)voxel's position relative to a center (voxels), `subvoxels` of them along each axis."""
    axes = []
    for axis in range(3):
        count = (box.stop[axis] - box.start[axis]) * subvoxels[axis]
        voxels = (torch.arange(count, device=device) + 0.5) / subvoxels[axis] - 0.5 + box.start[axis]
        axes.append((voxels - center[axis]) * spacing_mm[axis])
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def gaussian_blur(volume: Float[Tensor, "x y z"], sigma_mm: float, spacing_mm: Spacing) -> Float[Tensor, "x y z"]:
    """Blur with a Gaussian of `sigma_mm`, edges replicated, the kernel cut at 2.5 sigma."""
    result = volume[None, None]
    for axis, step in enumerate(spacing_mm):
        sigma = sigma_mm / step
        reach = min(max(math.ceil(2.5 * sigma), 1), volume.shape[axis] - 1)
        if reach < 1:
            continue
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=volume.device) / sigma) ** 2)
        shape, pad = [1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]
        shape[2 + axis] = -1
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = reach
        padded = functional.pad(result, pad, mode="replicate")
        result = functional.conv3d(padded, (kernel / kernel.sum()).to(volume.dtype).reshape(shape))
    return result[0, 0]


def masked_blur(
    volume: Float[Tensor, "x y z"],
    weight: Float[Tensor, "x y z"],
    sigma_mm: float,
    spacing_mm: Spacing,
    otherwise: Float[Tensor, ""],
) -> Float[Tensor, "x y z"]:
    """Blur over the weighted voxels only; where none is near, the result tends to `otherwise`."""
    share = gaussian_blur(weight, sigma_mm, spacing_mm)
    summed = gaussian_blur((volume - otherwise) * weight, sigma_mm, spacing_mm)
    return otherwise + summed / share.clamp_min(1e-3)


def masked_mean(volume: Float[Tensor, "x y z"], weight: Float[Tensor, "x y z"]) -> Float[Tensor, ""]:
    """Average over the weighted voxels; 0 where there are none."""
    return (volume * weight).sum() / weight.sum().clamp_min(1e-3)


def distance_within(mask: Bool[Tensor, "x y z"], radius_mm: float, spacing_mm: Spacing) -> Float[Tensor, "x y z"]:
    """Measure each voxel's Euclidean distance in mm to the mask, exactly up to `radius_mm`, infinite beyond.

    Squared distances are separable: along each axis the minimum over shifts of the running square plus shift squared.
    """
    square = torch.where(mask, 0.0, torch.inf)
    for axis, step in enumerate(spacing_mm):
        reach = min(math.floor(radius_mm / step), mask.shape[axis] - 1)
        best = square
        for shift in range(1, reach + 1):
            cost = (shift * step) ** 2
            ahead = torch.full_like(square, torch.inf)
            size = mask.shape[axis] - shift
            ahead.narrow(axis, 0, size).copy_(square.narrow(axis, shift, size))
            behind = torch.full_like(square, torch.inf)
            behind.narrow(axis, shift, size).copy_(square.narrow(axis, 0, size))
            best = torch.minimum(best, torch.minimum(ahead, behind) + cost)
        square = best
    distance = square.sqrt()
    return torch.where(distance <= radius_mm, distance, torch.inf)


def smooth_noise_tile(white: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """Turn white noise into a periodic field of unit variance with a Gaussian sigma of one voxel."""
    kernel = torch.exp(-0.5 * torch.arange(-3, 4, dtype=white.dtype) ** 2)
    field = white
    for axis in range(3):
        field = sum((weight * field.roll(shift - 3, axis) for shift, weight in enumerate(kernel)), torch.zeros(()))
    return field / field.std()


def sample_tile(tile: Float[Tensor, "n n n"], positions: Float[Tensor, "x y z 3"]) -> Float[Tensor, "x y z"]:
    """Read a periodic tile at positions given in tile voxels."""
    size = tile.shape[0]
    wrapped = functional.pad(tile[None, None], (0, 1, 0, 1, 0, 1), mode="circular")
    unit = torch.remainder(positions, size) * (2 / size) - 1
    return sample_grid(wrapped[0, 0], unit)


def sample_grid(grid: Float[Tensor, "n n n"], unit: Float[Tensor, "x y z 3"]) -> Float[Tensor, "x y z"]:
    """Read a cubic grid that spans [-1, 1]^3, trilinearly; beyond it the nearest value counts."""
    flipped = unit.flip(-1)[None]  # grid_sample wants the last axis first
    read = functional.grid_sample(grid[None, None], flipped, mode="bilinear", padding_mode="border", align_corners=True)
    return read[0, 0]


def mean_of_subvoxels(volume: Float[Tensor, "sx sy sz"], subvoxels: tuple[int, int, int]) -> Float[Tensor, "x y z"]:
    """Average the subvoxels of each voxel: the partial-volume effect."""
    return functional.avg_pool3d(volume[None, None], subvoxels)[0, 0]
