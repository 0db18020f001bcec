"""The quality test: a frozen segmenter looks at each synthetic lesion, and what it does not recognize is not kept.

The recognized share is the share of a lesion's voxels that the segmenter calls tumor. It looks at a window of its own
patch size around the lesion, in its own z-scores and at its own spacing: inside the batch's patch where that is larger,
and padded with its mean HU, as nnU-Net pads, where it is smaller.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from nnunetv2_freetumor.intensity import Intensity
from nnunetv2_freetumor.plan import Section, size_index
from nnunetv2_freetumor.synthesis.gate import Verdict, untested
from nnunetv2_freetumor.synthesis.proposals import Proposal
from nnunetv2_freetumor.synthesis.region import Site
from nnunetv2_freetumor.synthesis.volume import Spacing
from nnunetv2_freetumor.training.segmenter import FrozenSegmenter

_SAME_SPACING = 1e-3  # relative


class Window(NamedTuple):
    """The part of a patch that the segmenter is shown."""

    sample: int
    start: tuple[int, int, int]  # voxels of the batch's patch; negative where the patch is smaller

    def bounds(self, size: Sequence[int]) -> list[list[int]]:
        """Return start and stop along each axis."""
        return [[first, first + length] for first, length in zip(self.start, size)]


class JudgeGate:
    """Let a frozen segmenter judge planted lesions, window by window, so that no sample depends on its neighbors."""

    together = 1  # windows that the network sees at once; on the CPU at least two, see `generators.cpu_doubling`

    def __init__(
        self,
        segmenter: FrozenSegmenter,
        section: Section,
        channels: Sequence[int | None],
        spacing_mm: Spacing,
        intensity: Intensity,
        judge: str = "",
    ) -> None:
        """Take the segmenter, its arrays' axes in the batch's order, and what the batches look like.

        Args:
            segmenter: what judges.
            section: the `freetumor` section, with the shares that are asked for.
            channels: by target, the segmenter's output that means its tumor; None leaves the target untested.
            spacing_mm: of the batches.
            intensity: of the batches.
            judge: where the segmenter comes from, for the record.
        """
        self.segmenter, self.judge = segmenter, judge
        self.min_quality = section.min_quality
        self.channels = channels
        self.intensity = intensity
        self.ungated: frozenset[int] = frozenset()  # size classes that pass whatever the judge says
        ratio = [ours / step for ours, step in zip(segmenter.spacing_mm, spacing_mm)]
        self._outputs = sorted({channel for channel in channels if channel is not None})
        self._ratio = [1.0 if abs(r - 1) < _SAME_SPACING else r for r in ratio]  # batch voxels per voxel of the window

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "b 1 x y z"], proposals: list[Proposal]) -> list[Verdict]:
        """Judge lesions that were planted into these z-scores."""
        tested = [proposal for proposal in proposals if self.channels[proposal.site.target] is not None]
        windows = [self.window_around(proposal.site, image.shape[2:]) for proposal in tested]
        unique = list(dict.fromkeys(windows))
        together = max(self.together, 2 if image.device.type == "cpu" else 1)
        outputs: dict[Window, Tensor] = {}
        for first in range(0, len(unique), together):
            chunk = unique[first : first + together]
            outputs |= zip(chunk, self._look(torch.cat([self.cut(image, window) for window in chunk])))
        verdicts = iter([self._judge(*pair, outputs[pair[1]]) for pair in zip(tested, windows)])
        return [
            untested(image.device) if self.channels[proposal.site.target] is None else next(verdicts)
            for proposal in proposals
        ]

    def window_around(self, site: Site, shape: Sequence[int]) -> Window:
        """Lay the window around a lesion and move it into the patch."""
        start = []
        for center, size, patch, ratio in zip(site.center, shape, self.segmenter.patch_size, self._ratio):
            extent = patch * ratio
            first = min(max(center + 0.5 - extent / 2, 0), size - extent) if extent <= size else (size - extent) / 2
            start.append(math.floor(first))
        return Window(site.sample, (start[0], start[1], start[2]))

    def cut(self, image: Float[Tensor, "b 1 x y z"], window: Window) -> Float[Tensor, "1 1 px py pz"]:
        """Cut a window out of a batch of z-scores, in the segmenter's own z-scores and at its own spacing."""
        z = image[window.sample : window.sample + 1].float()
        if self.intensity != self.segmenter.intensity:
            z = self.segmenter.intensity.to_z(self.intensity.to_hu(z))
        return self.read(z, window)

    def read(self, volume: Float[Tensor, "1 1 x y z"], window: Window) -> Float[Tensor, "1 1 px py pz"]:
        """Read a window of a volume at the segmenter's spacing, with zeros beyond the volume."""
        if all(r == 1 for r in self._ratio):
            return crop_and_pad_nd(volume, window.bounds(self.segmenter.patch_size))
        return read_view(volume, window.start, self._ratio, self.segmenter.patch_size)

    def _look(self, z: Float[Tensor, "b 1 px py pz"]) -> list[Tensor]:
        """Mark each window's tumors, (t px py pz) with the tested targets' outputs in rising order."""
        with torch.autocast(z.device.type, enabled=z.device.type == "cuda"):
            logits = self.segmenter.logits(z)
        marked = [self.segmenter.recognized(logits, c) for c in self._outputs]
        return list(torch.stack(marked, dim=1))

    def _judge(self, proposal: Proposal, window: Window, marked: Bool[Tensor, "t px py pz"]) -> Verdict:
        """Compare a lesion with what is marked in its window; voxels beyond the window are not asked for."""
        site, channel = proposal.site, self.channels[proposal.site.target]
        assert channel is not None, "only tested targets come here"
        tumor, lesion = marked[self._outputs.index(channel)], proposal.lesion
        for axis in range(3):
            voxels = torch.arange(site.box.start[axis], site.box.stop[axis], device=marked.device)
            at = ((voxels + 0.5 - window.start[axis]) / self._ratio[axis]).floor().long()
            inside = (at >= 0) & (at < tumor.shape[axis])
            lesion = lesion & inside.reshape([-1 if other == axis else 1 for other in range(3)])
            tumor = tumor.index_select(axis, at.clamp(0, tumor.shape[axis] - 1))
        recognized = (lesion & tumor).sum() / lesion.sum().clamp_min(1)
        size = size_index(site.diameter_mm)
        accepted = recognized >= self.min_quality[size]
        return Verdict(recognized, accepted, torch.ones_like(accepted) if size in self.ungated else accepted)


def read_view(
    z: Float[Tensor, "1 1 x y z"], start: Sequence[int], ratio: Sequence[float], size: Sequence[int]
) -> Float[Tensor, "1 1 px py pz"]:
    """Read a window with voxels of `ratio` voxels, trilinearly, with zeros where it leaves the volume."""
    axes = [
        (first + (torch.arange(length, device=z.device) + 0.5) * step) * (2 / n) - 1  # -1 and 1 are the volume's edges
        for first, length, step, n in zip(start, size, ratio, z.shape[2:])
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    read = functional.grid_sample(
        z, grid.flip(-1)[None], mode="bilinear", padding_mode="border", align_corners=False
    )  # grid_sample wants the last axis first
    return read * (grid.abs() <= 1).all(-1)
