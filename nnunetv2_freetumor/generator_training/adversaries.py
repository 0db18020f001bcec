"""The critics that a generator learns against, and the two ways to set them against it.

Hinge loss on patches, and the published classes of voxels.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from nnunetv2_freetumor.generator_training import losses
from nnunetv2_freetumor.generator_training.losses import REAL_CLASS
from nnunetv2_freetumor.generator_training.windows import Windows
from nnunetv2_freetumor.generators.networks import FreeTumorNet
from nnunetv2_freetumor.intensity import scale_window

_CRITIC_UNIT_HU = 40.0  # one unit of what the patch critic sees, around the host's mean
_NEAR_MM = 6.0  # from the lesion: farther away real and synthetic windows show the same, nothing but noise to a critic

Inputs = Float[Tensor, "b c x y z"]
Loss = Float[Tensor, ""]


_SLOPE = 0.2


@runtime_checkable
class Adversary(Protocol):
    """How a critic looks at windows, and what it and the generator ask for."""

    def network(self) -> nn.Module:
        """Build the critic."""
        ...

    def inputs(self, windows: Windows) -> Inputs:
        """Return what the critic sees."""
        ...

    def critic_loss(self, critic: nn.Module, synthetic: Windows, real: Windows) -> Loss:
        """Ask the critic to tell both apart."""
        ...

    def generator_loss(self, critic: nn.Module, synthetic: Windows) -> Loss:
        """Ask the generator for lesions that the critic calls real."""
        ...

    def scores(self, critic: nn.Module, windows: Windows) -> Float[Tensor, "b"]:
        """Score how real each lesion looks to the critic."""
        ...


class PatchHinge:
    """Hinge loss on overlapping patches of image, relative to the host, and mask; those near the lesion count."""

    def __init__(self, window_hu: tuple[float, float]) -> None:
        """Take the window that the image is clipped to."""
        self.window_hu = window_hu

    def network(self) -> nn.Module:
        """Build the critic."""
        return PatchCritic()

    def inputs(self, windows: Windows) -> Inputs:
        """Return the image in units of 40 HU around the host's mean, and the mask."""
        relative = (windows.hu.clamp(*self.window_hu) - windows.host_hu) / _CRITIC_UNIT_HU
        return torch.cat([relative, windows.mask], dim=1)

    def critic_loss(self, critic: nn.Module, synthetic: Windows, real: Windows) -> Loss:
        """Ask for high logits on real and low ones on synthetic patches."""
        return losses.hinge_critic(*self._patches(critic, real), *self._patches(critic, synthetic))

    def generator_loss(self, critic: nn.Module, synthetic: Windows) -> Loss:
        """Ask for high logits."""
        return losses.hinge_generator(*self._patches(critic, synthetic))

    def scores(self, critic: nn.Module, windows: Windows) -> Float[Tensor, "b"]:
        """Average the logits of each window."""
        logits, weight = self._patches(critic, windows)
        return (logits * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)

    def _patches(self, critic: nn.Module, windows: Windows) -> tuple[Inputs, Inputs]:
        """Return each patch's logit, and the share of it that lies near the lesion."""
        logits = critic(self.inputs(windows))
        near = (windows.distance_mm < _NEAR_MM).float()
        return logits, functional.adaptive_avg_pool3d(near, logits.shape[2:])


class VoxelClasses:
    """The published critic: background, real tumor and synthetic tumor, voxel by voxel."""

    def __init__(self, window_hu: tuple[float, float]) -> None:
        """Take the window that is scaled to 0..1."""
        self.window_hu = window_hu

    def network(self) -> nn.Module:
        """Build the critic."""
        return VoxelCritic()

    def inputs(self, windows: Windows) -> Inputs:
        """Return the image in 0..1."""
        return scale_window(windows.hu, self.window_hu)

    def critic_loss(self, critic: nn.Module, synthetic: Windows, real: Windows) -> Loss:
        """Ask for the right class on the tumors' voxels."""
        seen = critic(self.inputs(synthetic)), critic(self.inputs(real))
        return losses.voxel_critic(seen[0], synthetic.mask, seen[1], real.mask)

    def generator_loss(self, critic: nn.Module, synthetic: Windows) -> Loss:
        """Ask for the class real."""
        return losses.voxel_generator(critic(self.inputs(synthetic)), synthetic.mask)

    def scores(self, critic: nn.Module, windows: Windows) -> Float[Tensor, "b"]:
        """Average the probability of the class real over each lesion."""
        real = losses.class_probability(critic(self.inputs(windows)), REAL_CLASS) * windows.mask
        return real.flatten(1).sum(1) / windows.mask.flatten(1).sum(1).clamp_min(1e-3)


ADVERSARIES: dict[str, Callable[[tuple[float, float]], Adversary]] = {"hinge": PatchHinge, "voxel": VoxelClasses}


class VoxelCritic(nn.Module):
    """Classify each voxel as background, real tumor or synthetic tumor; the published network with three channels."""

    def __init__(self) -> None:
        """Build the network."""
        super().__init__()
        self.network = FreeTumorNet(3)

    def forward(self, image: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b 3 x y z"]:
        """Return each voxel's logits; the image is the window scaled to 0..1, each side a multiple of 8."""
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
        """Return a logit for each patch (a quarter of the sides); higher is more real."""
        features = image_and_mask
        for layer in self.layers:
            features = functional.leaky_relu(layer(features), _SLOPE)
        return self.last(features)
