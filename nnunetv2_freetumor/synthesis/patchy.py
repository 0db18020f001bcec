"""Patchy lesions: ground glass that hugs the surface of the lung, without any ellipsoid.

A voxel of the host belongs to the lesion where `c |y|^2 + depth / (s d) + n` is among the lowest values that fill the
drawn volume: y is the position in units of the radius, depth the distance to the host's surface, d the diameter and n
noise of two octaves. Islands are wanted here.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from nnunetv2_freetumor.synthesis.volume import Spacing, distance_within, sample_tile, smooth_noise_tile

SPREAD = 2.2  # how many radii a patchy lesion may reach from its center
_PULL = 0.5
_DEPTH_SHARE = 0.3
_MAX_DEPTH_MM = 25.0
_FINEST_MM = 2.5
_MM_PER_UNIT = 0.125  # of the diameter: the field's gradient at the surface, measured, is about 8 per diameter


def signed_distance_mm(
    host: Bool[Tensor, "x y z"],
    offsets_mm: Float[Tensor, "x y z 3"],
    tiles: Float[Tensor, "2 n n n"],
    diameter_mm: float,
    spacing_mm: Spacing,
) -> Float[Tensor, "x y z"]:
    """Measure a patchy lesion's signed distance (mm, negative inside) to first order in the noise."""
    radius = 0.5 * diameter_mm
    depth = _depth_mm(host, spacing_mm)
    field = _PULL * (offsets_mm.norm(dim=-1) / radius) ** 2 + depth / (_DEPTH_SHARE * diameter_mm)
    for white, share, strength in zip(tiles, (0.4, 0.16), (0.8, 0.5)):
        tile = smooth_noise_tile(white.flip(0)).to(host.device, non_blocking=True)
        field = field + strength * sample_tile(tile, offsets_mm / max(share * radius, _FINEST_MM))
    near = host & (offsets_mm.norm(dim=-1) < SPREAD * radius)
    ranked = torch.where(near, field, 1e3).flatten()
    wanted = min(max(round(math.pi / 6 * diameter_mm**3 / math.prod(spacing_mm)), 1), ranked.numel())
    level = ranked.kthvalue(wanted).values.clamp_max(999.0)
    return torch.where(near, field - level, 1.0) * (_MM_PER_UNIT * diameter_mm)


def _depth_mm(host: Bool[Tensor, "x y z"], spacing_mm: Spacing) -> Float[Tensor, "x y z"]:
    """Measure the depth below the host's surface on a grid of about 2 mm; vessels too thin for it are no surface."""
    stride = tuple(max(round(2.0 / step), 1) for step in spacing_mm)
    outside = functional.avg_pool3d((~host).float()[None, None], stride, ceil_mode=True)[0, 0] > 0.6
    coarse = (stride[0] * spacing_mm[0], stride[1] * spacing_mm[1], stride[2] * spacing_mm[2])
    depth = distance_within(outside, _MAX_DEPTH_MM, coarse).clamp_max(_MAX_DEPTH_MM)
    return functional.interpolate(depth[None, None], size=host.shape, mode="trilinear", align_corners=False)[0, 0]
