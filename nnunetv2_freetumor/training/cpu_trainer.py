"""Let nnU-Net's network compute single patches in pairs: nnU-Net predicts patch by patch, slow on the CPU."""

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_freetumor.generators.cpu_doubling import call_in_pairs


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
                plans_manager,
                configuration_manager,
                num_input_channels=num_input_channels,
                num_output_channels=num_output_channels,
                enable_deep_supervision=enable_deep_supervision,
            )
        )


def compute_in_pairs(network: nn.Module) -> nn.Module:
    """Let a network without batch statistics compute single patches on the CPU as pairs; weights stay as they are."""
    forward = network.forward

    def paired(x: Tensor) -> Any:
        return call_in_pairs(forward, x)

    network.forward = paired  # type: ignore[method-assign]
    return network
