"""nnU-Net's training transforms, split at the synthesis point; the second half runs on the training device.

nnU-Net builds one flat list: spatial transforms first, then noise, blur, contrast and so on, then the targets. Whatever
stands before the split runs in nnU-Net's loader processes as ever. The rest is applied here, sample by sample as in the
loader, after lesions have been planted, so that synthetic tumors go through the same degradations as real ones.
"""

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import (
    BrightnessAdditiveTransform,
    MultiplicativeBrightnessTransform,
)
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.blank_rectangle import BlankRectangleTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.noise.sharpen import SharpeningTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.spatial.transpose import TransposeAxesTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import conv3d, pad

BLUR_TRUNCATE_SIGMAS = 6  # kernel width in sigmas, as nnU-Net's `blur_dimension` has it

Targets = Int[Tensor, "b 1 x y z"] | Bool[Tensor, "b regions x y z"]


class Split(NamedTuple):
    """Both halves of a trainer's transforms; one after the other they equal the whole."""

    loader: ComposeTransforms
    device: ComposeTransforms


class Augmented(NamedTuple):
    """What nnU-Net's loader would have delivered."""

    image: Float[Tensor, "b 1 x y z"]
    target: Targets | list[Targets]  # a list, finest first, under deep supervision
    ids: Int[Tensor, "b 1 x y z"] | None = None  # what was mirrored along; None where a transform lost it


class DeviceGaussianBlur(GaussianBlurTransform):
    """Blur on the image's own device; nnU-Net builds the kernel on the CPU and times launches to choose a method."""

    def _benchmark_wrapper(self, img: Float[Tensor, "c x y z"], sigma: float, dim_to_blur: int) -> Tensor:
        kernel = gaussian_kernel(sigma, img.device)
        reach = len(kernel) // 2
        padding = [reach * (axis == dim_to_blur) for axis in (2, 1, 0) for _ in range(2)]
        weight = kernel.reshape([1, 1, *(-1 if axis == dim_to_blur else 1 for axis in range(3))])
        channels = img.shape[0]
        padded = pad(img, padding, mode="reflect")
        return conv3d(padded[None], weight.expand(channels, -1, -1, -1, -1), groups=channels)[0]


class DeviceRegions(ConvertSegmentationToRegionsTransform):
    """Compare with region labels that lie on the segmentation's own device."""

    regions: list[Tensor]

    def _apply_to_segmentation(self, segmentation: Int[Tensor, "c x y z"], **params: object) -> Tensor:
        self.regions = [labels.to(segmentation.device) for labels in self.regions]
        return super()._apply_to_segmentation(segmentation, **params)


def _blur_on_device(host: GaussianBlurTransform) -> DeviceGaussianBlur:
    return DeviceGaussianBlur(
        host.blur_sigma, host.synchronize_channels, host.synchronize_axes, host.p_per_channel, benchmark=True
    )


def _regions_on_device(host: ConvertSegmentationToRegionsTransform) -> DeviceRegions:
    device_version = DeviceRegions([], host.channel_in_seg)
    device_version.regions = host.regions
    return device_version


DEVICE_VERSIONS: dict[type, Callable[..., BasicTransform]] = {
    GaussianBlurTransform: _blur_on_device,
    ConvertSegmentationToRegionsTransform: _regions_on_device,
}
"""Which of nnU-Net's transforms get a version of ours that follows the tensor's device."""

RUNS_ON_CUDA: set[type] = {
    BlankRectangleTransform,
    BrightnessAdditiveTransform,
    ContrastTransform,
    DeviceGaussianBlur,
    DeviceRegions,
    DownsampleSegForDSTransform,
    GammaTransform,
    GaussianNoiseTransform,
    MaskImageTransform,
    MirrorTransform,
    MultiplicativeBrightnessTransform,
    RemoveLabelTansform,
    Rot90Transform,
    SharpeningTransform,
    SimulateLowResolutionTransform,
    TransposeAxesTransform,
}
"""Transforms that compute where the tensor lies. Add a class of your own that does; all others are refused on CUDA."""


