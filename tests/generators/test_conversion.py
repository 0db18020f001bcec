"""The published architecture equals the authors' network, and their checkpoint becomes a generator file."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from generator_examples import Malicious

from nnunetv2_freetumor.generators import conversion
from nnunetv2_freetumor.generators.conversion import convert_command
from nnunetv2_freetumor.generators.networks import FreeTumorNet
from nnunetv2_freetumor.generators.weights import load_generator

CONFORMANCE = Path(__file__).parents[2] / ".." / "shared" / "conformance"
needs_reference = pytest.mark.skipif(
    not CONFORMANCE.is_dir(), reason="the reference outputs are not there (../shared/conformance)"
)


def by_formula(shapes) -> dict[str, torch.Tensor]:
    """Give each weight the values that follow from its name, as in the reference."""
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
            continue
        seed = sum((i + 1) * ord(letter) for i, letter in enumerate(key)) % 2**31
        values = np.random.RandomState(seed).standard_normal(shape)
        if len(shape) > 1:
            values = values / np.sqrt(np.prod(shape[1:]))
        elif key.endswith("running_var"):
            values = np.abs(values) + 0.5
        else:
            values = 1 + 0.1 * values if key.endswith("weight") else 0.1 * values
        state[key] = torch.from_numpy(np.asarray(values, np.float32))
    return state


@pytest.fixture(scope="session")
def published() -> dict[int, dict[str, torch.Tensor]]:
    """Give the generator's weights with 3 and with 1 output channels."""
    with torch.device("meta"):
        networks = {channels: FreeTumorNet(channels) for channels in (3, 1)}
    return {n: by_formula({k: tuple(v.shape) for k, v in net.state_dict().items()}) for n, net in networks.items()}


@pytest.fixture(autouse=True)
def clean_up(tmp_path):
    """Leave no files of 76 MB behind."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture
def official(monkeypatch):
    """Let the checkpoint `official.pt` be read from memory."""

    def put(state):
        monkeypatch.setattr(conversion, "read_checkpoint", lambda path: {"state_dict": state})

    return put


def tgan(state, prefix="netG.") -> dict[str, torch.Tensor]:
    """Lay a generator's weights out as the authors' checkpoint does, the other two networks beside it."""
    others = {
        "netD.down_tr64.ops.0.conv1.bias": torch.zeros(32),
        "netD.out_tr.final_conv.weight": torch.zeros(3, 64, 1, 1, 1),
    }
    outer = "module." if prefix.startswith("module.") else ""
    others |= {"netSeg.swinViT.patch_embed.proj.bias": torch.zeros(48)}
    return {f"{prefix}{key}": value for key, value in state.items()} | {outer + key: v for key, v in others.items()}


def image(rng, batch=2):
    """Draw an image in the generator's window."""
    return torch.rand(batch, 1, 16, 16, 16, generator=rng)


@needs_reference
def test_state_dict_names_and_shapes_are_the_authors(published):
    reference = json.loads((CONFORMANCE / "official_generator_keys.json").read_text())
    assert {key: list(value.shape) for key, value in published[3].items()} == reference


@needs_reference
@pytest.mark.parametrize("channels", [3, 1])
def test_the_network_equals_the_authors_within_one_in_ten_thousand(published, channels):
    reference = np.load(CONFORMANCE / "official_generator.npz")
    network = FreeTumorNet(channels)
    network.load_state_dict(published[channels])
    with torch.inference_mode():
        output = network(torch.from_numpy(reference["x"])).tanh()
    expected = torch.from_numpy(reference[f"y{channels}"])
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)


