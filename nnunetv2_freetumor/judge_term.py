"""The judge in the adversarial stage: its loss on what the generator draws, and what it recognizes of it.

Gradients pass through the frozen segmenter to the contrast: each lesion is written into a copy of its patch, at the
data's own spacing, and the judge looks at the window that the quality test would show it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunetv2_freetumor.frozen_segmenter import training_command
from nnunetv2_freetumor.generators import support
from nnunetv2_freetumor.intensity import from_plans
from nnunetv2_freetumor.judge import Finding, JudgeGate, crop, resample
from nnunetv2_freetumor.judge_choice import OFF, baseline_folder, find_judge, load_judge, tumor_names
from nnunetv2_freetumor.losses import unrecognized
from nnunetv2_freetumor.plan import Section
from nnunetv2_freetumor.region_grid import from_grid
from nnunetv2_freetumor.training_windows import Placed

Patch = Float[Tensor, "1 1 x y z"]


class TrainingJudge(JudgeGate):
    """A gate that a generator can be trained through."""

    def loss(
        self, image: Float[Tensor, "b 1 x y z"], lesions: Sequence[Placed], contrast_hu: Float[Tensor, "n 1 u v w"]
    ) -> Float[Tensor, ""]:
        """Ask for tumor on the voxels of lesions that were drawn into patches of `image` (z-scores)."""
        parts = [self._lesion_loss(image, *pair) for pair in zip(lesions, contrast_hu)]
        known = [part for part in parts if part is not None]
        return torch.stack(known).mean() if known else torch.zeros((), device=image.device)

    def shares(
        self, image: Float[Tensor, "b 1 x y z"], lesions: Sequence[Placed], contrast_hu: Float[Tensor, "n 1 u v w"]
    ) -> list[float]:
        """Give the recognized share of each lesion."""
        shares = []
        for placed, contrast in zip(lesions, contrast_hu):
            verdict = self(self.plant(image, placed, contrast), [finding(placed)])[0]
            shares.append(float(verdict.recognized))
        return shares

    def plant(self, image: Float[Tensor, "b 1 x y z"], placed: Placed, contrast_hu: Float[Tensor, "1 u v w"]) -> Patch:
        """Write a lesion into a copy of its patch."""
        proposal = placed.proposal
        box = proposal.box.slices()
        change = from_grid(contrast_hu[0], placed.region, placed.grid) * support(placed.region)
        hu = self.intensity.to_hu(image[proposal.sample : proposal.sample + 1].float()).clone()
        hu[0, 0][box] = hu[0, 0][box] + change
        return self.intensity.to_z(hu)

    def _lesion_loss(
        self, image: Float[Tensor, "b 1 x y z"], placed: Placed, contrast_hu: Float[Tensor, "1 u v w"]
    ) -> Float[Tensor, ""] | None:
        channel = self.channels[placed.proposal.target]
        if channel is None:
            return None
        window = self._window(finding(placed), image.shape[2:])
        planted = self._cut(self.plant(image, placed, contrast_hu), window)
        mask = torch.zeros_like(image[:1], dtype=torch.float32)
        mask[0, 0][placed.proposal.box.slices()] = placed.proposal.lesion.float()
        same = all(ratio == 1 for ratio in self._ratio)
        size = self.segmenter.patch_size
        lesion = crop(mask, window.start, size) if same else resample(mask, window.start, self._ratio, size)
        probability = self.segmenter.probability(self.segmenter.logits(planted), channel)
        return unrecognized(probability, lesion[:, 0] >= 0.5)


def finding(placed: Placed) -> Finding:
    """Describe a lesion to the judge as the only sample of its batch."""
    proposal = placed.proposal
    return Finding(0, proposal.target, proposal.center, proposal.diameter_mm, proposal.box, proposal.lesion)


def make_judge(section: Section, trainer: nnUNetTrainer) -> TrainingJudge:
    """Load the segmenter that the section names: the fold's finished baseline, or a model folder.

    Raises:
        ValueError: there is none, its labels do not match, or the section turns it off although the recipe needs it.
    """
    without = '"recipe_changes": {"judge_weight": 0} in the plans\' freetumor section'
    baseline = baseline_folder(trainer)
    place = find_judge(section.judge, baseline, trainer.fold)
    if place is None and section.judge == OFF:
        raise ValueError(f"freetumor plans: 'judge' is off, but the generator's recipe learns from one. Set {without}.")
    if place is None:
        raise ValueError(
            f"The generator's recipe learns from a judge, but {baseline / f'fold_{trainer.fold}'} holds no finished "
            f"baseline. Train it first:\n{training_command(baseline, trainer.fold)}\nor name another model folder as "
            f"'judge', or set {without}."
        )
    segmenter = load_judge(place, trainer)
    channels = [segmenter.channel(name) for name in tumor_names(section)]
    x_mm, y_mm, z_mm = map(float, trainer.configuration_manager.spacing)
    return TrainingJudge(segmenter, section, channels, (x_mm, y_mm, z_mm), from_plans(trainer.plans_manager.plans))
