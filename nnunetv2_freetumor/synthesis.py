"""The method: place lesions, draw their shape, generate their contrast, compose them into image and label."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnunetv2_freetumor import generators, patchy, shapes
from nnunetv2_freetumor.compose import Change, compose
from nnunetv2_freetumor.draws import CANDIDATES, Blueprint, Draw, draw, plan_sample
from nnunetv2_freetumor.generators import GENERATORS, Look, Region
from nnunetv2_freetumor.hosts import fat_mask
from nnunetv2_freetumor.intensity import Intensity
from nnunetv2_freetumor.placement import MAX_CUT, Placement, place
from nnunetv2_freetumor.plan import SIZE_NAMES, Section, Target, size_index
from nnunetv2_freetumor.volume import Box, Spacing, box_around, distance_within, offsets_mm, pool

COUNTS = (
    "samples", "host", "tumor_free", "eligible", "planted", "untouched_tumor_free", "no_room", "too_faint",
    *SIZE_NAMES, "lesion_voxels", "saturated_voxels",
)  # fmt: skip
CONTEXT_MM = 12.0  # how much of the host around a lesion its texture looks at
SUBVOXEL_MM = 1.5


class Lesion(NamedTuple):
    """One lesion that found a place; `change.kept` tells whether it stayed, `visible` whether it is bold enough."""

    sample: int
    target: int
    center: list[float]  # voxels
    diameter_mm: float
    box: Box
    change: Change
    visible: Bool[Tensor, ""]


class Synthesis(NamedTuple):
    """A batch with its synthetic lesions."""

    image: Float[Tensor, "b 1 x y z"]
    label: Int[Tensor, "b 1 x y z"]
    lesions: list[Lesion]
    counts: Float[Tensor, "counts"]  # sums over the batch, named by COUNTS


class _Spot(NamedTuple):
    sample: int
    target: int
    lesion: int
    center: list[float]
    blueprint: Blueprint


class Synthesizer:
    """Plant synthetic tumors into batches of CT patches or whole volumes, on the batch's device.

    Example, for tensors of any other framework (`hu` and `label` are (b, 1, x, y, z), HU and integer labels):

        synthesizer = Synthesizer(section, spacing_mm=(2.5, 0.8, 0.8), intensity=RAW_CT)
        rng = torch.Generator().manual_seed(1)
        image, label, lesions, counts = synthesizer(hu, label, synthesizer.draw(len(hu), rng))
    """

    def __init__(self, section: Section, spacing_mm: Spacing, intensity: Intensity) -> None:
        """Take the settings, the voxel size (mm, in the arrays' axis order) and how the image encodes HU."""
        self.section = section
        self.spacing_mm = spacing_mm
        self.intensity = intensity
        self.generator = GENERATORS[section.generator]
        self.lesions = max(len(target.prior.lesions_per_patch) for target in section.targets)
        x, y, z = (min(max(round(step / SUBVOXEL_MM), 1), 4) for step in spacing_mm)
        self.fold = (x, y, z)

    def draw(self, batch_size: int, rng: torch.Generator, candidates: int = CANDIDATES) -> Draw:
        """Draw all chance for a batch; the same draw on the same patch gives the same tumor."""
        return draw(batch_size, self.lesions, candidates, rng)

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "b 1 x y z"], label: Int[Tensor, "b 1 x y z"], draw: Draw) -> Synthesis:
        """Plant what the draw says; the inputs stay untouched, and so does every sample that gets no lesion."""
        hu = self.intensity.to_hu(image)
        blueprints = [plan_sample(self.section, self.spacing_mm, draw, index) for index in range(len(image))]
        placement = place(self.section, self.spacing_mm, hu, label, draw, blueprints)
        image, label = image.clone(), label.clone()
        lesions = [
            self._plant(spot, placement.hosts[spot.target], hu, image, label, draw)
            for spot in _spots(placement, blueprints)
        ]
        return Synthesis(image, label, lesions, count_lesions(placement, lesions))

    def _plant(self, spot: _Spot, hosts: Tensor, hu: Tensor, image: Tensor, label: Tensor, draw: Draw) -> Lesion:
        target = self.section.targets[spot.target]
        diameter = spot.blueprint.diameter_mm
        box = self._box(spot, target, hu.shape[2:])
        view = (spot.sample, 0, *box.slices())
        tiles = draw.texture[spot.sample, spot.lesion]
        uniform, normal = draw.look[spot.sample, spot.lesion].tolist(), float(draw.contrast[spot.sample, spot.lesion])
        region = self._region(spot, target, hosts, hu, label, box, tiles)
        lesion, keep = _outline(region, target)
        contrast = self.generator(region, target.prior.texture, Look(diameter, uniform, normal, tiles))
        support = generators.support(region)
        visible = generators.visibility(region, contrast, lesion) >= self.section.min_visibility
        keep = keep & visible
        change = compose(image[view], label[view], contrast, lesion, support, keep, target.tumor_label, self.intensity)
        return Lesion(spot.sample, spot.target, spot.center, diameter, box, change, visible)

    def _box(self, spot: _Spot, target: Target, shape: tuple[int, ...]) -> Box:
        reach = spot.blueprint.body.reach_mm
        if target.prior.shape.kind == "patchy":
            reach = [patchy.SPREAD * 0.5 * spot.blueprint.diameter_mm] * 3
        return box_around(spot.center, [mm + CONTEXT_MM for mm in reach], self.spacing_mm, shape)

    def _region(
        self, spot: _Spot, target: Target, hosts: Tensor, hu: Tensor, label: Tensor, box: Box, tiles: Tensor
    ) -> Region:
        """Cut out a lesion's surroundings and draw its surface there."""
        at = (slice(spot.sample, spot.sample + 1), slice(None), *box.slices())
        part, labels = hu[at], label[at]
        host = hosts[at][0, 0]
        allowed = host | _fat_beyond(target, spot.blueprint.diameter_mm, part, labels, host, self.spacing_mm)
        offsets = offsets_mm(box, spot.center, self.spacing_mm, (1, 1, 1), hu.device)
        fold = self.fold if target.prior.shape.kind == "blob" else (1, 1, 1)
        if target.prior.shape.kind == "patchy":
            distance = patchy.signed_distance_mm(host, offsets, tiles, spot.blueprint.diameter_mm, self.spacing_mm)
        else:
            fine = offsets_mm(box, spot.center, self.spacing_mm, fold, hu.device)
            distance = shapes.signed_distance_mm(spot.blueprint.body, fine)
        return Region(part[0, 0], host, allowed, distance, fold, offsets, self.spacing_mm)


