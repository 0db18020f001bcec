"""What synthesis promises: untouched outside the host, a batch equals its singles, same draw same tumor."""

import dataclasses

import pytest
import torch
from synthesis_examples import CYST, ORGAN, PRIOR, TUMOR, counted, make_section

from nnunetv2_freetumor.intensity import RAW_CT, Intensity
from nnunetv2_freetumor.plan import Prior, Shape, SizeClass, Target, Texture
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer
from nnunetv2_freetumor.synthesis.texture import TextureGenerator

WINDOW = Intensity(mean_hu=100.0, sd_hu=40.0, low_hu=-60.0, high_hu=240.0)


def synthesize(phantom, seed=3, intensity=RAW_CT, batch=1, **settings):
    """Run one batch of copies of a phantom; give the synthesizer's result and what went in."""
    synthesizer = Synthesizer(make_section(**settings), phantom.spacing_mm, intensity)
    image = intensity.to_z(phantom.image).repeat(batch, 1, 1, 1, 1)
    label = phantom.label.repeat(batch, 1, 1, 1, 1)
    draw = synthesizer.draw(batch, torch.Generator().manual_seed(seed))
    return synthesizer(image, label, draw), image, label


@pytest.mark.parametrize("intensity", [RAW_CT, WINDOW])
def test_nothing_outside_the_host_changes(organ_phantom, intensity):
    result, image, label = synthesize(organ_phantom, intensity=intensity)
    outside = label != ORGAN
    assert torch.equal(result.image[outside], image[outside])
    assert torch.equal(result.label[outside], label[outside])
    assert set(result.label[~outside].unique().tolist()) == {ORGAN, TUMOR}


def test_real_tumors_other_labels_ignore_and_padding_come_back_bit_for_bit(organ_phantom):
    phantom = organ_phantom._replace(label=organ_phantom.label.clone())
    phantom.label[..., 18:22, 24:30, 24:30] = TUMOR
    phantom.label[..., 10:14, 20:26, 20:26] = CYST
    phantom.label[..., 26:28, :, :] = 4  # ignore
    phantom.label[..., 0:3, :, :] = -1  # padding
    for seed in range(6):
        result, image, label = synthesize(phantom, seed=seed)
        other = label != ORGAN
        assert torch.equal(result.image[other], image[other])
        assert torch.equal(result.label[other], label[other])


def test_inputs_stay_untouched(organ_phantom):
    before = organ_phantom.image.clone(), organ_phantom.label.clone()
    result, image, label = synthesize(organ_phantom)
    assert counted(result, "planted") == 1
    assert torch.equal(image, RAW_CT.to_z(before[0])) and torch.equal(label, before[1])


