"""Recipes for training a generator: every number of the adversarial stage, under one name.

The plans' section names a recipe and may change single numbers of it (`recipe_changes`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nnunetv2_freetumor.files.strict_json import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE_BELOW_ONE,
    check_all,
    each,
    read_as,
)
from nnunetv2_freetumor.plan import Section

ABDOMEN_WINDOW_HU = (-175.0, 250.0)
CHEST_WINDOW_HU = (-1000.0, 500.0)
CHEST_PRIORS = ("lung", "covid19")

Sides = tuple[int, int, int]
Millimeters = tuple[float, float, float]


RULES = {
    "epochs": AT_LEAST_ONE,
    "iterations_per_epoch": AT_LEAST_ONE,
    "generator_rate": POSITIVE,
    "critic_rate": POSITIVE,
    "betas": SHARE_BELOW_ONE,
    "decay_power": NOT_NEGATIVE,
    "lesions_per_step": AT_LEAST_ONE,
    "spacing_mm": POSITIVE,
    "chest_spacing_mm": POSITIVE,
    "adversarial_weight": NOT_NEGATIVE,
    "judge_weight": NOT_NEGATIVE,
    "judge_warmup_epochs": NOT_NEGATIVE,
    "moment_weight": NOT_NEGATIVE,
    "band_weight": NOT_NEGATIVE,
    "residual_weight": NOT_NEGATIVE,
    "r1_weight": NOT_NEGATIVE,
    "r1_every": AT_LEAST_ONE,
    "ema_decay": SHARE_BELOW_ONE,
    "replay_windows": AT_LEAST_ONE,
    "divergence_steps": AT_LEAST_ONE,
    "validation_iterations": AT_LEAST_ONE,
    "preview_every": AT_LEAST_ONE,
}


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
        least = 16 if self.kind == "freetumor" or self.adversarial == "voxel" else 8  # normalizes over space
        sides = each(f"must be multiples of 8, {least} or more", lambda side: side >= least and side % 8 == 0)
        check_all(self, RULES | {"side_voxels": sides, "chest_side_voxels": sides})


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
    """Return the section's recipe with its changes.

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
            "The published network brightens in the chest and darkens in the abdomen, so one network cannot learn "
            "both. Set 'recipe' to lite, or keep targets of only one kind in the plans' freetumor section."
        )
    if any(chest):
        sides = recipe.chest_side_voxels
        return Frame(CHEST_WINDOW_HU, recipe.chest_spacing_mm, sides, sign=1, activation="sigmoid")
    return Frame(ABDOMEN_WINDOW_HU, recipe.spacing_mm, recipe.side_voxels, sign=-1, activation="tanh")
