"""nnU-Net's transforms, split: both halves together are nnU-Net's own pipeline, bit for bit."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, _build_kernel
from batchgeneratorsv2.transforms.noise.median_filter import MedianFilterTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
    nnUNetTrainerDA5,
    nnUNetTrainerDA5ord0,
)
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunetv2_freetumor.training import augmentation, device

PATCH, CROP = (12, 16, 16), (12, 20, 20)
TRAINERS = (nnUNetTrainer, nnUNetTrainerDA5, nnUNetTrainerDA5ord0, nnUNetTrainerNoDA)
KINDS = {
    "labels": {},
    "pseudo 2d": {"do_dummy_2d_data_aug": True},
    "regions": {"regions": [(1, 2), 2]},
    "regions and ignore label": {"regions": [(1, 2), 2], "ignore_label": 3},
    "no deep supervision": {"deep_supervision_scales": None},
    "masked normalization": {"use_mask_for_norm": [True]},
}
CUDA = torch.device("cuda")


def _host_transforms(trainer=nnUNetTrainer, **changes):
    settings = {
        "patch_size": PATCH,
        "rotation_for_DA": (-0.5, 0.5),
        "deep_supervision_scales": [[1, 1, 1], [1, 0.5, 0.5]],
        "mirror_axes": (0, 1, 2),
        "do_dummy_2d_data_aug": False,
    }
    transforms = trainer.get_training_transforms(**(settings | changes))
    for leaf in augmentation._leaves(transforms):
        if isinstance(leaf, GaussianBlurTransform):
            leaf.benchmark = False  # nnU-Net's stopwatch would choose between two methods that differ in the last bit
    return transforms


def _seed(seed):
    np.random.seed(seed)
    torch.manual_seed(seed)


def _crop(seed, shape=CROP):
    rng = torch.Generator().manual_seed(seed)
    image = torch.randn(1, *shape, generator=rng)
    label = torch.randint(-1, 4, (1, *shape), generator=rng).to(torch.int16)
    return {"image": image, "segmentation": label}


def _equal(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b))
    return a.dtype == b.dtype and torch.equal(a, b)


def _whole_and_halves(trainer, kind, seed, crop_shape):
    """Run one crop through nnU-Net's own pipeline, and through the loader's half, a batch of one, and our half."""
    whole = _host_transforms(trainer, **KINDS[kind])
    halves = augmentation.split(_host_transforms(trainer, **KINDS[kind]))
    _seed(seed)
    expected = whole(**_crop(seed, crop_shape))
    _seed(seed)
    delivered = halves.loader(**_crop(seed, crop_shape))
    image, label = delivered["image"][None], delivered["segmentation"][None]
    assert label.dtype == torch.int16 and label.shape == (1, 1, *PATCH)
    result = augmentation.augment(halves.device, image, label)
    target = [t[0] for t in result.target] if isinstance(result.target, list) else result.target[0]
    return expected, {"image": result.image[0], "segmentation": target}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.__name__)
def test_both_halves_equal_the_unsplit_pipeline_bit_for_bit(trainer, kind):
    for seed in range(20):
        expected, result = _whole_and_halves(trainer, kind, seed, PATCH)
        assert _equal(result["image"], expected["image"])
        assert _equal(result["segmentation"], expected["segmentation"])


def test_a_crop_that_nnunet_augments_as_a_view_differs_by_the_order_of_summation_only():
    for seed in range(20):
        expected, result = _whole_and_halves(nnUNetTrainer, "regions", seed, CROP)
        torch.testing.assert_close(result["image"], expected["image"], rtol=0, atol=1e-5)
        assert _equal(result["segmentation"], expected["segmentation"])


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.__name__)
def test_spatial_transforms_stay_with_the_loader_and_the_rest_runs_on_the_device(trainer):
    halves = augmentation.split(_host_transforms(trainer, do_dummy_2d_data_aug=True))
    assert not any(isinstance(t, SpatialTransform | Convert2DTo3DTransform) for t in halves.device.transforms)
    assert len(halves.loader.transforms) == (0 if trainer is nnUNetTrainerNoDA else 3)


def test_a_stacked_batch_equals_its_samples_one_after_the_other():
    half = augmentation.split(_host_transforms(regions=[(1, 2), 2])).device
    crops = [_crop(seed, PATCH) for seed in range(3)]
    image, label = (torch.stack([c[name] for c in crops]) for name in ("image", "segmentation"))
    _seed(5)
    batch = augmentation.augment(half, image, label)
    _seed(5)
    singles = [augmentation.augment(half, image[i : i + 1], label[i : i + 1]) for i in range(3)]
    assert torch.equal(batch.image, torch.cat([s.image for s in singles]))
    assert _equal(batch.target, [torch.cat(level) for level in zip(*(s.target for s in singles))])


def test_the_batch_that_came_in_is_left_as_it_was():
    half = augmentation.split(_host_transforms()).device
    crop = _crop(1, PATCH)
    image, label = crop["image"][None], crop["segmentation"][None]
    kept = image.clone(), label.clone()
    for seed in range(10):
        _seed(seed)
        augmentation.augment(half, image, label)
    assert torch.equal(image, kept[0]) and torch.equal(label, kept[1])


@pytest.mark.parametrize("synchronized", [True, False])
def test_the_device_blur_equals_nnunets_blur_for_the_same_draw(synchronized):
    host = GaussianBlurTransform((0.3, 1.5), synchronized, False, 0.7)
    ours = augmentation.DEVICE_VERSIONS[GaussianBlurTransform](host)
    image = torch.randn(3, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    if synchronized:  # nnU-Net cannot draw these from a range itself
        draw = {"apply_to_channel": torch.tensor([True, False, True]), "sigmas": [0.4, 0.9, 1.4]}
    else:
        _seed(0)
        draw = host.get_parameters(image=image)
    assert torch.equal(
        host._apply_to_image(image.clone(), **draw), ours._apply_to_image(image.clone(), **draw)
    ) and not torch.equal(image, ours._apply_to_image(image.clone(), **draw))


def test_the_device_kernel_equals_nnunets_kernel():
    for sigma in np.linspace(0.2, 5, 97):
        assert torch.equal(augmentation.gaussian_kernel(sigma, torch.device("cpu")), _build_kernel(sigma, truncate=6))


def test_the_device_regions_equal_nnunets_regions():
    host = ConvertSegmentationToRegionsTransform([(1, 2), 2, 3], channel_in_seg=0)
    ours = augmentation.DEVICE_VERSIONS[ConvertSegmentationToRegionsTransform](host)
    label = _crop(3)["segmentation"]
    assert torch.equal(host._apply_to_segmentation(label), ours._apply_to_segmentation(label))


def test_replacing_reaches_into_containers_and_leaves_the_originals_alone():
    blur = GaussianBlurTransform((0.5, 1.0))
    whole = ComposeTransforms([OneOfTransform([RandomTransform(blur, 0.3)])])
    replaced = augmentation.split(whole).device
    assert [type(leaf) for leaf in augmentation._leaves(replaced)] == [augmentation.DeviceGaussianBlur]
    assert next(augmentation._leaves(whole)) is blur


@pytest.mark.parametrize("trainer", [nnUNetTrainer, nnUNetTrainerNoDA], ids=lambda trainer: trainer.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_nnunets_default_transforms_are_allowed_on_cuda(trainer, kind):
    half = augmentation.split(_host_transforms(trainer, **KINDS[kind])).device
    augmentation.check_transforms(half, CUDA, trainer.__name__)


def test_transforms_that_compute_on_the_cpu_are_refused_by_name_on_cuda_only():
    half = augmentation.split(_host_transforms(nnUNetTrainerDA5)).device
    named = "BrightnessGradientAdditiveTransform, LocalGammaTransform, MedianFilterTransform compute on the CPU"
    with pytest.raises(ValueError, match=f"nnUNetTrainerDA5 cannot augment on a CUDA device: {named}"):
        augmentation.check_transforms(half, CUDA, "nnUNetTrainerDA5")
    augmentation.check_transforms(half, torch.device("cpu"), "nnUNetTrainerDA5")


def test_an_unknown_transform_is_refused_on_cuda_until_its_class_is_added(monkeypatch):
    class MyTransform(MedianFilterTransform):
        pass

    half = ComposeTransforms([MyTransform(3)])
    with pytest.raises(
        ValueError, match="MyTransform.*add its class to nnunetv2_freetumor.training.augmentation.RUNS_ON_CUDA"
    ):
        augmentation.check_transforms(half, CUDA, "Mine")
    monkeypatch.setattr(augmentation, "RUNS_ON_CUDA", augmentation.RUNS_ON_CUDA | {MyTransform})
    augmentation.check_transforms(half, CUDA, "Mine")


def test_transforms_that_are_no_flat_list_are_refused():
    with pytest.raises(ValueError, match="must return batchgeneratorsv2's ComposeTransforms.*returned RandomTransform"):
        augmentation.split(RandomTransform(MedianFilterTransform(3)))


def test_apple_devices_augment_on_the_cpu():
    assert device.device_for(torch.device("mps")) == torch.device("cpu")
    assert device.device_for(torch.device("cuda", 1)) == torch.device("cuda", 1)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_second_half_keeps_the_batch_on_cuda(kind):
    half = augmentation.split(_host_transforms(**KINDS[kind])).device
    crop = _crop(0, PATCH)
    image, label = (crop[name][None].to(CUDA) for name in ("image", "segmentation"))
    for seed in range(20):
        _seed(seed)
        result = augmentation.augment(half, image, label)
        finest = result.target[0] if isinstance(result.target, list) else result.target
        assert result.image.is_cuda and finest.is_cuda and result.image.isfinite().all()
