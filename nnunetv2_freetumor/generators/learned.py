"""Run learned generators behind the one interface: the region is resampled to the network's grid, the contrast back.

The pure functions here are also what a generator is trained through: gradients reach the network, and `LiteInputs` or
`FreetumorInputs` of several lesions on grids of equal sides may be joined, field by field, with `torch.cat`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnunetv2_freetumor.generators.cards import SIDE_MULTIPLES, Card
from nnunetv2_freetumor.generators.cpu_doubling import call_in_pairs
from nnunetv2_freetumor.generators.grid import Grid, VolumeBatch, from_grid, grid_offsets_mm, make_grid, to_grid
from nnunetv2_freetumor.intensity import scale_window
from nnunetv2_freetumor.plan import Texture
from nnunetv2_freetumor.synthesis.region import TAIL_MM, Look, Region, Volume
from nnunetv2_freetumor.synthesis.texture import texture_contrast
from nnunetv2_freetumor.synthesis.volume import (
    Spacing,
    gaussian_blur,
    mean_of_subvoxels,
    sample_tile,
    smooth_noise_tile,
)

SURROUNDINGS_MM = 96.0  # of what freetumor sees around a lesion: its 144 mm at most, but 3.4 times fewer voxels
_FULL_STRENGTH_MM = 1.0  # how far outside a lesion lite has its full say: blurred edges reach beyond the outline
_DISTANCE_UNIT_MM = 10.0  # one unit of the distance that lite sees
_CONTRAST_UNIT_HU = 40.0  # and of the contrast
NOISE_MM = 1.5  # one voxel of the noise that lite sees
SIGMAS_FIELD = (3.0, 6.0, 9.0, 12.0, 15.0)  # voxels: of freetumor's texture before it is sampled
SIGMAS_TEXTURE = (4.0, 7.0)  # voxels: and after
TEXTURE_ABOVE, TEXTURE_MEAN = 0.12, (0.50, 0.55)  # its mean over what exceeds a threshold
MASK_SIGMA = (1.0, 2.0)  # voxels
OUTPUT_SIGMA = 1.0  # voxels: a kernel of 7 x 7 x 7
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}


class LiteInputs(NamedTuple):
    """What the lite network sees of one lesion (or of several), on the grid."""

    inputs: Float[Tensor, "b 5 x y z"]  # window with the texture lesion, that lesion alone, distance, host, noise
    look: Float[Tensor, "b 8"]
    hu: VolumeBatch  # without any lesion
    base_contrast: VolumeBatch  # of `texture`, HU
    envelope: VolumeBatch  # 1 up to 1 mm outside, 0 from 3 mm outside on
    host: VolumeBatch
    distance: VolumeBatch  # mm


class FreetumorInputs(NamedTuple):
    """What the published network and its insertion law see of one lesion (or of several), on the grid."""

    image: VolumeBatch  # the window scaled to 0..1
    soft_mask: VolumeBatch
    texture_map: VolumeBatch  # 0..1
    hu: VolumeBatch
    host: VolumeBatch
    distance: VolumeBatch  # mm
    width_hu: Float[Tensor, "b 1 1 1 1"]  # of the window


def lite_inputs(region: Region, texture: Texture, look: Look, grid: Grid, window_hu: tuple[float, float]) -> LiteInputs:
    """Prepare what the lite network sees of a lesion."""
    return lite_inputs_over(texture_contrast(region, texture, look), region, look, grid, window_hu=window_hu)


def lite_inputs_over(
    base: Volume, region: Region, look: Look, grid: Grid, window_hu: tuple[float, float]
) -> LiteInputs:
    """Prepare what the lite network sees of a lesion whose `texture` contrast is known, on the region's voxels."""
    hu, base_contrast, host, distance = _on_grid(region, grid, base)
    tile = smooth_noise_tile(look.noise[0]).to(hu.device, non_blocking=True)
    noise = sample_tile(tile, grid_offsets_mm(grid) / NOISE_MM)
    near = (distance / _DISTANCE_UNIT_MM).clamp(-1, 1)
    chance = torch.tensor([[math.log(look.diameter_mm / 20), look.contrast, *look.chances[:6]]])
    return LiteInputs(
        inputs=torch.stack(
            [scale_window(hu + base_contrast, window_hu), base_contrast / _CONTRAST_UNIT_HU, near, host, noise]
        )[None],
        look=chance.to(hu.device, non_blocking=True),
        hu=hu[None, None],
        base_contrast=base_contrast[None, None],
        envelope=envelope(distance)[None, None],
        host=host[None, None],
        distance=distance[None, None],
    )


