"""Measure how a lesion looks: intensity, edge and texture against the host around it, and its shape.

A real lesion and a planted one are measured in exactly the same way: from the HU volume, the lesion's voxels, the
host's voxels without any lesion, and the voxel size. Every feature is a finite number.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage, stats
from scipy.spatial import ConvexHull
from skimage.measure import marching_cubes, mesh_surface_area

from nnunetv2_freetumor.planning.measurement import blur_inside, robust_sd, surface_distance

_RING_MM = (2.0, 12.0)  # the host around a lesion that it is compared with
_REACH_MM = 16.0  # of the box that everything is measured in
_MIN_RING_VOXELS = 50
_SHELLS_MM = tuple(range(-5, 4))  # lower bounds of shells 1 mm thick, by signed distance to the surface
_BANDS_MM = {"fine": (0.0, 1.5), "middle": (1.5, 3.0), "coarse": (3.0, 6.0)}  # between two Gaussian sigmas
_PERCENTILES = (10, 25, 50, 75, 90)
_SKIN_MM = 1.5  # on either side of the surface
_LEAST_STEP_HU = 3.0  # from core to host that an edge is read from

_INTENSITY = (
    "mean contrast HU", "core contrast HU", "SD inside HU", "SD inside / host", "skewness inside",
    *(f"contrast p{p} HU" for p in _PERCENTILES),
)  # fmt: skip
_EDGE = (
    "edge width 10-90 mm", "half-contrast depth mm", "SD at the surface / host", "gradient at the surface / host",
    *(f"contrast {low:+d}..{low + 1:+d} mm HU" for low in _SHELLS_MM),
)  # fmt: skip
_TEXTURE = (
    *(f"{name} band inside / host" for name in _BANDS_MM), "gradient inside / host", "autocorrelation 1 voxel",
    "autocorrelation 2 voxels", "autocorrelation 1 slice",
)  # fmt: skip
SHAPE_FEATURES = ("ln volume mm3", "elongation", "flatness", "sphericity", "solidity")
FEATURE_GROUPS = {"intensity": _INTENSITY, "edge": _EDGE, "texture": _TEXTURE, "shape": SHAPE_FEATURES}
FEATURES = tuple(name for names in FEATURE_GROUPS.values() for name in names)

_Array = Float[np.ndarray, "z y x"]
_Mask = Bool[np.ndarray, "z y x"]


class _Surroundings(NamedTuple):
    """A lesion and its surroundings; it is compared with a ring of host."""

    hu: _Array
    lesion: _Mask
    host: _Mask
    ring: _Mask
    distance_mm: _Array
    step_mm: Float[np.ndarray, "3"]


def measure_lesion(
    hu: Float[np.ndarray, "z y x"], lesion: _Mask, host: _Mask, spacing_mm: tuple[float, ...]
) -> Float[np.ndarray, "features"] | None:
    """Measure one connected lesion of at least 10 voxels, in the order of FEATURES.

    Returns None if there is too little host around it to compare it with.
    """
    step_mm = np.asarray(spacing_mm, dtype=float)
    where = np.argwhere(lesion)
    reach = np.ceil(_REACH_MM / step_mm).astype(int)
    box = tuple(
        slice(max(int(low - r), 0), int(high + r) + 1) for low, high, r in zip(where.min(0), where.max(0), reach)
    )
    distance_mm = surface_distance(np.pad(lesion[box], 1), step_mm)[1:-1, 1:-1, 1:-1].astype(np.float32)
    beside = host[box] & ~lesion[box]
    ring = beside & (distance_mm > _RING_MM[0]) & (distance_mm < _RING_MM[1])
    if ring.sum() < _MIN_RING_VOXELS:
        return None
    around = _Surroundings(
        hu[box].astype(np.float32), lesion[box], host=beside, ring=ring, distance_mm=distance_mm, step_mm=step_mm
    )
    return np.array([*_intensity(around), *_edge(around), *_texture(around), *describe_shape(lesion[box], step_mm)])


def _intensity(around: _Surroundings) -> list[float]:
    """Compare the lesion's HU with the median of its ring; in the order of _INTENSITY."""
    contrast = around.hu[around.lesion] - np.median(around.hu[around.ring])
    core = around.lesion & (around.distance_mm <= 0.5 * around.distance_mm.min())
    spread = float(contrast.std())
    return [
        float(contrast.mean()),
        float(np.median(around.hu[core]) - np.median(around.hu[around.ring])),
        spread,
        _ln_ratio(spread, float(around.hu[around.ring].std())),
        float(stats.skew(contrast)) if spread > 1e-3 else 0.0,
        *(float(value) for value in np.percentile(contrast, _PERCENTILES)),
    ]


def _edge(around: _Surroundings) -> list[float]:
    """Follow the mean HU from the core to the host; in the order of _EDGE."""
    shells = _shells(around)
    skin = (around.lesion | around.host) & (np.abs(around.distance_mm) < _SKIN_MM)
    gradient = _gradient(around)
    skin_gradient, host_gradient = (float(gradient[part].mean()) for part in (skin, around.ring))
    return [
        *_ramp(shells),
        _ln_ratio(float(around.hu[skin].std()), float(around.hu[around.ring].std())),
        _ln_ratio(skin_gradient, host_gradient),
        *shells,
    ]


def _shells(around: _Surroundings) -> list[float]:
    """Average the contrast over each shell; an empty shell is interpolated from its neighbors."""
    level = np.median(around.hu[around.ring])
    inside = around.lesion | around.host
    found = {}
    for low in _SHELLS_MM:
        shell = inside & (around.distance_mm >= low) & (around.distance_mm < low + 1)
        if shell.any():
            found[low] = float(around.hu[shell].mean() - level)
    return np.interp(_SHELLS_MM, list(found), list(found.values())).tolist()


