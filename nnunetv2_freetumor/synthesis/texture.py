"""The `texture` generator: (image region, lesion, draw) -> contrast map in HU, without any weights.

Inside the lesion the organ's structure (vessels, trend) gives way to the core, while
the scanner's fine noise stays; two scales of heterogeneity, necrosis, rims and ground glass come on top.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from nnunetv2_freetumor.plan import Texture
from nnunetv2_freetumor.synthesis.region import Look, Region, Volume
from nnunetv2_freetumor.synthesis.volume import (
    masked_blur,
    masked_mean,
    mean_of_subvoxels,
    sample_tile,
    smooth_noise_tile,
)

SOFT_TISSUE_HU = 20.0  # what contrast is measured against: core = host - k (host - 20 HU)
STRUCTURE_MM = 1.2  # what is smoother than this is anatomy, what is finer is the scanner's noise
TREND_MM = 8.0
VARIANTS_FROM_MM = 15.0  # smaller lesions have neither necrosis nor a bright rim: nothing would be left to see
_NOISE_LIMIT = 3.0
_VESSEL_SPREADS = 4.0  # of the plain host, whose spread is cut at 1.5: about three standard deviations
_BORROW_MM = 6.0


class Background(NamedTuple):
    """The host around a lesion, taken apart."""

    structure: Volume  # anatomy at 1.2 mm
    trend: Volume  # the organ without vessels at 8 mm
    noise: Volume  # what is finer than 1.2 mm
    host_hu: Float[Tensor, ""]


def analyze(region: Region) -> Background:
    """Split a region into structure, trend and noise, each measured over the host only."""
    host = region.host.float()
    beyond = (region.allowed & ~region.host).float()
    middle = masked_mean(region.hu, host)
    inner = masked_blur(region.hu, host, sigma_mm=STRUCTURE_MM, spacing_mm=region.spacing_mm, otherwise=middle)
    outer = masked_blur(
        region.hu, beyond, sigma_mm=STRUCTURE_MM, spacing_mm=region.spacing_mm, otherwise=masked_mean(region.hu, beyond)
    )
    structure = torch.where(region.host, inner, outer)
    plain = host
    for _ in range(2):
        middle = masked_mean(inner, plain)
        spread = masked_mean((inner - middle).square(), plain).sqrt()
        plain = host * ((inner - middle).abs() <= 1.5 * spread + 1.0)
    trend = masked_blur(
        inner, plain, sigma_mm=TREND_MM, spacing_mm=region.spacing_mm, otherwise=masked_mean(inner, plain)
    )
    vessel = region.host & ((inner - trend).abs() > _VESSEL_SPREADS * spread + 1.0)
    return Background(structure, trend, _noise(region, structure, plain, vessel), masked_mean(inner, plain))


def _noise(region: Region, structure: Volume, plain: Volume, vessel: Bool[Tensor, "x y z"]) -> Volume:
    """Compute the scanner's noise, cut at three standard deviations; at vessels it is borrowed from a few mm away.

    A vessel's own fine structure is anatomy: left in place, it would shine through the tumor.
    """
    noise = region.hu - structure
    size = masked_mean(noise.abs(), plain)
    limit = _NOISE_LIMIT * 1.25 * masked_mean(noise.abs(), plain * (noise.abs() < 2.5 * size))
    noise = torch.maximum(torch.minimum(noise, limit), -limit)
    vessel = functional.max_pool3d(vessel.float()[None, None], 3, stride=1, padding=1)[0, 0] > 0
    usable, missing = region.host & ~vessel, vessel
    for axis, step in enumerate(region.spacing_mm):
        for shift in (round(_BORROW_MM / step), -round(_BORROW_MM / step)):
            fits = missing & usable.roll(shift, axis)
            noise = torch.where(fits, noise.roll(shift, axis), noise)
            missing = missing & ~fits
    return torch.where(missing, 0.0, noise)


def texture_contrast(region: Region, texture: Texture, look: Look) -> Volume:
    """Render a lesion without any weights (the `texture` generator)."""
    behind = analyze(region)
    core = core_hu(behind.host_hu, texture.k_mean + texture.k_sd * look.contrast, texture)
    drop = core - behind.host_hu
    profile = _profile(region, texture, 0.0)
    variety = heterogeneity(region, texture, look)
    variety = variety - (variety * profile).sum((1, 2, 3), keepdim=True) / profile.sum().clamp_min(1e-3)
    inside = behind.trend + drop + variety.sum(0) + _necrosis(region, texture, look=look, core=core, coarse=variety[1])
    solid = inside + behind.noise - region.hu
    glass = _glass(region, behind, core=core, coarse=variety[1], texture=texture, look=look)
    rim = _rim(region, texture, look=look, profile=profile, drop=drop)
    matter, share = look.chances.matter, texture.ground_glass_share
    if matter < share:
        return profile * glass
    if matter < share + texture.part_solid_share:
        center = _profile(region, texture, (0.25 + 0.25 * look.chances.depth) * look.diameter_mm)
        return center * solid + (profile - center).clamp_min(0) * glass
    return profile * solid + rim


def core_hu(host_hu: Float[Tensor, ""], k: float, texture: Texture) -> Float[Tensor, ""]:
    """Compute the core's HU: by the enhancement phase, above its floor, and far enough from the host to be seen.

    A lesion that nobody can see would only teach the segmenter to invent tumors.
    """
    core = (host_hu - k * (host_hu - SOFT_TISSUE_HU)).clamp_min(texture.min_core_hu)
    darker, brighter = host_hu - texture.min_contrast_hu, host_hu + texture.min_contrast_hu
    seen = torch.where((core <= host_hu) & (darker >= texture.min_core_hu), darker, brighter)
    return torch.where((core - host_hu).abs() < texture.min_contrast_hu, seen, core)


def heterogeneity(region: Region, texture: Texture, look: Look) -> Float[Tensor, "2 x y z"]:
    """Render the fine and the coarse heterogeneity in HU, fixed to the lesion, not to the voxels."""
    fine_mm = texture.fine_mm
    coarse_mm = max(texture.coarse_per_diameter * look.diameter_mm, 3.0)
    parts = []
    for white, sigma_mm, sd_hu in zip(look.noise, (fine_mm, coarse_mm), (texture.fine_hu, texture.coarse_hu)):
        tile = smooth_noise_tile(white).to(region.hu.device, non_blocking=True)
        parts.append(sd_hu * sample_tile(tile, region.offsets_mm / sigma_mm))
    return torch.stack(parts)


def _profile(region: Region, texture: Texture, inset_mm: float) -> Volume:
    """Render the edge: a logistic ramp whose half-contrast depth lies inside the mask, averaged over each voxel."""
    depth = _edge_depth_mm(region, texture) + inset_mm
    return mean_of_subvoxels(torch.sigmoid(-(region.distance_mm + depth) / texture.edge_scale_mm), region.subvoxels)


def _edge_depth_mm(region: Region, texture: Texture) -> Float[Tensor, ""]:
    """Compute the half-contrast depth: it follows the lesion's thickness, or thin lesions would fade away."""
    thickness = (-region.distance_mm.amin()).clamp_min(0)  # the inscribed radius
    return (texture.edge_depth_per_radius * thickness).clamp_max(texture.edge_depth_mm)


