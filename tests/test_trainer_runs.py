"""Tiny trainings: what they leave behind, and how they are continued."""

import json
import math
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_freetumor import trainer
from nnunetv2_freetumor.plan import SECTION

pytest_plugins = ["tiny_trainings"]

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(make_trainer):
    """Give a trainer after its one epoch."""
    made = make_trainer(
        trainer.nnUNetTrainerFreeTumor_1epoch, probability_tumor_free=1.0, probability_tumor_bearing=1.0
    )
    made.run_training()
    return made


def test_training_leaves_pictures_counts_and_the_section_with_the_model(trained):
    folder = Path(trained.output_folder)
    assert (folder / trainer.PREVIEW).stat().st_size > 0 and (folder / trainer.CURVE).stat().st_size > 0
    log = trained.logger.local_logger.my_fantastic_logging
    assert log["freetumor/samples"] == [4.0] and log["freetumor/planted"][0] > 0
    assert "FreeTumor: of 4 samples" in Path(trained.log_file).read_text()
    plans = json.loads((folder.parent / "plans.json").read_text())
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert plans[SECTION] == checkpoint["init_args"]["plans"][SECTION]


def test_continuing_takes_the_section_from_the_checkpoint_and_repeats_no_draw(trained, make_trainer):
    checkpoint = str(Path(trained.output_folder) / "checkpoint_final.pth")
    first_epoch = trained.rng.initial_seed()
    made = make_trainer(trainer.nnUNetTrainerFreeTumor_1epoch, probability_tumor_free=0.25)  # plans edited in between
    made.num_epochs = 2
    made.load_checkpoint(checkpoint)
    made.run_training()
    assert made.planter.section.probability_tumor_free == 1.0
    assert "section from the checkpoint" in Path(made.log_file).read_text()
    assert made.rng.initial_seed() != first_epoch
    log = made.logger.local_logger.my_fantastic_logging
    assert [len(log["freetumor/planted"]), len(log["train_losses"])] == [2, 2]


def test_continuing_with_other_labels_is_refused(trained, make_trainer):
    made = make_trainer(trainer.nnUNetTrainerFreeTumor_1epoch)
    made.load_checkpoint(str(Path(trained.output_folder) / "checkpoint_final.pth"))
    made.dataset_json["labels"] = {"background": 0, "liver": 1, "lesion": 2}
    with pytest.raises(ValueError, match="was made for the labels .*but dataset.json has"):
        made.run_training()


def test_a_plain_nnunet_checkpoint_can_be_continued_and_its_epochs_read_nan(make_trainer):
    plain = make_trainer(nnUNetTrainer)
    plain.num_epochs = 1
    plain.run_training()
    made = make_trainer(trainer.nnUNetTrainerFreeTumor)
    made.load_checkpoint(f"{plain.output_folder}/checkpoint_final.pth")
    assert made.current_epoch == 1
    log = made.logger.local_logger.my_fantastic_logging
    assert len(log["freetumor/planted"]) == 1 and math.isnan(log["freetumor/planted"][0])