def _ramp(shells: list[float]) -> tuple[float, float]:
    """Read off the mean profile the 10-90 % width, and how deep inside the mask half of the contrast is reached."""
    core, host = float(np.mean(shells[:2])), float(np.mean(shells[-2:]))
    if abs(core - host) < _LEAST_STEP_HU:
        return float(len(_SHELLS_MM)), 0.0
    share = np.minimum.accumulate((np.array(shells) - host) / (core - host))  # 1 in the core, falling towards 0
    middles = np.array(_SHELLS_MM) + 0.5
    at_90, at_50, at_10 = (float(np.interp(-level, -share, middles)) for level in (0.9, 0.5, 0.1))
    return at_10 - at_90, -at_50


def _texture(around: _Surroundings) -> list[float]:
    """Compare noise and fine structure inside the lesion with the host next to it; in the order of _TEXTURE."""
    around = _without_profile(around)
    inside, beside = (_bands(around, part) for part in (around.lesion, around.ring))
    gradient = _gradient(around)
    return [
        *(_ln_ratio(a, b) for a, b in zip(inside, beside)),
        _ln_ratio(float(gradient[around.lesion].mean()), float(gradient[around.ring].mean())),
        *(
            _autocorrelation(around, around.lesion, axis, lag) - _autocorrelation(around, around.ring, axis, lag)
            for axis, lag in ((2, 1), (2, 2), (0, 1))
        ),
    ]


def _without_profile(around: _Surroundings) -> _Surroundings:
    """Subtract the mean profile across the edge, so that a soft edge does not count as coarse texture."""
    profile = np.interp(around.distance_mm, np.array(_SHELLS_MM) + 0.5, _shells(around))
    return around._replace(hu=(around.hu - profile).astype(np.float32))


def _bands(around: _Surroundings, part: _Mask) -> list[float]:
    """Measure the robust standard deviation of each band, blurred over the part's own voxels only."""
    blurred = {0.0: around.hu}
    for sigma_mm in {bound for bounds in _BANDS_MM.values() for bound in bounds if bound}:
        blurred[sigma_mm] = blur_inside(around.hu, part, sigma_mm / around.step_mm)
    return [robust_sd((blurred[low] - blurred[high])[part]) for low, high in _BANDS_MM.values()]


def _gradient(around: _Surroundings) -> _Array:
    """Measure the steepness within slices in HU per mm."""
    down, across = np.gradient(around.hu, *around.step_mm[1:].tolist(), axis=(1, 2))
    return np.hypot(down, across)


def _autocorrelation(around: _Surroundings, part: _Mask, axis: int, lag: int) -> float:
    """Correlate the fine structure with itself a few voxels away; within slices, along both axes."""
    residual = around.hu - blur_inside(around.hu, part, _BANDS_MM["coarse"][1] / around.step_mm)
    product = power = 0.0
    for along in (1, 2) if axis else (0,):
        near, far = ((slice(None),) * along + (cut,) for cut in (slice(None, -lag), slice(lag, None)))
        both = part[near] & part[far]
        one, other = residual[near][both], residual[far][both]
        product += float((one * other).sum())
        power += float((one**2).sum() + (other**2).sum()) / 2
    return product / power if power > 1e-6 else 0.0


def describe_shape(lesion: _Mask, step_mm: Float[np.ndarray, "3"]) -> list[float]:
    """Measure a connected lesion's shape, in the order of SHAPE_FEATURES.

    Axis ratios are those of the ellipsoid of equal moments. Surface and solidity are taken after isotropic resampling
    and a light blur that keeps the volume, so that they hardly depend on voxel size.
    """
    volume = float(lesion.sum() * step_mm.prod())
    points = np.argwhere(lesion) * step_mm
    variances = np.linalg.eigvalsh(np.cov(points.T) + np.diag(step_mm**2 / 12))[::-1]
    axes = np.sqrt(variances)
    vertices, area, enclosed = _smooth_surface(lesion, step_mm, volume)
    sphericity = np.pi ** (1 / 3) * (6 * enclosed) ** (2 / 3) / area
    solidity = min(1.0, enclosed / ConvexHull(vertices).volume)
    return [math.log(volume), float(axes[1] / axes[0]), float(axes[2] / axes[0]), float(sphericity), float(solidity)]


def _smooth_surface(
    lesion: _Mask, step_mm: Float[np.ndarray, "3"], volume_mm3: float
) -> tuple[np.ndarray, float, float]:
    """Return the vertices, the area and the volume of the smoothed surface."""
    grid_mm = max(0.5, min(1.0, (6 * volume_mm3 / math.pi) ** (1 / 3) / 12))
    box = ndimage.find_objects(lesion.astype(np.int8))[0]
    padded = np.pad(lesion[box], 2).astype(np.float32)
    soft = ndimage.zoom(padded, step_mm / grid_mm, order=1, grid_mode=True, mode="nearest")
    soft = ndimage.gaussian_filter(soft, 0.8)
    inside = min(max(round(volume_mm3 / grid_mm**3), 1), soft.size - 1)
    level = float(np.clip(np.partition(soft.ravel(), -inside)[-inside], 0.05, 0.95))
    vertices, faces, _, _ = marching_cubes(soft, level, spacing=(grid_mm,) * 3)
    corners = vertices[faces]
    enclosed = abs(np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6)
    return vertices, float(mesh_surface_area(vertices, faces)), float(enclosed)


def _ln_ratio(value: float, reference: float) -> float:
    return math.log(max(value, 0.1) / max(reference, 0.1))
