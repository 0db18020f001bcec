"""Generator files: what goes in comes out, and whatever does not fit is refused by name, without executing anything."""

import contextlib
import dataclasses
import json
import pickle
import random

import pytest
import torch
from generator_examples import INSTALLED, Malicious, lite_card, trained_lite
from safetensors.torch import load_file, save_file
from torch import nn

from nnunetv2_freetumor.generators import weights
from nnunetv2_freetumor.generators.networks import INPUTS, LOOK, MAX_RESIDUAL_HU, FreeTumorNet, LiteNet
from nnunetv2_freetumor.generators.weights import find_generator, load_generator, read_card, save_generator

pytest_plugins = ["generator_places"]


def lite_inputs(rng, batch=2):
    """Draw inputs of the lite network."""
    return torch.randn(batch, INPUTS, 16, 16, 16, generator=rng), torch.randn(batch, LOOK, generator=rng)


def rewrite(path, tensors=None, card=None, **changes):
    """Write a generator file by hand."""
    card = dataclasses.asdict(read_card(path)) if card is None else card
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path, {"card": json.dumps(card | changes)})


def test_what_is_saved_comes_back_with_its_card_ready_for_use(tmp_path, rng):
    network, inputs = trained_lite(), lite_inputs(rng)
    save_generator(network, lite_card(fold="3"), tmp_path / "a.safetensors")
    loaded = load_generator(tmp_path / "a.safetensors", "cpu")
    assert loaded.card == lite_card(fold="3") == read_card(tmp_path / "a.safetensors")
    assert torch.equal(loaded.network(*inputs), network(*inputs))
    assert not loaded.network.training
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_half_precision_weights_become_float32(lite_file):
    rewrite(lite_file, {name: tensor.half() for name, tensor in load_file(lite_file).items()})
    assert {p.dtype for p in load_generator(lite_file).network.parameters()} == {torch.float32}


def test_loading_leaves_the_global_random_state_alone(lite_file):
    before = torch.get_rng_state()
    load_generator(lite_file)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failed_save_keeps_the_last_good_file(lite_file):
    network = LiteNet()
    network.last.bias.data.fill_(torch.nan)
    good = lite_file.read_bytes()
    with pytest.raises(
        ValueError, match=r"mine.safetensors must contain the weights .* finite, .* NaN .* in last.bias"
    ):
        save_generator(network, lite_card(), lite_file)
    assert lite_file.read_bytes() == good


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_pickle_is_refused_and_nothing_of_it_runs(tmp_path, save):
    path, trap = tmp_path / "a.safetensors", tmp_path / "trap"
    save({"state_dict": Malicious(trap)}, path)
    for read in (read_card, load_generator):
        with pytest.raises(ValueError, match=r"a\.safetensors is a pickle.* nothing in it was executed.*convert"):
            read(path)
    assert not trap.exists()


@pytest.mark.parametrize("kept", [0, 5, 9, 400, -1])
def test_a_truncated_file_is_refused(lite_file, kept):
    lite_file.write_bytes(lite_file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"mine\.safetensors is (truncated or damaged|not a safetensors file) \("):
        load_generator(lite_file)


def test_a_damaged_header_ends_in_a_clear_error_too(lite_file, tmp_path):
    good, chance = lite_file.read_bytes(), random.Random(0)
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(3):
            bad[chance.randrange(1200)] = chance.randrange(256)
        lite_file.write_bytes(bad)
        with contextlib.suppress(ValueError):  # nothing else; a letter of a text may well change
            load_generator(lite_file)


def test_other_files_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.safetensors").write_text("a page that says: not found")
    with pytest.raises(ValueError, match=r"a\.safetensors is not a safetensors file"):
        read_card(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"There is no generator file .*b\.safetensors"):
        load_generator(tmp_path / "b.safetensors")


def test_weights_that_do_not_fit_the_card_are_named(lite_file):
    tensors = load_file(lite_file)
    bad = {name: tensor for name, tensor in tensors.items() if name != "last.bias"}
    bad |= {
        "last.weight": torch.zeros(2, 16, 1, 1, 1),
        "extra": torch.zeros(1),
        "enter.first.bias": torch.full((16,), torch.inf),
    }
    rewrite(lite_file, bad)
    with pytest.raises(ValueError, match="'lite' network for liver") as error:
        load_generator(lite_file)
    for text in (
        "mine.safetensors must contain",
        "it lacks last.bias",
        "has unknown extra",
        "last.weight is (2, 16, 1, 1, 1) instead of (1, 16, 1, 1, 1)",
        "contains NaN or infinite values in enter.first.bias",
        "Copy or download the file again",
    ):
        assert text in str(error.value)


