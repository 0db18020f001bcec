"""Generator networks: `FreeTumorNet`, weight-compatible with the authors' published network, and our small `LiteNet`.

Module names follow the published state dict, so that a checkpoint loads without renaming.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

INPUTS = 5  # image with the texture lesion, that lesion alone, signed distance, host, noise
LOOK = 8  # numbers that describe the draw
WIDTHS = (16, 32, 64)
MAX_RESIDUAL_HU = 40.0
_SLOPE = 0.1


class SampleNorm(nn.Module):
    """Normalize each sample by itself, with the weights of a batch normalization.

    The published network normalizes by the current batch's statistics, at inference too, so that a tumor depends on its
    neighbors in the batch. At batch size 1 both are the same; here every sample is a batch of one.
    """

    def __init__(self, channels: int) -> None:
        """Take the number of channels."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))  # published, never used
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
        """Normalize over a sample's voxels, channel by channel."""
        return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=1e-5)


class Unit(nn.Module):
    """Convolution, normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Take the numbers of channels."""
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.bn1 = SampleNorm(outputs)

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b d x y z"]:
        """Apply the unit."""
        return functional.relu(self.bn1(self.conv1(x)))


class DownStage(nn.Module):
    """Two units, the first with the given width, the second with twice as many channels."""

    def __init__(self, inputs: int, width: int) -> None:
        """Take the input's channels and the first unit's width."""
        super().__init__()
        self.ops = nn.Sequential(Unit(inputs, width), Unit(width, 2 * width))

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b d x y z"]:
        """Apply both units."""
        return self.ops(x)


class UpStage(nn.Module):
    """Double the resolution, join with the encoder's features, two units."""

    def __init__(self, below: int, skip: int, width: int) -> None:
        """Take the channels of the input, of the skip connection, and of the result."""
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(below, below, 2, stride=2)
        self.ops = nn.Sequential(Unit(below + skip, width), Unit(width, width))

    def forward(self, x: Float[Tensor, "b c x y z"], skip: Float[Tensor, "b s X Y Z"]) -> Float[Tensor, "b d X Y Z"]:
        """Decode one level."""
        return self.ops(torch.cat([self.up_conv(x), skip], dim=1))


class OutStage(nn.Module):
    """One channel for each organ."""

    def __init__(self, channels: int) -> None:
        """Take the number of organs."""
        super().__init__()
        self.final_conv = nn.Conv3d(64, channels, 1)

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b o x y z"]:
        """Map features to organs."""
        return self.final_conv(x)


class FreeTumorNet(nn.Module):
    """The published generator: a 3D U-Net of 19 million parameters, without its output activation."""

    def __init__(self, channels: int) -> None:
        """Take the number of organs: 3 for the abdomen (liver, pancreas, kidney), 1 for the chest."""
        super().__init__()
        self.down_tr64, self.down_tr128 = DownStage(1, 32), DownStage(64, 64)
        self.down_tr256, self.down_tr512 = DownStage(128, 128), DownStage(256, 256)
        self.up_tr256, self.up_tr128, self.up_tr64 = (
            UpStage(512, 256, 256),
            UpStage(256, 128, 128),
            UpStage(128, 64, 64),
        )
        self.out_tr = OutStage(channels)

    def forward(self, image: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b o x y z"]:
        """Return the raw output; the image is the window scaled to 0..1, each side a multiple of 8."""
        level64 = self.down_tr64(image)
        level128 = self.down_tr128(functional.max_pool3d(level64, 2))
        level256 = self.down_tr256(functional.max_pool3d(level128, 2))
        level512 = self.down_tr512(functional.max_pool3d(level256, 2))
        decoded = self.up_tr128(self.up_tr256(level512, level256), level128)
        return self.out_tr(self.up_tr64(decoded, level64))


class FilmBlock(nn.Module):
    """Two convolutions, each normalized voxel by voxel, the second modulated by the draw (FiLM, Perez et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, look: int) -> None:
        """Take the numbers of channels, and of the embedded draw's features."""
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.film = nn.Linear(look, 2 * outputs)

    def forward(self, x: Float[Tensor, "b c x y z"], look: Float[Tensor, "b e"]) -> Float[Tensor, "b d x y z"]:
        """Apply the block."""
        scale, shift = self.film(look)[..., None, None, None].chunk(2, dim=1)
        x = functional.leaky_relu(normalize(self.first(x)), _SLOPE)
        return functional.leaky_relu(normalize(self.second(x)) * (1 + scale) + shift, _SLOPE)


class LiteNet(nn.Module):
    """The lite generator: fewer than 1.5 million parameters, fully convolutional."""

    def __init__(self) -> None:
        """Build the network; its last layer starts at zero, so that an untrained lite equals `texture`."""
        super().__init__()
        low, middle, high = WIDTHS
        self.embed = nn.Sequential(nn.Linear(LOOK, 32), nn.LeakyReLU(_SLOPE), nn.Linear(32, 32))
        self.enter, self.down, self.bottom = (
            FilmBlock(INPUTS, low, 32),
            FilmBlock(low, middle, 32),
            FilmBlock(middle, high, 32),
        )
        self.up, self.leave = FilmBlock(high + middle, middle, 32), FilmBlock(middle + low, low, 32)
        self.last = nn.Conv3d(low, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, inputs: Float[Tensor, "b 5 x y z"], look: Float[Tensor, "b 8"]) -> Float[Tensor, "b 1 x y z"]:
        """Return the residual in HU, within +-40; each side a multiple of 4."""
        embedded = self.embed(look)
        fine = self.enter(inputs, embedded)
        half = self.down(functional.avg_pool3d(fine, 2), embedded)
        deep = self.bottom(functional.avg_pool3d(half, 2), embedded)
        half = self.up(torch.cat([functional.interpolate(deep, scale_factor=2), half], dim=1), embedded)
        fine = self.leave(torch.cat([functional.interpolate(half, scale_factor=2), fine], dim=1), embedded)
        return MAX_RESIDUAL_HU * torch.tanh(self.last(fine))


def normalize(x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
    """Scale each voxel's features to unit mean square."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6)