def _band(region: Region, center_mm: float | Float[Tensor, ""], width_mm: float) -> Volume:
    return mean_of_subvoxels(torch.exp(-0.5 * ((region.distance_mm - center_mm) / width_mm) ** 2), region.subvoxels)


def _rim(region: Region, texture: Texture, look: Look, profile: Volume, drop: Float[Tensor, ""]) -> Volume:
    """Render the faint rim around a lesion, or the bright one just inside the edge of a rim-enhancing lesion."""
    if look.diameter_mm < VARIANTS_FROM_MM or look.chances.enhancement >= texture.rim_enhancing_share:
        return texture.rim_hu * look.chances.rim * _band(region, 0.8, 1.5) * (1 - profile).square()
    width = min(max(0.05 * look.diameter_mm, 0.8), 1.8)
    depth = _edge_depth_mm(region, texture) + 1.5 * width
    return (0.3 + 0.5 * look.chances.rim) * drop.abs() * _band(region, -depth, width)


def _necrosis(region: Region, texture: Texture, look: Look, core: Float[Tensor, ""], coarse: Volume) -> Volume:
    """Darken the center of a necrotic lesion towards fluid, along an irregular border."""
    if look.diameter_mm < VARIANTS_FROM_MM or look.chances.necrosis >= texture.necrotic_share:
        return torch.zeros_like(coarse)
    inset = (0.15 + 0.15 * look.chances.depth) * look.diameter_mm
    wander = 0.08 * look.diameter_mm * coarse / max(texture.coarse_hu, 1e-3)
    border = torch.sigmoid(-(mean_of_subvoxels(region.distance_mm, region.subvoxels) + inset + wander) / 1.5)
    return border * (10.0 + 15.0 * look.chances.fluid - core).clamp_max(0)


def _glass(
    region: Region, behind: Background, core: Float[Tensor, ""], coarse: Volume, texture: Texture, look: Look
) -> Volume:
    """Fill a share of each voxel with soft tissue: vessels stay visible, and nothing exceeds the solid core."""
    low, high = texture.opacity
    opacity = low + look.chances.opacity * (high - low)
    patchy = (1 + 0.25 * coarse / max(texture.coarse_hu, 1e-3)).clamp(0.3, 1.7)
    filled = (opacity * patchy).clamp(0, 0.95) * (core - behind.structure)
    return torch.minimum(filled, core - region.hu).clamp_min(0)


class TextureGenerator:
    """The `texture` generator: no weights."""

    window_mm = 0.0

    def __call__(self, region: Region, texture: Texture, look: Look) -> Volume:
        """Render a lesion."""
        return texture_contrast(region, texture, look)
