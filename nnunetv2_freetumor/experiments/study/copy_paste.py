"""Copy-paste of real tumors in the manner of CarveMix, as an arm to compare synthesis with; not meant for products.

A real tumor of the fold's own training cases is carved out with a random margin and pasted, image and label together,
at a random place in the host of another patch (Zhang et al., CarveMix, MICCAI 2021 and NeuroImage 2023). The margin is
the paper's: with d the signed distance to the tumor's surface (negative inside) and D = |min d|, the carved region is
d <= lambda, lambda drawn half the time from U(-D / 2, 0), half from U(0, D). Unlike CarveMix, which keeps the place in
the brain, one tumor at a time is mirrored at random and pasted where the host has room.

Intensities are copied as they are, so that a tumor from a portal venous scan meets the liver of an unenhanced one: that
is what makes copy-paste unrealistic across phases and scanners.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cc3d
import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask, pad_bbox
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from nnunetv2_freetumor.intensity import Intensity
from nnunetv2_freetumor.plan import Section, Target
from nnunetv2_freetumor.synthesis import hosts
from nnunetv2_freetumor.synthesis.compose import Where, compose
from nnunetv2_freetumor.synthesis.draws import CANDIDATES, Draw, draw, lesion_count
from nnunetv2_freetumor.synthesis.gate import Gate
from nnunetv2_freetumor.synthesis.placement import MAX_CUT, MIN_IN_PATCH, place
from nnunetv2_freetumor.synthesis.planter import Lesion, Synthesis, count_lesions
from nnunetv2_freetumor.synthesis.region import Site
from nnunetv2_freetumor.synthesis.volume import Box, Spacing, distance_within


class RealTumor(NamedTuple):
    """One connected tumor of a training case, with as much around it as a margin can take."""

    target: int  # its place among the section's targets
    image: Float[Tensor, "x y z"]  # z-scores
    distance_mm: Float[Tensor, "x y z"]  # to its surface, negative inside
    tissue: Bool[Tensor, "x y z"]  # the tumor and its host; a margin takes nothing else along


@runtime_checkable
class Dataset(Protocol):
    """What is needed of nnU-Net's preprocessed datasets."""

    def load_case(self, identifier: str) -> tuple:
        """Load the image, segmentation, previous stage and properties of a case."""


class _Piece(NamedTuple):
    image: Float[Tensor, "x y z"]
    tumor: Bool[Tensor, "x y z"]
    carved: Bool[Tensor, "x y z"]  # the tumor and its margin, or its core


class _Fit(NamedTuple):
    center: list[float]
    box: Box  # in the patch
    part: tuple[slice, slice, slice]  # of the piece


def read_bank(dataset: Dataset, identifiers: Sequence[str], section: Section, spacing_mm: Spacing) -> list[RealTumor]:
    """Collect the real tumors of preprocessed training cases, target by target.

    Args:
        dataset: nnU-Net's preprocessed dataset of one configuration.
        identifiers: the cases of the fold's training part; a validation case must not be among them.
        section: whose targets name the tumor and host labels.
        spacing_mm: the configuration's spacing, in the arrays' axis order.
    """
    bank = []
    for identifier in identifiers:
        image, label, *_ = dataset.load_case(identifier)
        labels = np.asarray(label[0])
        for index, target in enumerate(section.targets):
            parts = cc3d.connected_components(labels == target.tumor_label, connectivity=26)
            for _, tumor in cc3d.each(parts, binary=True, in_place=False):
                bank.append(
                    _cut_out(index, target, tumor=tumor.astype(bool), labels=labels, image=image, spacing_mm=spacing_mm)
                )
    return bank


