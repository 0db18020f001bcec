"""What the adversarial stage sees: windows of one size around synthetic and around real lesions, joined into batches.

Both kinds are cut and resampled by the same functions, so that nothing but the lesion can give them away.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import cc3d
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnunetv2_freetumor.generator_training.recipes import Frame, Recipe
from nnunetv2_freetumor.generators.grid import Grid, VolumeBatch, array_order, make_grid, to_grid
from nnunetv2_freetumor.generators.learned import FreetumorInputs, LiteInputs, freetumor_inputs, lite_inputs
from nnunetv2_freetumor.plan import Target
from nnunetv2_freetumor.synthesis.proposals import Proposal
from nnunetv2_freetumor.synthesis.region import Region, support
from nnunetv2_freetumor.synthesis.volume import Spacing, box_around, distance_within, masked_mean, offsets_mm

_MARGIN_MM = 6.0  # of a region around the window
_REACH_MM = 8.0  # of the distances in a window
_MIN_HOST_VOXELS = 30


class Windows(NamedTuple):
    """Lesions in their surroundings, on the training grid."""

    hu: VolumeBatch
    mask: VolumeBatch  # 1 on the lesion
    distance_mm: VolumeBatch  # to the lesion's surface, negative inside, infinite far away
    host_hu: Float[Tensor, "b 1 1 1 1"]  # mean of the host around the lesion

    def with_hu(self, hu: VolumeBatch) -> "Windows":
        """Return the same windows with another image."""
        return self._replace(hu=hu)


class Placed(NamedTuple):
    """A lesion's place: where its grid lies."""

    proposal: Proposal
    region: Region  # the proposal's, with the grid's center at offset 0
    grid: Grid


class Synthetic(NamedTuple):
    """Lesions to be rendered: what the network is given, and where it may change the image."""

    inputs: LiteInputs | FreetumorInputs
    windows: Windows  # of the image before
    support: VolumeBatch
    channel: Int[Tensor, "b"]  # of the published network: the host's
    lesions: list[Placed]
    target: int = 0  # of all of them


class _Prepared(NamedTuple):
    inputs: LiteInputs | FreetumorInputs
    window: Windows
    support: VolumeBatch
    proposal: Proposal
    region: Region
    grid: Grid


class Cutter:
    """Cut windows for one recipe and one dataset's axes."""

    def __init__(self, recipe: Recipe, frame: Frame, spacing_mm: Spacing, slice_axis: int) -> None:
        """Take the recipe, its frame, the voxel size of the data in their axis order, and their slice axis."""
        self.kind, self.window_hu = recipe.kind, frame.window_hu
        self.data_mm, self.slice_axis = spacing_mm, slice_axis
        self.spacing_mm: Spacing = array_order(frame.spacing_mm, slice_axis)
        self.sides: tuple[int, int, int] = array_order(frame.side_voxels, slice_axis)

    @property
    def window_mm(self) -> float:
        """Return the side of a region that holds a window."""
        return max(side * step for side, step in zip(self.sides, self.spacing_mm)) + 2 * _MARGIN_MM

    def synthetic(
        self, proposals: Sequence[Proposal], targets: Sequence[Target], rng: torch.Generator
    ) -> Synthetic | None:
        """Prepare lesions for the network, each window around a random voxel of its lesion; None without any."""
        prepared = [self._prepare(proposal, targets, rng) for proposal in proposals]
        keep = torch.stack([_is_usable(one.window) for one in prepared]).tolist() if prepared else []
        prepared = [one for one, usable in zip(prepared, keep) if usable]
        if not prepared:
            return None
        kind = type(prepared[0].inputs)
        names = [target.prior.name for target in targets]
        channels = [list(dict.fromkeys(names)).index(name) for name in names]
        own, device = [channels[one.proposal.site.target] for one in prepared], prepared[0].support.device
        return Synthetic(
            inputs=kind(*(torch.cat(parts) for parts in zip(*(one.inputs for one in prepared)))),
            windows=join_windows([one.window for one in prepared]),
            support=torch.cat([one.support for one in prepared]),
            channel=torch.tensor(own, device=device),
            lesions=[Placed(one.proposal, one.region, one.grid) for one in prepared],
            target=prepared[0].proposal.site.target,
        )

    def real(
        self,
        hu: Float[Tensor, "b 1 x y z"],
        label: Int[Tensor, "b 1 x y z"],
        hosts: Sequence[Bool[Tensor, "b 1 x y z"]],
        targets: Sequence[Target],
        rng: torch.Generator,
    ) -> list[list[Windows]]:
        """Cut a window around a random voxel of every real lesion in a batch, by target, as `hosts` are."""
        found: list[list[Windows]] = []
        for host, target in zip(hosts, targets):
            windows = []
            for sample in range(len(hu)):
                tumor = label[sample, 0] == target.tumor_label
                for center in _random_voxels(tumor, rng):
                    windows.append(self._cut(hu[sample, 0], tumor, host[sample, 0], center))
            keep = torch.stack([_is_usable(window) for window in windows]).tolist() if windows else []
            found.append([window for window, usable in zip(windows, keep) if usable])
        return found

    def _prepare(self, proposal: Proposal, targets: Sequence[Target], rng: torch.Generator) -> _Prepared:
        region = self._shifted(proposal, rng)
        grid = make_grid(region, self.spacing_mm, 8, self.sides)
        inputs = self._inputs(region, proposal, targets, grid)
        known = _inside(region, grid)
        window = self._window(inputs.hu[0, 0], inputs.distance[0, 0] < 0, inputs.host[0, 0] >= 0.5, known)
        allowed = (to_grid(support(region).float(), region, grid) * known)[None, None]
        return _Prepared(inputs, window, allowed, proposal=proposal, region=region, grid=grid)

    def _inputs(
        self, region: Region, proposal: Proposal, targets: Sequence[Target], grid: Grid
    ) -> LiteInputs | FreetumorInputs:
        if self.kind == "freetumor":
            return freetumor_inputs(region, proposal.look, grid, self.window_hu)
        texture = targets[proposal.site.target].prior.texture
        return lite_inputs(region, texture, proposal.look, grid, window_hu=self.window_hu)

    def _shifted(self, proposal: Proposal, rng: torch.Generator) -> Region:
        """Move the center to a random voxel of the lesion, as far as the window stays inside the region."""
        region = proposal.region
        voxels = proposal.lesion.nonzero()
        pick = int(torch.rand((), generator=rng) * len(voxels))
        at = region.offsets_mm[tuple(voxels[pick])] if len(voxels) else torch.zeros(3, device=region.hu.device)
        half = torch.tensor([side * step / 2 for side, step in zip(self.sides, self.spacing_mm)], device=at.device)
        low = (region.offsets_mm[0, 0, 0] + half).clamp_max(0)
        high = (region.offsets_mm[-1, -1, -1] - half).clamp_min(0)
        return region._replace(offsets_mm=region.offsets_mm - torch.minimum(torch.maximum(at, low), high))

    def _cut(
        self,
        hu: Float[Tensor, "x y z"],
        tumor: Bool[Tensor, "x y z"],
        host: Bool[Tensor, "x y z"],
        center: list[float],
    ) -> Windows:
        box = box_around(center, [self.window_mm / 2] * 3, self.data_mm, tuple(hu.shape))
        offsets = offsets_mm(box, center, self.data_mm, (1, 1, 1), device=hu.device)
        part, own = hu[box.slices()], host[box.slices()]
        outline = torch.zeros_like(part)  # nobody looks at it
        region = Region(part, own, own, outline, subvoxels=(1, 1, 1), offsets_mm=offsets, spacing_mm=self.data_mm)
        grid = make_grid(region, self.spacing_mm, 8, self.sides)
        lesion = to_grid(tumor[box.slices()].float(), region, grid) >= 0.5
        around = to_grid(own.float(), region, grid) >= 0.5
        return self._window(to_grid(part, region, grid), lesion, around, _inside(region, grid))

    def _window(
        self,
        hu: Float[Tensor, "x y z"],
        lesion: Bool[Tensor, "x y z"],
        host: Bool[Tensor, "x y z"],
        known: Bool[Tensor, "x y z"],
    ) -> Windows:
        """Finish a window; beyond the patch there is no lesion, and the image is the host's mean."""
        lesion = lesion & known
        half_voxel = min(self.spacing_mm) / 2
        outside = distance_within(lesion, _REACH_MM, self.spacing_mm) - half_voxel
        inside = distance_within(~lesion, _REACH_MM, self.spacing_mm) - half_voxel
        distance = torch.where(lesion, -inside, outside)
        around = (host & known & ~lesion).float()
        enough = around.sum() >= _MIN_HOST_VOXELS
        mean = torch.where(enough, masked_mean(hu, around), torch.nan)
        hu = torch.where(known, hu, mean)
        return Windows(hu[None, None], lesion[None, None].float(), distance[None, None], mean.reshape(1, 1, 1, 1, 1))


