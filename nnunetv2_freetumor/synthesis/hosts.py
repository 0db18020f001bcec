"""Where a lesion may grow: the host organ by label or by HU, real lesions, and the fat beside an organ."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from nnunetv2_freetumor.plan import Target
from nnunetv2_freetumor.synthesis.volume import Spacing

FAT_HU = (-150.0, -30.0)
_OUTSIDE_AIR_HU = -950.0
_SMOOTH_MM = 3.0
_WALL_HU = -300.0  # averaged over 20 mm: the body wall has it, the shell of a mattress has not
_WALL_MM = 20.0
_OPENING_MM = 4.0
_SPREAD_MM = 60.0

Mask = Bool[Tensor, "b 1 x y z"]


def has_label(label: Int[Tensor, "b 1 x y z"], values: tuple[int, ...]) -> Mask:
    """Mark the voxels whose label is one of `values`."""
    mask = torch.zeros_like(label, dtype=torch.bool)
    for value in values:
        mask |= label == value
    return mask


def host_mask(
    target: Target, hu: Float[Tensor, "b 1 x y z"], label: Int[Tensor, "b 1 x y z"], spacing_mm: Spacing
) -> Mask:
    """Mark a target's host: its labels, or unlabeled tissue of its HU range inside the body."""
    if target.host_hu is None:
        return has_label(label, target.host_labels)
    return _inside_air(hu, target.host_hu, spacing_mm) & (label == 0)


def fat_mask(hu: Float[Tensor, "b 1 x y z"], label: Int[Tensor, "b 1 x y z"]) -> Mask:
    """Mark unlabeled fat, judged on a 3 x 3 x 3 average so that noise does not speckle it."""
    smooth = functional.avg_pool3d(hu, 3, stride=1, padding=1, count_include_pad=False)
    return (label == 0) & (smooth > FAT_HU[0]) & (smooth < FAT_HU[1])


def dilate(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Grow a mask by a box of `radius_mm` to each side."""
    return _box_maximum(mask.float(), radius_mm, spacing_mm) > 0.5


def shell(mask: Mask, depth_mm: float, spacing_mm: Spacing) -> Mask:
    """Mark the part of a mask that lies within `depth_mm` of what is outside it; the patch's border is no surface."""
    return mask & dilate(~mask, depth_mm, spacing_mm)


def _box_maximum(
    volume: Float[Tensor, "b 1 x y z"], radius_mm: float, spacing_mm: Spacing
) -> Float[Tensor, "b 1 x y z"]:
    for axis, step in enumerate(spacing_mm):
        reach = round(radius_mm / step)
        if reach:
            kernel, pad = [1, 1, 1], [0, 0, 0]
            kernel[axis], pad[axis] = 2 * reach + 1, reach
            volume = functional.max_pool3d(volume, kernel, stride=1, padding=pad)
    return volume


def _inside_air(hu: Float[Tensor, "b 1 x y z"], range_hu: tuple[float, float], spacing_mm: Spacing) -> Mask:
    """Find connected tissue of a HU range inside the body.

    Smoothing keeps noise in outside air from passing as lung; an opening removes the partial-volume skin of every air
    surface; along every axis and both ways a voxel must meet thick tissue, or the patch's border without outside air
    before it, and lie between thick tissue along one axis at least: a mattress under the body does not.
    """
    smooth = _box_mean(hu, _SMOOTH_MM, spacing_mm)
    air = (smooth > max(range_hu[0], _OUTSIDE_AIR_HU)) & (smooth < range_hu[1])
    thick = _box_mean(hu, _WALL_MM, spacing_mm) > _WALL_HU
    inside = air & _surrounded(thick, smooth < _OUTSIDE_AIR_HU)
    return _grow(~dilate(~inside, _OPENING_MM, spacing_mm), inside, spacing_mm)


def _box_mean(hu: Float[Tensor, "b 1 x y z"], width_mm: float, spacing_mm: Spacing) -> Float[Tensor, "b 1 x y z"]:
    for axis, step in enumerate(spacing_mm):
        reach = round(width_mm / step / 2)
        kernel, pad = [1, 1, 1], [0, 0, 0]
        kernel[axis], pad[axis] = 2 * reach + 1, reach
        hu = functional.avg_pool3d(hu, kernel, stride=1, padding=pad, count_include_pad=False)
    return hu


def _surrounded(thick: Mask, outside: Mask) -> Mask:
    enclosed, between = torch.ones_like(thick), torch.zeros_like(thick)
    for axis in (2, 3, 4):
        before, after = _met(thick, axis), _met(thick.flip(axis), axis).flip(axis)
        between |= before & after
        enclosed &= (before | ~_met(outside, axis)) & (after | ~_met(outside.flip(axis), axis).flip(axis))
    return enclosed & between


def _met(mask: Mask, axis: int) -> Mask:
    """Mark each voxel that has a marked one at or before it along an axis."""
    return mask.to(torch.uint8).cummax(axis).values.bool()


def _grow(seed: Mask, inside: Mask, spacing_mm: Spacing) -> Mask:
    """Grow a seed through `inside`, a few millimeters at a time, up to 60 mm."""
    radius = max(max(spacing_mm), 3.0)
    for _ in range(round(_SPREAD_MM / radius / 4)):
        seed = dilate(seed, radius, spacing_mm) & inside
    return seed
