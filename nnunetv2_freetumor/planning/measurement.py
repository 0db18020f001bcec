"""Measure the real tumors of one raw CT case: size, shape, contrast, edge and texture, in HU and mm.

Everything is measured in a box around each tumor and on raw CT: preprocessed arrays are clipped, which hides contrast.
Numbers that a tumor is too small or too faint for are None.
"""

import math
from typing import Any, NamedTuple

import cc3d
import numpy as np
import torch
from scipy import ndimage, optimize

from nnunetv2_freetumor.plan import Target
from nnunetv2_freetumor.synthesis.hosts import host_mask
from nnunetv2_freetumor.synthesis.texture import SOFT_TISSUE_HU

MIN_TUMOR_VOXELS = 10
MIN_DIAMETER_MM = 3.0
WIDTH_10_90 = 2 * math.log(9)  # 10-90 % width of a logistic ramp in units of its scale
_RING_MM = (2.0, 12.0)
_CORE_MM = 4.0
_MIN_K_DIAMETER_MM = 12.0  # a smaller tumor's core has not reached its full contrast: its edges meet
_COARSE_MM = 3.0
_MIN_RING = 50  # voxels
_MIN_CONTRAST_HU = 15.0
_HIGH_PASS_MM = 1.5
_LOW_PASS_MM = 4.0


class Tumor(NamedTuple):
    """One connected tumor. Field names are a file format: freetumor_fingerprint.json."""

    diameter_mm: float  # of the sphere of equal volume
    elongation_logit: float  # logit of axis 2 / axis 1 of the ellipsoid of equal moments
    flatness_logit: float  # logit of axis 3 / axis 2
    host_hu: float | None = None
    contrast_hu: float | None = None  # core minus host
    k: float | None = None
    edge_width_mm: float | None = None  # 10-90 %
    edge_depth_mm: float | None = None  # of the half contrast, inside the mask
    fine_inside_hu: float | None = None  # standard deviation of what a 1.5 mm blur removes
    fine_beside_hu: float | None = None
    texture_mm: float | None = None  # Gaussian sigma that would give white noise the host's correlation


class Host(NamedTuple):
    """The voxels of a host in one case. Field names are a file format: freetumor_fingerprint.json."""

    median_hu: float
    sd_hu: float  # robust: 1.4826 x median absolute deviation
    low_hu: float  # .5th percentile


class CaseMeasurement(NamedTuple):
    """What was measured in one case, by target name."""

    labels: list[int]  # that occur
    hosts: dict[str, Host]  # without the targets whose host is not there
    tumors: dict[str, list[Tumor]]


def measure_case(
    hu: np.ndarray, label: np.ndarray, spacing_mm: tuple[float, float, float], targets: tuple[Target, ...]
) -> CaseMeasurement:
    """Measure every target's host and tumors in one case (axes as in nnU-Net's reader, spacing in the same order)."""
    present = [int(value) for value in np.unique(label) if value > 0]
    hosts, tumors = {}, {}
    for target in targets:
        host = _find_host(hu, label, spacing_mm, target)
        if host.any():
            hosts[target.name] = _measure_host(hu[host])
        mask = label == target.tumor_label
        tumors[target.name] = _measure_tumors(hu, mask, host, spacing_mm) if mask.any() else []
    return CaseMeasurement(present, hosts, tumors)


