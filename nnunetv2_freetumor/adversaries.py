"""The two ways to set a critic against a generator: hinge loss on patches, and the published classes of voxels."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnunetv2_freetumor import losses
from nnunetv2_freetumor.critics import REAL, PatchCritic, VoxelCritic, scale_window
from nnunetv2_freetumor.training_windows import Windows

CRITIC_HU = 40.0  # one unit of what the patch critic sees, around the host's mean

Inputs = Float[Tensor, "b c x y z"]
Loss = Float[Tensor, ""]


@runtime_checkable
class Adversary(Protocol):
    """How a critic looks at windows, and what it and the generator ask for."""

    def network(self) -> nn.Module:
        """Build the critic."""
        ...

    def inputs(self, windows: Windows) -> Inputs:
        """Give what the critic sees."""
        ...

    def critic_loss(self, critic: nn.Module, synthetic: Windows, real: Windows) -> Loss:
        """Ask the critic to tell both apart."""
        ...

    def generator_loss(self, critic: nn.Module, synthetic: Windows) -> Loss:
        """Ask the generator for lesions that the critic calls real."""
        ...

    def scores(self, critic: nn.Module, windows: Windows) -> Float[Tensor, "b"]:
        """Say how real each lesion looks to the critic."""
        ...


class PatchHinge:
    """Hinge loss on overlapping patches of image, relative to the host, and mask."""

    def __init__(self, window_hu: tuple[float, float]) -> None:
        """Take the window that the image is clipped to."""
        self.window_hu = window_hu

    def network(self) -> nn.Module:
        """Build the critic."""
        return PatchCritic()

    def inputs(self, windows: Windows) -> Inputs:
        """Give the image in units of 40 HU around the host's mean, and the mask."""
        relative = (windows.hu.clamp(*self.window_hu) - windows.host_hu) / CRITIC_HU
        return torch.cat([relative, windows.mask], dim=1)

    def critic_loss(self, critic: nn.Module, synthetic: Windows, real: Windows) -> Loss:
        """Ask for high logits on real and low ones on synthetic patches."""
        return losses.hinge_critic(critic(self.inputs(real)), critic(self.inputs(synthetic)))

    def generator_loss(self, critic: nn.Module, synthetic: Windows) -> Loss:
        """Ask for high logits."""
        return losses.hinge_generator(critic(self.inputs(synthetic)))

    def scores(self, critic: nn.Module, windows: Windows) -> Float[Tensor, "b"]:
        """Average the logits of each window."""
        return critic(self.inputs(windows)).flatten(1).mean(1)


class VoxelClasses:
    """The published critic: background, real tumor and synthetic tumor, voxel by voxel."""

    def __init__(self, window_hu: tuple[float, float]) -> None:
        """Take the window that is scaled to 0..1."""
        self.window_hu = window_hu

    def network(self) -> nn.Module:
        """Build the critic."""
        return VoxelCritic()

    def inputs(self, windows: Windows) -> Inputs:
        """Give the image in 0..1."""
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
        real = losses.class_probability(critic(self.inputs(windows)), REAL) * windows.mask
        return real.flatten(1).sum(1) / windows.mask.flatten(1).sum(1).clamp_min(1e-3)


ADVERSARIES: dict[str, Callable[[tuple[float, float]], Adversary]] = {"hinge": PatchHinge, "voxel": VoxelClasses}