def test_a_samples_output_does_not_depend_on_its_neighbors(published, rng):
    network = FreeTumorNet(3).eval()
    network.load_state_dict(published[3])
    batch = image(rng)
    with torch.inference_mode():
        singles = torch.cat([network(batch[:1]), network(batch[1:])])
        torch.testing.assert_close(network(batch), singles, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prefix", ["netG.", "module.netG.", "netG.module.", ""])
def test_a_converted_checkpoint_gives_the_same_outputs(published, tmp_path, rng, capsys, prefix):
    state = tgan(published[3], prefix) if prefix else published[3]
    score = {"epoch": 100, "best_acc": np.float64(0.5)}
    torch.save(score | {"state_dict": state} if prefix else state, tmp_path / "official.pt")
    convert_command(str(tmp_path / "official.pt"), str(tmp_path / "new" / "a.safetensors"))
    loaded = load_generator(tmp_path / "new" / "a.safetensors")
    network = FreeTumorNet(3).eval()
    network.load_state_dict(published[3])
    with torch.inference_mode():
        assert torch.equal(loaded.network(image(rng, 1)), network(image(rng.manual_seed(20_240), 1)))
    out = capsys.readouterr().out
    assert ("networks: 2 of netD., 1 of netSeg.)." if prefix else "networks: none).") in out
    assert f"Converted {len(published[3])} weights of the generator (" in out
    before = (tmp_path / "new" / "a.safetensors").read_bytes()
    with pytest.raises(ValueError, match="a.safetensors already exists and is not overwritten. Choose another file"):
        convert_command(str(tmp_path / "official.pt"), str(tmp_path / "new" / "a.safetensors"))
    assert (tmp_path / "new" / "a.safetensors").read_bytes() == before


def test_three_channels_are_the_abdomens(published, tmp_path):
    torch.save({"state_dict": tgan(published[3])}, tmp_path / "official.pt")
    convert_command(str(tmp_path / "official.pt"), str(tmp_path / "a.safetensors"), region="abdomen", name="ours")
    card = load_generator(tmp_path / "a.safetensors").card
    assert card.hosts == card.real_tumors == ("liver", "pancreas", "kidney")
    assert (card.name, card.kind, card.window_hu, card.spacing_mm) == (
        "ours",
        "freetumor",
        (-175, 250),
        (1.5, 1.5, 1.5),
    )
    assert (card.side_voxels, card.sign, card.activation) == ((96, 96, 96), -1, "tanh")
    assert "Apache-2.0" in card.license and "arXiv 2502.18519" in card.recipe


@pytest.mark.parametrize(("host", "expected"), [(None, "lung"), ("lung", "lung"), ("covid19", "covid19")])
def test_one_channel_is_the_chests(published, official, tmp_path, host, expected):
    official(tgan(published[1]))
    convert_command("official.pt", str(tmp_path / "a.safetensors"), host=host)
    card = load_generator(tmp_path / "a.safetensors").card
    assert (card.name, card.hosts, card.real_tumors) == (f"freetumor_{expected}", (expected,), (expected,))
    assert (card.window_hu, card.spacing_mm) == ((-1000, 500), (1.25, 1.25, 5))
    assert (card.side_voxels, card.sign, card.activation) == ((192, 192, 32), 1, "sigmoid")


def test_statistics_that_the_network_never_uses_may_be_missing(published, tmp_path):
    state = {key: value for key, value in published[1].items() if "running" not in key and "tracked" not in key}
    torch.save(state, tmp_path / "official.pt")
    convert_command(str(tmp_path / "official.pt"), str(tmp_path / "a.safetensors"))
    weights = load_generator(tmp_path / "a.safetensors").network.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in state.items())


LAST = "out_tr.final_conv.weight"


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        ({"netG.up_tr64.extra": torch.zeros(1)}, {}, r"official\.pt must contain .* it has unknown up_tr64\.extra"),
        ({"netG.out_tr.final_conv.bias": None}, {}, r"official\.pt must contain .* it lacks out_tr\.final_conv\.bias"),
        ({"netG.out_tr.final_conv.bias": torch.zeros(2)}, {}, r"final_conv\.bias is \(2,\) instead of \(1,\)"),
        ({"netG.out_tr.final_conv.bias": torch.tensor([torch.nan])}, {}, r"NaN or infinite values in out_tr"),
        ({f"netG.{LAST}": torch.zeros(2, 64, 1, 1, 1)}, {}, r"3 \(abdomen\) or 1 \(chest\) output channels.* has 2"),
        (
            {f"netG.{LAST}": None},
            {},
            r"including its last layer netG\.out_tr\.final_conv\.weight, but it contains netG\.down",
        ),
        ({}, {"region": "abdomen"}, r"--region must be chest for .*official\.pt.* 1 output channel.*'abdomen'"),
        ({}, {"host": "liver"}, r"--host must be lung or covid19 for the chest and omitted .* it is 'liver'"),
        ({}, {"name": "a/b"}, r"A generator's name must start with a letter.* it is 'a/b'"),
        ({}, {"output": "a.pt"}, r"-o must name a file that ends in \.safetensors, but it is a\.pt"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(published, official, tmp_path, change, options, text):
    state = {key: value for key, value in (tgan(published[1]) | change).items() if value is not None}
    official(state)
    with pytest.raises(ValueError, match=text):
        convert_command("official.pt", **({"output": str(tmp_path / "a.safetensors")} | options))
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": [1]}, torch.zeros(3)])
def test_a_checkpoint_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "official.pt")
    with pytest.raises(ValueError, match=r"official\.pt must contain the published generator.* no weights at all"):
        convert_command(str(tmp_path / "official.pt"), str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, 2))])
def test_a_checkpoint_that_wants_to_run_code_is_refused_before_it_does(tmp_path, save):
    path, trap = tmp_path / "official.pt", tmp_path / "trap"
    save({"state_dict": Malicious(trap)}, path)
    with pytest.raises(
        ValueError, match=r"official\.pt may contain only tensors.* requests \w+\.mkdir; nothing in it was executed"
    ):
        convert_command(str(path), str(tmp_path / "a.safetensors"))
    assert not trap.exists()


@pytest.mark.parametrize("kept", [0, 3, 100, 5000, -1])
def test_a_checkpoint_that_broke_off_is_refused(tmp_path, kept):
    path = tmp_path / "official.pt"
    torch.save({"state_dict": {"a": torch.zeros(5000)}}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"official\.pt cannot be read as a checkpoint \(\w+\)"):
        convert_command(str(path), str(tmp_path / "a.safetensors"))


def test_a_checkpoint_that_holds_other_objects_is_refused(tmp_path):
    torch.save({"state_dict": {}, "settings": Path("somewhere")}, tmp_path / "official.pt")
    with pytest.raises(ValueError, match=r"requests pathlib\S*;.* save only its 'state_dict'"):
        convert_command(str(tmp_path / "official.pt"), str(tmp_path / "a.safetensors"))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"There is no checkpoint .*official\.pt"):
        convert_command(str(tmp_path / "official.pt"), str(tmp_path / "a.safetensors"))
