"""The generators that can be compared with real lesions, by name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from nnunetv2_freetumor.experiments.constant import ConstantGenerator
from nnunetv2_freetumor.files.cases import SLICE_AXIS
from nnunetv2_freetumor.files.hashes import file_hash
from nnunetv2_freetumor.generators.conversion import CHANNEL_HOSTS, published_card
from nnunetv2_freetumor.generators.grid import array_order
from nnunetv2_freetumor.generators.learned import LearnedGenerator
from nnunetv2_freetumor.generators.weights import build_network, find_generator, load_generator, read_card
from nnunetv2_freetumor.synthesis.region import Generator
from nnunetv2_freetumor.synthesis.texture import TextureGenerator


class Contestant(NamedTuple):
    """A generator whose lesions are compared with real ones."""

    name: str
    build: Callable[[torch.device], Generator]
    identity: str = ""  # changes with its weights or its code


def make_contestants(names: Sequence[str], host: str, seed: int) -> list[Contestant]:
    """Find the named generators: texture, constant, freetumor_random, names from `generator list`, or files.

    Raises:
        ValueError: one is named twice, cannot be found, or does not serve the host (the prior's name).
    """
    found = [_RULES[name](host, seed) if name in _RULES else _learned(name, host) for name in names]
    titles = [one.name for one in found]
    if not found or len(set(titles)) < len(titles):
        raise ValueError(f"--generators must name at least one generator and each only once, but they are {titles}.")
    return found


def _learned(name: str, host: str) -> Contestant:
    try:
        path = find_generator(name)
    except ValueError as error:
        raise ValueError(f"--generators: {error} Also possible: {', '.join(_RULES)}.") from error
    card = read_card(path)
    if host not in card.hosts:
        raise ValueError(
            f"--generators: '{card.name}' ({path}) serves the hosts {', '.join(card.hosts)}, but --prior is '{host}'."
            " Choose another generator or another prior."
        )

    def build(device: torch.device) -> Generator:
        return _behind_interface(load_generator(path, device), host)

    return Contestant(card.name, build, file_hash(path))


def _texture(host: str, seed: int) -> Contestant:
    return Contestant("texture", lambda device: TextureGenerator())


def _constant(host: str, seed: int) -> Contestant:
    """Take one constant contrast with a sharp edge: a control that the classifier has to recognize."""
    return Contestant("constant", lambda device: ConstantGenerator(), "edge averaged over the voxel")


def _freetumor_random(host: str, seed: int) -> Contestant:
    """Take the published network with random weights: a control that any training has to beat."""
    region = next(
        (region for region, choices in CHANNEL_HOSTS.items() if any(host in hosts for hosts in choices)), None
    )
    if region is None:
        raise ValueError(f"--generators: freetumor_random does not serve '{host}'. Choose another generator or prior.")
    card = published_card(region, None if region == "abdomen" else host)

    def build(device: torch.device) -> Generator:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_network(card.kind, len(card.hosts))
        return _behind_interface((network.eval().to(device), card), host)

    return Contestant("freetumor_random", build, str(seed))


def _behind_interface(loaded: Any, host: str) -> Generator:
    network, card = loaded
    return LearnedGenerator(network, card, array_order(card.spacing_mm, SLICE_AXIS), card.hosts.index(host))


_RULES = {"texture": _texture, "constant": _constant, "freetumor_random": _freetumor_random}