def envelope(distance_mm: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Fall from 1 inside a lesion and up to 1 mm outside to 0 at 3 mm outside, as a cosine."""
    return 0.5 + 0.5 * torch.cos(
        math.pi * ((distance_mm - _FULL_STRENGTH_MM) / (TAIL_MM - _FULL_STRENGTH_MM)).clamp(0, 1)
    )


def lite_residual(network: nn.Module, inputs: LiteInputs) -> VolumeBatch:
    """Run the lite network: what it adds to `texture`, in HU on the grid."""
    return inputs.envelope * _run(network, inputs.inputs, inputs.look)


def freetumor_inputs(region: Region, look: Look, grid: Grid, window_hu: tuple[float, float]) -> FreetumorInputs:
    """Prepare what the published network and its insertion law see of a lesion."""
    hu, host, distance = _on_grid(region, grid)
    low, high = MASK_SIGMA
    sigma = low + look.chances[0] * (high - low)
    return FreetumorInputs(
        image=scale_window(hu, window_hu)[None, None],
        soft_mask=gaussian_blur((distance < 0).float(), sigma, (1.0, 1.0, 1.0))[None, None],
        texture_map=published_texture_map(look, grid)[None, None],
        hu=hu[None, None],
        host=host[None, None],
        distance=distance[None, None],
        width_hu=torch.full((1, 1, 1, 1, 1), window_hu[1] - window_hu[0], device=hu.device),
    )


def freetumor_contrast(
    network: nn.Module, inputs: FreetumorInputs, sign: int, activation: str, channel: int | Int[Tensor, "b"]
) -> VolumeBatch:
    """Run the published network and its insertion law: the contrast in HU on the grid.

    `channel` is the host's output channel, one for all lesions or one for each.
    """
    output = _ACTIVATIONS[activation](_run(network, inputs.image))
    chosen = output[torch.arange(len(output), device=output.device), channel]
    smooth = torch.stack([gaussian_blur(one, OUTPUT_SIGMA, (1.0, 1.0, 1.0)) for one in chosen])[:, None]
    return sign * inputs.soft_mask * smooth * inputs.texture_map * inputs.width_hu


def published_texture_map(look: Look, grid: Grid) -> Float[Tensor, "u v w"]:
    """Render the published texture map, 0..1 and fixed to the lesion: a smooth field, sampled, smoothed again."""
    device = grid.first_mm.device
    field_sigma, sigma = _pick(SIGMAS_FIELD, look.chances[1]), _pick(SIGMAS_TEXTURE, look.chances[2])
    spacing = torch.tensor(grid.spacing_mm).to(device, non_blocking=True)
    tile = smooth_noise_tile(look.noise[0]).to(device, non_blocking=True)
    field = sample_tile(tile, grid_offsets_mm(grid) / (field_sigma * spacing))
    middle = (-grid.first_mm / spacing).round().long()
    i, j, k = ((torch.arange(side, device=device) - middle[a]) % len(tile) for a, side in enumerate(grid.sides))
    white = look.noise[1].to(device, non_blocking=True)[i[:, None, None], j[:, None], k]
    smooth = gaussian_blur((field > white).float(), sigma, (1.0, 1.0, 1.0))  # 1 with the field's normal probability
    above = smooth > TEXTURE_ABOVE
    mean = torch.where(above, smooth, 0.0).sum() / above.sum().clamp_min(1)
    low, high = TEXTURE_MEAN
    return (smooth * (low + look.chances[3] * (high - low)) / mean.clamp_min(TEXTURE_ABOVE)).clamp(0, 1)


class LearnedGenerator:
    """A network behind the interface of every generator: one region at a time, in full precision."""

    def __init__(self, network: nn.Module, card: Card, spacing_mm: Spacing, channel: int = 0) -> None:
        """Take a network in evaluation mode, its card, its voxels in the arrays' axis order, and the host's channel."""
        self.network, self.card, self.spacing_mm, self.channel = network, card, spacing_mm, channel
        own_mm = min(side * step for side, step in zip(card.side_voxels, card.spacing_mm))
        self.window_mm = min(own_mm, SURROUNDINGS_MM) if card.kind == "freetumor" else 0.0

    @torch.no_grad()
    def __call__(self, region: Region, texture: Texture, look: Look) -> Volume:
        """Render a lesion."""
        grid = make_grid(region, self.spacing_mm, SIDE_MULTIPLES[self.card.kind])
        # sides differ from lesion to lesion: a search for the fastest kernel would cost more than it saves
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return _RENDER[self.card.kind](self, region, texture, look, grid=grid)


def _render_lite(generator: LearnedGenerator, region: Region, texture: Texture, look: Look, grid: Grid) -> Volume:
    base = texture_contrast(region, texture, look)
    inputs = lite_inputs_over(base, region, look, grid, window_hu=generator.card.window_hu)
    return base + from_grid(lite_residual(generator.network, inputs)[0, 0], region, grid)


def _render_freetumor(generator: LearnedGenerator, region: Region, texture: Texture, look: Look, grid: Grid) -> Volume:
    card, inputs = generator.card, freetumor_inputs(region, look, grid, generator.card.window_hu)
    contrast = freetumor_contrast(generator.network, inputs, card.sign, card.activation, channel=generator.channel)
    return from_grid(contrast[0, 0], region, grid)


_RENDER = {"lite": _render_lite, "freetumor": _render_freetumor}


def _run(network: nn.Module, *inputs: Tensor) -> Tensor:
    return call_in_pairs(network, *(part.contiguous() for part in inputs))


def _on_grid(region: Region, grid: Grid, *more: Volume) -> list[Float[Tensor, "u v w"]]:
    """Return HU, further volumes, host and signed distance on the grid."""
    volumes = (region.hu, *more, region.host.float(), mean_of_subvoxels(region.distance_mm, region.subvoxels))
    return [to_grid(volume, region, grid) for volume in volumes]


def _pick(choices: tuple[float, ...], uniform: float) -> float:
    return choices[min(int(uniform * len(choices)), len(choices) - 1)]
