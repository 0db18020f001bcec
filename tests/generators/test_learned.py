"""Learned generators behind the one interface: grid, lite, the published insertion law, and synthesis with both."""

import dataclasses

import numpy as np
import pytest
import torch
from generator_examples import ISOTROPIC, WINDOW, lite, make_card
from synthesis_examples import make_look, make_region, make_section

from nnunetv2_freetumor.generators.grid import array_order, from_grid, grid_offsets_mm, make_grid, to_grid
from nnunetv2_freetumor.generators.learned import (
    LearnedGenerator,
    LiteInputs,
    envelope,
    freetumor_contrast,
    freetumor_inputs,
    lite_inputs,
    lite_residual,
    published_texture_map,
)
from nnunetv2_freetumor.generators.networks import FreeTumorNet
from nnunetv2_freetumor.intensity import RAW_CT
from nnunetv2_freetumor.plan import Texture
from nnunetv2_freetumor.synthesis.proposals import Proposer
from nnunetv2_freetumor.synthesis.region import Generator, Region, support
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer
from nnunetv2_freetumor.synthesis.texture import TextureGenerator, texture_contrast
from nnunetv2_freetumor.synthesis.volume import Box, offsets_mm


def anisotropic_region(shape=(14, 24, 20), spacing_mm=(3.0, 1.0, 2.0), radius_mm=7.0, center=(6.3, 11.8, 9.1)):
    """Give an organ with a spherical lesion, off center, seen with two subvoxels along the first axis."""
    box = Box((0, 0, 0), shape)
    offsets = offsets_mm(box, list(center), spacing_mm, (1, 1, 1), torch.device("cpu"))
    fine = offsets_mm(box, list(center), spacing_mm, (2, 1, 1), torch.device("cpu"))
    hu = 110 + 10 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    host = torch.ones(shape, dtype=torch.bool)
    return Region(hu, host, host, fine.norm(dim=-1) - radius_mm, (2, 1, 1), offsets, spacing_mm)


def moved(region, order):
    """Give a region with its axes in another order."""
    volumes = [getattr(region, name).permute(order) for name in ("hu", "host", "allowed", "distance_mm")]
    offsets = region.offsets_mm.permute(*order, 3)[..., list(order)]
    subvoxels, spacing = (tuple(values[axis] for axis in order) for values in (region.subvoxels, region.spacing_mm))
    return Region(*volumes, subvoxels, offsets, spacing)


def test_equal_spacing_leaves_every_bit_and_pads_behind():
    region = anisotropic_region()
    grid = make_grid(region, region.spacing_mm, 8)
    seen = to_grid(region.hu, region, grid)
    assert grid.sides == tuple(seen.shape) == (16, 24, 24)
    assert torch.equal(seen[:14, :, :20], region.hu)
    assert torch.equal(seen[14], seen[13]) and torch.equal(seen[..., 20], seen[..., 19])
    assert torch.equal(from_grid(seen, region, grid), region.hu)


def test_positions_survive_the_way_to_the_grid_and_back():
    region = anisotropic_region()
    grid = make_grid(region, ISOTROPIC, 4)
    assert [side * 1.5 for side in grid.sides] == [42.0, 24.0, 42.0]
    own = grid_offsets_mm(grid)
    for axis, margin_mm in enumerate((0.01, 0.3, 0.01)):  # the second axis is averaged over 1.5 voxels
        away = (to_grid(region.offsets_mm[..., axis], region, grid) - own[..., axis]).abs()
        assert float(away[2:-3, 2:-3, 2:-3].max()) < margin_mm
        back = from_grid(own[..., axis].contiguous(), region, grid)
        assert float((back - region.offsets_mm[..., axis]).abs()[1:-1, 1:-1, 1:-1].max()) < 0.3


def test_finer_voxels_are_averaged():
    region = make_region(hu=0.0, noise_hu=10.0, spacing_mm=0.5)
    coarse = to_grid(region.hu, region, make_grid(region, (2.0, 2.0, 2.0), 4))
    assert float(coarse.std()) < 0.15 * float(region.hu.std())
    assert float(coarse.mean()) == pytest.approx(float(region.hu.mean()), abs=0.1)


