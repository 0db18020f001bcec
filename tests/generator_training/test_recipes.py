"""Recipes: the published numbers, single changes by name, and the frame that the hosts ask for."""

import dataclasses

import pytest

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.generator_training.recipes import RECIPES, RULES, Recipe, frame_for, recipe_for
from nnunetv2_freetumor.plan import Section, Target


def section(prior="liver", **settings):
    target = Target(
        name="tumor", tumor_label=2, lesion_labels=(2,), prior=priors.load(prior), source="test", host_labels=(1,)
    )
    return Section(targets=(target,), labels={}, plans_hash="", **settings)


def test_the_published_recipe_has_the_published_numbers():
    recipe = recipe_for(section(recipe="published"))
    assert (recipe.kind, recipe.adversarial, recipe.epochs) == ("freetumor", "voxel", 100)
    assert (recipe.generator_rate, recipe.critic_rate, recipe.betas) == (1e-4, 1e-4, (0.0, 0.999))
    assert (recipe.adversarial_weight, recipe.judge_weight, recipe.ema_decay) == (0.1, 1.0, 0.0)
    assert recipe.moment_weight == recipe.band_weight == recipe.residual_weight == recipe.r1_weight == 0
    assert (recipe.spacing_mm, recipe.side_voxels) == ((1.5, 1.5, 1.5), (96, 96, 96))


def test_lite_listens_to_the_judge_a_little_and_late():
    recipe = recipe_for(section())
    assert recipe.kind == "lite" and 0 < recipe.judge_weight <= 0.1 and recipe.judge_warmup_epochs > 0
    assert recipe.r1_every == 16 and recipe.ema_decay == 0.999


def test_single_numbers_are_changed_by_name_and_the_recipe_itself_stays():
    changed = recipe_for(section(recipe_changes={"side_voxels": [48, 48, 48], "judge_weight": 0}))
    assert changed == dataclasses.replace(RECIPES["lite"], side_voxels=(48, 48, 48), judge_weight=0.0)
    assert RECIPES["lite"].side_voxels == (32, 32, 32)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"learning_rate": 1}, "'recipe_changes' has unknown keys; allowed are kind, .*learning_rate"),
        ({"epochs": "many"}, "'recipe_changes.epochs' must be of type int, but it is 'many'"),
        ({"adversarial": "wasserstein"}, "must be one of 'hinge', 'voxel'"),
        ({"side_voxels": [30, 32, 32]}, "'side_voxels' must be multiples of 8"),
        ({"kind": "freetumor", "side_voxels": [16, 8, 16]}, "'side_voxels' must be multiples of 8, 16 or more"),
        ({"generator_rate": float("inf")}, "'generator_rate' must be above 0"),
        ({"spacing_mm": [1.0, float("inf"), 1.0]}, "'spacing_mm' must be above 0"),
        ({"ema_decay": 1.0}, "'ema_decay' must lie between 0 and 1"),
        ({"betas": [0.5, 1.0]}, "'betas' must lie between 0 and 1"),
        ({"judge_weight": -1}, "'judge_weight' must not be negative"),
        ({"generator_rate": 0.0}, "'generator_rate' must be above 0"),
        ({"lesions_per_step": 0}, "'lesions_per_step' must be at least 1"),
        ({"spacing_mm": [0.0, 1.0, 1.0]}, "'spacing_mm' must be above 0"),
    ],
)
def test_a_wrong_change_is_refused_by_name(changes, text):
    with pytest.raises(ValueError, match=text):
        recipe_for(section(recipe_changes=changes))


def test_every_number_of_a_recipe_has_a_rule():
    names = {field.name for field in dataclasses.fields(Recipe)}
    assert names - set(RULES) == {"kind", "adversarial", "side_voxels", "chest_side_voxels"}  # choices, and of the kind


def test_the_published_network_cannot_serve_chest_and_abdomen_at_once():
    both = dataclasses.replace(section(), targets=section("lung").targets + section("liver").targets)
    with pytest.raises(ValueError, match="brightens in the chest and darkens in the abdomen, .* Set 'recipe' to lite"):
        frame_for(RECIPES["published"], both)
    assert frame_for(RECIPES["lite"], both).window_hu == (-1000.0, 500.0)


def test_the_abdomens_map_is_subtracted_and_the_chests_added():
    abdomen = frame_for(RECIPES["published"], section())
    assert (abdomen.window_hu, abdomen.sign, abdomen.activation) == ((-175.0, 250.0), -1, "tanh")
    for prior in ("lung", "covid19"):
        chest = frame_for(RECIPES["published"], section(prior))
        assert (chest.window_hu, chest.sign, chest.activation) == ((-1000.0, 500.0), 1, "sigmoid")
        assert (chest.spacing_mm, chest.side_voxels) == ((1.25, 1.25, 5.0), (192, 192, 32))
