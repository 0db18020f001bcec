"""Speed up 3d convolutions on the CPU for single patches.

PyTorch hands a batch of two to oneDNN, but computes a batch of one with its own, much slower kernels. nnU-Net predicts
patch by patch, so on the CPU the same patch is computed twice at once, in less than half of the time.
"""

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn


class PairsOnCpu(nnUNetTrainer):
    """Build nnU-Net's network so that it predicts faster on the CPU; for trainers that are made for two cores."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the network as nnU-Net does; its weights are nnU-Net's."""
        return compute_in_pairs(
            nnUNetTrainer.build_network_architecture(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
            )
        )


def compute_in_pairs(network: nn.Module) -> nn.Module:
    """Let a network without batch statistics compute single patches on the CPU as pairs; weights stay as they are."""
    forward = network.forward

    def paired(x: Tensor) -> Any:
        if len(x) > 1 or x.device.type != "cpu":
            return forward(x)
        outputs = forward(x.expand(2, *x.shape[1:]))
        return [output[:1] for output in outputs] if isinstance(outputs, list | tuple) else outputs[:1]

    network.forward = paired  # type: ignore[method-assign]
    return network