def test_a_window_of_fixed_sides_is_centered_on_the_lesion_and_empty_beyond():
    region = anisotropic_region()
    grid = make_grid(region, ISOTROPIC, 4, (8, 12, 4))
    assert grid.sides == (8, 12, 4)
    assert torch.allclose(grid_offsets_mm(grid).mean((0, 1, 2)), torch.zeros(3), atol=1e-5)
    back = from_grid(torch.ones(grid.sides), region, grid)
    inside = (region.offsets_mm.abs() <= torch.tensor([6.0, 9.0, 3.0])).all(-1)
    assert torch.allclose(back, inside.float(), atol=1e-5)


def test_a_card_s_axes_follow_the_arrays():
    assert [array_order((1.25, 1.5, 5.0), axis) for axis in (0, 1, 2)] == [
        (5.0, 1.5, 1.25), (1.5, 5.0, 1.25), (1.5, 1.25, 5.0),
    ]  # fmt: skip


@pytest.mark.parametrize("region", [make_region(radius_mm=8.0), anisotropic_region()], ids=["isotropic", "anisotropic"])
def test_an_untrained_lite_equals_texture(region):
    generator = LearnedGenerator(lite(trained=False), make_card(), ISOTROPIC)
    expected = texture_contrast(region, Texture(), make_look())
    assert isinstance(generator, Generator) and generator.window_mm == 0
    assert float((generator(region, Texture(), make_look()) - expected).abs().max()) < 1e-4


def test_lite_sees_the_texture_lesion_the_distance_the_host_the_noise_and_the_draw():
    region = make_region(radius_mm=8.0)
    look = make_look(diameter_mm=16.0, contrast=0.5, rim=0.25)
    seen = lite_inputs(region, Texture(), look, make_grid(region, ISOTROPIC, 4), WINDOW)
    image, base, distance, host, noise = seen.inputs[0]
    assert torch.equal(image, ((seen.hu + seen.base_contrast)[0, 0] + 175) / 425)
    assert torch.equal(base, seen.base_contrast[0, 0] / 40)
    assert float(distance.min()) == pytest.approx(-0.65, abs=0.05) and float(distance.max()) == 1
    assert bool((host > 0.999).all()) and float(noise.std()) == pytest.approx(0.9, abs=0.15)
    assert torch.allclose(seen.look, torch.tensor([[np.log(0.8), 0.5, 0.25, 0.99, 0.99, 0.99, 0.99, 0.99]]).float())


def test_the_envelope_is_1_up_to_1_mm_outside_and_0_from_3_mm_outside():
    assert torch.allclose(envelope(torch.tensor([-9.0, 1.0, 2.0, 3.0, 8.0])), torch.tensor([1, 1, 0.5, 0, 0]))


def test_a_trained_lite_adds_a_bounded_residual_around_the_lesion_only():
    region = make_region(radius_mm=8.0)
    generator = LearnedGenerator(lite(), make_card(), ISOTROPIC)
    residual = generator(region, Texture(), make_look()) - texture_contrast(region, Texture(), make_look())
    assert 1 < float(residual.abs().max()) <= 40
    assert float(residual[region.distance_mm > 5].abs().max()) == 0


def test_a_gradient_reaches_the_network_and_several_lesions_may_be_joined():
    network, sides = lite().train(), (16, 16, 16)
    regions = make_region(radius_mm=6.0), anisotropic_region()
    single = [
        lite_inputs(region, Texture(), make_look(), make_grid(region, ISOTROPIC, 4, sides), WINDOW)
        for region in regions
    ]
    joined = LiteInputs(*(torch.cat(parts) for parts in zip(*single)))
    contrast = joined.base_contrast + lite_residual(network, joined)
    assert contrast.shape == (2, 1, *sides)
    grid = make_grid(regions[1], ISOTROPIC, 4, sides)
    from_grid(contrast[1, 0], regions[1], grid).square().mean().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    assert float(network.enter.first.weight.grad.abs().sum()) > 0
    alone = single[1].base_contrast + lite_residual(network, single[1])
    assert torch.allclose(alone[0], contrast[1], atol=1e-3)


