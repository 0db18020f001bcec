"""A generator file's card: what the weights are, what they were trained on, and how they are to be run."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from nnunetv2_freetumor.files.strict_json import check

_NAME = re.compile(r"[^\W_][\w.-]*")
_SIDES = {"freetumor": 8, "lite": 4}  # what a side must be a multiple of


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
        low, high = self.window_hu
        check(-math.inf < low < high < math.inf, "window_hu", "must be two rising HU values", self.window_hu)
        check(all(0 < s < math.inf for s in self.spacing_mm), "spacing_mm", "must be above 0", self.spacing_mm)
        step = _SIDES[self.kind]
        fits = all(side > 0 and side % step == 0 for side in self.side_voxels)
        check(fits, "side_voxels", f"must be multiples of {step}", self.side_voxels)
        check(bool(self.hosts), "hosts", "must name at least one host", self.hosts)


def check_name(name: str) -> None:
    """Refuse a name that cannot be a file's.

    Raises:
        ValueError: names it and the rule.
    """
    if not _NAME.fullmatch(name) or name.endswith(".safetensors"):
        raise ValueError(
            f"A generator's name must start with a letter or digit and go on with letters, digits, '_', '-' and '.', "
            f"without the file's ending, but it is {name!r}."
        )
