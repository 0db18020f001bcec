"""What plants, as a training sees it: a batch in, the batch with lesions and what was counted out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnunetv2_freetumor.intensity import Intensity
from nnunetv2_freetumor.plan import SIZE_NAMES, Section, size_index
from nnunetv2_freetumor.synthesis.compose import Change
from nnunetv2_freetumor.synthesis.draws import CANDIDATES, Draw
from nnunetv2_freetumor.synthesis.gate import NO_VERDICT, Gate
from nnunetv2_freetumor.synthesis.placement import Samples
from nnunetv2_freetumor.synthesis.region import Site
from nnunetv2_freetumor.synthesis.volume import Spacing

JUDGED, ACCEPTED = (tuple(f"{what} {name}" for name in SIZE_NAMES) for what in ("judged", "accepted"))  # by size class
COUNTS = (
    "samples", "host", "tumor_free", "eligible", "planted", "untouched_tumor_free", "no_room", "too_faint", "rejected",
    *SIZE_NAMES, *JUDGED, *ACCEPTED, "lesion_voxels", "saturated_voxels",
)  # fmt: skip
"""What is counted of each batch. The names are keys of nnU-Net's logger: a file format."""


class Lesion(NamedTuple):
    """One lesion that found a place; `change.kept` tells whether it stayed, `visible` whether it is bold enough."""

    site: Site
    change: Change
    mask: Bool[Tensor, "x y z"]  # its voxels inside the site's box, if it stayed
    visible: Bool[Tensor, ""]
    recognized: Float[Tensor, ""] = NO_VERDICT.recognized  # share of it that the judge calls tumor; NaN: not judged
    accepted: Bool[Tensor, ""] = NO_VERDICT.accepted  # by the judge; it may have stayed for its size all the same


class Synthesis(NamedTuple):
    """A batch with its synthetic lesions."""

    image: Float[Tensor, "b 1 x y z"]
    label: Int[Tensor, "b 1 x y z"]
    lesions: list[Lesion]
    counts: Mapping[str, Float[Tensor, ""]]  # sums over the batch, by COUNTS, on the batch's device


@runtime_checkable
class Planter(Protocol):
    """Whatever plants lesions into a training's batches: `Synthesizer`, or another way to compare it with."""

    section: Section
    spacing_mm: Spacing
    intensity: Intensity
    gate: Gate | None

    def draw(self, batch_size: int, rng: torch.Generator, candidates: int = CANDIDATES) -> Draw:
        """Draw all chance for a batch."""
        ...

    def __call__(self, image: Float[Tensor, "b 1 x y z"], label: Int[Tensor, "b 1 x y z"], draw: Draw) -> Synthesis:
        """Plant what the draw says; the inputs stay untouched."""
        ...


def count_lesions(samples: Samples, lesions: Sequence[Lesion]) -> dict[str, Tensor]:
    """Sum up a batch by COUNTS, without reading anything from the device."""
    host, tumor_free, eligible, chosen = samples
    kept, faint, rejected = torch.zeros(3, len(host), dtype=torch.bool, device=host.device)
    planted, judged, accepted = torch.zeros(3, len(SIZE_NAMES), dtype=torch.float64, device=host.device)
    voxels, saturated = torch.zeros(2, dtype=torch.float64, device=host.device)
    for site, change, _, visible, recognized, accepts in lesions:
        size, seen = size_index(site.diameter_mm), ~recognized.isnan()
        kept[site.sample] |= change.kept
        faint[site.sample] |= ~visible
        rejected[site.sample] |= seen & ~change.kept
        planted[size] += change.kept
        judged[size] += seen
        accepted[size] += seen & accepts
        voxels += change.voxels
        saturated += change.saturated
    free = tumor_free & host
    rejected &= ~kept
    by_sample = {
        "samples": torch.ones_like(kept),
        "host": host,
        "tumor_free": free,
        "eligible": eligible,
        "planted": kept,
        "untouched_tumor_free": free & ~kept,
        "no_room": chosen & ~kept & ~faint & ~rejected,
        "too_faint": faint & ~kept & ~rejected,
        "rejected": rejected,
    }
    sums = dict(zip(by_sample, torch.stack(list(by_sample.values())).sum(1).double().unbind()))
    by_size = zip((*SIZE_NAMES, *JUDGED, *ACCEPTED), torch.cat([planted, judged, accepted]).unbind())
    return sums | dict(by_size) | {"lesion_voxels": voxels, "saturated_voxels": saturated}
