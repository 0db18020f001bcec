"""The method: place lesions, lay their shapes, render their contrast, compose them into image and label."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnunetv2_freetumor.intensity import Intensity
from nnunetv2_freetumor.plan import Section
from nnunetv2_freetumor.synthesis.compose import Change, Where, compose
from nnunetv2_freetumor.synthesis.draws import CANDIDATES, Draw, draw
from nnunetv2_freetumor.synthesis.gate import NO_VERDICT, Gate
from nnunetv2_freetumor.synthesis.planter import Lesion, Synthesis, count_lesions
from nnunetv2_freetumor.synthesis.proposals import Proposal, Proposer
from nnunetv2_freetumor.synthesis.region import Generator, support, visibility
from nnunetv2_freetumor.synthesis.texture import TextureGenerator
from nnunetv2_freetumor.synthesis.volume import Spacing


class _Rendered(NamedTuple):
    proposal: Proposal
    contrast_hu: Float[Tensor, "x y z"]
    support: Bool[Tensor, "x y z"]  # the voxels that may change
    visible: Bool[Tensor, ""]  # bold enough for the noise around it


class _Composed(NamedTuple):
    image: Tensor
    label: Tensor
    changes: list[Change]


class Synthesizer:
    """Plant synthetic tumors into batches of CT patches or whole volumes, on the batch's device.

    Example, for tensors of any other framework (`hu` and `label` are (b, 1, x, y, z), HU and integer labels):

        synthesizer = Synthesizer(section, spacing_mm=(2.5, 0.8, 0.8), intensity=RAW_CT)
        rng = torch.Generator().manual_seed(1)
        image, label, lesions, counts = synthesizer(hu, label, synthesizer.draw(len(hu), rng))
    """

    def __init__(
        self,
        section: Section,
        spacing_mm: Spacing,
        intensity: Intensity,
        generators: Sequence[Generator] | None = None,
        gate: Gate | None = None,
    ) -> None:
        """Take the settings, the voxel size and how the image encodes HU.

        Args:
            section: the `freetumor` section.
            spacing_mm: voxel size in the arrays' axis order.
            intensity: how the image encodes HU.
            generators: what renders the lesions of each target; `texture` where they are left out.
            gate: the judge's quality test; none where it is left out.

        Raises:
            ValueError: the section names another generator, and none is given.
        """
        self.section = section
        self.spacing_mm = spacing_mm
        self.intensity = intensity
        self.generators = _without_weights(section) if generators is None else list(generators)
        self.gate = gate
        self.lesions = max(len(target.prior.lesions_per_patch) for target in section.targets)
        self._propose = Proposer(section, spacing_mm, [generator.window_mm for generator in self.generators])

    def draw(self, batch_size: int, rng: torch.Generator, candidates: int = CANDIDATES) -> Draw:
        """Draw all chance for a batch; the same draw on the same patch gives the same tumor."""
        return draw(batch_size, self.lesions, candidates, rng)

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "b 1 x y z"], label: Int[Tensor, "b 1 x y z"], draw: Draw) -> Synthesis:
        """Plant what the draw says; the inputs stay untouched, and so does every sample that gets no lesion.

        Lesions that can be seen are composed, and those that the judge does not recognize are taken out again.
        """
        proposals = self._propose(self.intensity.to_hu(image), label, draw)
        rendered = [self._render(proposal) for proposal in proposals.lesions]
        good = [lesion.proposal.fits & lesion.visible for lesion in rendered]
        composed = self._compose(image, label, rendered, good)
        verdicts = [NO_VERDICT] * len(rendered)
        if self.gate is not None and rendered:
            said = zip(self.gate(composed.image, proposals.lesions), composed.changes)
            verdicts = [v._replace(recognized=v.recognized.where(change.kept, torch.nan)) for v, change in said]
            stay = [fine & verdict.stays for fine, verdict in zip(good, verdicts)]
            composed = self._compose(image, label, rendered, stay)
        lesions = [
            Lesion(
                one.proposal.site,
                change,
                mask=one.proposal.lesion,
                visible=one.visible,
                recognized=verdict.recognized,
                accepted=verdict.accepted,
            )
            for one, change, verdict in zip(rendered, composed.changes, verdicts)
        ]
        counts = count_lesions(proposals.placement.samples, lesions)
        return Synthesis(composed.image, composed.label, lesions, counts)

    def _render(self, proposal: Proposal) -> _Rendered:
        target, region = proposal.site.target, proposal.region
        contrast = self.generators[target](region, self.section.targets[target].prior.texture, proposal.look)
        visible = visibility(region, contrast, proposal.lesion) >= self.section.min_visibility
        return _Rendered(proposal, contrast, support(region), visible)

    def _compose(self, image: Tensor, label: Tensor, rendered: list[_Rendered], keep: list[Tensor]) -> _Composed:
        """Compose the lesions that are to be kept into copies of image and label."""
        image, label = image.clone(), label.clone()
        changes = []
        for (proposal, contrast, changeable, _), kept in zip(rendered, keep):
            site = proposal.site
            view = (site.sample, 0, *site.box.slices())
            where = Where(proposal.lesion, changeable, kept)
            tumor = self.section.targets[site.target].tumor_label
            changes.append(
                compose(
                    image[view],
                    label[view],
                    contrast_hu=contrast,
                    where=where,
                    tumor_label=tumor,
                    intensity=self.intensity,
                )
            )
        return _Composed(image, label, changes)


def _without_weights(section: Section) -> list[Generator]:
    if section.generator not in ("auto", "texture"):
        raise ValueError(
            f"freetumor plans: 'generator' is '{section.generator}', but no generators were given. Pass those that "
            "choose_generators and build_generators of nnunetv2_freetumor.generators.choice give, or set 'generator' "
            "to texture."
        )
    return [TextureGenerator() for _ in section.targets]
