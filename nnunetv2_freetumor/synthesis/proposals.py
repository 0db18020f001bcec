"""Propose lesions: which samples get some, where, of which size and shape; nothing is rendered yet."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnunetv2_freetumor.plan import Section, Target
from nnunetv2_freetumor.synthesis import patchy, shapes
from nnunetv2_freetumor.synthesis.draws import Blueprint, Draw, blueprints_of
from nnunetv2_freetumor.synthesis.hosts import fat_mask
from nnunetv2_freetumor.synthesis.placement import MAX_CUT, Placement, place
from nnunetv2_freetumor.synthesis.region import Chances, Look, Region, Site
from nnunetv2_freetumor.synthesis.shapes import Body
from nnunetv2_freetumor.synthesis.volume import Box, Spacing, box_around, distance_within, mean_of_subvoxels, offsets_mm

CONTEXT_MM = 12.0  # how much of the host around a lesion its texture looks at
SUBVOXEL_MM = 1.5


class Proposal(NamedTuple):
    """One lesion that found a place, before it is rendered."""

    site: Site
    region: Region
    look: Look
    lesion: Bool[Tensor, "x y z"]  # its voxels
    fits: Bool[Tensor, ""]  # the host cuts off no more of it than allowed


class Proposals(NamedTuple):
    """Where a batch's lesions go."""

    placement: Placement
    lesions: list[Proposal]


class _Spot(NamedTuple):
    sample: int
    target: int
    lesion: int  # of the sample's draw
    center: list[float]
    blueprint: Blueprint


class Proposer:
    """Place a batch's lesions and draw their shapes."""

    def __init__(self, section: Section, spacing_mm: Spacing, windows_mm: list[float]) -> None:
        """Take the settings, the voxel size (mm), and by target the side of the region that its generator needs."""
        self.section = section
        self.spacing_mm = spacing_mm
        self.windows_mm = windows_mm
        x, y, z = (min(max(round(step / SUBVOXEL_MM), 1), 4) for step in spacing_mm)
        self.subvoxels = (x, y, z)

    def __call__(self, hu: Float[Tensor, "b 1 x y z"], label: Int[Tensor, "b 1 x y z"], draw: Draw) -> Proposals:
        """Propose what the draw says."""
        blueprints = [blueprints_of(self.section, self.spacing_mm, draw, index) for index in range(len(hu))]
        placement = place(self.section, self.spacing_mm, hu=hu, label=label, draw=draw, blueprints=blueprints)
        spots = _spots(placement, blueprints)
        return Proposals(
            placement,
            [self._propose(spot, placement.hosts[spot.target], hu=hu, label=label, draw=draw) for spot in spots],
        )

    def _propose(self, spot: _Spot, hosts: Tensor, hu: Tensor, label: Tensor, draw: Draw) -> Proposal:
        target, (diameter_mm, body) = self.section.targets[spot.target], spot.blueprint
        box = self._box(spot, target, hu.shape[2:])
        site = Site(spot.sample, spot.target, center=spot.center, diameter_mm=diameter_mm, box=box)
        chances, contrast, noise = (part[spot.sample, spot.lesion] for part in draw.look)
        look = Look(diameter_mm, Chances(*chances.tolist()[: len(Chances._fields)]), float(contrast), noise)
        region = self._region(site, target, hosts=hosts, hu=hu, label=label, body=body, noise=noise)
        lesion, fits = _outline(region, target)
        return Proposal(site, region, look=look, lesion=lesion, fits=fits)

    def _box(self, spot: _Spot, target: Target, shape: tuple[int, ...]) -> Box:
        reach = spot.blueprint.body.reach_mm
        if target.prior.shape.kind == "patchy":
            reach = [patchy.SPREAD * 0.5 * spot.blueprint.diameter_mm] * 3
        half_mm = [max(mm + CONTEXT_MM, self.windows_mm[spot.target] / 2) for mm in reach]
        return box_around(spot.center, half_mm, self.spacing_mm, shape)

    def _region(
        self, site: Site, target: Target, hosts: Tensor, hu: Tensor, label: Tensor, body: Body, noise: Tensor
    ) -> Region:
        """Cut out a lesion's surroundings and lay its surface there."""
        at = (slice(site.sample, site.sample + 1), slice(None), *site.box.slices())
        part, labels = hu[at], label[at]
        host = hosts[at][0, 0]
        allowed = host | _fat_beyond(
            target, site.diameter_mm, hu=part, label=labels, host=host, spacing_mm=self.spacing_mm
        )
        offsets = offsets_mm(site.box, site.center, spacing_mm=self.spacing_mm, subvoxels=(1, 1, 1), device=hu.device)
        subvoxels = self.subvoxels if target.prior.shape.kind == "blob" else (1, 1, 1)
        if target.prior.shape.kind == "patchy":
            distance = patchy.signed_distance_mm(
                host, offsets, tiles=noise, diameter_mm=site.diameter_mm, spacing_mm=self.spacing_mm
            )
        else:
            fine = offsets_mm(site.box, site.center, spacing_mm=self.spacing_mm, subvoxels=subvoxels, device=hu.device)
            distance = shapes.signed_distance_mm(body.surface, fine)
        return Region(
            part[0, 0],
            host,
            allowed=allowed,
            distance_mm=distance,
            subvoxels=subvoxels,
            offsets_mm=offsets,
            spacing_mm=self.spacing_mm,
        )


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
    """Return the lesion's voxels, and whether the host cuts off no more of it than allowed."""
    whole = mean_of_subvoxels(region.distance_mm, region.subvoxels) < 0
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
                blueprint = blueprints[sample][int(target)][index]
                spots.append(_Spot(sample, int(target), lesion=index, center=center, blueprint=blueprint))
    return spots
