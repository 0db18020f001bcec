"""The generator's trainer: what it refuses, what a tiny training leaves behind, and how it is continued."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_freetumor.generator_training import card as generator_card
from nnunetv2_freetumor.generator_training import divergence, trainer
from nnunetv2_freetumor.generator_training import log as generator_log
from nnunetv2_freetumor.generators.weights import load_generator
from nnunetv2_freetumor.plan import SECTION, read_section

pytest_plugins = ["tiny_trainings"]

TINY = {"side_voxels": [16, 16, 16], "lesions_per_step": 2, "validation_iterations": 1, "judge_weight": 0.0}
TRAINER = trainer.nnUNetTrainerFreeTumorGenerator_1epoch


@pytest.fixture
def make(make_trainer):
    def _make(trainer_class=TRAINER, **changes):
        return make_trainer(trainer_class, recipe_changes=TINY | changes)

    return _make


def test_several_gpus_are_refused(make):
    made = make()
    made.is_ddp = True
    with pytest.raises(ValueError, match="trains on a single GPU.*Omit -num_gpus"):
        made.on_train_start()


def test_without_a_finished_baseline_the_error_names_the_command_that_trains_one(make):
    with pytest.raises(ValueError, match="nnUNetv2_train Dataset999_Bench 3d_fullres 0 -p nnUNetPlans"):
        make(judge_weight=0.1).on_train_start()


def test_a_recipe_with_a_judge_refuses_judge_off(make_trainer):
    made = make_trainer(TRAINER, judge="off", recipe_changes=TINY | {"judge_weight": 0.1})
    with pytest.raises(ValueError, match="'judge' is off, but .* needs one.*judge_weight"):
        made.on_train_start()


def test_label_free_training_cases_are_refused_before_the_first_epoch(make, monkeypatch):
    monkeypatch.setattr(generator_card, "load_pickle", lambda _: {"class_locations": {1: [(0, 1, 1, 1)], 2: []}})
    with pytest.raises(
        ValueError, match="No training case of fold 0 contains a real tumor .'liver tumor'.*install FILE"
    ):
        make().on_train_start()


def test_the_length_is_the_recipes_unless_a_variant_sets_it(make):
    plain = make(trainer.nnUNetTrainerFreeTumorGenerator, epochs=7)
    plain.num_iterations_per_epoch = 250
    plain.initialize()
    assert (plain.num_epochs, plain.num_iterations_per_epoch) == (7, 250)
    variant = make(trainer.nnUNetTrainerFreeTumorGenerator_5epochs)
    variant.initialize()
    assert variant.num_epochs == 5


def test_phantoms_are_no_real_tumors(make):
    made = make()
    made.initialize()
    assert made.make_card("none").real_tumors == ("liver",)
    made.dataset_json["phantoms"] = True
    made._settle(read_section(made.plans_manager.plans[SECTION]))
    card = made.make_card("none")
    assert card.real_tumors == () and "phantoms" in card.training_data


def test_a_generator_does_not_learn_from_planted_tumors(make, monkeypatch):
    made, training = make(), ["case_1", "synthetic_case_1_00"]
    monkeypatch.setattr(nnUNetTrainer, "do_split", lambda _: (training, ["case_0"]))
    assert made.do_split() == (["case_1"], ["case_0"])
    monkeypatch.setattr(nnUNetTrainer, "do_split", lambda _: (training, ["synthetic_case_0_00"]))
    with pytest.raises(ValueError, match="Fold 0 would be validated on 1 synthetic case"):
        made.do_split()


def test_the_judge_waits_until_its_warmup_is_over(make):
    made, asked = make(judge_warmup_epochs=3), []
    made.initialize()
    made._rng, made._stage = None, SimpleNamespace(train=lambda image, label, rng, judged: asked.append(judged))
    for made.current_epoch in (0, 2, 3, 9):
        made.train_step({"data": torch.zeros(1), "target": torch.zeros(1)})
    assert asked == [False, False, True, True]


@pytest.mark.slow
def test_a_training_leaves_weights_card_curves_and_previews_and_can_be_continued(make):
    made = make(epochs=1)
    made.run_training()
    folder = Path(made.output_folder)
    loaded = load_generator(folder / "generator.safetensors")
    assert loaded.card.training_cases == ("case_1",) and loaded.card.fold == "0" and loaded.card.judge == "none"
    assert '"lesions_per_step": 2' in loaded.card.recipe
    assert torch.equal(loaded.network.last.weight, made.network.ema.last.weight)
    log = made.logger.local_logger.my_fantastic_logging
    assert all(len(log[generator_log.LOGGER_PREFIX + name]) == 1 for name in generator_log.NAMES)
    assert log[generator_log.LOGGER_PREFIX + "critic"][0] > 0 and 0 <= log["mean_fg_dice"][0] <= 1
    assert (folder / trainer.CURVES_FILE).is_file() and (folder / "freetumor_preview_epoch_0000.png").is_file()
    assert (folder / "progress.png").is_file()

    same = make(epochs=1)
    same.plans_manager.plans["freetumor"] |= {"quality": "by_size", "second_draw": False}  # as it was written before
    same.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert "section has changed" not in Path(same.log_file).read_text()

    again = make(lesions_per_step=1, ema_decay=0.0, generator_rate=1e-5)
    again.num_epochs = 2
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert again.recipe == made.recipe, "a training goes on as it began"
    assert again.lr_scheduler._rates[0] == made.recipe.generator_rate
    assert (
        "freetumor section has changed; this training continues with its original section"
        in Path(again.log_file).read_text()
    )
    assert torch.equal(again.network.critic.last.bias, made.network.critic.last.bias)
    assert again.optimizer.state_dict()["state"].keys() == made.optimizer.state_dict()["state"].keys()
    again.run_training()
    log = again.logger.local_logger.my_fantastic_logging
    assert [len(log[name]) for name in ("train_losses", "val_losses", generator_log.LOGGER_PREFIX + "bands")] == [
        2,
        2,
        2,
    ]
    assert not math.isnan(log[generator_log.LOGGER_PREFIX + "critic"][1])
    text = Path(again.log_file).read_text()
    assert "2 steps, generator" in text and "critic confusion" in text


@pytest.mark.slow
def test_a_diverged_training_names_the_epoch_and_the_last_good_weights(make, monkeypatch):
    made = make()
    made.num_epochs = 2
    made.on_epoch_end_of_host = made.on_epoch_end

    def _spoil():
        made.on_epoch_end_of_host()
        made.network.generator.last.bias.data.fill_(math.nan)

    monkeypatch.setattr(made, "on_epoch_end", _spoil)
    with pytest.raises(RuntimeError, match="diverged in epoch 1: .*no longer a number.*weights of epoch 0 are in"):
        made.run_training()
    load_generator(Path(made.output_folder) / "generator.safetensors")


@pytest.mark.slow
def test_weights_of_a_training_that_saturates_do_not_replace_good_ones(make, monkeypatch):
    made, calm = make(), iter([True, False])
    made.num_epochs = 2
    monkeypatch.setattr(divergence.Divergence, "calm", property(lambda _: next(calm)))
    kept, keep = [], made._keep

    def _watched():
        keep()
        kept.append(Path(made._weights).read_bytes())

    monkeypatch.setattr(made, "_keep", _watched)
    made.run_training()
    assert kept[0] == kept[1] and made._good_epoch == 0
    assert "weights are not saved; the file keeps those of epoch 0" in Path(made.log_file).read_text()


@pytest.mark.slow
def test_a_judge_is_learned_from_and_its_shares_are_logged(make, make_trainer):
    baseline = make_trainer(nnUNetTrainer)
    baseline.num_epochs = 1
    baseline.run_training()
    made = make(judge_weight=0.1, judge_warmup_epochs=0)
    made.run_training()
    log = made.logger.local_logger.my_fantastic_logging
    assert 0 < log[generator_log.LOGGER_PREFIX + "judge"][0] <= 1
    assert log["mean_fg_dice"][0] == log[generator_log.LOGGER_PREFIX + "recognized"][0] >= 0
    card = load_generator(Path(made.output_folder) / "generator.safetensors").card
    assert card.judge == "nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0"


@pytest.mark.slow
def test_the_published_recipe_trains_the_published_network(make_trainer):
    made = make_trainer(TRAINER, recipe="published", recipe_changes=TINY | {"lesions_per_step": 1, "replay_windows": 2})
    made.num_iterations_per_epoch = 1
    made.run_training()
    loaded = load_generator(Path(made.output_folder) / "generator.safetensors")
    assert (loaded.card.kind, loaded.card.sign, loaded.card.activation) == ("freetumor", -1, "tanh")
    assert made.network.ema is None and loaded.card.recipe.startswith("published, changed")
    assert 0 < made.logger.local_logger.my_fantastic_logging[generator_log.LOGGER_PREFIX + "adversarial"][0] < 1


def test_only_targets_with_real_tumors_are_learned(make):
    made = make()
    made.initialize()
    liver = made.section.targets[0]
    kidney = dataclasses.replace(liver, name="kidney tumor", tumor_label=5, lesion_labels=(5,))
    both = dataclasses.replace(made.section, targets=(kidney, liver))
    kept = generator_card.learnable_targets(both, made.preprocessed_dataset_folder, ["case_1"], 0)
    assert [target.name for target in kept.targets] == ["liver tumor"]
    made._settle(both)
    made.announce("none", "here")
    text = "FreeTumor generator: kidney tumor will not be learned: no training case of fold 0 contains a real tumor"
    assert f"WARNING: {text}" in Path(made.log_file).read_text()
