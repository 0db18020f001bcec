"""Watch whether the network that trains recognizes the lesions that are planted, from the output that it trains on.

A forward hook reads that output: no extra forward, no wait in the step, nothing of nnU-Net's `train_step` restated. The
sums stay on the device and are read once an epoch. Validation (the network is not in training mode) is not watched.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn
from torch import distributed as dist

from nnunetv2_freetumor.plan import SIZE_NAMES, Section, size_index
from nnunetv2_freetumor.synthesis.planter import Lesion

WATCHED, RECOGNIZED = (tuple(f"{what} {name}" for name in SIZE_NAMES) for what in ("watched", "recognized"))


class _Expected(NamedTuple):
    """The lesions of the batch that the network is about to see."""

    ids: Int[Tensor, "b 1 x y z"]  # a lesion's place in the batch's list + 1, 0 elsewhere
    channel: Int[Tensor, "n"]  # by id: the network's output that means its tumor
    needed: Float[Tensor, "n"]  # by id: share of its voxels, as a judge would ask
    size: Int[Tensor, "n"]  # by id: the class of its diameter


def lesion_ids(lesions: Sequence[Lesion], label: Int[Tensor, "b 1 x y z"]) -> Int[Tensor, "b 1 x y z"]:
    """Mark each planted lesion's voxels by its place in the list + 1, 0 elsewhere."""
    ids = torch.zeros_like(label, dtype=torch.int16)
    for number, lesion in enumerate(lesions, start=1):
        at = (lesion.site.sample, 0, *lesion.site.box.slices())
        ids[at] = torch.where(lesion.mask & lesion.change.kept, number, ids[at])
    return ids


class Watch:
    """Count the planted lesions that the training network recognizes, by size class.

    A lesion counts as recognized when the network calls the share `min_quality` of its voxels tumor, the share that a
    judge asks for.
    """

    def __init__(self, section: Section, labels: LabelManager) -> None:
        """Take the section, and which of the network's outputs means which label."""
        self.min_quality = section.min_quality
        self.regions = labels.has_regions
        self.channels = [tumor_channel(labels, target.tumor_label) for target in section.targets]
        self._expected: _Expected | None = None
        self._sums: Tensor | None = None

    def attach(self, network: nn.Module) -> Any:
        """Attach to whatever the trainer calls: the plain network, the compiled one, or the wrapper of DDP."""
        return network.register_forward_hook(self._look)

    def expect(self, lesions: Sequence[Lesion], ids: Int[Tensor, "b 1 x y z"] | None) -> None:
        """Tell what was planted into the batch that comes next; None where it could not be followed."""
        if ids is None or not lesions:
            self._expected = None
            return
        sizes = [size_index(lesion.site.diameter_mm) for lesion in lesions]
        rows = [[0.0, *(self.channels[lesion.site.target] for lesion in lesions)]]
        rows += [[2.0, *(self.min_quality[size] for size in sizes)], [0.0, *sizes]]
        channel, needed, size = torch.tensor(rows).to(ids.device, non_blocking=True)
        self._expected = _Expected(ids, channel.long(), needed, size.long())

    def read(self, device: torch.device) -> dict[str, float]:
        """Sum over all processes, copy to the host and start again; once an epoch.

        Args:
            device: where the network computes; the processes sum there.
        """
        sums, self._sums = self._sums, None
        if sums is None:
            sums = torch.zeros(2, len(SIZE_NAMES), device=device)
        if dist.is_available() and dist.is_initialized():  # also where this process has watched no lesion
            dist.all_reduce(sums)
        return dict(zip((*WATCHED, *RECOGNIZED), sums.flatten().tolist()))

    @torch.no_grad()
    def _look(self, network: nn.Module, _: Any, output: Any) -> None:
        expected, self._expected = self._expected, None
        if expected is None or not network.training:
            return
        logits = output[0] if isinstance(output, list | tuple) else output  # the finest level of deep supervision
        ids = expected.ids.long()
        wanted = expected.channel[ids]
        called = logits.gather(1, wanted) > 0 if self.regions else logits.argmax(1, keepdim=True) == wanted
        flat, hit = ids.flatten(), (called & (ids > 0)).flatten().float()
        voxels = torch.zeros(len(expected.size), device=flat.device).scatter_add_(0, flat, torch.ones_like(hit))
        hits = torch.zeros_like(voxels).scatter_add_(0, flat, hit)
        there = (voxels > 0).index_fill(0, torch.zeros(1, dtype=torch.long, device=flat.device), False)
        recognized = there & (hits >= expected.needed * voxels)
        sums = torch.zeros(2, len(SIZE_NAMES), device=flat.device)
        sums.scatter_add_(1, expected.size.expand(2, -1), torch.stack([there, recognized]).float())
        self._sums = sums if self._sums is None else self._sums + sums


def tumor_channel(labels: LabelManager, tumor: int) -> int:
    """Return the network's output that means a tumor label: the label itself, or the smallest region that holds it."""
    if not labels.has_regions:
        return labels.all_labels.index(tumor)
    regions = [tuple(r) if isinstance(r, list | tuple) else (r,) for r in labels.foreground_regions]
    return min((index for index, region in enumerate(regions) if tumor in region), key=lambda i: len(regions[i]))


def recognized_share(counts: dict[str, float]) -> float:
    """Return the share of all watched lesions that were recognized; NaN where none was watched."""
    watched = sum(counts[name] for name in WATCHED)
    return sum(counts[name] for name in RECOGNIZED) / watched if watched else float("nan")