def _cut_out(
    index: int, target: Target, tumor: np.ndarray, labels: np.ndarray, image: Any, spacing_mm: Spacing
) -> RealTumor:
    bounds = get_bbox_from_mask(tumor)
    inside = np.pad(tumor[bounding_box_to_slice(bounds)], 1)
    depth_mm = ndimage.distance_transform_edt(inside, sampling=spacing_mm).max()
    box = bounding_box_to_slice(pad_bbox(bounds, [math.ceil(depth_mm / mm) for mm in spacing_mm], tumor.shape))
    inner = ndimage.distance_transform_edt(np.pad(tumor[box], 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    outer = ndimage.distance_transform_edt(~tumor[box], sampling=spacing_mm)
    tissue = tumor[box] | np.isin(labels[box], target.host_labels or (0,))
    crop = np.asarray(image[(0, *box)], dtype=np.float32)
    return RealTumor(
        index, torch.from_numpy(crop), torch.from_numpy((outer - inner).astype(np.float32)), torch.from_numpy(tissue)
    )


class CopyPaste:
    """Paste real tumors into batches; takes the place of `Synthesizer` and draws from the same chances.

    It chooses the same patches, for the same number of lesions, as `Synthesizer` does with the same section and draw.
    """

    gate: Gate | None = None  # no judge: these tumors are real

    def __init__(self, section: Section, spacing_mm: Spacing, intensity: Intensity, bank: Sequence[RealTumor]) -> None:
        """Take the settings and the real tumors to paste.

        Raises:
            ValueError: a target has no real tumor in the bank.
        """
        self.section = section
        self.spacing_mm = spacing_mm
        self.intensity = intensity
        self.banks = [[tumor for tumor in bank if tumor.target == index] for index in range(len(section.targets))]
        self.lesions = max(len(target.prior.lesions_per_patch) for target in section.targets)
        missing = [target.name for target, tumors in zip(section.targets, self.banks) if not tumors]
        if missing:
            raise ValueError(
                "Copy-paste needs at least one real tumor in the fold's training cases for every target, but there is "
                f"none for {', '.join(missing)}. Use synthesis, or training cases with tumors."
            )

    def draw(self, batch_size: int, rng: torch.Generator, candidates: int = CANDIDATES) -> Draw:
        """Draw all chance for a batch, as `Synthesizer` does; `look` picks the tumor, its margin and its mirroring."""
        return draw(batch_size, self.lesions, candidates, rng)

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "b 1 x y z"], label: Int[Tensor, "b 1 x y z"], draw: Draw) -> Synthesis:
        """Paste what the draw says; the inputs stay untouched, and so does every sample that gets no tumor."""
        nothing: list = [[[] for _ in self.section.targets] for _ in range(len(image))]
        hu = self.intensity.to_hu(image)
        placement = place(self.section, self.spacing_mm, hu=hu, label=label, draw=draw, blueprints=nothing)
        image, label = image.clone(), label.clone()
        lesions = []
        for sample, (chosen, target) in enumerate(zip(placement.samples.chosen.tolist(), placement.target.tolist())):
            prior = self.section.targets[target].prior
            for number in range(lesion_count(prior, draw.decision.lesions[sample]) if chosen else 0):
                host = placement.hosts[target][sample, 0]
                lesion = self._paste(
                    sample, target, number=number, host=host, image=image[sample, 0], label=label[sample, 0], draw=draw
                )
                lesions += [lesion] if lesion else []
        return Synthesis(image, label, lesions, count_lesions(placement.samples, lesions))

    def _paste(
        self, sample: int, index: int, number: int, host: Tensor, image: Tensor, label: Tensor, draw: Draw
    ) -> Lesion | None:
        """Paste one tumor into views of a sample's image and label; None where the host has no room for it."""
        piece = _Piece(
            *(part.to(image.device) for part in _carve(self.banks[index], draw.look.chances[sample, number]))
        )
        lesion_labels = tuple({value for target in self.section.targets for value in target.lesion_labels})
        real = hosts.has_label(label[None, None], lesion_labels)[0, 0]
        host = host & ~real
        taken = distance_within(real, self.section.clearance_mm, self.spacing_mm) <= self.section.clearance_mm
        fit = _first_fit(piece, host, taken, draw.center.candidate[sample, number])
        if fit is None:
            return None
        at, free = fit.box.slices(), host[fit.box.slices()]
        tumor, carved, new = (part[fit.part] for part in (piece.tumor, piece.carved, piece.image))
        contrast_hu = self.intensity.to_hu(new) - self.intensity.to_hu(image[at])
        where = Where(tumor & free, carved & free, keep=torch.ones_like(free[0, 0, 0]))
        tumor_label = self.section.targets[index].tumor_label
        change = compose(
            image[at],
            label[at],
            contrast_hu=contrast_hu,
            where=where,
            tumor_label=tumor_label,
            intensity=self.intensity,
        )
        diameter_mm = (6 / math.pi * int(change.voxels) * math.prod(self.spacing_mm)) ** (1 / 3)
        site = Site(sample, index, center=fit.center, diameter_mm=diameter_mm, box=fit.box)
        return Lesion(site, change, where.lesion, visible=torch.ones_like(change.kept))


def carve_margin_mm(depth_mm: float, half: float, place: float) -> float:
    """Turn two uniform draws into CarveMix's margin: U(-depth / 2, 0) or U(0, depth), each half of the time."""
    return -0.5 * depth_mm * place if half < 0.5 else depth_mm * place


def _carve(bank: list[RealTumor], look: Float[Tensor, "n"]) -> _Piece:
    """Pick a tumor, carve it with its margin, mirror it at random, and trim what the margin left over."""
    pick, half, place, *mirror = look[:6].tolist()
    tumor = bank[int(pick * len(bank))]
    margin = carve_margin_mm(-float(tumor.distance_mm.min()), half, place)
    carved = (tumor.distance_mm <= margin) & tumor.tissue
    trim = bounding_box_to_slice(get_bbox_from_mask(carved.numpy()))
    axes = [axis for axis, uniform in enumerate(mirror) if uniform < 0.5]
    parts = (tumor.image, carved & (tumor.distance_mm < 0), carved)
    return _Piece(*(part[trim].flip(axes) for part in parts))


def _first_fit(
    piece: _Piece, host: Bool[Tensor, "x y z"], taken: Bool[Tensor, "x y z"], candidates: Float[Tensor, "k"]
) -> _Fit | None:
    """Try host voxels as the piece's middle until the host holds most of the tumor, away from other lesions."""
    places = host.nonzero()
    whole = int(piece.tumor.sum())
    for uniform in candidates.tolist() if len(places) else ():
        fit = _lay(piece, places[int(uniform * len(places))].tolist(), host.shape)
        at, tumor = fit.box.slices(), piece.tumor[fit.part]
        inside, held, near = (int(part.sum()) for part in (tumor, tumor & host[at], tumor & taken[at]))
        if inside >= MIN_IN_PATCH * whole and held >= max((1 - MAX_CUT) * inside, 1) and not near:
            return fit
    return None


def _lay(piece: _Piece, center: list[int], shape: Sequence[int]) -> _Fit:
    """Lay the piece's middle on a voxel and cut it to the patch."""
    low = [c - size // 2 for c, size in zip(center, piece.tumor.shape)]
    start = [max(first, 0) for first in low]
    stop = [min(first + size, n) for first, size, n in zip(low, piece.tumor.shape, shape)]
    part = [slice(a - first, b - first) for a, b, first in zip(start, stop, low)]
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    return _Fit([float(c) for c in center], box, (part[0], part[1], part[2]))
