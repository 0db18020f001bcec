"""The demo's trainer: minutes instead of days."""

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerVanillaAdam

from nnunetv2_freetumor.trainer import FreeTumorMixin
from nnunetv2_freetumor.training.cpu_trainer import PairsOnCpu


class nnUNetTrainerFreeTumor_demo(FreeTumorMixin, PairsOnCpu, nnUNetTrainerVanillaAdam, nnUNetTrainerNoMirroring):
    """Train for a few minutes on two cores; only good for showing that everything runs."""

    def initialize(self) -> None:
        """Set what makes a training short before nnU-Net builds network and optimizer."""
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 20, 40, 4
        self.initial_lr, self.weight_decay = 3e-3, 0.0
        super().initialize()
