"""The study's trainers: the same cases, network and budget for every arm, read from the arm's plans."""

import dataclasses
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunetv2_freetumor import plan
from nnunetv2_freetumor.experiments.constant import ConstantGenerator
from nnunetv2_freetumor.experiments.study.copy_paste import CopyPaste, read_bank
from nnunetv2_freetumor.experiments.study.design import (
    BASELINE,
    TRAINERS,
    Assignment,
    FoldCases,
    plans_name,
    read_assignment,
)
from nnunetv2_freetumor.synthesis.planter import Planter
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer
from nnunetv2_freetumor.trainer import FreeTumorMixin
from nnunetv2_freetumor.training.cpu_trainer import PairsOnCpu

SHORT_LEARNING_RATE = 3e-3
VALIDATION_ITERATIONS = 2


class StudyTrainer(PairsOnCpu):
    """Train one trial of the study: its cases, its seed, the study's budget and recipe."""

    def initialize(self) -> None:
        """Take budget and seed from the assignment before nnU-Net builds network and optimizer."""
        budget, seed = self.assignment.budget, self.fold_cases.seed
        self.num_epochs, self.num_iterations_per_epoch = budget.epochs, budget.iterations
        self.num_val_iterations_per_epoch = VALIDATION_ITERATIONS
        self.oversample_foreground_percent = self.assignment.foreground
        np.random.seed(seed)
        torch.manual_seed(seed)
        super().initialize()

    @property
    def assignment(self) -> Assignment:
        """Read what this arm's plans ask for."""
        return read_assignment(self.plans_manager.plans)

    @property
    def fold_cases(self) -> FoldCases:
        """Return this fold's cases and seed."""
        return next(cases for cases in self.assignment.runs if cases.fold == self.fold)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the fold's cases of the study; the dataset's own split stays as it is."""
        return list(self.fold_cases.training), list(self.fold_cases.validation)

    def configure_optimizers(self) -> Any:
        """Use nnU-Net's own optimizer, or Adam in the short recipe."""
        if self.assignment.budget.recipe == "nnunet":
            return super().configure_optimizers()
        optimizer = torch.optim.Adam(self.network.parameters(), lr=SHORT_LEARNING_RATE)
        return optimizer, PolyLRScheduler(optimizer, SHORT_LEARNING_RATE, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:
        """Leave mirroring out in the short recipe: too little time to learn what a mirrored abdomen looks like."""
        rotation, dummy_2d, patch, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.assignment.budget.recipe == "short":
            self.inference_allowed_mirroring_axes = axes = None
        return rotation, dummy_2d, patch, axes


class nnUNetTrainerFreeTumor_study_real(StudyTrainer):
    """Train on real tumors only, as nnUNetTrainer does."""


class nnUNetTrainerFreeTumor_study(FreeTumorMixin, StudyTrainer):
    """Train with synthetic tumors, as the arm's section and assignment say."""

    def make_synthesizer(self, section: plan.Section) -> Planter:
        """Use the arm's generator and judge, and the fold's seed for all draws."""
        section = dataclasses.replace(section, seed=self.fold_cases.seed)
        if (
            self.assignment.judged
        ):  # few labels are the point of a study, so the judge's few tumors are no reason to stop
            judge = f"{TRAINERS['real']}__{plans_name(BASELINE)}__{self.configuration_name}"
            section = dataclasses.replace(section, judge=judge, min_judge_tumors=0)
        synthesizer = super().make_synthesizer(section)
        if self.assignment.generator == "constant":
            assert isinstance(synthesizer, Synthesizer), "the mixin makes one"
            synthesizer.generators = [ConstantGenerator()] * len(section.targets)
        return synthesizer

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """Split behind the intensity transforms where the arm asks for it."""
        loader = super().get_training_transforms(*args, **kwargs)
        if not self.assignment.after_intensity:
            return loader
        assert self.second_half is not None, "FreeTumorMixin has just set it"
        behind = self.second_half.transforms
        cut = next(i for i, transform in enumerate(behind) if not isinstance(transform, RandomTransform))
        self.second_half = ComposeTransforms(behind[cut:])
        return ComposeTransforms([*loader.transforms, *behind[:cut]])


class nnUNetTrainerFreeTumor_study_copy_paste(nnUNetTrainerFreeTumor_study):
    """Train with the training cases' own tumors pasted elsewhere."""

    def make_synthesizer(self, section: plan.Section) -> Planter:
        """Carve the training cases' tumors out, to paste them instead of drawing new ones."""
        plain = super().make_synthesizer(section)
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        training, _ = self.get_tr_and_val_datasets()
        bank = read_bank(training, training.identifiers, plain.section, plain.spacing_mm)
        return CopyPaste(plain.section, plain.spacing_mm, plain.intensity, bank)
