"""The judge in the adversarial stage: its loss on what the generator renders, and what it recognizes of it.

Gradients pass through the frozen segmenter to the contrast: each lesion is written into a copy of its patch, at the
data's own spacing, and the judge looks at the window that the quality test would show it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunetv2_freetumor.generator_training.losses import unrecognized
from nnunetv2_freetumor.generator_training.windows import Placed
from nnunetv2_freetumor.generators.grid import from_grid
from nnunetv2_freetumor.intensity import from_plans
from nnunetv2_freetumor.plan import Section
from nnunetv2_freetumor.synthesis.proposals import Proposal
from nnunetv2_freetumor.synthesis.region import support
from nnunetv2_freetumor.training.judge import JudgeGate, Window
from nnunetv2_freetumor.training.judge_choice import OFF, baseline_folder, find_judge, load_judge, tumor_names
from nnunetv2_freetumor.training.segmenter import training_command

Patch = Float[Tensor, "1 1 x y z"]


class TrainingJudge(JudgeGate):
    """A gate that a generator can be trained through."""

    together = 4

    def loss(
        self, image: Float[Tensor, "b 1 x y z"], lesions: Sequence[Placed], contrast_hu: Float[Tensor, "n 1 u v w"]
    ) -> Float[Tensor, ""]:
        """Ask for tumor on the voxels of lesions that were rendered into patches of `image` (z-scores)."""
        rendered = zip(lesions, contrast_hu)
        asked = [pair for pair in rendered if self.channels[pair[0].proposal.site.target] is not None]
        chunks = [asked[first : first + self.together] for first in range(0, len(asked), self.together)]
        parts = [part for chunk in chunks for part in self._losses(image, chunk)]
        return torch.stack(parts).mean() if parts else torch.zeros((), device=image.device)

    def shares(
        self, image: Float[Tensor, "b 1 x y z"], lesions: Sequence[Placed], contrast_hu: Float[Tensor, "n 1 u v w"]
    ) -> list[float]:
        """Return the recognized share of each lesion, each in a patch of its own."""
        planted = torch.cat([self.plant(image, *pair) for pair in zip(lesions, contrast_hu)])
        verdicts = self(planted, [in_own_patch(placed, sample) for sample, placed in enumerate(lesions)])
        return torch.stack([verdict.recognized for verdict in verdicts]).tolist()

    def plant(self, image: Float[Tensor, "b 1 x y z"], placed: Placed, contrast_hu: Float[Tensor, "1 u v w"]) -> Patch:
        """Write a lesion into a copy of its patch."""
        proposal = placed.proposal
        box = proposal.site.box.slices()
        change = from_grid(contrast_hu[0], placed.region, placed.grid) * support(placed.region)
        hu = self.intensity.to_hu(image[proposal.site.sample : proposal.site.sample + 1].float()).clone()
        hu[0, 0][box] = hu[0, 0][box] + change
        return self.intensity.to_z(hu)

    def _losses(
        self, image: Float[Tensor, "b 1 x y z"], rendered: Sequence[tuple[Placed, Float[Tensor, "1 u v w"]]]
    ) -> list[Float[Tensor, ""]]:
        """Look at lesions together, each in a patch of its own."""
        windows = [self.window_around(in_own_patch(placed).site, image.shape[2:]) for placed, _ in rendered]
        planted = [self.cut(self.plant(image, *pair), window) for pair, window in zip(rendered, windows)]
        logits = self.segmenter.logits(torch.cat(planted))
        parts = []
        for one, (placed, _), window in zip(logits.split(1), rendered, windows):
            channel = self.channels[placed.proposal.site.target]
            assert channel is not None, "only tested targets come here"
            probability = self.segmenter.probability(one, channel)
            parts.append(unrecognized(probability, self._lesion(image[:1], placed, window)))
        return parts

    def _lesion(self, image: Patch, placed: Placed, window: Window) -> Bool[Tensor, "1 px py pz"]:
        """Mark a lesion's voxels in its window."""
        mask = torch.zeros_like(image, dtype=torch.float32)
        mask[0, 0][placed.proposal.site.box.slices()] = placed.proposal.lesion.float()
        return self.read(mask, window)[:, 0] >= 0.5


def in_own_patch(placed: Placed, sample: int = 0) -> Proposal:
    """Move a lesion into a patch of its own: the batch's number `sample`."""
    proposal = placed.proposal
    return proposal._replace(site=proposal.site._replace(sample=sample))


def make_judge(section: Section, trainer: nnUNetTrainer) -> TrainingJudge:
    """Load the segmenter that the section names: the fold's finished baseline, or a model folder.

    Raises:
        ValueError: there is none, its labels do not match, or the section turns it off although the recipe needs it.
    """
    without = '"recipe_changes": {"judge_weight": 0} in the plans\' freetumor section'
    baseline = baseline_folder(trainer)
    place = find_judge(section.judge, baseline, trainer.fold)
    if place is None and section.judge == OFF:
        raise ValueError(
            "freetumor plans: 'judge' is off, but the generator's recipe needs one. Set 'judge' to auto or to a model "
            f"folder, or train without a judge: {without}."
        )
    if place is None:
        raise ValueError(
            f"The generator's recipe needs a judge, but {baseline / f'fold_{trainer.fold}'} contains no finished "
            f"baseline. Train it first:\n{training_command(baseline, trainer.fold)}\nor set 'judge' to another model "
            f"folder, or train without a judge: {without}."
        )
    segmenter = load_judge(place, trainer)
    channels = [segmenter.channel(name) for name in tumor_names(section)]
    x_mm, y_mm, z_mm = map(float, trainer.configuration_manager.spacing)
    return TrainingJudge(
        segmenter=segmenter,
        section=section,
        channels=channels,
        spacing_mm=(x_mm, y_mm, z_mm),
        intensity=from_plans(trainer.plans_manager.plans),
    )