def test_a_file_without_card_is_refused(lite_file):
    save_file(load_file(lite_file), lite_file)
    with pytest.raises(ValueError, match=r"mine\.safetensors contains weights but no card .* generator convert"):
        read_card(lite_file)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"surprise": 1}, r"'card' has unknown keys; allowed are name, kind, .* but it is 'surprise'"),
        ({"kind": "diffusion"}, r"'card\.kind' must be one of 'freetumor', 'lite', but it is 'diffusion'"),
        ({"window_hu": [250, -175]}, "'window_hu' must be two rising HU values"),
        ({"name": "../../elsewhere"}, "A generator's name must start with a letter"),
        ({"side_voxels": [48, 48, 46]}, "'side_voxels' must be multiples of 4"),
        ({"spacing_mm": [1.5, 1.5, 0]}, "'spacing_mm' must be above 0"),
        ({"hosts": []}, "'hosts' must name at least one host"),
    ],
)
def test_a_card_that_is_not_valid_says_why(lite_file, change, reason):
    rewrite(lite_file, **change)
    with pytest.raises(ValueError, match=rf"mine\.safetensors has a card .* cannot read: {reason}"):
        read_card(lite_file)


def test_names_find_installed_then_bundled_generators(lite_file, generator_folders):
    bundled, installed = generator_folders / "bundled", generator_folders / INSTALLED
    for path in (bundled / "lite_phantom.safetensors", bundled / "both.safetensors", installed / "both.safetensors"):
        path.write_bytes(lite_file.read_bytes())
    assert find_generator("lite") == find_generator("lite_phantom") == bundled / "lite_phantom.safetensors"
    assert find_generator("both") == installed / "both.safetensors"
    assert find_generator(lite_file) == find_generator(str(lite_file)) == lite_file
    with pytest.raises(ValueError, match="no generator named 'other'.*one of these: both, lite_phantom"):
        find_generator("other")
    with pytest.raises(ValueError, match="There is no generator file other.safetensors"):
        find_generator("other.safetensors")


def test_every_file_is_listed_with_its_card_or_its_fault(lite_file, generator_folders):
    broken = generator_folders / INSTALLED / "broken.safetensors"
    broken.write_bytes(b"")
    (generator_folders / "bundled" / "good.safetensors").write_bytes(lite_file.read_bytes())
    (first, fault), (second, card) = weights.available()
    assert first == broken and "not a safetensors file" in fault
    assert second.name == "good.safetensors" and card == lite_card()


def test_without_nnunet_generator_folders_bundled_ones_are_found_and_installed_ones_need_it(
    lite_file, generator_folders, monkeypatch
):
    (generator_folders / "bundled" / "lite_phantom.safetensors").write_bytes(lite_file.read_bytes())
    monkeypatch.delenv("nnUNet_results")
    assert find_generator("lite").name == "lite_phantom.safetensors"
    with pytest.raises(ValueError, match="variable nnUNet_results is not set. Set it"):
        weights.installed_folder()
    with pytest.raises(ValueError, match="lite_phantom .installed ones are not listed: nnUNet_results is not set"):
        find_generator("mine_too")


def multiply_adds(network, *shapes):
    """Count a network's multiply-adds, layer by layer, without computing anything."""
    counts = []

    def count(layer, inputs, output):
        if isinstance(layer, nn.ConvTranspose3d):
            counts.append(inputs[0][0].numel() * layer.weight[0].numel())
        elif isinstance(layer, nn.Conv3d):
            counts.append(output[0, 0].numel() * layer.weight.numel())
        elif isinstance(layer, nn.Linear):
            counts.append(layer.weight.numel())

    for layer in network.modules():
        layer.register_forward_hook(count)
    network(*(torch.empty(shape, device="meta") for shape in shapes))
    return sum(counts)


def test_lite_is_small_and_at_least_ten_times_cheaper_than_freetumor(lite_file):
    with torch.device("meta"):
        lite, freetumor = LiteNet(), FreeTumorNet(3)
    assert sum(parameter.numel() for parameter in lite.parameters()) <= 1.5e6
    assert lite_file.stat().st_size <= 4e6
    of_lite = multiply_adds(lite, (1, INPUTS, 48, 48, 48), (1, LOOK))
    assert of_lite > 1e8
    assert multiply_adds(freetumor, (1, 1, 48, 48, 48)) >= 10 * of_lite


def test_an_untrained_lite_changes_nothing_and_a_trained_one_at_most_40_hu(rng):
    inputs, look = lite_inputs(rng)
    assert not LiteNet()(inputs, look).any()
    wild = trained_lite()
    wild.last.weight.data.mul_(1000)
    residual = wild(inputs, look)
    assert MAX_RESIDUAL_HU == 40.0
    assert 39.0 < residual.abs().max() <= 40.0


def test_lite_treats_a_batch_as_its_singles(rng):
    network, (inputs, look) = trained_lite().eval(), lite_inputs(rng, batch=3)
    singles = torch.cat([network(inputs[i : i + 1], look[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(inputs, look), singles, rtol=0, atol=1e-3)  # HU
