"""Lesion shapes: star-shaped bodies around a center, computed analytically.

A body is the set where `|y| exp(A n(y/|y|)) < 1`. y is the position in the coordinates of a randomly turned ellipsoid,
A the roughness and n a softly limited noise field of two octaves, read on the unit sphere: every body is connected and
free of holes by construction. Lobes are smaller copies whose centers lie inside the main body; the lesion is their
union, scaled as a whole to the drawn volume.
"""

import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from nnunetv2_freetumor.plan import Shape
from nnunetv2_freetumor.synthesis.volume import sample_grid

CONTROL_POINTS = 16  # drawn along each axis; a shape uses as many as it has cells
FIELD = 28  # resolution of the noise field, which spans [-1, 1]^3 and is read on the unit sphere
MAX_LOBES = 4
MAX_ROUGHNESS = 0.45
SOFT_LIMIT = 1.8  # noise tends to +- this many standard deviations: no spikes
PROBES = 2048  # directions in which a body is measured
INTERIOR_POINTS = 64


class ShapeDraw(NamedTuple):
    """The chance in one lesion's shape."""

    normal: Float[Tensor, "7"]  # elongation, flatness, roughness, four for the rotation
    lobes: Float[Tensor, "lobes 6"]  # uniform: one more?, distance, size; direction as three
    odds: Float[Tensor, ""]
    control: Float[Tensor, "2 g g g"]  # normal: the control points of the two octaves


class Surface(NamedTuple):
    """A lesion's surface: a turned, rough ellipsoid and its lobes."""

    axes_mm: Float[Tensor, "3"]  # semi-axes of the ellipsoid
    rotation: Float[Tensor, "3 3"]
    field: Float[Tensor, "f f f"]  # A n, amplitude included
    centers_mm: Float[Tensor, "bodies 3"]  # of the main body (0) and its lobes
    scales: Float[Tensor, "bodies"]


class Body(NamedTuple):
    """A lesion's surface and its measures, independent of where it lies."""

    surface: Surface
    reach_mm: list[float]  # half the bounding box along each array axis
    radius_mm: float  # the farthest surface point's distance from the center
    interior_mm: Float[Tensor, "points 3"]  # points spread evenly through the lesion


def draw_shape(count: tuple[int, ...], rng: torch.Generator) -> ShapeDraw:
    """Draw the chance for `count` lesions' shapes; index the result's tensors with one lesion's place."""
    return ShapeDraw(
        normal=torch.randn(*count, 7, generator=rng),
        lobes=torch.rand(*count, MAX_LOBES, 6, generator=rng),
        odds=torch.rand(count, generator=rng),
        control=torch.randn(*count, 2, CONTROL_POINTS, CONTROL_POINTS, CONTROL_POINTS, generator=rng),
    )


def build(shape: Shape, diameter_mm: float, draw: ShapeDraw) -> Body:
    """Build the surface of one lesion of an equivalent diameter (mm) from its draw."""
    ratio2 = float(torch.sigmoid(shape.elongation_logit[0] + shape.elongation_logit[1] * draw.normal[0]))
    ratio3 = ratio2 * float(torch.sigmoid(shape.flatness_logit[0] + shape.flatness_logit[1] * draw.normal[1]))
    axes = torch.tensor([1.0, ratio2, ratio3]) / (ratio2 * ratio3) ** (1 / 3)
    amplitude = roughness(shape, diameter_mm) * math.exp(shape.roughness_ln_sd * float(draw.normal[2].clamp(-2, 2)))
    field = min(amplitude, MAX_ROUGHNESS) * noise_field(shape, draw.control)
    centers, scales = _lobes(shape, field, draw)
    return _scale_to_volume(
        diameter_mm, axes, rotation=_rotation(draw.normal[3:]), field=field, centers=centers, scales=scales
    )


def roughness(shape: Shape, diameter_mm: float) -> float:
    """Interpolate the median roughness linearly in ln(diameter), constant beyond the two given diameters."""
    low, high = map(math.log, shape.roughness_at_mm)
    share = min(max((math.log(diameter_mm) - low) / (high - low), 0.0), 1.0)
    return shape.roughness[0] + share * (shape.roughness[1] - shape.roughness[0])


def noise_field(shape: Shape, control: Float[Tensor, "2 g g g"]) -> Float[Tensor, "f f f"]:
    """Blend the two octaves' control points with Gaussian weights that keep unit variance everywhere; limit the sum."""
    octaves = []
    for points, cells in zip(control, (shape.coarse_cells, shape.fine_cells)):
        field = points[:cells, :cells, :cells]
        for _ in range(3):  # takes the first axis away and appends its upsampled version: three turns restore the order
            field = torch.tensordot(field, _blend(cells), dims=([0], [1]))
        octaves.append(field)
    return SOFT_LIMIT * torch.tanh((octaves[0] + shape.fine_share * octaves[1]) / SOFT_LIMIT)


