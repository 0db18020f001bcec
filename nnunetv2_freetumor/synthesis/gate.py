"""The quality test as the method sees it: what is asked about a lesion, and what the answer looks like."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnunetv2_freetumor.synthesis.proposals import Proposal


class Verdict(NamedTuple):
    """What the judge said of a lesion; tensors, so that nothing is read back from the device."""

    recognized: Float[Tensor, ""]  # share of its voxels called tumor
    accepted: Bool[Tensor, ""]  # recognized enough of it
    stays: Bool[Tensor, ""]  # accepted, or of a size that is not tested


@runtime_checkable
class Gate(Protocol):
    """The quality test as `synthesis` sees it."""

    def __call__(self, image: Float[Tensor, "b 1 x y z"], proposals: list[Proposal]) -> list[Verdict]:
        """Judge lesions that were planted into these z-scores."""
        ...


def untested(device: torch.device) -> Verdict:
    """Let a lesion pass that nobody has looked at."""
    passes = torch.ones((), dtype=torch.bool, device=device)
    return Verdict(torch.full((), torch.nan, device=device), passes, passes)


NO_VERDICT = untested(torch.device("cpu"))
