"""`lite`, this project's own generator network: a small U-Net whose output is a bounded residual over `texture`.

Normalization is over the channels of each voxel ("pixelwise feature vector normalization", Karras et al. 2018), not
over the region: what the network says of a lesion does not depend on how much of its surroundings it is shown.
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


class Block(nn.Module):
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
        self.enter, self.down, self.bottom = Block(INPUTS, low, 32), Block(low, middle, 32), Block(middle, high, 32)
        self.up, self.leave = Block(high + middle, middle, 32), Block(middle + low, low, 32)
        self.last = nn.Conv3d(low, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, inputs: Float[Tensor, "b 5 x y z"], look: Float[Tensor, "b 8"]) -> Float[Tensor, "b 1 x y z"]:
        """Give the residual in HU, within +-40; each side a multiple of 4."""
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
