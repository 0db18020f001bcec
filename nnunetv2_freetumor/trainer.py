"""nnU-Net trainers whose training batches carry synthetic tumors.

`FreeTumorMixin` goes in front of any nnU-Net trainer: `class Mine(FreeTumorMixin, nnUNetTrainerNoMirroring): ...`.
It overrides hooks and leaves the network, the loss, validation and prediction to nnU-Net.
"""

from typing import Any

from batchgenerators.utilities.file_and_folder_operations import isfile, join
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from jaxtyping import Float, Int
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import (
    nnUNetTrainer_1epoch,
    nnUNetTrainer_5epochs,
    nnUNetTrainer_10epochs,
    nnUNetTrainer_20epochs,
    nnUNetTrainer_50epochs,
    nnUNetTrainer_100epochs,
    nnUNetTrainer_250epochs,
    nnUNetTrainer_500epochs,
)
from torch import Tensor

from nnunetv2_freetumor import intensity, plan
from nnunetv2_freetumor.generators.choice import build_generators
from nnunetv2_freetumor.planning import clip_window, report
from nnunetv2_freetumor.pool.training import PoolMixin
from nnunetv2_freetumor.synthesis.planter import Planter
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer
from nnunetv2_freetumor.training import augmentation, epoch_log, figures, recognition, start
from nnunetv2_freetumor.training import device as training_device
from nnunetv2_freetumor.training.label_free import LabelFreeMixin
from nnunetv2_freetumor.training.lesion_evaluation import LesionEvaluationMixin
from nnunetv2_freetumor.training.synthetic_splits import SplitGuardMixin

__all__ = [
    "FreeTumorMixin",
    "nnUNetTrainerFreeTumor",
    "nnUNetTrainerFreeTumor_1epoch",
    "nnUNetTrainerFreeTumor_5epochs",
    "nnUNetTrainerFreeTumor_10epochs",
    "nnUNetTrainerFreeTumor_20epochs",
    "nnUNetTrainerFreeTumor_50epochs",
    "nnUNetTrainerFreeTumor_100epochs",
    "nnUNetTrainerFreeTumor_250epochs",
    "nnUNetTrainerFreeTumor_500epochs",
]

PREVIEW = "freetumor_first_batch.png"
CURVE = "freetumor_planted.png"
PROGRESS = "progress.png"  # nnU-Net's own
NO_TRANSFORMS = (
    "overrides get_dataloaders without calling self.get_training_transforms, so that no tumor can be planted. Put "
    "FreeTumorMixin first among the bases, in front of a trainer that loads data as nnUNetTrainer does (not a "
    "noDataLoading benchmark)."
)