def signed_distance_mm(surface: Surface, offsets_mm: Float[Tensor, "x y z 3"]) -> Float[Tensor, "x y z"]:
    """Measure the distance to the surface, negative inside, to first order in the roughness.

    For an ellipsoid, (|y| - 1) |y| / |grad| with |grad| = |diag(axes)^-1 y| is exact on the surface to first order.
    """
    surface = Surface(*(part.to(offsets_mm.device) for part in surface))
    distances = [_one_body(surface, offsets_mm, i) for i in range(len(surface.scales))]
    return torch.stack(distances).amin(0) if len(distances) > 1 else distances[0]


def _one_body(surface: Surface, offsets_mm: Float[Tensor, "x y z 3"], i: int) -> Float[Tensor, "x y z"]:
    axes = surface.axes_mm * surface.scales[i]
    y = (offsets_mm - surface.centers_mm[i]) @ surface.rotation.T / axes
    length = y.norm(dim=-1).clamp_min(1e-4)
    gradient = (y / axes).norm(dim=-1).clamp_min(1e-6)
    field = sample_grid(surface.field, y / length[..., None])
    return (length * field.exp() - 1) * length / gradient


@functools.lru_cache(maxsize=32)
def _blend(cells: int) -> Float[Tensor, "f cells"]:
    nodes = torch.linspace(-1, 1, cells)
    away = (torch.linspace(-1, 1, FIELD)[:, None] - nodes) / (nodes[1] - nodes[0])
    return functional.normalize(torch.exp(-0.5 * (away / 0.6) ** 2), dim=1)


@functools.lru_cache(maxsize=1)
def _probes() -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n"]]:
    """Spread directions evenly over the sphere (Fibonacci's spiral), each with a share of the volume along it."""
    place = torch.arange(PROBES, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * place / PROBES, place * math.pi * (3 - math.sqrt(5))
    flat = (1 - height**2).sqrt()
    directions = torch.stack([flat * turn.cos(), flat * turn.sin(), height], dim=1)
    return directions.float(), torch.remainder(place * math.sqrt(2), 1).float()


def _radius(field: Float[Tensor, "f f f"], directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
    shape = directions.shape[:-1]
    return (-sample_grid(field, directions.reshape(-1, 1, 1, 3))).exp().reshape(shape)


def _lobes(
    shape: Shape, field: Float[Tensor, "f f f"], draw: ShapeDraw
) -> tuple[Float[Tensor, "bodies 3"], Float[Tensor, "bodies"]]:
    """Place the lobes' centers, in the ellipsoid's coordinates, between half way and the main body's surface."""
    odds = shape.lobe_odds[0] + float(draw.odds) * (shape.lobe_odds[1] - shape.lobe_odds[0])
    more = (draw.lobes[:, 0] < odds / (1 + odds)).int().cumprod(0).bool()
    lobes = draw.lobes[more]
    direction = functional.normalize(lobes[:, 3:] - 0.5, dim=-1)
    far = (0.55 + 0.4 * lobes[:, 1]) * _radius(field, direction)
    centers = torch.cat([torch.zeros(1, 3), direction * far[:, None]])
    return centers, torch.cat([torch.ones(1), 0.45 + 0.45 * lobes[:, 2]])


def _scale_to_volume(
    diameter_mm: float,
    axes: Float[Tensor, "3"],
    rotation: Float[Tensor, "3 3"],
    field: Float[Tensor, "f f f"],
    centers: Float[Tensor, "bodies 3"],
    scales: Float[Tensor, "bodies"],
) -> Body:
    """Measure the union in units of the ellipsoid, then scale it; a point counts for the first body that holds it."""
    directions, share = _probes()
    radii = _radius(field, directions)
    outline = centers[:, None] + scales[:, None, None] * radii[:, None] * directions
    points = centers[:, None] + (outline - centers[:, None]) * share[:, None] ** (1 / 3)
    volume = scales[:, None] ** 3 * radii**3 / PROBES  # in ellipsoids
    for i in range(1, len(scales)):
        apart = points[i] - centers[:i, None]
        length = apart.norm(dim=-1).clamp_min(1e-4)
        held = length < scales[:i, None] * _radius(field, apart / length[..., None])
        volume[i] *= ~held.any(0)
    axes_mm = axes * 0.5 * diameter_mm / float(volume.sum()) ** (1 / 3)
    outline_mm = (outline * axes_mm).reshape(-1, 3) @ rotation
    inner = torch.searchsorted(volume.flatten().cumsum(0) / volume.sum(), _middles(INTERIOR_POINTS))
    interior = points.reshape(-1, 3)[inner.clamp_max(volume.numel() - 1)]
    return Body(
        Surface(axes_mm, rotation, field=field, centers_mm=(centers * axes_mm) @ rotation, scales=scales),
        reach_mm=(1.02 * outline_mm.abs().amax(0)).tolist(),  # 2 %: the surface between two probes
        radius_mm=1.02 * float(outline_mm.norm(dim=1).max()),
        interior_mm=(interior * axes_mm) @ rotation,
    )


def _middles(count: int) -> Float[Tensor, "n"]:
    return (torch.arange(count) + 0.5) / count


def _rotation(quaternion: Float[Tensor, "4"]) -> Float[Tensor, "3 3"]:
    w, x, y, z = functional.normalize(quaternion, dim=0).tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
