"""The adversarial stage on nnU-Net's batches: plant wherever there is room, meet real lesions, learn, look."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnunetv2_freetumor.generator_training.figures import LesionSlices
from nnunetv2_freetumor.generator_training.judge import TrainingJudge
from nnunetv2_freetumor.generator_training.log import Seen, realism
from nnunetv2_freetumor.generator_training.step import AdversarialStep, Terms, render
from nnunetv2_freetumor.generator_training.windows import Cutter, Replay, Synthetic
from nnunetv2_freetumor.generators.grid import VolumeBatch, to_grid
from nnunetv2_freetumor.intensity import Intensity
from nnunetv2_freetumor.plan import Section, always_planting
from nnunetv2_freetumor.synthesis import draws
from nnunetv2_freetumor.synthesis.proposals import Proposals, Proposer
from nnunetv2_freetumor.synthesis.texture import texture_contrast

MOST_PREVIEWS = 6
MOST_PER_PATCH = 8

LabelMaps = Int[Tensor, "b 1 x y z"]


class GeneratorStage:
    """Everything that happens to a batch while a generator is trained."""

    def __init__(
        self,
        section: Section,
        cutter: Cutter,
        intensity: Intensity,
        step: AdversarialStep,
        judge: TrainingJudge | None,
        batch_size: int,
    ) -> None:
        """Take the section, how windows are cut, how the batches encode HU, the step, and the judge if there is one."""
        self.cutter, self.intensity, self.step, self.judge = cutter, intensity, step, judge
        most = math.ceil(step.recipe.lesions_per_step / batch_size)
        self.section = always_planting(section, min(max(most, 1), MOST_PER_PATCH))
        self._proposer = Proposer(self.section, cutter.data_mm, [cutter.window_mm] * len(section.targets))
        self._lesions = max(len(target.prior.lesions_per_patch) for target in self.section.targets)
        self._replays = [Replay(step.recipe.replay_windows) for _ in section.targets]
        self._previewed: dict[int, Synthetic] = {}  # the first lesions of each target

    def train(self, image: VolumeBatch, label: LabelMaps, rng: torch.Generator, judged: bool) -> Terms | None:
        """Learn from a batch; None where it had no room for a lesion, or no real lesion has been seen yet."""
        proposals = self._propose(image, label, rng)
        hu, targets, hosts = self.intensity.to_hu(image), self.section.targets, proposals.placement.hosts
        for replay, windows in zip(self._replays, self.cutter.real(hu, label, hosts, targets, rng=rng)):
            replay.add(windows)
        synthetic = self._synthetic(proposals, rng)
        if synthetic is None:
            return None
        self._previewed.setdefault(synthetic.target, synthetic)
        target, judge = synthetic.target, self.judge if judged else None
        real = self._replays[target].draw(len(synthetic.lesions), rng)
        if judge is None:
            return self.step(synthetic, real)
        return self.step(synthetic, real, lambda contrast_hu: judge.loss(image, synthetic.lesions, contrast_hu))

    @torch.no_grad()
    def look(self, image: VolumeBatch, label: LabelMaps, rng: torch.Generator) -> Seen | None:
        """See what the critic and the judge make of the present generator's lesions; nothing is learned."""
        synthetic = self._synthetic(self._propose(image, label, rng), rng)
        if synthetic is None:
            return None
        networks, adversary = self.step.networks, self.step.adversary
        contrast = render(networks.final, synthetic, self.step.frame).contrast_hu
        after = synthetic.windows.with_hu(synthetic.windows.hu + contrast)
        real = self._replays[synthetic.target].draw(len(synthetic.lesions), rng)
        scores = (adversary.scores(networks.critic, windows) for windows in (after, real))
        shares = self.judge.shares(image, synthetic.lesions, contrast) if self.judge else []
        return Seen(
            loss=float(adversary.generator_loss(networks.critic, after)),
            realism=realism(*scores),
            diameters_mm=[placed.proposal.site.diameter_mm for placed in synthetic.lesions],
            recognized=shares or [math.nan] * len(synthetic.lesions),
        )

    @torch.no_grad()
    def previews(self) -> list[LesionSlices]:
        """Render the first lesions that were met with the present generator, always the same ones."""
        rows: list[LesionSlices] = []
        for _, synthetic in sorted(self._previewed.items()):
            contrast = render(self.step.networks.final, synthetic, self.step.frame).contrast_hu
            count = min(len(contrast), max(1, MOST_PREVIEWS // len(self._previewed)))
            rows += [self._row(synthetic, index, contrast) for index in range(count)]
        return rows

    @torch.no_grad()
    def _propose(self, image: VolumeBatch, label: LabelMaps, rng: torch.Generator) -> Proposals:
        chance = draws.draw(len(image), self._lesions, draws.CANDIDATES, rng)
        return self._proposer(self.intensity.to_hu(image), label, chance)

    def _synthetic(self, proposals: Proposals, rng: torch.Generator) -> Synthetic | None:
        """Pick fitting lesions of one target, as many as a step trains on, from all samples alike.

        One target at a time: each is compared with its own real lesions, or one's faults would hide the other's.
        """
        fits = torch.stack([one.fits for one in proposals.lesions]).tolist() if proposals.lesions else []
        met = [one for one, fit in zip(proposals.lesions, fits) if fit and len(self._replays[one.site.target])]
        present = sorted({one.site.target for one in met})
        if not present:
            return None
        target = present[int(torch.rand((), generator=rng) * len(present))]
        fitting = [one for one in met if one.site.target == target]
        order = torch.randperm(len(fitting), generator=rng).tolist()[: self.step.recipe.lesions_per_step]
        return self.cutter.synthetic([fitting[index] for index in order], self.section.targets, rng)

    def _row(self, synthetic: Synthetic, index: int, contrast_hu: Float[Tensor, "n 1 u v w"]) -> LesionSlices:
        proposal, region, grid = synthetic.lesions[index]
        windows, allowed = synthetic.windows, synthetic.support[index, 0]
        texture = texture_contrast(region, self.section.targets[proposal.site.target].prior.texture, proposal.look)
        before = windows.hu[index, 0]
        images = (before, before + to_grid(texture, region, grid) * allowed, before + contrast_hu[index, 0])
        axis = self.cutter.slice_axis
        cut = [
            volume.select(axis, volume.shape[axis] // 2).cpu().numpy() for volume in (*images, windows.mask[index, 0])
        ]
        height_mm, width_mm = (step for other, step in enumerate(self.cutter.spacing_mm) if other != axis)
        return LesionSlices(
            before_hu=cut[0],
            texture_hu=cut[1],
            learned_hu=cut[2],
            mask=cut[3] > 0.5,
            host_hu=float(windows.host_hu[index]),
            diameter_mm=proposal.site.diameter_mm,
            aspect=height_mm / width_mm,
        )