def test_a_transposed_region_gets_the_transposed_texture_and_distance():
    region, order = anisotropic_region(), (1, 2, 0)
    plain, other = (
        lite_inputs(one, Texture(fine_hu=0.0, coarse_hu=0.0), make_look(), make_grid(one, ISOTROPIC, 4), WINDOW)
        for one in (region, moved(region, order))
    )
    for name in ("hu", "base_contrast", "distance"):
        expected = getattr(plain, name)[0, 0].permute(order)
        assert torch.allclose(getattr(other, name)[0, 0], expected, atol=2e-3), name


def test_a_generator_s_spacing_follows_the_slice_axis():
    region, order = anisotropic_region(), (1, 2, 0)
    card = make_card("freetumor", spacing_mm=(2.0, 2.0, 4.0), side_voxels=(8, 8, 8))
    network = formula_network(1)
    plain = LearnedGenerator(network, card, array_order(card.spacing_mm, 0))
    turned = LearnedGenerator(network, card, array_order(card.spacing_mm, 2))
    shapes = []
    for generator, one in ((plain, region), (turned, moved(region, order))):
        shapes.append(make_grid(one, generator.spacing_mm, 8).sides)
        assert generator(one, Texture(), make_look()).shape == one.hu.shape
    assert shapes[1] == tuple(shapes[0][axis] for axis in order)


def formula_network(channels):
    """Build the published network with the weights that follow from their names."""
    network = FreeTumorNet(channels).eval()
    state = {}
    for key, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            state[key] = tensor
            continue
        shape = tuple(tensor.shape)
        seed = sum((i + 1) * ord(letter) for i, letter in enumerate(key)) % 2**31
        drawn = np.random.RandomState(seed).standard_normal(shape)
        if len(shape) > 1:
            drawn = drawn / np.sqrt(np.prod(shape[1:]))
        elif key.endswith("running_var"):
            drawn = np.abs(drawn) + 0.5
        else:
            drawn = (1 + 0.1 * drawn) if key.endswith("weight") else 0.1 * drawn
        state[key] = torch.from_numpy(np.asarray(drawn, np.float32))
    network.load_state_dict(state)
    return network


def small_region(radius_mm=5.0, spacing_mm=1.5):
    """Give a region of 16 voxels along each axis."""
    region = anisotropic_region((16, 16, 16), (spacing_mm,) * 3, radius_mm, (7.5, 7.5, 7.5))
    return region._replace(distance_mm=region.offsets_mm.norm(dim=-1) - radius_mm, subvoxels=(1, 1, 1))


@pytest.mark.parametrize(("sign", "activation"), [(-1, "tanh"), (1, "sigmoid")])
def test_freetumor_follows_the_published_insertion_law(sign, activation):
    region, look = small_region(), make_look(diameter_mm=10.0, rim=0.0, necrosis=0.1, enhancement=0.1)
    network = formula_network(3)
    inputs = freetumor_inputs(region, look, make_grid(region, ISOTROPIC, 8), WINDOW)
    contrast = freetumor_contrast(network, inputs, sign, activation, 1)
    raw = getattr(torch, activation)(network(((region.hu + 175) / 425).clamp(0, 1)[None, None]))[:, 1:2]
    axis = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    kernel = torch.einsum("i,j,k->ijk", axis, axis, axis)[None, None]
    smooth = torch.nn.functional.conv3d(torch.nn.functional.pad(raw, (3,) * 6, mode="replicate"), kernel / kernel.sum())
    expected = sign * inputs.soft_mask * smooth * inputs.texture_map * 425
    assert float((contrast - expected).detach().abs().max()) < 2e-3
    assert float(inputs.soft_mask.min()) >= 0 and 0.5 < float(inputs.soft_mask.max()) <= 1


def test_the_abdomen_darkens_and_the_chest_brightens():
    region, look = small_region(), make_look(diameter_mm=10.0, rim=0.0)
    network = formula_network(3)
    with torch.no_grad():
        network.out_tr.final_conv.bias[2] = 4.0
    abdomen = LearnedGenerator(network, make_card("freetumor", hosts=("liver", "pancreas", "kidney")), ISOTROPIC, 2)
    chest = make_card("freetumor", hosts=("lung",), sign=1, activation="sigmoid", window_hu=(-1000.0, 500.0))
    darker = abdomen(region, Texture(), look)
    brighter = LearnedGenerator(formula_network(1), chest, ISOTROPIC)(region, Texture(), look)
    inside = region.distance_mm < 0
    assert bool((darker[inside] < -5).all()) and float(darker.max()) <= 0
    assert bool((brighter[inside] > 5).all()) and float(brighter.min()) >= 0


