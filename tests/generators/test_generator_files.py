"""`generator list`, `inspect` and `install`: cards that people can read, and files that cannot be used."""

import hashlib
import pickle
import re

import pytest
import safetensors.torch
import torch
from generator_examples import INSTALLED, Malicious, lite_card, trained_lite

from nnunetv2_freetumor.cli import main
from nnunetv2_freetumor.generators import install, weights
from nnunetv2_freetumor.generators.weights import save_generator

pytest_plugins = ["generator_places"]


def test_the_list_shows_bundled_and_installed_ones_and_names_broken_ones(lite_file, generator_folders, capsys):
    card = lite_card(
        name="phantom", training_data="200 phantoms, " + "made by this package, " * 10, license="Apache-2.0"
    )
    save_generator(trained_lite(), card, generator_folders / "bundled" / "lite_phantom.safetensors")
    save_generator(
        trained_lite(), lite_card(real_tumors=("liver",)), generator_folders / INSTALLED / "real.safetensors"
    )
    (generator_folders / INSTALLED / "broken.safetensors").write_bytes(lite_file.read_bytes()[:-4])
    assert main(["generator", "list"]) == 0
    out = capsys.readouterr().out
    bundled, installed = out.split("Installed:")
    assert "lite_phantom" in bundled and "real tumors    no" in bundled and "license        Apache-2.0" in bundled
    assert re.search(r"size +1\.\d MB, [\d,]+ parameters", bundled)
    assert "real tumors    yes: liver" in installed
    assert re.search(r"broken +cannot be used:\s.*broken\.safetensors\s+is\s+truncated", installed)
    assert str(generator_folders / INSTALLED) in out
    assert max(map(len, bundled.splitlines())) <= 110


def test_the_list_works_without_any_generator_and_without_nnunet(generator_folders, monkeypatch, capsys):
    install.list_command()
    monkeypatch.delenv("nnUNet_results")
    install.list_command()
    out = capsys.readouterr().out
    assert out.count("Bundled with the package: none\nInstalled: none\n") == 2
    assert "nnUNet_results is not set" in out


def test_inspect_prints_the_whole_card_and_the_checksum(lite_file, capsys):
    install.inspect_command(str(lite_file))
    lines = dict(re.findall(r"^  (\S.*?)  +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert lines["window"] == "-175 to 250 HU"
    assert lines["spacing"] == "1.5 x 1.5 x 1.5 mm (x, y, z)"
    assert lines["training cases"] == "2: case_1, case_2"
    assert lines["sha256"] == hashlib.sha256(lite_file.read_bytes()).hexdigest()
    assert "fold" not in lines


def test_a_card_cannot_command_the_terminal(tmp_path, capsys):
    save_generator(trained_lite(), lite_card(license="free\x1b[2J\nkind"), tmp_path / "a.safetensors")
    install.inspect_command(str(tmp_path / "a.safetensors"))
    assert re.search(r"license +free\[2Jkind$", capsys.readouterr().out, re.MULTILINE)


def test_an_installed_generator_is_found_by_its_cards_or_the_given_name(lite_file, generator_folders, capsys):
    (generator_folders / INSTALLED).rmdir()
    assert main(["generator", "install", str(lite_file)]) == 0
    assert main(["generator", "install", str(lite_file), "--name", "other"]) == 0
    assert '"generator": "other"' in capsys.readouterr().out
    for name in ("mine", "other"):
        assert weights.find_generator(name).read_bytes() == lite_file.read_bytes()
        assert weights.find_generator(name).parent == generator_folders / INSTALLED


def test_install_overwrites_nothing_else(lite_file, generator_folders, capsys):
    install.install_command(str(lite_file))
    before = lite_file.read_bytes()
    install.install_command(str(lite_file))
    assert "is already installed as 'mine'" in capsys.readouterr().out
    save_generator(trained_lite(), lite_card(), lite_file)
    with pytest.raises(
        ValueError, match=r"A different generator is already installed as .*mine.*not overwritten.*--name, or delete"
    ):
        install.install_command(str(lite_file))
    assert (generator_folders / INSTALLED / "mine.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["auto", "texture", "constant", "lite", "lite_phantom"])
def test_names_of_the_package_itself_are_taken(lite_file, generator_folders, name):
    (generator_folders / "bundled" / "lite_phantom.safetensors").write_bytes(lite_file.read_bytes())
    with pytest.raises(ValueError, match=f"The name '{name}' is reserved by this package"):
        install.install_command(str(lite_file), name)


def test_install_needs_nnunets_results_folder_and_a_proper_name(lite_file, generator_folders, monkeypatch):
    with pytest.raises(ValueError, match="A generator's name must start with a letter"):
        install.install_command(str(lite_file), "../up")
    with pytest.raises(ValueError, match="and omit the file extension, but it is 'mine.safetensors'"):
        install.install_command(str(lite_file), "mine.safetensors")
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(ValueError, match="nnUNet_results is not set"):
        install.install_command(str(lite_file))


@pytest.mark.parametrize("command", ["inspect", "install"])
@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_pickle_is_refused_in_one_line_and_nothing_of_it_runs(tmp_path, generator_folders, capsys, command, save):
    trap = tmp_path / "trap"
    for name in ("a.pt", "a.safetensors"):
        save(Malicious(trap), tmp_path / name)
        assert main(["generator", command, str(tmp_path / name)]) == 2
        assert re.search(r"a\.\w+ is a pickle.*generator convert OFFICIAL\.pt", capsys.readouterr().err)
    assert not trap.exists() and not any((generator_folders / INSTALLED).iterdir())


@pytest.mark.parametrize("command", ["inspect", "install"])
def test_weights_that_are_no_floating_point_numbers_are_refused(lite_file, generator_folders, capsys, command):
    with safetensors.safe_open(lite_file, "pt") as file:
        card, names = file.metadata(), file.keys()
        tensors = {name: file.get_tensor(name).int() for name in names}
    safetensors.torch.save_file(tensors, lite_file, card)
    with pytest.raises(ValueError, match="it has the wrong type of numbers in "):
        getattr(install, f"{command}_command")(str(lite_file))


@pytest.mark.parametrize("command", ["inspect", "install"])
def test_a_truncated_file_is_refused(lite_file, generator_folders, capsys, command):
    lite_file.write_bytes(lite_file.read_bytes()[:-1])
    assert main(["generator", command, str(lite_file)]) == 2
    assert "mine.safetensors is truncated or damaged" in capsys.readouterr().err
    assert not any((generator_folders / INSTALLED).iterdir())
