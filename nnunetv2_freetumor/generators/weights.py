"""Generator files: safetensors with a card in the header that says what the weights are and where they come from."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nnunetv2_freetumor.files.cases import replacing
from nnunetv2_freetumor.files.strict_json import read_as
from nnunetv2_freetumor.generators.cards import Card
from nnunetv2_freetumor.generators.networks import FreeTumorNet, LiteNet

GENERATOR_ENDING = ".safetensors"
ALIASES = {"lite": "lite_phantom"}  # short names of bundled generators
_CARD = "card"  # the key in the header
_RESULTS = "nnUNet_results"
_CONVERT = "'nnUNetv2_freetumor generator convert OFFICIAL.pt -o FILE'"


class LoadedGenerator(NamedTuple):
    """A generator's network, in evaluation mode, and its card."""

    network: nn.Module
    card: Card


def build_network(kind: str, hosts: int) -> nn.Module:
    """Build a network of a card's kind for a number of hosts, with fresh weights."""
    return FreeTumorNet(hosts) if kind == "freetumor" else LiteNet()


def save_generator(network: nn.Module, card: Card, path: str | Path) -> None:
    """Write a generator's weights and card, so that `path` never holds half of them.

    Raises:
        ValueError: the weights do not fit the card, or are not finite.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    check_tensors(tensors, card, path)
    with replacing(path) as unfinished:
        unfinished.write_bytes(save(tensors, {"format": "pt", _CARD: json.dumps(dataclasses.asdict(card))}))


def read_card(path: str | Path) -> Card:
    """Read a generator file's card from its header, without its weights.

    Raises:
        ValueError: the file is missing, is no whole safetensors file, or its card is missing or not valid.
    """
    return _read(Path(path), weights=False)[0]


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> LoadedGenerator:
    """Load a generator for use: evaluation mode, no gradients; the global random state stays as it is.

    Raises:
        ValueError: as `read_card`, and where the weights do not fit the card or are not finite.
    """
    card, tensors = _read(Path(path), weights=True)
    check_tensors(tensors, card, path)
    network = _outline(card).to_empty(device=device)
    network.load_state_dict(tensors)
    return LoadedGenerator(network.eval().requires_grad_(False), card)


def check_tensors(tensors: Mapping[str, Tensor], card: Card, path: str | Path) -> None:
    """Refuse weights that are not, name by name and shape by shape, those of the network that the card describes.

    Raises:
        ValueError: names the file, what does not fit, and the way out.
    """
    expected = _outline(card).state_dict()
    network = f"the '{card.kind}' network for {', '.join(card.hosts)}"
    shared = [name for name in expected if name in tensors]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in shared
        if tensors[name].shape != expected[name].shape
    ]
    problems = {
        "lacks": [name for name in expected if name not in tensors],
        "has unknown": [name for name in tensors if name not in expected],
        "has wrong shapes:": shapes,
        "has the wrong type of numbers in": [
            name for name in shared if expected[name].is_floating_point() != tensors[name].is_floating_point()
        ],
        "contains NaN or infinite values in": [name for name in shared if not tensors[name].isfinite().all()],
    }
    found = [f"it {problem} {_some(names)}" for problem, names in problems.items() if names]
    if found:
        raise ValueError(
            f"{path} must contain the weights of {network}, all finite, but {'; '.join(found)}. Copy or download the "
            "file again, or train or convert the generator again."
        )


def parameter_count(card: Card) -> int:
    """Count the parameters of the network that a card describes."""
    return sum(parameter.numel() for parameter in _outline(card).parameters())


def bundled_folder() -> Path:
    """Return the folder of the generators that come with this package."""
    return Path(__file__).parents[1] / "bundled"


def installed_folder() -> Path:
    """Return the folder of the installed generators, whether it exists or not.

    Raises:
        ValueError: nnU-Net's results folder is not set.
    """
    results = os.environ.get(_RESULTS)
    if not results:
        raise ValueError(
            "Generators are installed in $nnUNet_results/freetumor_generators, but the environment variable "
            "nnUNet_results is not set. Set it as described in nnU-Net's installation guide: export "
            "nnUNet_results=FOLDER."
        )
    return Path(results) / "freetumor_generators"


def find_generator(name_or_path: str | Path) -> Path:
    """Find a generator file: by its path, by its name among the installed ones, or among the bundled ones.

    Raises:
        ValueError: there is none; the text lists what there is.
    """
    name = str(name_or_path)
    if name.endswith(GENERATOR_ENDING) or Path(name).name != name:
        if Path(name).is_file():
            return Path(name)
        raise ValueError(
            f"There is no generator file {name}. Give an existing file, or one of these names: {_there()}."
        )
    for file in _files():
        if file.stem in (name, ALIASES.get(name)):
            return file
    if Path(name).is_file():
        return Path(name)
    raise ValueError(
        f"There is no generator named '{name}'. Give a path to a {GENERATOR_ENDING} file, or one of these: {_there()}."
    )


def available() -> list[tuple[Path, Card | str]]:
    """List the installed, then the bundled generators, each with its card or with what is wrong with the file."""
    return [(file, _card_or_error(file)) for file in _files()]


def _outline(card: Card) -> nn.Module:
    """Build the network without values: no random numbers are drawn, so the global random state stays as it is."""
    with torch.device("meta"):
        return build_network(card.kind, len(card.hosts))


def _read(path: Path, weights: bool) -> tuple[Card, dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(f"There is no generator file {path}. Give the path of an existing {GENERATOR_ENDING} file.")
    try:
        with safe_open(path, framework="pt") as file:
            card = _read_card(path, file.metadata() or {})
            return card, {name: file.get_tensor(name) for name in (file.keys() if weights else ())}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(_not_safetensors(path, error)) from error


def _read_card(path: Path, metadata: Mapping[str, str]) -> Card:
    if _CARD not in metadata:
        raise ValueError(
            f"{path} contains weights but no card in its header, so it is unknown how to run them. If these are the "
            f"authors' weights, convert their checkpoint: {_CONVERT}."
        )
    try:
        return read_as(Card, json.loads(metadata[_CARD]), _CARD)
    except (ValueError, RecursionError) as error:
        reason = str(error).removeprefix("freetumor plans: ")
        raise ValueError(
            f"{path} has a card that this version cannot read: {reason} It may come from a newer version of this "
            "package: update the package, or copy or download the file again."
        ) from error


def _not_safetensors(path: Path, error: SafetensorError) -> str:
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith((b"PK", b"\x80")) and start[8:] != b"{":
        return (
            f"{path} is a pickle, as written by torch.save, not a safetensors file. A pickle can run code, so it was "
            f"rejected and nothing in it was executed. Convert an official checkpoint: {_CONVERT}."
        )
    if start[8:] == b"{":
        return f"{path} is truncated or damaged ({error}). Copy or download it again."
    return f"{path} is not a safetensors file ({error}). Give a generator file, or convert an official one: {_CONVERT}."


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _files() -> list[Path]:
    folders = [installed_folder()] if os.environ.get(_RESULTS) else []
    return [file for folder in [*folders, bundled_folder()] for file in sorted(folder.glob(f"*{GENERATOR_ENDING}"))]


def _card_or_error(file: Path) -> Card | str:
    try:
        return read_card(file)
    except (ValueError, OSError) as error:
        return str(error)


def _there() -> str:
    names = ", ".join(dict.fromkeys(file.stem for file in _files())) or "none"
    unset = "" if os.environ.get(_RESULTS) else " (installed ones are not listed: nnUNet_results is not set)"
    return names + unset
