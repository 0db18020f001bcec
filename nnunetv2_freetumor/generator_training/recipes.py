"""Recipes for training a generator: every number of the adversarial stage, under one name.

The plans' section names a recipe and may change single numbers of it (`recipe_changes`).
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nnunetv2_freetumor.files.strict_json import check, read_as
from nnunetv2_freetumor.plan import Section

ABDOMEN_WINDOW_HU = (-175.0, 250.0)
CHEST_WINDOW_HU = (-1000.0, 500.0)
CHEST_PRIORS = ("lung", "covid19")

Sides = tuple[int, int, int]
Millimeters = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a generator is trained; (x, y, z) are the patient's axes.

    Field names are a file format: `recipe_changes` in the plans.
    """

    kind: Literal["lite", "freetumor"]  # of network
    adversarial: Literal["hinge", "voxel"]  # patch critic with hinge loss, or the published critic of voxel classes
    epochs: int  # where no variant of the trainer sets the length
    iterations_per_epoch: int
    generator_rate: float  # Adam's learning rate
    critic_rate: float
    betas: tuple[float, float]
    decay_power: float  # of the learning rates, (1 - epoch / epochs) ** power; 0: constant
    lesions_per_step: int
    spacing_mm: Millimeters  # of the training window
    side_voxels: Sides
    chest_spacing_mm: Millimeters
    chest_side_voxels: Sides
    adversarial_weight: float
    judge_weight: float  # 0: no judge is needed
    judge_warmup_epochs: int  # without the judge, at the start
    moment_weight: float  # mean contrast, and its profile in shells of 1 mm across the surface
    band_weight: float  # energy of three bands of spatial frequency inside the lesion
    residual_weight: float  # lite only: its mean residual
    r1_weight: float
    r1_every: int  # steps
    ema_decay: float  # per step; 0: the generator's weights as they are
    replay_windows: int  # recent real lesions that are kept for steps without any
    divergence_steps: int  # so many saturated steps in a row end the training
    validation_iterations: int = 10  # per epoch
    preview_every: int = 5  # epochs

    def __post_init__(self) -> None:
        for name in ("epochs", "iterations_per_epoch", "lesions_per_step", "r1_every", "replay_windows"):
            check(getattr(self, name) >= 1, name, "must be at least 1", getattr(self, name))
        for name in ("divergence_steps", "validation_iterations", "preview_every"):
            check(getattr(self, name) >= 1, name, "must be at least 1", getattr(self, name))
        for name in ("generator_rate", "critic_rate"):
            check(0 < getattr(self, name) < math.inf, name, "must be above 0", getattr(self, name))
        for field in dataclasses.fields(self):
            if field.name.endswith(("_weight", "_power", "_warmup_epochs")):
                check(getattr(self, field.name) >= 0, field.name, "must not be negative", getattr(self, field.name))
        check(0 <= self.ema_decay < 1, "ema_decay", "must lie between 0 and 1, 1 excluded", self.ema_decay)
        check(all(0 <= beta < 1 for beta in self.betas), "betas", "must lie between 0 and 1, 1 excluded", self.betas)
        for name in ("spacing_mm", "chest_spacing_mm"):
            sides_mm = getattr(self, name)
            check(min(sides_mm) > 0 and max(sides_mm) < math.inf, name, "must be above 0", sides_mm)
        for name in ("side_voxels", "chest_side_voxels"):
            sides = getattr(self, name)
            least = 16 if self.kind == "freetumor" or self.adversarial == "voxel" else 8  # normalizes over space
            rule = f"must be multiples of 8, {least} or more"
            check(min(sides) >= least and not any(s % 8 for s in sides), name, rule, sides)


RECIPES = {
    "lite": Recipe(
        kind="lite",
        adversarial="hinge",
        epochs=100,
        iterations_per_epoch=250,
        generator_rate=2e-4,
        critic_rate=4e-4,  # two time scales (Heusel et al. 2017)
        betas=(0.0, 0.99),
        decay_power=0.5,
        lesions_per_step=16,
        spacing_mm=(1.5, 1.5, 1.5),
        side_voxels=(32, 32, 32),
        chest_spacing_mm=(1.5, 1.5, 1.5),
        chest_side_voxels=(32, 32, 32),
        adversarial_weight=1.0,
        judge_weight=0.1,
        judge_warmup_epochs=10,
        moment_weight=1.0,
        band_weight=0.5,
        residual_weight=0.1,
        r1_weight=1.0,
        r1_every=16,
        ema_decay=0.999,
        replay_windows=64,
        divergence_steps=500,
    ),
    "published": Recipe(
        kind="freetumor",
        adversarial="voxel",
        epochs=100,
        iterations_per_epoch=250,
        generator_rate=1e-4,
        critic_rate=1e-4,
        betas=(0.0, 0.999),
        decay_power=0.0,
        lesions_per_step=4,
        spacing_mm=(1.5, 1.5, 1.5),
        side_voxels=(96, 96, 96),
        chest_spacing_mm=(1.25, 1.25, 5.0),
        chest_side_voxels=(192, 192, 32),
        adversarial_weight=0.1,
        judge_weight=1.0,
        judge_warmup_epochs=0,
        moment_weight=0.0,
        band_weight=0.0,
        residual_weight=0.0,
        r1_weight=0.0,
        r1_every=16,
        ema_decay=0.0,
        replay_windows=8,
        divergence_steps=500,
    ),
}


class Frame(NamedTuple):
    """What a generator for these hosts sees, and the sign of the published network's output map."""

    window_hu: tuple[float, float]
    spacing_mm: Millimeters
    side_voxels: Sides
    sign: Literal[-1, 1]
    activation: Literal["tanh", "sigmoid"]


def recipe_for(section: Section) -> Recipe:
    """Give the section's recipe with its changes.

    Raises:
        ValueError: a change that no recipe knows, of a wrong type or out of bounds; the text names it.
    """
    return read_as(Recipe, dataclasses.asdict(RECIPES[section.recipe]) | section.recipe_changes, "recipe_changes")


def frame_for(recipe: Recipe, section: Section) -> Frame:
    """Choose the window, the spacing and the insertion's sign: the chest's where any target is one of the lung's.

    Raises:
        ValueError: targets of chest and abdomen for the published network, which inserts with one sign.
    """
    chest = [target.prior.name in CHEST_PRIORS for target in section.targets]
    if recipe.kind == "freetumor" and any(chest) and not all(chest):
        raise ValueError(
            "The published network brightens in the chest and darkens in the abdomen, so that one cannot learn both. "
            "Set 'recipe' to lite, or leave targets of one kind only in the plans' freetumor section."
        )
    if any(chest):
        return Frame(CHEST_WINDOW_HU, recipe.chest_spacing_mm, recipe.chest_side_voxels, 1, "sigmoid")
    return Frame(ABDOMEN_WINDOW_HU, recipe.spacing_mm, recipe.side_voxels, -1, "tanh")
