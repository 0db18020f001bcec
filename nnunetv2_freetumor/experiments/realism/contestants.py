"""The generators that can be compared with real lesions, by name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nnunetv2_freetumor.files.cases import SLICE_AXIS
from nnunetv2_freetumor.files.hashes import file_hash
from nnunetv2_freetumor.generators.conversion import CHANNEL_HOSTS, published_card
from nnunetv2_freetumor.generators.grid import array_order
from nnunetv2_freetumor.generators.learned import LearnedGenerator
from nnunetv2_freetumor.generators.weights import build_network, find_generator, load_generator, read_card
from nnunetv2_freetumor.plan import Texture
from nnunetv2_freetumor.synthesis.region import Generator, Look, Region
from nnunetv2_freetumor.synthesis.texture import TextureGenerator
from nnunetv2_freetumor.synthesis.volume import mean_of_subvoxels

CONSTANT_HU = -40.0


class Contestant(NamedTuple):
    """A generator whose lesions are compared with real ones."""

    name: str
    build: Callable[[torch.device], Generator]
    identity: str = ""  # changes with its weights


class ConstantGenerator:
    """Every lesion is as dark as the other and has a hard edge: what a classifier has to recognize."""

    window_mm = 0.0

    def __call__(self, region: Region, texture: Texture, look: Look) -> Float[Tensor, "x y z"]:
        """Draw a lesion."""
        return CONSTANT_HU * (mean_of_subvoxels(region.distance_mm, region.subvoxels) < 0).float()


def make_contestants(names: Sequence[str], host: str, seed: int) -> list[Contestant]:
    """Find the named generators: texture, constant, freetumor_random, or what `generator list` shows, or files.

    Raises:
        ValueError: one is named twice, is not there, or does not serve the host (the prior's name).
    """
    found = [_RULES[name](host, seed) if name in _RULES else _learned(name, host) for name in names]
    titles = [one.name for one in found]
    if not found or len(set(titles)) < len(titles):
        raise ValueError(f"--generators must name each generator once, and one at least, but they are {titles}.")
    return found


def _learned(name: str, host: str) -> Contestant:
    try:
        path = find_generator(name)
    except ValueError as error:
        raise ValueError(f"--generators: {error} It may also be {', '.join(_RULES)}.") from error
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
    return Contestant("constant", lambda device: ConstantGenerator())


def _freetumor_random(host: str, seed: int) -> Contestant:
    """Take the published network with weights that nobody has trained: what any training has to beat."""
    region = next(
        (region for region, choices in CHANNEL_HOSTS.items() if any(host in hosts for hosts in choices)), None
    )
    if region is None:
        raise ValueError(f"--generators: freetumor_random serves no '{host}'. Choose another generator or prior.")
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
