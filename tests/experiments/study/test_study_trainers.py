"""The study's trainers do what their arm's order says, and nothing else differs between arms."""

import dataclasses

import pytest
import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_freetumor import plan
from nnunetv2_freetumor.experiments.constant import CONSTANT_HU
from nnunetv2_freetumor.experiments.study import trainers
from nnunetv2_freetumor.experiments.study.copy_paste import CopyPaste
from nnunetv2_freetumor.experiments.study.design import (
    ALL_ARMS,
    ASSIGNMENT_KEY,
    TEXTURE_ARM,
    Arm,
    Budget,
    FoldCases,
    assignment_of,
)
from nnunetv2_freetumor.startup import EXT_TRAINER, VARIABLE

pytest_plugins = ["tiny_trainings"]

pytestmark = pytest.mark.slow

RUNS = (FoldCases(fold=0, setting="1 labeled", seed=5, training=("case_1",), validation=("case_0",)),)


@pytest.fixture
def make_arm(make_trainer, tiny_dataset):
    """Make an arm's trainer on the tiny dataset, whose cases are named as nnU-Net finds them."""
    names = sorted({file.name.split(".")[0] for file in tiny_dataset.rglob("*.b2nd") if "_seg" not in file.name})
    runs = (dataclasses.replace(RUNS[0], training=tuple(names[1:]), validation=tuple(names[:1])),)

    def _make(arm: Arm, recipe="short", **section):
        made = make_trainer(getattr(trainers, arm.trainer), **section)
        budget = Budget(epochs=1, iterations=3, recipe=recipe)
        made.plans_manager.plans[ASSIGNMENT_KEY] = plan.to_json(assignment_of(arm, budget, runs))
        return made

    return _make


def test_every_arm_names_a_trainer_that_nnunet_can_find(monkeypatch):
    monkeypatch.setenv(VARIABLE, EXT_TRAINER)
    for arm in ALL_ARMS.values():
        assert recursive_find_trainer_class_by_name(arm.trainer) is getattr(trainers, arm.trainer)


def test_cases_budget_and_oversampling_come_from_the_order(make_arm):
    made = make_arm(ALL_ARMS["real_fg66"])
    made.initialize()
    assert (made.num_epochs, made.num_iterations_per_epoch) == (1, 3)
    assert made.oversample_foreground_percent == 0.66
    training, validation = made.do_split()
    assert len(validation) == 1 and training and not set(training) & set(validation)


@pytest.mark.parametrize(("recipe", "optimizer"), [("short", torch.optim.Adam), ("nnunet", torch.optim.SGD)])
def test_the_recipe_chooses_the_optimizer_and_the_mirroring(make_arm, recipe, optimizer):
    made = make_arm(ALL_ARMS["real"], recipe)
    made.initialize()
    assert type(made.optimizer) is optimizer
    *_, axes = made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert (axes is None) == (recipe == "short")


def test_all_arms_of_a_run_start_from_the_same_network(make_arm):
    weights = []
    for name in ("real", TEXTURE_ARM):
        made = make_arm(ALL_ARMS[name])
        made.initialize()
        weights.append(next(made.network.parameters()).detach().clone())
    assert torch.equal(*weights)


def test_planting_behind_the_intensity_transforms_moves_them_into_the_loader(make_arm):
    before, behind = make_arm(ALL_ARMS[TEXTURE_ARM]), make_arm(ALL_ARMS["after_intensity"])
    whole = []
    for made in (before, behind):
        made.initialize()
        rotation, dummy_2d, patch, axes = made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        loader = made.get_training_transforms(patch, rotation, [[1, 1, 1]], axes, dummy_2d)
        whole.append([type(t) for t in (*loader.transforms, *made.second_half.transforms)])
        chances = [isinstance(t, RandomTransform) for t in made.second_half.transforms]
        assert any(chances) == (made is before)
    assert whole[0] == whole[1]


def test_the_ellipsoids_change_every_voxel_of_a_lesion_by_one_constant(make_arm):
    made = make_arm(ALL_ARMS["ellipsoids"], min_visibility=0.0, probability_tumor_free=1.0, untouched_share=0.0)
    section = ALL_ARMS["ellipsoids"].change(plan.read_section(made.plans_manager.plans[plan.SECTION]))
    synthesizer = made.make_synthesizer(section)
    assert synthesizer.section.seed == 5
    image = torch.zeros(4, 1, 16, 32, 32)
    label = torch.ones(4, 1, 16, 32, 32, dtype=torch.int16)
    result = synthesizer(image, label, synthesizer.draw(4, torch.Generator().manual_seed(0)))
    changed = (
        synthesizer.intensity.to_hu(result.image)[result.label == 2] - synthesizer.intensity.to_hu(image)[0, 0, 0, 0, 0]
    )
    assert changed.numel() and float(changed.min()) == pytest.approx(CONSTANT_HU, abs=0.1)


@pytest.mark.parametrize("name", ["real", "copy_paste", TEXTURE_ARM, "after_intensity"])
def test_an_arm_trains(make_arm, name):
    made = make_arm(ALL_ARMS[name], probability_tumor_free=1.0, probability_tumor_bearing=1.0)
    made.run_training()
    log = made.logger.local_logger.my_fantastic_logging
    assert len(log["train_losses"]) == 1
    if name == "copy_paste":
        assert isinstance(made.planter, CopyPaste)
    if name != "real":
        assert log["freetumor/planted"][0] > 0
