"""What the `texture` generator draws: contrast, edge, covered vessels, kept noise, and its variants."""

import pytest
import torch
from synthesis_examples import SIZE, make_look, make_region

from nnunetv2_freetumor.intensity import RAW_CT
from nnunetv2_freetumor.plan import Texture
from nnunetv2_freetumor.synthesis.compose import Where, compose
from nnunetv2_freetumor.synthesis.region import TAIL_MM, support, visibility
from nnunetv2_freetumor.synthesis.texture import analyze, texture_contrast

PLAIN = Texture(k_sd=0.0, fine_hu=0.0, coarse_hu=0.0, rim_hu=0.0)


def core(region):
    """Mark the middle of the lesion."""
    return region.distance_mm < -5


@pytest.mark.parametrize(("host_hu", "expected"), [(115.0, -52.25), (58.0, -20.9), (180.0, -88.0)])
def test_contrast_follows_the_enhancement_phase(host_hu, expected):
    region = make_region(host_hu)
    change = texture_contrast(region, PLAIN, make_look())
    assert float(change[core(region)].mean()) == pytest.approx(expected, abs=2.5)


@pytest.mark.parametrize(("spacing_mm", "elements"), [(2.0, 1.0), (0.75, 1 / 8)])
def test_visibility_is_contrast_times_the_root_of_the_resolution_elements_over_the_noise(spacing_mm, elements):
    region = make_region(radius_mm=8.0 * spacing_mm, noise_hu=10.0, spacing_mm=spacing_mm)
    lesion = region.distance_mm < 0
    expected = 12.0 * (int(lesion.sum()) * elements) ** 0.5 / 10.0
    assert float(visibility(region, torch.full_like(region.hu, -12.0), lesion)) == pytest.approx(expected, rel=0.02)


def test_the_draw_shifts_the_contrast():
    region = make_region()
    texture = Texture(k_sd=0.1, fine_hu=0.0, coarse_hu=0.0, rim_hu=0.0)
    means = [float(texture_contrast(region, texture, make_look(contrast=c))[core(region)].mean()) for c in (-1, 1)]
    assert means[0] - means[1] == pytest.approx(2 * 0.1 * 90, abs=1.0)


@pytest.mark.parametrize(("host_hu", "floor_hu", "expected"), [(35.0, -1000.0, -18.0), (35.0, 30.0, 18.0)])
def test_lesions_stay_visible_in_an_organ_near_soft_tissue(host_hu, floor_hu, expected):
    region = make_region(host_hu, noise_hu=0.0)
    texture = Texture(k_sd=0.0, fine_hu=0.0, coarse_hu=0.0, rim_hu=0.0, min_core_hu=floor_hu)
    assert float(texture_contrast(region, texture, make_look())[core(region)].mean()) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("seed", range(8))
def test_heterogeneity_does_not_use_up_a_small_lesions_contrast(seed):
    region = make_region(noise_hu=0.0, radius_mm=4.5, spacing_mm=1.5)
    tiles = torch.randn(2, 24, 24, 24, generator=torch.Generator().manual_seed(seed))
    texture = Texture(k_sd=0.0, coarse_hu=20.0)
    change = texture_contrast(region, texture, make_look(diameter_mm=9.0, rim=0.99)._replace(noise=tiles))
    assert -26 < float(change[region.distance_mm < 0].mean()) < -20


def test_half_of_the_contrast_lies_at_the_edge_depth_inside_the_mask():
    region = make_region(noise_hu=0.0)
    change = texture_contrast(region, PLAIN, make_look()) / (-0.55 * 90)
    at = region.distance_mm
    assert float(change[(at > -2.1) & (at < -1.5)].mean()) == pytest.approx(0.5, abs=0.06)
    ramp = change[(at > -3.45) & (at < -3.25)].mean() - change[(at > -0.25) & (at < -0.05)].mean()
    assert float(ramp) == pytest.approx(0.8, abs=0.06)  # 10-90 % width: 4.4 x .75 mm = 3.3 mm


def test_thin_lesions_keep_their_contrast():
    region = make_region(noise_hu=0.0, radius_mm=3.0)
    change = texture_contrast(region, PLAIN, make_look(diameter_mm=6.0))
    assert float(change[region.distance_mm < -2].mean()) < -35


def test_vessels_are_covered():
    region = make_region()
    vessel = torch.zeros(SIZE, SIZE, SIZE, dtype=torch.bool)
    vessel[:, 22:26, 22:26] = True
    hu = region.hu + 70.0 * vessel
    region = region._replace(hu=hu)
    after = hu + texture_contrast(region, PLAIN, make_look())
    inside = core(region)
    assert float(hu[inside & vessel].mean() - hu[inside & ~vessel].mean()) > 60
    assert abs(float(after[inside & vessel].mean() - after[inside & ~vessel].mean())) < 12


