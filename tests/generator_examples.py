"""Cards, networks and hostile objects for tests of generator files."""

import os

import torch
from torch import nn

from nnunetv2_freetumor.generators.cards import Card
from nnunetv2_freetumor.generators.networks import LiteNet

INSTALLED = "results/freetumor_generators"


def lite_card(**changes) -> Card:
    """Give the card of a lite generator."""
    fields = {
        "name": "mine",
        "kind": "lite",
        "hosts": ("liver",),
        "window_hu": (-175.0, 250.0),
        "spacing_mm": (1.5, 1.5, 1.5),
        "side_voxels": (48, 48, 48),
        "sign": 1,
        "activation": "tanh",
        "recipe": "lite",
        "training_data": "phantoms",
        "training_cases": ("case_1", "case_2"),
    }
    return Card(**(fields | changes))


class Malicious:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        """Take the file to create."""
        self.path = path

    def __reduce__(self):
        """Say what unpickling calls."""
        return os.mkdir, (str(self.path),)


def trained_lite() -> LiteNet:
    """Give a lite network whose last layer is not zero any more."""
    network = LiteNet()
    nn.init.normal_(network.last.weight, std=0.3)
    return network


WINDOW = (-175.0, 250.0)


ISOTROPIC = (1.5, 1.5, 1.5)


def make_card(kind="lite", **changes):
    """Give a card for the abdomen, of regions of 16 voxels."""
    common = {"name": "test", "kind": kind, "hosts": ("liver",), "window_hu": WINDOW, "spacing_mm": ISOTROPIC}
    trained = {"side_voxels": (16, 16, 16), "sign": -1, "activation": "tanh", "recipe": "none", "training_data": "none"}
    return Card(**{**common, **trained, **changes})


def lite(trained=True, seed=1):
    """Give a lite network; an untrained one adds nothing to `texture`."""
    torch.manual_seed(seed)
    network = LiteNet().eval()
    if trained:
        torch.nn.init.normal_(network.last.weight, std=0.2)
    return network