def test_the_same_draw_gives_the_same_tumor_and_another_draw_another(organ_phantom):
    first, second, other = (synthesize(organ_phantom, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first.image, second.image) and torch.equal(first.label, second.label)
    assert not torch.equal(first.label, other.label)


def test_a_batch_equals_its_singles(organ_phantom):
    synthesizer = Synthesizer(make_section(), organ_phantom.spacing_mm, RAW_CT)
    image = torch.cat([organ_phantom.image, organ_phantom.image.flip(3), organ_phantom.image + 15])
    label = torch.cat([organ_phantom.label, organ_phantom.label.flip(3), organ_phantom.label])
    draw = synthesizer.draw(3, torch.Generator().manual_seed(5))
    whole = synthesizer(image, label, draw)
    for i in range(3):
        single = synthesizer(image[i : i + 1], label[i : i + 1], draw.sample(i))
        assert torch.equal(single.image[0], whole.image[i])
        assert torch.equal(single.label[0], whole.label[i])


def test_a_sample_without_host_comes_back_bit_for_bit(organ_phantom):
    result, image, label = synthesize(organ_phantom._replace(label=torch.zeros_like(organ_phantom.label)))
    assert torch.equal(result.image, image) and torch.equal(result.label, label)
    assert counted(result, "eligible") == counted(result, "host") == 0


def test_a_host_smaller_than_the_smallest_lesion_is_skipped_and_counted(organ_phantom):
    tiny = torch.zeros_like(organ_phantom.label)
    tiny[..., 20:22, 20:22, 20:22] = ORGAN
    result, image, _ = synthesize(organ_phantom._replace(label=tiny))
    assert torch.equal(result.image, image)
    assert counted(result, "host") == 0


def test_a_host_too_thin_for_the_lesion_returns_the_sample_untouched(organ_phantom):
    plate = torch.zeros_like(organ_phantom.label)
    plate[..., 20:21, 10:46, 10:50] = ORGAN
    sizes = (SizeClass(distribution="log_uniform", weight=1.0, min_mm=18.0, max_mm=20.0),)
    result, image, label = synthesize(
        organ_phantom._replace(label=plate), prior=dataclasses.replace(PRIOR, sizes=sizes)
    )
    assert torch.equal(result.image, image) and torch.equal(result.label, label)
    assert counted(result, "no_room") == 1


def test_a_lesion_too_faint_for_the_noise_is_not_planted_and_is_counted(organ_phantom):
    noise = 150.0 * torch.randn(organ_phantom.image.shape, generator=torch.Generator().manual_seed(5))
    noisy = organ_phantom._replace(image=organ_phantom.image + noise)
    small = (SizeClass(distribution="log_uniform", weight=1.0, min_mm=8.0, max_mm=9.0),)
    prior = dataclasses.replace(PRIOR, sizes=small, lesions_per_patch=(1.0,))
    result, image, label = synthesize(noisy, prior=prior)
    assert torch.equal(result.image, image) and torch.equal(result.label, label)
    assert [counted(result, name) for name in ("too_faint", "no_room", "planted")] == [1, 0, 0]
    assert counted(synthesize(noisy, prior=prior, min_visibility=0.0)[0], "planted") == 1
    assert counted(synthesize(organ_phantom, prior=prior)[0], "planted") == 1


def test_no_tumor_free_patch_is_planted_beyond_the_share_that_must_stay_untouched(organ_phantom):
    result, _, _ = synthesize(organ_phantom, batch=60, untouched_share=0.7)
    assert 6 <= counted(result, "planted") <= 32
    assert counted(result, "planted") + counted(result, "untouched_tumor_free") == 60


def test_published_rule_leaves_patches_with_a_real_tumor_alone(organ_phantom):
    phantom = organ_phantom._replace(label=organ_phantom.label.clone())
    phantom.label[..., 4:6, 24:26, 24:26] = TUMOR
    result, image, _ = synthesize(phantom, tumor_free_patches_only=True)
    assert torch.equal(result.image, image)
    assert counted(result, "eligible") == 0 and counted(synthesize(phantom)[0], "eligible") == 1


def test_lesions_keep_their_distance_from_real_tumors(organ_phantom):
    phantom = organ_phantom._replace(label=organ_phantom.label.clone())
    reals = torch.tensor([(20, 26, 27), (16, 20, 20), (25, 30, 34)])
    for z, y, x in reals.tolist():
        phantom.label[..., z, y, x] = TUMOR
    result, _, label = synthesize(phantom, batch=40, clearance_mm=5.0)
    voxels = torch.nonzero((result.label == TUMOR) & (label == ORGAN))[:, 2:]
    gaps = ((voxels[:, None] - reals) * torch.tensor(phantom.spacing_mm)).norm(dim=-1)
    assert counted(result, "planted") > 10 and float(gaps.min()) >= 5.0


def test_planted_lesions_do_not_touch_each_other(organ_phantom):
    from scipy import ndimage

    for seed in range(6):
        result, _, _ = synthesize(organ_phantom, seed=seed)
        kept = sum(bool(lesion.change.kept) for lesion in result.lesions)
        assert ndimage.label(result.label[0, 0] == TUMOR, structure=torch.ones(3, 3, 3))[1] == kept


def test_lesions_have_the_drawn_volume_and_two_voxels_along_each_axis(organ_phantom):
    sizes = (SizeClass(distribution="log_uniform", weight=1.0, min_mm=7.0, max_mm=24.0),)
    prior = dataclasses.replace(PRIOR, sizes=sizes, lesions_per_patch=(1.0,))
    ratios = []
    for seed in range(12):
        result, _, _ = synthesize(organ_phantom, seed=seed, prior=prior)
        for lesion in result.lesions:
            voxels = torch.nonzero(result.label == TUMOR)[:, 2:]
            assert (voxels.amax(0) - voxels.amin(0) + 1).min() >= 2
            ratios.append(float(lesion.change.voxels) * 12.0 / (torch.pi / 6 * lesion.site.diameter_mm**3))
    assert 0.8 < torch.tensor(ratios).median() < 1.1


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_lesions_are_as_large_in_millimeters_along_every_axis_however_the_axes_are_transposed(organ_phantom, axes):
    order = (0, 1, *(axis + 2 for axis in axes))
    spacing = tuple(organ_phantom.spacing_mm[axis] for axis in axes)
    phantom = organ_phantom._replace(
        image=organ_phantom.image.permute(order), label=organ_phantom.label.permute(order), spacing_mm=spacing
    )
    ball = Shape(
        elongation_logit=(9.0, 0.0), flatness_logit=(9.0, 0.0), roughness=(0.0, 0.0), roughness_ln_sd=0.0,
        lobe_odds=(0.0, 0.0),
    )  # fmt: skip
    sizes = (SizeClass(distribution="log_uniform", weight=1.0, min_mm=19.9, max_mm=20.1),)
    prior = dataclasses.replace(PRIOR, sizes=sizes, shape=ball, lesions_per_patch=(1.0,))
    extents = []
    for seed in range(6):
        voxels = torch.nonzero(synthesize(phantom, seed=seed, prior=prior)[0].label == TUMOR)[:, 2:]
        if len(voxels):
            extents.append((voxels.amax(0) - voxels.amin(0) + 1) * torch.tensor(spacing))
    assert len(extents) >= 2
    assert torch.allclose(torch.stack(extents).amax(0), torch.tensor(20.0), atol=3.1)


def test_lesions_are_darker_than_the_organ_and_keep_its_noise(organ_phantom):
    sizes = (SizeClass(distribution="log_uniform", weight=1.0, min_mm=23.0, max_mm=24.0),)
    prior = dataclasses.replace(PRIOR, sizes=sizes, lesions_per_patch=(1.0,))
    result, image, label = synthesize(organ_phantom, prior=prior)
    tumor = result.label == TUMOR
    assert -70 < float((result.image - image)[tumor].mean()) < -15

    def fine(volume):
        return (volume - torch.nn.functional.avg_pool3d(volume, 3, 1, 1))[tumor].std()

    assert 0.85 < fine(result.image) / fine(image) < 1.1


def test_the_result_stays_within_the_range_that_preprocessing_clipped_to(organ_phantom):
    narrow = Intensity(mean_hu=110.0, sd_hu=12.0, low_hu=85.0, high_hu=140.0)
    result, _, _ = synthesize(organ_phantom, intensity=narrow)
    assert float(narrow.to_hu(result.image).min()) >= 85.0 - 1e-3
    assert counted(result, "saturated_voxels") > 0.2 * counted(result, "lesion_voxels")
    assert counted(synthesize(organ_phantom)[0], "saturated_voxels") == 0


def test_exophytic_lesions_grow_into_fat_and_nowhere_else(organ_phantom):
    image, label = organ_phantom.image.clone(), organ_phantom.label
    image[..., 30:64][label[..., 30:64] == 0] = -90.0
    prior = dataclasses.replace(
        PRIOR,
        exophytic_mm=30.0,
        exophytic_per_diameter=0.5,
        texture=Texture(min_core_hu=30.0),
        lesions_per_patch=(1.0,),
    )
    beyond = 0
    for seed in range(12):
        result, before, _ = synthesize(organ_phantom._replace(image=image), seed=seed, prior=prior)
        changed = result.image != before
        assert not changed[(label == 0) & (image != -90.0)].any()
        beyond += int(((result.label == TUMOR) & (label == 0)).sum())
    assert beyond > 20


def test_kidney_cores_stay_above_their_floor(organ_phantom):
    texture = Texture(k_mean=2.0, k_sd=0.0, min_core_hu=30.0, coarse_hu=0.0, fine_hu=0.0)
    result, _, _ = synthesize(organ_phantom, prior=dataclasses.replace(PRIOR, texture=texture))
    assert float(result.image[result.label == TUMOR].quantile(0.02)) + 2 * 12.0 > 25


def test_patchy_lesions_hug_the_host_surface(organ_phantom):
    lung = organ_phantom._replace(image=torch.where(organ_phantom.label == 1, -800.0, 40.0))
    sizes = (SizeClass(distribution="log_uniform", weight=1.0, min_mm=20.0, max_mm=24.0),)
    prior = Prior(
        name="patchy", sizes=sizes, shape=Shape(kind="patchy"), subpleural=True,
        texture=Texture(k_mean=1.0, ground_glass_share=1.0),
    )  # fmt: skip
    result, image, label = synthesize(lung, prior=prior)
    tumor = result.label == TUMOR
    assert counted(result, "planted") == 1
    assert float(result.image[tumor].mean()) > -700 and torch.equal(result.image[label == 0], image[label == 0])
    near_surface = torch.nn.functional.max_pool3d((label != ORGAN).float(), 9, 1, 4) > 0
    assert near_surface[tumor].float().mean() > 0.6


def test_lung_without_a_label_is_found_by_its_hu_inside_the_body(organ_phantom):
    image = torch.where(organ_phantom.label == 1, -820.0, organ_phantom.image)
    prior = dataclasses.replace(PRIOR, texture=Texture(k_mean=1.0, k_sd=0.0))
    target = Target(
        name="lung", host_hu=(-950.0, -500.0), tumor_label=1, lesion_labels=(1,), prior=prior, source="test"
    )
    section = dataclasses.replace(make_section(), targets=(target,))
    synthesizer = Synthesizer(section, organ_phantom.spacing_mm, RAW_CT)
    draw = synthesizer.draw(1, torch.Generator().manual_seed(0))
    result = synthesizer(image, torch.zeros_like(organ_phantom.label), draw)
    assert counted(result, "planted") == 1
    assert torch.equal(result.image[organ_phantom.label == 0], image[organ_phantom.label == 0])
    assert float(result.image[result.label == 1].mean()) > -550


def test_several_targets_share_a_batch(organ_phantom):
    label = organ_phantom.label.clone()
    label[..., 32:][label[..., 32:] == 1] = 4
    left = make_section().targets[0]
    right = dataclasses.replace(left, name="right", host_labels=(4,), tumor_label=5, lesion_labels=(5,))
    section = dataclasses.replace(make_section(), targets=(left, right))
    synthesizer = Synthesizer(section, organ_phantom.spacing_mm, RAW_CT)
    seen = set()
    for seed in range(12):
        draw = synthesizer.draw(1, torch.Generator().manual_seed(seed))
        result = synthesizer(organ_phantom.image, label, draw)
        assert torch.equal(result.label == 2, (result.label == 2) & (label == 1))
        assert torch.equal(result.label == 5, (result.label == 5) & (label == 4))
        seen |= set(result.label.unique().tolist()) & {2, 5}
    assert seen == {2, 5}


def test_a_section_that_names_a_generator_is_not_drawn_by_texture_in_silence(organ_phantom):
    for generator in ("auto", "texture"):
        assert synthesize(organ_phantom, generator=generator)[0].lesions
    with pytest.raises(
        ValueError, match="'generator' is 'lite', but no generators were given. Pass .*build_generators"
    ):
        synthesize(organ_phantom, generator="lite")
    section = make_section(generator="lite")
    assert Synthesizer(section, organ_phantom.spacing_mm, RAW_CT, [TextureGenerator()]).section is section


@pytest.mark.gpu
def test_cuda_gives_the_same_tumor_as_the_cpu(organ_phantom):
    synthesizer = Synthesizer(make_section(), organ_phantom.spacing_mm, RAW_CT)
    draw = synthesizer.draw(1, torch.Generator().manual_seed(5))
    cpu = synthesizer(organ_phantom.image, organ_phantom.label, draw)
    gpu = synthesizer(organ_phantom.image.cuda(), organ_phantom.label.cuda(), draw)
    assert (cpu.label != gpu.label.cpu()).float().mean() < 1e-4
    assert torch.allclose(cpu.image, gpu.image.cpu(), atol=0.5)
