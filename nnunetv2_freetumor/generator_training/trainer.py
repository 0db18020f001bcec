"""`nnUNetTrainerFreeTumorGenerator`: the adversarial stage as an nnU-Net trainer.

Data, loaders, split, checkpoints, `--c`, logger and progress figure are nnU-Net's. What nnU-Net calls the network is
generator, critic and moving average together; what it calls Dice is the share of each lesion that the judge recognizes,
or, without a judge, how often the critic takes a synthetic lesion for the more real one.
"""

import math
from pathlib import Path

import torch
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import (
    nnUNetTrainer_1epoch,
    nnUNetTrainer_5epochs,
    nnUNetTrainer_10epochs,
    nnUNetTrainer_20epochs,
    nnUNetTrainer_50epochs,
    nnUNetTrainer_100epochs,
    nnUNetTrainer_250epochs,
)

from nnunetv2_freetumor import intensity
from nnunetv2_freetumor.generator_training import divergence, log
from nnunetv2_freetumor.generator_training.figures import preview_sheet, training_curves
from nnunetv2_freetumor.generator_training.judge import TrainingJudge, make_judge
from nnunetv2_freetumor.generator_training.setup import GeneratorSetup
from nnunetv2_freetumor.generator_training.stage import GeneratorStage
from nnunetv2_freetumor.generator_training.step import AdversarialStep
from nnunetv2_freetumor.generator_training.windows import Cutter
from nnunetv2_freetumor.generators.choice import GENERATOR_FILE
from nnunetv2_freetumor.generators.weights import save_generator
from nnunetv2_freetumor.training import epoch_log

__all__ = [
    "nnUNetTrainerFreeTumorGenerator",
    "nnUNetTrainerFreeTumorGenerator_1epoch",
    "nnUNetTrainerFreeTumorGenerator_5epochs",
    "nnUNetTrainerFreeTumorGenerator_10epochs",
    "nnUNetTrainerFreeTumorGenerator_20epochs",
    "nnUNetTrainerFreeTumorGenerator_50epochs",
    "nnUNetTrainerFreeTumorGenerator_100epochs",
    "nnUNetTrainerFreeTumorGenerator_250epochs",
]

CURVES_FILE, PREVIEW_FILE = "freetumor_generator.png", "freetumor_preview_epoch_{:04d}.png"
IDLE = (
    "WARNING: FreeTumor generator: nothing was learned in this epoch, because no patch had room for a lesion or no "
    "real tumor has been seen yet. Use a larger patch or more training cases with tumors."
)