def test_the_noise_is_kept():
    region = make_region()
    after = region.hu + texture_contrast(region, PLAIN, make_look())

    def high(volume):
        return (volume - torch.nn.functional.avg_pool3d(volume[None, None], 3, 1, 1)[0, 0])[core(region)].std()

    assert 0.9 < float(high(after) / high(region.hu)) < 1.05


def test_two_scales_of_heterogeneity_add_up_to_their_levels():
    region = make_region(noise_hu=0.0, radius_mm=18.0)
    texture = Texture(k_sd=0.0, rim_hu=0.0, fine_hu=4.0, coarse_hu=5.0)
    change = texture_contrast(region, texture, make_look(diameter_mm=36.0))
    assert 3.5 < float(change[region.distance_mm < -5].std()) < 9.0


def test_necrotic_centers_are_darker_than_the_core():
    region = make_region(noise_hu=0.0, radius_mm=14.0)
    texture = Texture(k_sd=0.0, fine_hu=0.0, coarse_hu=0.0, rim_hu=0.0, necrotic_share=0.5)
    solid = texture_contrast(region, texture, make_look(diameter_mm=28.0))
    necrotic = texture_contrast(region, texture, make_look(diameter_mm=28.0, necrosis=0.1))
    center = region.distance_mm < -12
    assert float((necrotic - solid)[center].mean()) < -15
    assert float((region.hu + necrotic)[center].mean()) > 5


def test_rim_enhancing_lesions_have_a_brighter_ring():
    region = make_region(noise_hu=0.0, radius_mm=14.0)
    texture = Texture(k_sd=0.0, fine_hu=0.0, coarse_hu=0.0, rim_hu=0.0, rim_enhancing_share=0.5)
    change = texture_contrast(region, texture, make_look(diameter_mm=28.0, enhancement=0.1))
    ring = (region.distance_mm > -5) & (region.distance_mm < -3)
    assert float(change[ring].mean() - change[region.distance_mm < -9].mean()) > 15


def test_ground_glass_fills_a_share_of_the_lung_and_nothing_beyond_soft_tissue():
    region = make_region(hu=-820.0, noise_hu=15.0)
    texture = Texture(k_mean=1.0, k_sd=0.0, ground_glass_share=1.0, opacity=(0.4, 0.4), coarse_hu=0.0, rim_hu=0.0)
    hu = region.hu.clone()
    hu[:, 23:25, 23:25] = 40.0  # a vessel stays as it is
    region = region._replace(hu=hu)
    after = hu + texture_contrast(region, texture, make_look())
    away = core(region) & (hu < -700) & ((region.offsets_mm[..., 1:].norm(dim=-1)) > 3)
    assert float(after[away].mean()) == pytest.approx(-820 + 0.4 * 840, abs=15)
    assert float(after[core(region)].max()) < 150


def test_part_solid_nodules_have_a_solid_core_in_ground_glass():
    region = make_region(hu=-820.0, noise_hu=5.0, radius_mm=12.0)
    texture = Texture(k_mean=1.0, k_sd=0.0, part_solid_share=1.0, opacity=(0.3, 0.3), coarse_hu=0.0, rim_hu=0.0)
    after = region.hu + texture_contrast(region, texture, make_look(diameter_mm=24.0, depth=0.0))
    assert float(after[region.distance_mm < -10.5].mean()) > -150
    shell = (region.distance_mm > -4) & (region.distance_mm < -3)
    assert -750 < float(after[shell].mean()) < -400


def test_the_trend_of_the_host_is_measured_without_its_vessels():
    region = make_region()
    hu = region.hu.clone()
    hu[10:14, :, 20:28] += 120.0
    assert float(analyze(region._replace(hu=hu)).host_hu) == pytest.approx(110.0, abs=2.0)


def test_only_the_host_near_the_lesion_may_change():
    host = torch.ones(SIZE, SIZE, SIZE, dtype=torch.bool)
    host[30:] = False
    region = make_region(host=host)
    mask = support(region)
    assert not mask[30:].any() and mask[20:24, 20:24, 20:24].all()
    assert float(region.distance_mm[mask].max()) < TAIL_MM


def test_a_rejected_lesion_changes_no_bit():
    image, label = torch.randn(6, 6, 6), torch.ones(6, 6, 6, dtype=torch.int16)
    before = image.clone(), label.clone()
    everything = torch.ones(6, 6, 6, dtype=torch.bool)
    contrast_hu, where = torch.full((6, 6, 6), -30.0), Where(everything, everything, keep=torch.tensor(False))
    change = compose(image, label, contrast_hu, where, 2, RAW_CT)
    assert torch.equal(image, before[0]) and torch.equal(label, before[1]) and not change.kept
    change = compose(image, label, contrast_hu, where._replace(keep=torch.tensor(True)), 2, RAW_CT)
    assert torch.equal(image, before[0] - 30) and (label == 2).all() and int(change.voxels) == 216