def _find_host(hu: np.ndarray, label: np.ndarray, spacing_mm: tuple[float, float, float], target: Target) -> np.ndarray:
    """Mark the host; one that is found by its HU is found on a grid of about 3 mm, which is enough and fast."""
    if target.host_hu is None:
        return np.isin(label, target.host_labels)
    steps = [max(1, round(_COARSE_MM / step)) for step in spacing_mm]
    coarse = tuple(slice(None, None, step) for step in steps)
    coarse_hu = torch.from_numpy(np.ascontiguousarray(hu[coarse], dtype=np.float32))[None, None]
    coarse_label = torch.from_numpy(np.ascontiguousarray(label[coarse], dtype=np.int16))[None, None]
    x_mm, y_mm, z_mm = (float(mm * step) for mm, step in zip(spacing_mm, steps))
    found = host_mask(target, coarse_hu, coarse_label, (x_mm, y_mm, z_mm))[0, 0].numpy()
    for axis, (step, size) in enumerate(zip(steps, hu.shape)):
        found = found.take(np.arange(size) // step, axis)
    return found & (label == 0)


def _measure_host(values: np.ndarray) -> Host:
    values = values[:: max(1, values.size // 200_000)].astype(np.float64)
    return Host(float(np.median(values)), robust_sd(values), float(np.percentile(values, 0.5)))


def _measure_tumors(
    hu: np.ndarray, mask: np.ndarray, host: np.ndarray, spacing_mm: tuple[float, float, float]
) -> list[Tumor]:
    components = cc3d.connected_components(mask, connectivity=26)
    statistics = cc3d.statistics(components)
    tumors = []
    for index in range(1, len(statistics["voxel_counts"])):
        diameter_mm = (6 / math.pi * statistics["voxel_counts"][index] * math.prod(spacing_mm)) ** (1 / 3)
        if statistics["voxel_counts"][index] < MIN_TUMOR_VOXELS or diameter_mm < MIN_DIAMETER_MM:
            continue
        box = _grow(statistics["bounding_boxes"][index], spacing_mm, hu.shape)
        tumors.append(
            _measure_tumor(
                hu[box], components[box] == index, host=host[box], step_mm=np.array(spacing_mm), diameter_mm=diameter_mm
            )
        )
    return tumors


def _grow(box: tuple[slice, ...], spacing_mm: tuple[float, float, float], shape: tuple[int, ...]) -> tuple[slice, ...]:
    margins = [math.ceil((_RING_MM[1] + 1) / step) for step in spacing_mm]
    return tuple(slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(box, margins, shape))


def _measure_tumor(
    hu: np.ndarray, mask: np.ndarray, host: np.ndarray, step_mm: np.ndarray, diameter_mm: float
) -> Tumor:
    size_and_shape = (float(diameter_mm), *_axis_logits(mask, step_mm))
    distance_mm = surface_distance(mask, step_mm)
    depth_mm = np.where(mask, np.maximum(-distance_mm, 0), 0)
    ring = host & (distance_mm > _RING_MM[0]) & (distance_mm < _RING_MM[1])
    if ring.sum() < _MIN_RING:
        return Tumor(*size_and_shape)
    core = depth_mm > min(_CORE_MM, 0.6 * depth_mm.max())
    host_hu = float(np.median(hu[ring]))
    contrast_hu = float(np.median(hu[core])) - host_hu
    to_reference_hu = host_hu - SOFT_TISSUE_HU
    k_is_known = abs(to_reference_hu) >= SOFT_TISSUE_HU and diameter_mm >= _MIN_K_DIAMETER_MM
    return Tumor(
        *size_and_shape,
        host_hu,
        contrast_hu,
        -contrast_hu / to_reference_hu if k_is_known else None,
        *_fit_edge(
            hu, distance_mm, inside=mask | host, host_hu=host_hu, contrast_hu=contrast_hu, diameter_mm=diameter_mm
        ),
        _fine_sd(hu, core, step_mm),
        _fine_sd(hu, ring, step_mm),
        _texture_scale(hu, ring, step_mm),
    )


def surface_distance(mask: np.ndarray, step_mm: np.ndarray) -> np.ndarray:
    """Measure the distance to the surface, negative inside.

    Between thick slices the surface is where the slices' own distances, interpolated, change sign; taken from the
    voxels, it would have steps of a slice, and every edge would measure too soft.
    """
    axis, finest_mm = int(np.argmax(step_mm)), step_mm.min()
    factor = round(step_mm[axis] / finest_mm)
    if factor > 1:
        in_plane = np.clip(
            _voxel_distance(mask, np.where(np.arange(3) == axis, 1e6, step_mm)), -step_mm[axis], step_mm[axis]
        )
        positions = np.linspace(0, mask.shape[axis] - 1, (mask.shape[axis] - 1) * factor + 1)
        below = np.minimum(positions.astype(int), mask.shape[axis] - 2)
        share = (positions - below).reshape([-1 if i == axis else 1 for i in range(3)])
        between = in_plane.take(below, axis) * (1 - share) + in_plane.take(below + 1, axis) * share
        fine_mm = np.where(np.arange(3) == axis, step_mm / factor, step_mm)
        return _voxel_distance(between < 0, fine_mm).take(np.arange(mask.shape[axis]) * factor, axis)
    return _voxel_distance(mask, step_mm)


def _voxel_distance(mask: np.ndarray, step_mm: np.ndarray) -> np.ndarray:
    half_voxel_mm = step_mm.min() / 2  # distances run from center to center; the surface lies between two voxels
    inside, outside = (ndimage.distance_transform_edt(part, step_mm) for part in (mask, ~mask))
    return np.where(mask, half_voxel_mm - inside, outside - half_voxel_mm)


def _axis_logits(mask: np.ndarray, step_mm: np.ndarray) -> tuple[float, float]:
    """Measure the axis ratios of the ellipsoid of equal moments, as logits."""
    covariance = np.cov((np.argwhere(mask) * step_mm).T) + np.diag(step_mm**2 / 12)
    axes = np.sqrt(np.linalg.eigvalsh(covariance))[::-1]
    ratios = np.clip(axes[1:] / axes[:-1], 0.01, 0.995)
    elongation, flatness = np.log(ratios / (1 - ratios))
    return float(elongation), float(flatness)


def _fit_edge(
    hu: np.ndarray, distance_mm: np.ndarray, inside: np.ndarray, host_hu: float, contrast_hu: float, diameter_mm: float
) -> tuple[float | None, float | None]:
    """Fit contrast / (1 + exp((distance + depth) / scale)) to the mean HU at each distance from the surface."""
    reach_mm = min(diameter_mm / 2, 8.0)
    near = inside & (distance_mm > -reach_mm) & (distance_mm < 8.0)
    bins = np.round(distance_mm[near] * 2).astype(int)  # of half a millimeter
    bins -= bins.min()
    count = np.bincount(bins)
    if abs(contrast_hu) < _MIN_CONTRAST_HU or (count > 0).sum() < 8:
        return None, None
    filled = count > 0
    at_mm = np.bincount(bins, distance_mm[near])[filled] / count[filled]
    profile = np.bincount(bins, hu[near])[filled] / count[filled] - host_hu
    try:
        (_, depth_mm, scale_mm), _ = optimize.curve_fit(
            lambda x, share, depth, scale: share * contrast_hu / (1 + np.exp(np.clip((x + depth) / scale, -50, 50))),
            *(at_mm, profile, (1.0, 1.0, 0.75)),
            sigma=1 / np.sqrt(count[filled]),
            bounds=((0.5, -3.0, 0.1), (2.0, 6.0, 4.0)),
        )
    except RuntimeError:  # no convergence
        return None, None
    return float(WIDTH_10_90 * scale_mm), float(depth_mm)


def _fine_sd(hu: np.ndarray, region: np.ndarray, step_mm: np.ndarray) -> float | None:
    if region.sum() < _MIN_RING:
        return None
    return robust_sd((hu - blur_inside(hu, region, _HIGH_PASS_MM / step_mm))[region])


def _texture_scale(hu: np.ndarray, region: np.ndarray, step_mm: np.ndarray) -> float:
    """Turn the correlation r of neighbors along the finest axis into a blur: r = exp(-step^2 / (4 sigma^2))."""
    residual = hu - blur_inside(hu, region, _LOW_PASS_MM / step_mm)
    axis = int(np.argmin(step_mm))
    one, next_one = (np.moveaxis(residual, axis, 0)[cut] for cut in (slice(None, -1), slice(1, None)))
    both = np.moveaxis(region, axis, 0)[:-1] & np.moveaxis(region, axis, 0)[1:]
    spread = (one[both] ** 2).mean() + (next_one[both] ** 2).mean()
    correlation = np.clip(2 * (one[both] * next_one[both]).mean() / max(spread, 1e-6), 0.01, 0.99)
    return float(step_mm[axis] / (2 * math.sqrt(-math.log(correlation))))


def blur_inside(hu: np.ndarray, region: np.ndarray, sigma: Any) -> np.ndarray:
    """Blur with the region's own voxels only; sigma in voxels."""
    weight = ndimage.gaussian_filter(region.astype(np.float32), sigma)
    return ndimage.gaussian_filter(np.where(region, hu, 0).astype(np.float32), sigma) / np.maximum(weight, 1e-3)


def robust_sd(values: np.ndarray) -> float:
    """Compute 1.4826 times the median absolute deviation: the standard deviation of normal values."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