class nnUNetTrainerFreeTumorGenerator(GeneratorSetup):
    """Train a generator of synthetic tumors on a fold's training cases."""

    _good_epoch: int | None = None  # whose weights are on disk
    _last_loss = 0.0

    def on_train_start(self) -> None:
        """Prepare the stage and check everything, then let nnU-Net start its loader processes."""
        if not self.was_initialized:
            self.initialize()
        judge = self._make_judge()
        x_mm, y_mm, z_mm = map(float, self.configuration_manager.spacing)
        plans = self.plans_manager.plans
        cutter = Cutter(self.recipe, self.frame, (x_mm, y_mm, z_mm), plans["transpose_forward"].index(0))
        step = AdversarialStep(self.network, self.optimizer, self.recipe, self.frame, adversary=self.adversary)
        self._stage = GeneratorStage(
            self.section, cutter, intensity.from_plans(plans), step, judge=judge, batch_size=self.batch_size
        )
        self._watch = divergence.Divergence(self.recipe)
        epoch_log.register(self.logger, self.current_epoch, log.LOGGER_PREFIX, log.NAMES)
        if self.current_epoch and Path(self._weights).is_file():
            self._good_epoch = self.current_epoch - 1
        self.announce(_name(judge), self._weights)
        super().on_train_start()

    @property
    def _weights(self) -> str:
        return join(self.output_folder, GENERATOR_FILE)

    def _make_judge(self) -> TrainingJudge | None:
        return make_judge(self.section, self) if self.recipe.judge_weight else None

    def _save(self, judge: TrainingJudge | None) -> None:
        save_generator(self.network.final, self.make_card(_name(judge)), self._weights)

    def on_train_epoch_start(self) -> None:
        """Start the epoch's draws from the section's seed and the epoch."""
        super().on_train_epoch_start()
        self._rng = epoch_log.epoch_generator(self.section.seed, self.local_rank, self.current_epoch)
        self._terms = log.EpochTerms()

    def train_step(self, batch: dict) -> dict:
        """Train critic and generator on what the batch offers."""
        image, label = (batch[name].to(self.device, non_blocking=True) for name in ("data", "target"))
        judged = self.current_epoch >= self.recipe.judge_warmup_epochs
        terms = self._stage.train(image, label, self._rng, judged)
        if terms is not None:
            self._terms.add(terms)
            values = torch.stack([terms[name].float() for name in ("generator", "critic", "residual_hu")]).tolist()
            self._check(self._watch.problem(*values))
            self._last_loss = values[0]
        return {"loss": self._last_loss}

    def _check(self, problem: str) -> None:
        if problem:
            text = divergence.message(problem, self.current_epoch, self._weights, self._good_epoch)
            self.print_to_log_file(text)
            raise RuntimeError(text)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Report every loss term."""
        super().on_train_epoch_end(train_outputs)
        terms = self._terms.read()
        for name, value in terms.items():
            self.logger.log(log.LOGGER_PREFIX + name, value, self.current_epoch)
        steps = self._terms.steps
        self.print_to_log_file(log.terms_line(terms, steps) if steps else IDLE)

    def validation_step(self, batch: dict) -> dict:
        """Look at lesions planted into validation patches; nothing is learned from them."""
        image, label = (batch[name].to(self.device, non_blocking=True) for name in ("data", "target"))
        return {"seen": self._stage.look(image, label, self._rng)}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log what critic and judge saw under nnU-Net's names and under our own, and keep the weights."""
        steps = [output["seen"] for output in val_outputs if output["seen"] is not None]
        seen = log.epoch_means(steps)
        by_size = [seen[name] for name in log.RECOGNIZED]
        headline = seen["realism"] if math.isnan(seen["recognized"]) else seen["recognized"]
        self.logger.log("mean_fg_dice", 0.0 if math.isnan(headline) else headline, self.current_epoch)
        self.logger.log("dice_per_class_or_region", by_size, self.current_epoch)
        loss = sum(step.loss for step in steps) / len(steps) if steps else 0.0
        self.logger.log("val_losses", loss, self.current_epoch)
        for name, value in seen.items():
            self.logger.log(log.LOGGER_PREFIX + name, value, self.current_epoch)
        self.print_to_log_file(log.seen_line(seen, self._stage.judge is not None))
        self._keep()

    def _keep(self) -> None:
        """Write the generator, the curves and now and then a preview sheet."""
        if not all(bool(part.isfinite().all()) for part in self.network.parameters()):
            self._check("weights are no longer numbers")
        if self._watch.calm:
            self._save(self._stage.judge)
            self._good_epoch = self.current_epoch
        else:
            kept = "" if self._good_epoch is None else f"; the file keeps those of epoch {self._good_epoch}"
            self.print_to_log_file(
                f"WARNING: FreeTumor generator: losses are saturated, so this epoch's weights are not saved{kept}"
            )
        history = epoch_log.history(self.logger, log.LOGGER_PREFIX, log.NAMES)
        training_curves(history, join(self.output_folder, CURVES_FILE))
        if self.current_epoch % self.recipe.preview_every == 0 or self.current_epoch == self.num_epochs - 1:
            rows = self._stage.previews()
            if rows:
                title = f"epoch {self.current_epoch}"
                preview_sheet(rows, join(self.output_folder, PREVIEW_FILE.format(self.current_epoch)), title)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Log where the generator is; nnU-Net calls this after training, and alone for --val."""
        if not Path(self._weights).is_file():
            self._save(self._make_judge())
        self.print_to_log_file(
            f"FreeTumor generator: saved as {self._weights}. Trainings of this dataset and fold pick it up "
            'automatically ("generator": "auto"). \'nnUNetv2_freetumor generator inspect\' prints its card.'
        )


def _name(judge: TrainingJudge | None) -> str:
    return "none" if judge is None else judge.segmenter.name


# The lengths are nnU-Net's own: its `_Xepochs` classes set the number of epochs.


class nnUNetTrainerFreeTumorGenerator_1epoch(nnUNetTrainerFreeTumorGenerator, nnUNetTrainer_1epoch):
    """Train for 1 epoch."""


class nnUNetTrainerFreeTumorGenerator_5epochs(nnUNetTrainerFreeTumorGenerator, nnUNetTrainer_5epochs):
    """Train for 5 epochs."""


class nnUNetTrainerFreeTumorGenerator_10epochs(nnUNetTrainerFreeTumorGenerator, nnUNetTrainer_10epochs):
    """Train for 10 epochs."""


class nnUNetTrainerFreeTumorGenerator_20epochs(nnUNetTrainerFreeTumorGenerator, nnUNetTrainer_20epochs):
    """Train for 20 epochs."""


class nnUNetTrainerFreeTumorGenerator_50epochs(nnUNetTrainerFreeTumorGenerator, nnUNetTrainer_50epochs):
    """Train for 50 epochs."""


class nnUNetTrainerFreeTumorGenerator_100epochs(nnUNetTrainerFreeTumorGenerator, nnUNetTrainer_100epochs):
    """Train for 100 epochs."""


class nnUNetTrainerFreeTumorGenerator_250epochs(nnUNetTrainerFreeTumorGenerator, nnUNetTrainer_250epochs):
    """Train for 250 epochs."""
