"""The method: place lesions, draw their shape, generate their contrast, compose them into image and label."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnunetv2_freetumor.intensity import Intensity
from nnunetv2_freetumor.plan import SIZE_NAMES, Section, size_index
from nnunetv2_freetumor.synthesis import region
from nnunetv2_freetumor.synthesis.compose import Change, compose
from nnunetv2_freetumor.synthesis.draws import CANDIDATES, Draw, draw
from nnunetv2_freetumor.synthesis.gate import NO_VERDICT, Finding, Gate, Verdict
from nnunetv2_freetumor.synthesis.placement import Placement
from nnunetv2_freetumor.synthesis.proposals import Proposal, Proposer
from nnunetv2_freetumor.synthesis.region import Generator
from nnunetv2_freetumor.synthesis.texture import TextureGenerator
from nnunetv2_freetumor.synthesis.volume import Box, Spacing

JUDGED, ACCEPTED = (tuple(f"{what} {name}" for name in SIZE_NAMES) for what in ("judged", "accepted"))  # by size class
COUNTS = (
    "samples", "host", "tumor_free", "eligible", "planted", "untouched_tumor_free", "no_room", "too_faint", "rejected",
    *SIZE_NAMES, *JUDGED, *ACCEPTED, "lesion_voxels", "saturated_voxels",
)  # fmt: skip


class Drawn(NamedTuple):
    """A proposed lesion with its contrast."""

    proposal: Proposal
    contrast_hu: Float[Tensor, "x y z"]
    support: Bool[Tensor, "x y z"]  # the voxels that may change
    visible: Bool[Tensor, ""]  # bold enough for the noise around it


class Lesion(NamedTuple):
    """One lesion that found a place; `change.kept` tells whether it stayed, `visible` whether it is bold enough."""

    sample: int
    target: int
    center: list[float]  # voxels
    diameter_mm: float
    box: Box
    change: Change
    visible: Bool[Tensor, ""]
    recognized: Float[Tensor, ""] = NO_VERDICT.recognized  # share of it that the judge calls tumor; NaN: not judged
    accepted: Bool[Tensor, ""] = NO_VERDICT.accepted  # by the judge; it may have stayed for its size all the same


class Synthesis(NamedTuple):
    """A batch with its synthetic lesions."""

    image: Float[Tensor, "b 1 x y z"]
    label: Int[Tensor, "b 1 x y z"]
    lesions: list[Lesion]
    counts: Float[Tensor, "counts"]  # sums over the batch, named by COUNTS


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
            generators: what draws the lesions of each target; `texture` where they are left out.
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
    def __call__(
        self,
        image: Float[Tensor, "b 1 x y z"],
        label: Int[Tensor, "b 1 x y z"],
        draw: Draw,
    ) -> Synthesis:
        """Plant what the draw says; the inputs stay untouched, and so does every sample that gets no lesion.

        Lesions that can be seen are composed, and those that the judge does not recognize are taken out again.
        """
        proposals = self._propose(self.intensity.to_hu(image), label, draw)
        drawn = [self._draw_contrast(proposal) for proposal in proposals.lesions]
        good = [lesion.proposal.fits & lesion.visible for lesion in drawn]
        image_before, label_before = image, label
        image, label, changes = self._compose(image, label, drawn, good)
        verdicts = [NO_VERDICT] * len(drawn)
        if self.gate is not None and drawn:
            said = self.gate(image, [_finding(lesion.proposal) for lesion in drawn])
            verdicts = [v._replace(recognized=v.recognized.where(c.kept, torch.nan)) for v, c in zip(said, changes)]
            stay = [fine & verdict.stays for fine, verdict in zip(good, verdicts)]
            image, label, changes = self._compose(image_before, label_before, drawn, stay)
        lesions = [_lesion(*parts) for parts in zip(drawn, changes, verdicts)]
        return Synthesis(image, label, lesions, count_lesions(proposals.placement, lesions))

    def _draw_contrast(self, proposal: Proposal) -> Drawn:
        texture = self.section.targets[proposal.target].prior.texture
        contrast = self.generators[proposal.target](proposal.region, texture, proposal.look)
        visible = region.visibility(proposal.region, contrast, proposal.lesion) >= self.section.min_visibility
        return Drawn(proposal, contrast, region.support(proposal.region), visible)

    def _compose(self, image: Tensor, label: Tensor, drawn: list[Drawn], keep: list[Tensor]) -> _Composed:
        """Compose the lesions that are to be kept into copies of image and label."""
        image, label = image.clone(), label.clone()
        changes = []
        for (proposal, contrast, support, _), kept in zip(drawn, keep):
            view = (proposal.sample, 0, *proposal.box.slices())
            tumor = self.section.targets[proposal.target].tumor_label
            parts = (contrast, proposal.lesion, support, kept, tumor, self.intensity)
            changes.append(compose(image[view], label[view], *parts))
        return _Composed(image, label, changes)


def _without_weights(section: Section) -> list[Generator]:
    if section.generator not in ("auto", "texture"):
        raise ValueError(
            f"freetumor plans: 'generator' is '{section.generator}', but no generators were given. Pass those that "
            "choose_generators and build_generators of nnunetv2_freetumor.generators.choice give, or set 'generator' "
            "to texture."
        )
    return [TextureGenerator() for _ in section.targets]


def _finding(proposal: Proposal) -> Finding:
    _, target, center, diameter_mm, box, _, _, lesion, _ = proposal
    return Finding(proposal.sample, target, center, diameter_mm, box, lesion)


def _lesion(drawn: Drawn, change: Change, verdict: Verdict) -> Lesion:
    sample, target, center, diameter_mm, box, *_ = drawn.proposal
    return Lesion(sample, target, center, diameter_mm, box, change, drawn.visible, verdict.recognized, verdict.accepted)


def count_lesions(placement: Placement, lesions: list[Lesion]) -> Float[Tensor, "counts"]:
    """Sum up a batch, in the order of COUNTS."""
    device = placement.host.device
    kept, faint, rejected = torch.zeros(3, len(placement.host), dtype=torch.bool, device=device)
    planted, judged, accepted = sizes = torch.zeros(3, len(SIZE_NAMES), dtype=torch.float64, device=device)
    voxels, saturated = tail = torch.zeros(2, dtype=torch.float64, device=device)
    for lesion in lesions:
        size, seen = size_index(lesion.diameter_mm), ~lesion.recognized.isnan()
        kept[lesion.sample] |= lesion.change.kept
        faint[lesion.sample] |= ~lesion.visible
        rejected[lesion.sample] |= seen & ~lesion.change.kept
        planted[size] += lesion.change.kept
        judged[size] += seen
        accepted[size] += seen & lesion.accepted
        voxels += lesion.change.voxels
        saturated += lesion.change.saturated
    free = placement.tumor_free & placement.host
    rejected &= ~kept
    head = [
        torch.ones_like(kept),
        placement.host,
        free,
        placement.eligible,
        kept,
        free & ~kept,
        placement.chosen & ~kept & ~faint & ~rejected,
        faint & ~kept & ~rejected,
        rejected,
    ]
    return torch.cat([torch.stack(head).sum(1).double(), sizes.flatten(), tail])