def split(transforms: BasicTransform) -> Split:
    """Split a trainer's transforms behind the last spatial one, or in front of all where there is none.

    Raises:
        ValueError: these are not the flat `ComposeTransforms` that nnU-Net's trainers return.
    """
    if not isinstance(transforms, ComposeTransforms):
        raise ValueError(
            "get_training_transforms must return batchgeneratorsv2's ComposeTransforms, so that tumors can be planted "
            f"between its spatial and its intensity transforms, but it returned {type(transforms).__name__}. Return "
            "ComposeTransforms([...]) in the trainer."
        )
    flat = transforms.transforms
    last = max((i for i, t in enumerate(flat) if isinstance(t, SpatialTransform | Convert2DTo3DTransform)), default=-1)
    behind = [_device_version(transform) for transform in flat[last + 1 :]]
    return Split(ComposeTransforms(flat[: last + 1]), ComposeTransforms(behind))


def check_transforms(transforms: ComposeTransforms, device: torch.device, trainer_name: str) -> None:
    """Refuse transforms that cannot run on a CUDA device.

    Raises:
        ValueError: names the trainer, the transforms, and the ways out.
    """
    refused = sorted({type(leaf).__name__ for leaf in _leaves(transforms) if type(leaf) not in RUNS_ON_CUDA})
    if device.type == "cuda" and refused:
        raise ValueError(
            f"{trainer_name} cannot augment on a CUDA device: {', '.join(refused)} compute on the CPU or are not known "
            "to follow the tensor's device. Combine FreeTumorMixin with a trainer without them (nnUNetTrainer, "
            "nnUNetTrainerNoMirroring, ...), train with -device cpu, or, where a transform of yours does follow the "
            "device, add its class to nnunetv2_freetumor.training.augmentation.RUNS_ON_CUDA."
        )


@torch.no_grad()
def augment(
    transforms: ComposeTransforms,
    image: Float[Tensor, "b 1 x y z"],
    label: Int[Tensor, "b 1 x y z"],
    ids: Int[Tensor, "b 1 x y z"] | None = None,
) -> Augmented:
    """Apply the second half to every sample and stack the results; the inputs stay untouched.

    `ids` goes with the label through whatever turns or mirrors it, as what nnU-Net calls a regression target.
    """
    marks = [None] * len(image) if ids is None else list(ids)
    samples = [
        transforms(image=i.clone(), segmentation=s.clone(), regression_target=n) for i, s, n in zip(image, label, marks)
    ]
    targets = [sample["segmentation"] for sample in samples]
    followed = [sample.get("regression_target") for sample in samples]
    deep = isinstance(targets[0], list)
    return Augmented(
        image=torch.stack([sample["image"] for sample in samples]),
        target=[torch.stack(level) for level in zip(*targets)] if deep else torch.stack(targets),
        ids=None if any(n is None for n in followed) else torch.stack(followed),
    )


def gaussian_kernel(sigma: float, device: torch.device) -> Float[Tensor, " taps"]:
    """Build nnU-Net's blur kernel on a device: as wide as the odd number nearest to 6 sigma + 0.5."""
    taps = 2 * int((sigma * BLUR_TRUNCATE_SIGMAS + 0.5) / 2) + 1
    offset = torch.linspace(-(taps - 1) * 0.5, (taps - 1) * 0.5, steps=taps, device=device)
    weight = torch.exp(-0.5 * (offset / sigma).square())
    return weight / weight.sum()


def _device_version(transform: BasicTransform) -> BasicTransform:
    """Replace a transform, or what it holds, by the versions that follow the device; the original stays as it is."""
    if type(transform) in DEVICE_VERSIONS:
        return DEVICE_VERSIONS[type(transform)](transform)
    changed = copy.copy(transform)
    if isinstance(transform, RandomTransform):
        changed.transform = _device_version(transform.transform)
    elif isinstance(transform, OneOfTransform):
        changed.list_of_transforms = [_device_version(t) for t in transform.list_of_transforms]
    elif isinstance(transform, ComposeTransforms):
        changed.transforms = [_device_version(t) for t in transform.transforms]
    return changed


def _leaves(transform: BasicTransform) -> Iterator[BasicTransform]:
    if isinstance(transform, RandomTransform):
        yield from _leaves(transform.transform)
    elif isinstance(transform, OneOfTransform | ComposeTransforms):
        held = transform.transforms if isinstance(transform, ComposeTransforms) else transform.list_of_transforms
        for item in held:
            yield from _leaves(item)
    else:
        yield transform