def _random_voxels(tumor: Bool[Tensor, "x y z"], rng: torch.Generator) -> list[list[float]]:
    """Pick one voxel of every 26-connected lesion."""
    if not tumor.any():
        return []
    parts = cc3d.connected_components(tumor.cpu().numpy(), connectivity=26)
    _, *boxes = cc3d.statistics(parts)["bounding_boxes"]  # the background's comes first
    centers = []
    for number, box in enumerate(boxes, start=1):
        voxels = torch.from_numpy(parts[box] == number).nonzero()
        voxel = voxels[int(torch.rand((), generator=rng) * len(voxels))].tolist()
        centers.append([float(edge.start + at) for edge, at in zip(box, voxel)])
    return centers


def _inside(region: Region, grid: Grid) -> Bool[Tensor, "u v w"]:
    """Mark the grid's voxels that lie inside the region: a window may reach beyond the patch."""
    first, last = region.offsets_mm[0, 0, 0], region.offsets_mm[-1, -1, -1]
    marks = []
    for axis, (step, side) in enumerate(zip(grid.spacing_mm, grid.sides)):
        at, half = grid.first_mm[axis] + step * torch.arange(side, device=first.device), region.spacing_mm[axis] / 2
        marks.append((at >= first[axis] - half) & (at <= last[axis] + half))
    x, y, z = marks
    return x[:, None, None] & y[:, None] & z


def _is_usable(window: Windows) -> Bool[Tensor, ""]:
    """Check whether a window shows a lesion and its host."""
    return (window.mask.sum() > 0) & window.host_hu.isfinite().all()


def join_windows(windows: Sequence[Windows]) -> Windows:
    """Join windows into one batch."""
    return Windows(*(torch.cat(parts) for parts in zip(*windows)))


class Replay:
    """The most recent real lesions, for steps whose batch shows none."""

    def __init__(self, size: int) -> None:
        """Take the number of windows to keep."""
        self._kept: deque[Windows] = deque(maxlen=size)

    def __len__(self) -> int:
        """Count the windows."""
        return len(self._kept)

    def add(self, windows: Sequence[Windows]) -> None:
        """Keep windows, and forget the oldest."""
        self._kept.extend(windows)

    def draw(self, count: int, rng: torch.Generator) -> Windows:
        """Draw a batch of windows, with repetition only where there are too few."""
        order = torch.randperm(len(self._kept), generator=rng).tolist()
        return join_windows([self._kept[order[index % len(order)]] for index in range(count)])
