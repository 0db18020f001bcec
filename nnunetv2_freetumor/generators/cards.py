"""A generator file's card: what the weights are, what they were trained on, and how to run them."""

import re
from dataclasses import dataclass
from typing import Literal

from nnunetv2_freetumor.files.strict_json import POSITIVE, ValueRule, check_all, each, rising

_NAME = re.compile(r"[^\W_][\w.-]*")
_RULES = {
    "window_hu": rising("HU values"),
    "spacing_mm": POSITIVE,
    "hosts": ValueRule("must name at least one host", bool),
}
SIDE_MULTIPLES = {"freetumor": 8, "lite": 4}  # of voxels: how often each network halves the sides


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a generator file holds, what it was trained on, and how it is to be run.

    Field names are a file format: the header of a generator file.
    """

    name: str
    kind: Literal["freetumor", "lite"]
    hosts: tuple[str, ...]  # names of priors (liver, pancreas ...); for freetumor in the order of the output channels
    window_hu: tuple[float, float]  # scaled to 0..1
    spacing_mm: tuple[float, float, float]  # of the patient's axes x, y, z; z is the slice axis
    side_voxels: tuple[int, int, int]  # x, y, z: of the region it was trained on
    sign: Literal[-1, 1]  # of freetumor's output map: subtracted from or added to the image
    activation: Literal["tanh", "sigmoid"]  # of freetumor's output map
    recipe: str  # how it was trained
    training_data: str  # in words: which data, how many cases, under which license
    dataset: str = ""  # nnU-Net dataset, plans, configuration and fold that it was trained for
    plans: str = ""
    configuration: str = ""
    fold: str = ""
    training_cases: tuple[str, ...] = ()  # of that dataset
    real_tumors: tuple[str, ...] = ()  # hosts whose real patients' tumors are in the training data
    judge: str = ""
    purpose: str = ""
    not_seen: str = ""  # what the training data lack
    license: str = ""
    date: str = ""
    version: str = ""  # of this package

    def __post_init__(self) -> None:
        check_name(self.name)
        step = SIDE_MULTIPLES[self.kind]
        sides = each(f"must be multiples of {step}", lambda side: side > 0 and side % step == 0)
        check_all(self, _RULES | {"side_voxels": sides})


def check_name(name: str) -> None:
    """Refuse a name that cannot be a file name.

    Raises:
        ValueError: names it and the rule.
    """
    if not _NAME.fullmatch(name) or name.endswith(".safetensors"):
        raise ValueError(
            f"A generator's name must start with a letter or digit, continue with letters, digits, '_', '-' or '.', "
            f"and omit the file extension, but it is {name!r}."
        )
