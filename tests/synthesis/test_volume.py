"""Blur, distance, noise and boxes keep to millimeters, whatever the spacing."""

import pytest
import torch
from scipy import ndimage

from nnunetv2_freetumor.intensity import Intensity, from_plans
from nnunetv2_freetumor.synthesis import volume

SPACING_MM = (3.0, 1.0, 0.7)


def test_distance_equals_the_euclidean_distance_transform_up_to_its_radius(rng):
    mask = torch.rand(14, 30, 36, generator=rng) < 0.002
    ours = volume.distance_within(mask, 9.0, SPACING_MM)
    exact = torch.from_numpy(ndimage.distance_transform_edt(~mask.numpy(), sampling=SPACING_MM)).float()
    near = exact <= 9.0
    assert torch.allclose(ours[near], exact[near], atol=1e-4)
    assert torch.isinf(ours[~near]).all() and (~near).any()


def test_blur_has_the_width_in_millimeters_that_was_asked_for():
    point = torch.zeros(31, 61, 81)
    point[15, 30, 40] = 1.0
    blurred = volume.gaussian_blur(point, 3.0, SPACING_MM)
    assert blurred.sum() == pytest.approx(1.0, abs=1e-4)
    for axis, step in enumerate(SPACING_MM):
        others = [a for a in range(3) if a != axis]
        profile = blurred.sum(others)
        at = (torch.arange(len(profile)) - len(profile) // 2) * step
        assert float((profile * at**2).sum().sqrt()) == pytest.approx(3.0, rel=0.07)


def test_masked_blur_ignores_what_is_outside_the_mask():
    image = torch.full((12, 12, 12), 100.0)
    image[6:] = -1000.0
    weight = torch.zeros_like(image)
    weight[:6] = 1.0
    result = volume.masked_blur(image, weight, 2.0, (1.0, 1.0, 1.0), torch.tensor(0.0))
    assert torch.allclose(result[:6], torch.tensor(100.0), atol=1e-2)


def test_the_noise_tile_is_periodic_smooth_and_of_unit_variance(rng):
    tile = volume.smooth_noise_tile(torch.randn(24, 24, 24, generator=rng))
    at = torch.rand(5, 6, 7, 3, generator=rng) * 24
    assert torch.allclose(volume.sample_tile(tile, at), volume.sample_tile(tile, at + 24), atol=1e-4)
    assert float(tile.std()) == pytest.approx(1.0, abs=1e-4)
    assert float((tile * tile.roll(1, 0)).mean()) > 0.6  # exp(-1/4) for a Gaussian of one voxel


def test_sampling_a_tile_at_its_voxels_gives_its_values(rng):
    tile = torch.randn(8, 8, 8, generator=rng)
    at = torch.stack(torch.meshgrid(*[torch.arange(8.0)] * 3, indexing="ij"), -1)
    assert torch.allclose(volume.sample_tile(tile, at), tile, atol=1e-4)


def test_subvoxel_offsets_average_to_the_voxel_offsets():
    box = volume.Box((2, 3, 4), (6, 9, 8))
    fine = volume.offsets_mm(box, [3.2, 5.0, 6.1], SPACING_MM, (3, 1, 2), torch.device("cpu"))
    coarse = volume.offsets_mm(box, [3.2, 5.0, 6.1], SPACING_MM, (1, 1, 1), torch.device("cpu"))
    for axis in range(3):
        assert torch.allclose(volume.mean_of_subvoxels(fine[..., axis], (3, 1, 2)), coarse[..., axis], atol=1e-5)
    assert coarse[0, 0, 0].tolist() == pytest.approx([(2 - 3.2) * 3.0, (3 - 5.0) * 1.0, (4 - 6.1) * 0.7])


def test_boxes_are_cut_to_the_volume():
    box = volume.box_around([1.0, 10.0, 19.0], [9.0, 2.0, 2.1], SPACING_MM, (8, 20, 20))
    assert box == ((0, 8, 16), (5, 13, 20))


def test_hu_and_z_scores_convert_back_and_forth_as_nnunet_normalizes():
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    properties = {"mean": 99.4, "std": 39.3, "percentile_00_5": -15.0, "percentile_99_5": 197.0}
    hu = torch.linspace(-300, 400, 50).double()
    theirs = CTNormalization(use_mask_for_norm=False, intensityproperties=properties).run(hu.numpy().copy())
    ours: Intensity = from_plans({"foreground_intensity_properties_per_channel": {"0": properties}})
    assert ours.to_z(hu).tolist() == pytest.approx(theirs.tolist(), abs=1e-5)
    assert torch.allclose(ours.to_hu(ours.to_z(hu)), hu.clamp(-15, 197))
