"""The discriminators that a generator learns against: the published voxel-wise one, and a small patch critic."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from nnunetv2_freetumor.generators.networks import FreeTumorNet

BACKGROUND, REAL, SYNTHETIC = 0, 1, 2  # the voxel critic's classes
_SLOPE = 0.2


class VoxelCritic(nn.Module):
    """Tell each voxel's class: background, real tumor, synthetic tumor; the published network with three channels."""

    def __init__(self) -> None:
        """Build the network."""
        super().__init__()
        self.network = FreeTumorNet(3)

    def forward(self, image: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b 3 x y z"]:
        """Give each voxel's logits; the image is the window scaled to 0..1, each side a multiple of 8."""
        return self.network(image)


class PatchCritic(nn.Module):
    """Judge overlapping patches of image and lesion mask, with spectral normalization (Miyato et al. 2018)."""

    def __init__(self, width: int = 24) -> None:
        """Take the first layer's channels."""
        super().__init__()
        channels = (2, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1))
            for inputs, outputs, stride in zip(channels, channels[1:], (1, 2, 2))
        )
        self.last = spectral_norm(nn.Conv3d(channels[-1], 1, 3, padding=1))

    def forward(self, image_and_mask: Float[Tensor, "b 2 x y z"]) -> Float[Tensor, "b 1 u v w"]:
        """Give a logit for each patch (a quarter of the sides); higher is more real."""
        features = image_and_mask
        for layer in self.layers:
            features = functional.leaky_relu(layer(features), _SLOPE)
        return self.last(features)


def scale_window(hu: Float[Tensor, "..."], window_hu: tuple[float, float]) -> Float[Tensor, "..."]:
    """Scale a window of HU to 0..1 and clip what lies outside."""
    low, high = window_hu
    return torch.clamp((hu - low) / (high - low), 0.0, 1.0)
