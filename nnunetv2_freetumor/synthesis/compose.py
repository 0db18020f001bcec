"""Compose a lesion into image and label: the only place where voxels and labels change."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnunetv2_freetumor.intensity import Intensity


class Where(NamedTuple):
    """The voxels that a lesion may change."""

    lesion: Bool[Tensor, "x y z"]  # in the label
    support: Bool[Tensor, "x y z"]  # in the image
    keep: Bool[Tensor, ""]  # false: every voxel keeps its bits


class Change(NamedTuple):
    """What composing a lesion did; tensors, so that nothing is read back from the device."""

    kept: Bool[Tensor, ""]
    voxels: Int[Tensor, ""]  # of the lesion's label
    saturated: Int[Tensor, ""]  # of those, outside the range that preprocessing clips to
    contrast_hu: Float[Tensor, ""]  # mean change of the lesion's voxels


def compose(
    image: Float[Tensor, "x y z"],
    label: Int[Tensor, "x y z"],
    contrast_hu: Float[Tensor, "x y z"],
    where: Where,
    tumor_label: int,
    intensity: Intensity,
) -> Change:
    """Write a lesion into views of image (z-scores) and label, in place.

    The result is clipped to the HU range that preprocessing clipped to.
    """
    hu = intensity.to_hu(image) + contrast_hu
    changed = where.support & where.keep
    image.copy_(torch.where(changed, intensity.to_z(hu).to(image.dtype), image))
    marked = where.lesion & where.keep
    label.copy_(torch.where(marked, tumor_label, label))
    beyond = (hu < intensity.low_hu) | (hu > intensity.high_hu)
    voxels = marked.sum()
    mean = torch.where(marked, contrast_hu, 0.0).sum() / voxels.clamp_min(1)
    return Change(where.keep & (voxels > 0), voxels, (marked & beyond).sum(), mean)