def test_freetumor_asks_for_surroundings_but_no_more_than_it_was_trained_on():
    sides = {16: 24.0, 96: 96.0}
    for side, window_mm in sides.items():
        card = make_card("freetumor", side_voxels=(side, side, side))
        assert LearnedGenerator(FreeTumorNet(1), card, ISOTROPIC).window_mm == window_mm


def test_the_published_texture_has_its_mean_its_range_and_is_fixed_to_the_lesion():
    region = anisotropic_region()
    means = []
    for uniform in (0.0, 0.999):
        texture = published_texture_map(
            make_look(necrosis=0.5, enhancement=0.1, matter=uniform), make_grid(region, ISOTROPIC, 8)
        )
        means.append(float(texture[texture > 0.12].mean()))
        assert float(texture.min()) >= 0 and float(texture.max()) <= 1
    assert means == pytest.approx([0.5, 0.55], abs=0.02)
    looks = [make_look(necrosis=0.5), make_look(necrosis=0.5), make_look(necrosis=0.9)]
    first, again, other = (published_texture_map(look, make_grid(region, ISOTROPIC, 8)) for look in looks)
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.05)


def generators():
    """Give one learned generator of each kind."""
    chest = make_card("freetumor", hosts=("lung",), sign=1, activation="sigmoid", spacing_mm=(3.0, 3.0, 3.0))
    return {
        "lite": LearnedGenerator(lite(), make_card(), ISOTROPIC),
        "freetumor": LearnedGenerator(
            formula_network(1), dataclasses.replace(chest, side_voxels=(8, 8, 8)), (3.0,) * 3
        ),
    }


@pytest.fixture(scope="module", params=["lite", "freetumor"])
def generator(request):
    """Give each kind in turn."""
    return generators()[request.param]


def test_a_batch_equals_its_singles_and_other_samples_stay_bit_for_bit(organ_phantom, generator):
    synthesizer = Synthesizer(make_section(min_visibility=0.0), organ_phantom.spacing_mm, RAW_CT, [generator])
    image = torch.cat([organ_phantom.image, organ_phantom.image.flip(3), organ_phantom.image + 15])
    label = torch.cat([organ_phantom.label, organ_phantom.label.flip(3), torch.zeros_like(organ_phantom.label)])
    draw = synthesizer.draw(3, torch.Generator().manual_seed(5))
    whole = synthesizer(image, label, draw)
    assert {lesion.site.sample for lesion in whole.lesions} == {0, 1}
    assert torch.equal(whole.image[2], image[2]) and torch.equal(whole.label[2], label[2])
    assert torch.equal(whole.image[label != 1], image[label != 1])
    for i in range(2):
        single = synthesizer(image[i : i + 1], label[i : i + 1], draw.sample(i))
        assert torch.equal(single.image[0], whole.image[i]) and torch.equal(single.label[0], whole.label[i])


def test_only_voxels_of_the_host_near_the_lesion_change(organ_phantom, generator):
    section, spacing_mm = make_section(min_visibility=0.0), organ_phantom.spacing_mm
    synthesizer = Synthesizer(section, spacing_mm, RAW_CT, [generator])
    draw = synthesizer.draw(1, torch.Generator().manual_seed(4))
    result = synthesizer(organ_phantom.image, organ_phantom.label, draw)
    near = torch.zeros_like(organ_phantom.label, dtype=torch.bool)
    propose = Proposer(section, spacing_mm, [generator.window_mm])
    for proposal in propose(organ_phantom.image, organ_phantom.label, draw).lesions:
        near[(0, 0, *proposal.site.box.slices())] |= support(proposal.region)
    changed = result.image != organ_phantom.image
    assert changed.any() and not (changed & ~near).any()
    again = synthesizer(organ_phantom.image, organ_phantom.label, draw)
    assert torch.equal(again.image, result.image) and torch.equal(again.label, result.label)


def test_texture_behind_the_interface_is_unchanged():
    region = make_region(radius_mm=8.0)
    expected = texture_contrast(region, Texture(), make_look())
    assert torch.equal(TextureGenerator()(region, Texture(), make_look()), expected)