class FreeTumorMixin(PoolMixin, SplitGuardMixin, LabelFreeMixin, LesionEvaluationMixin):
    """Plant synthetic tumors into an nnU-Net trainer's batches, between its spatial and its intensity transforms."""

    # No __init__: nnU-Net records the arguments of the outermost one by reading that method's local variables.
    _section_source = "the plans file"
    second_half: ComposeTransforms | None = None
    _preview_due = False

    def on_train_start(self) -> None:
        """Resolve the section and check everything, then let nnU-Net start its loader processes."""
        section = self.resolve_section()
        self.planter = self.make_synthesizer(section)
        self._prepare_log(self.planter.section)
        self._watch = recognition.Watch(self.planter.section, self.label_manager)
        super().on_train_start()
        self._watch.attach(self.network)

    def make_synthesizer(self, section: plan.Section) -> Planter:
        """Build what plants tumors; to plant otherwise, override this."""
        plans, device = self.plans_manager.plans, training_device.device_for(self.device)
        chosen = start.settle(section, self)
        generators = build_generators(chosen.generators, section, plans["transpose_forward"].index(0), device)
        x_mm, y_mm, z_mm = map(float, self.configuration_manager.spacing)
        return Synthesizer(
            section, (x_mm, y_mm, z_mm), intensity=intensity.from_plans(plans), generators=generators, gate=chosen.gate
        )

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """Pass the transforms before the split to the loaders, and keep those behind it."""
        halves = augmentation.split(super().get_training_transforms(*args, **kwargs))
        augmentation.check_transforms(halves.device, self.device, type(self).__name__)
        self.second_half = halves.device
        return halves.loader

    def get_dataloaders(self) -> Any:
        """Get nnU-Net's loaders and refuse a trainer that never asks for the training transforms."""
        loaders = super().get_dataloaders()
        if self.second_half is None:
            raise ValueError(f"{type(self).__name__} {NO_TRANSFORMS}")
        return loaders

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load nnU-Net's checkpoint and take the section from it."""
        super().load_checkpoint(filename_or_checkpoint)
        saved = self.my_init_kwargs["plans"].get(plan.SECTION)
        if saved is not None:
            self.plans_manager.plans[plan.SECTION] = saved
            self._section_source = "the checkpoint"
        epoch_log.register(self.logger, self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Start the epoch's draws from the section's seed, the rank and the epoch."""
        super().on_train_epoch_start()
        seed = self.planter.section.seed
        self.rng = epoch_log.epoch_generator(seed, self.local_rank, self.current_epoch)
        self._counts = epoch_log.EpochCounts()
        self.print_to_log_file(f"FreeTumor: draws from seed {seed}, rank {self.local_rank}, epoch {self.current_epoch}")

    def train_step(self, batch: dict) -> dict:
        """Plant, augment, and let nnU-Net train on the result."""
        device = training_device.device_for(self.device)
        image, label = (batch[name].to(device, non_blocking=True) for name in ("data", "target"))
        image, target, _ = self._plant_and_augment(image, label)
        return super().train_step(batch | {"data": image, "target": target})

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Read what the epoch planted, once, and report it."""
        super().on_train_epoch_end(train_outputs)
        counts = self._counts.read() | self._watch.read(self.device)
        for name, value in counts.items():
            self.logger.log(epoch_log.COUNT_KEY + name, value, self.current_epoch)
        repair = clip_window.repair_commands(self.plans_manager.plans, [self.configuration_name])
        self.recognized_share = recognition.recognized_share(counts)
        lines = epoch_log.report(counts, self.planter, self.logger, repair)
        for line in lines + epoch_log.slow_start(self.logger, self.num_epochs):
            self.print_to_log_file(line)
        if self.local_rank == 0:
            figures.counts_curve(epoch_log.history(self.logger), join(self.output_folder, CURVE))

    def on_epoch_end(self) -> None:
        """Let nnU-Net finish the epoch, and put the recognized shares below its progress figure."""
        super().on_epoch_end()
        if self.local_rank == 0:
            figures.add_to_progress(epoch_log.history(self.logger), join(self.output_folder, PROGRESS))

    def resolve_section(self) -> plan.Section:
        """Refuse what cannot work, read or derive the section, and store it with the model."""
        plans = self.plans_manager.plans
        if plan.SECTION not in plans:
            self._section_source = "the dataset, derived now"
        folder, rank = self.preprocessed_dataset_folder_base, self.local_rank
        section = start.resolve_section(
            plans, self.configuration_name, self.dataset_json, folder, rank=rank, several_processes=self.is_ddp
        )
        self.my_init_kwargs["plans"][plan.SECTION] = plans[plan.SECTION]
        return section

    def _prepare_log(self, section: plan.Section) -> None:
        epoch_log.register(self.logger, self.current_epoch)
        first_time = self.current_epoch == 0 or not isfile(join(self.output_folder, PREVIEW))
        self._preview_due = self.local_rank == 0 and first_time
        setting = f"FreeTumor: generator {section.generator}, seed {section.seed}, section from {self._section_source}"
        lines = [setting, report.describe(section, self.plans_manager.plans)]
        self.print_to_log_file("\n".join(lines + epoch_log.ungate(self.planter, self.logger)))
        self.find_absent_labels({target.tumor_label for target in section.targets})

    def _plant_and_augment(
        self, image: Float[Tensor, "b 1 x y z"], label: Int[Tensor, "b 1 x y z"]
    ) -> augmentation.Augmented:
        synthesis = self.planter(image, label, self.planter.draw(len(image), self.rng))
        self._counts.add(synthesis.counts)
        if self._preview_due:
            path = join(self.output_folder, PREVIEW)
            self._preview_due = not figures.batch_preview(image, label, synthesis, planter=self.planter, path=path)
        assert self.second_half is not None, "get_dataloaders has checked it"
        ids = recognition.lesion_ids(synthesis.lesions, synthesis.label)
        augmented = augmentation.augment(self.second_half, synthesis.image, label=synthesis.label, ids=ids)
        self._watch.expect(synthesis.lesions, augmented.ids)
        return augmented


class nnUNetTrainerFreeTumor(FreeTumorMixin):
    """Train as nnUNetTrainer does, with synthetic tumors in the batches."""


# The lengths are nnU-Net's own: its `_Xepochs` classes set the number of epochs.


class nnUNetTrainerFreeTumor_1epoch(nnUNetTrainerFreeTumor, nnUNetTrainer_1epoch):
    """Train for 1 epoch."""


class nnUNetTrainerFreeTumor_5epochs(nnUNetTrainerFreeTumor, nnUNetTrainer_5epochs):
    """Train for 5 epochs."""


class nnUNetTrainerFreeTumor_10epochs(nnUNetTrainerFreeTumor, nnUNetTrainer_10epochs):
    """Train for 10 epochs."""


class nnUNetTrainerFreeTumor_20epochs(nnUNetTrainerFreeTumor, nnUNetTrainer_20epochs):
    """Train for 20 epochs."""


class nnUNetTrainerFreeTumor_50epochs(nnUNetTrainerFreeTumor, nnUNetTrainer_50epochs):
    """Train for 50 epochs."""


class nnUNetTrainerFreeTumor_100epochs(nnUNetTrainerFreeTumor, nnUNetTrainer_100epochs):
    """Train for 100 epochs."""


class nnUNetTrainerFreeTumor_250epochs(nnUNetTrainerFreeTumor, nnUNetTrainer_250epochs):
    """Train for 250 epochs."""


class nnUNetTrainerFreeTumor_500epochs(nnUNetTrainerFreeTumor, nnUNetTrainer_500epochs):
    """Train for 500 epochs."""