def _fat_beyond(
    target: Target,
    diameter_mm: float,
    hu: Float[Tensor, "1 1 x y z"],
    label: Int[Tensor, "1 1 x y z"],
    host: Bool[Tensor, "x y z"],
    spacing_mm: Spacing,
) -> Bool[Tensor, "x y z"]:
    """Mark the fat beside the host that a lesion of this size may grow into."""
    limit = min(target.prior.exophytic_mm, target.prior.exophytic_per_diameter * diameter_mm)
    if limit <= 0:
        return torch.zeros_like(host)
    return fat_mask(hu, label)[0, 0] & (distance_within(host, limit, spacing_mm) <= limit)


def _outline(region: Region, target: Target) -> tuple[Bool[Tensor, "x y z"], Bool[Tensor, ""]]:
    """Give the lesion's voxels, and whether the host cuts off no more of it than allowed."""
    whole = pool(region.distance_mm, region.fold) < 0
    lesion = whole & region.allowed
    share = lesion.sum() / whole.sum().clamp_min(1)
    return lesion, (share >= 1 - MAX_CUT) | (target.prior.shape.kind == "patchy")


def _spots(placement: Placement, blueprints: list[list[list[Blueprint]]]) -> list[_Spot]:
    """Read where the lesions go: the step's one synchronization with the device."""
    fields = [placement.target[:, None, None].expand(*placement.placed.shape, 1), placement.placed[..., None]]
    rows = torch.cat([*(field.float() for field in fields), placement.center], dim=-1).tolist()
    spots = []
    for sample, lesions in enumerate(rows):
        for index, (target, placed, *center) in enumerate(lesions):
            if placed:
                plan = blueprints[sample][int(target)][index]
                spots.append(_Spot(sample, int(target), index, center, plan))
    return spots


def count_lesions(placement: Placement, lesions: list[Lesion]) -> Float[Tensor, "counts"]:
    """Sum up a batch, in the order of COUNTS."""
    device = placement.host.device
    kept, faint = torch.zeros(2, len(placement.host), dtype=torch.bool, device=device)
    tail = torch.zeros(len(SIZE_NAMES) + 2, dtype=torch.float64, device=device)
    for lesion in lesions:
        kept[lesion.sample] |= lesion.change.kept
        faint[lesion.sample] |= ~lesion.visible
        tail[size_index(lesion.diameter_mm)] += lesion.change.kept
        tail[-2] += lesion.change.voxels
        tail[-1] += lesion.change.saturated
    free = placement.tumor_free & placement.host
    head = [
        torch.ones_like(kept),
        placement.host,
        free,
        placement.eligible,
        kept,
        free & ~kept,
        placement.chosen & ~kept & ~faint,
        faint & ~kept,
    ]
    return torch.cat([torch.stack(head).sum(1).double(), tail])
