"""The trainers: nnU-Net's own, with tumors planted between its spatial and its intensity transforms."""

import copy
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

from nnunetv2_freetumor import trainer
from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION, DATASET, PLANS
from nnunetv2_freetumor.plan import SIZE_NAMES
from nnunetv2_freetumor.training import augmentation, epoch_log, lesion_evaluation, start
from nnunetv2_freetumor.training.label_free import AbsentLabels
from nnunetv2_freetumor.training.recognition import WATCHED

pytest_plugins = ["tiny_trainings"]


class FreeTumorNoMirroring(trainer.FreeTumorMixin, nnUNetTrainerNoMirroring):
    pass


class NoLoading(nnUNetTrainer):
    def get_dataloaders(self):
        return None, None


class FreeTumorNoLoading(trainer.FreeTumorMixin, NoLoading):
    pass


def _seed(seed):
    np.random.seed(seed)
    torch.manual_seed(seed)


def _steps(made, monkeypatch, seeds, host=nnUNetTrainer):
    """Start a trainer and catch what reaches nnU-Net's train_step."""
    seen = []
    monkeypatch.setattr(host, "train_step", lambda self, batch: seen.append(batch) or {"loss": np.zeros(())})
    made.on_train_start()
    made.on_train_epoch_start()
    for leaf in augmentation._leaves(made.dataloader_train.data_loader.transforms):
        if isinstance(leaf, GaussianBlurTransform):
            leaf.benchmark = False
    for seed in seeds:
        _seed(seed)
        made.train_step(next(made.dataloader_train))
    return seen


def test_the_network_that_trains_is_asked_about_what_was_planted(make_trainer):
    always = {"probability_tumor_free": 1.0, "probability_tumor_bearing": 1.0, "untouched_share": 0.0}
    made = make_trainer(trainer.nnUNetTrainerFreeTumor, min_visibility=0.0, **always)
    made.on_train_start()
    made.on_train_epoch_start()
    made.on_train_epoch_end([made.train_step(next(made.dataloader_train)) for _ in range(2)])
    log = made.logger.local_logger.my_fantastic_logging
    planted, watched = (sum(log[epoch_log.COUNT_KEY + name][0] for name in names) for names in (SIZE_NAMES, WATCHED))
    assert planted == watched > 0 and 0 <= made.recognized_share <= 1
    text = Path(made.log_file).read_text()
    assert f"FreeTumor: planted lesions recognized: {100 * made.recognized_share:.0f} % (" in text


def test_a_label_that_no_case_holds_stays_out_of_the_pseudo_dice(make_trainer):
    made = make_trainer(trainer.nnUNetTrainerFreeTumor)
    made.absent = AbsentLabels([1], [1])  # the tumor
    counts = {"tp_hard": [8.0, 0.0], "fp_hard": [2.0, 5.0], "fn_hard": [2.0, 0.0]}  # stock nnU-Net: Dice .8 and 0
    made.on_validation_epoch_end([{name: np.array(value) for name, value in counts.items()} | {"loss": np.zeros(())}])
    assert made.logger.get_value("mean_fg_dice", step=-1) == pytest.approx(0.8)
    assert np.isnan(made.logger.get_value("dice_per_class_or_region", step=-1)[1])


@pytest.mark.parametrize("name", trainer.__all__[1:])
def test_each_trainer_is_a_real_class_that_nnunet_can_build_by_name(name, make_trainer):
    kind = getattr(trainer, name)
    assert kind.__name__ == name and kind.__module__ == trainer.__name__ and pickle.loads(pickle.dumps(kind)) is kind
    assert inspect.signature(kind.__init__) == inspect.signature(nnUNetTrainer.__init__)
    digits = "".join(filter(str.isdigit, name))
    made = make_trainer(kind)
    assert made.num_epochs == (int(digits) if digits else 1000)
    assert set(made.my_init_kwargs) == {"plans", "configuration", "fold", "dataset_json", "device"}


def test_a_batch_that_gets_no_tumor_equals_plain_nnunets_batch(make_trainer, monkeypatch):
    never = {"probability_tumor_free": 0.0, "probability_tumor_bearing": 0.0}
    plain = _steps(make_trainer(nnUNetTrainer, batch_size=1), monkeypatch, range(12))
    ours = _steps(make_trainer(trainer.nnUNetTrainerFreeTumor, batch_size=1, **never), monkeypatch, range(12))
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(b["data"], a["data"], rtol=0, atol=1e-5)  # nnU-Net sums over a view, we over a copy
        assert [t.dtype for t in b["target"]] == [t.dtype for t in a["target"]]
        assert all(torch.equal(x, y) for x, y in zip(a["target"], b["target"], strict=True))
        assert list(a["keys"]) == list(b["keys"])


def test_tumors_are_planted_before_nnunets_intensity_transforms(make_trainer, monkeypatch):
    made = make_trainer(trainer.nnUNetTrainerFreeTumor, probability_tumor_free=1.0, probability_tumor_bearing=1.0)
    seen = []
    monkeypatch.setattr(
        augmentation, "augment", lambda half, image, label, ids: seen.append((image, label)) or _identity(image, label)
    )
    calls = []
    made.resolve_section()
    _spy_on_synthesizer(monkeypatch, calls)
    _steps(made, monkeypatch, [0])
    (image, label), (given, synthesis) = seen[0], calls[0]
    assert torch.equal(image, synthesis.image) and torch.equal(label, synthesis.label)
    assert not torch.equal(given, image)
    loader_half = made.dataloader_train.data_loader.transforms.transforms
    assert [type(t) for t in loader_half] == [SpatialTransform]


def _identity(image, label):
    return augmentation.Augmented(image, label)


def _spy_on_synthesizer(monkeypatch, calls):
    plant = trainer.Synthesizer.__call__

    def spy(self, image, label, draw):
        result = plant(self, image, label, draw)
        calls.append((image, result))
        return result

    monkeypatch.setattr(trainer.Synthesizer, "__call__", spy)


def test_validation_never_synthesizes(make_trainer, monkeypatch):
    made = make_trainer(trainer.nnUNetTrainerFreeTumor, probability_tumor_free=1.0)
    made.on_train_start()
    calls = []
    _spy_on_synthesizer(monkeypatch, calls)
    batch = next(made.dataloader_val)
    kept = copy.deepcopy(batch)
    seen = []
    monkeypatch.setattr(made.network, "forward", lambda data: seen.append(data) or torch.nn.Module.forward(data))
    with torch.no_grad(), pytest.raises(NotImplementedError):
        made.validation_step(batch)
    assert torch.equal(seen[0], kept["data"]) and not calls


@pytest.mark.parametrize("rank", [0, 1])
def test_validation_is_scored_lesion_by_lesion_after_nnunets_own_and_on_one_rank(rank, make_trainer, monkeypatch):
    made, calls = make_trainer(trainer.nnUNetTrainerFreeTumor), []
    del made.perform_actual_validation
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, npz: calls.append(("host", npz)))
    monkeypatch.setattr(lesion_evaluation, "evaluate_validation", lambda *folders: calls.append(folders) or "the table")
    made.local_rank = rank
    made.perform_actual_validation(True)
    scored = (made.output_folder, Path(made.preprocessed_dataset_folder_base) / "gt_segmentations")
    assert calls == [("host", True)] + [scored] * (rank == 0)
    assert ("the table" in Path(made.log_file).read_text()) == (rank == 0)


def test_validation_alone_resolves_no_section_and_loads_no_synthesizer(make_trainer, monkeypatch):
    trained = make_trainer(trainer.nnUNetTrainerFreeTumor)
    trained.initialize()
    trained.save_checkpoint(f"{trained.output_folder}/checkpoint_final.pth")
    monkeypatch.setattr(trainer, "Synthesizer", None)
    monkeypatch.setattr(start, "section_for_training", None)
    made = make_trainer(trainer.nnUNetTrainerFreeTumor)
    made.load_checkpoint(f"{made.output_folder}/checkpoint_final.pth")
    assert not hasattr(made, "planter")


def test_a_refused_configuration_ends_before_the_network_and_the_loaders_start(make_trainer, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise ValueError("no")

    monkeypatch.setattr(start, "check_configuration", refuse)
    made = make_trainer(trainer.nnUNetTrainerFreeTumor)
    with pytest.raises(ValueError, match="no"):
        made.run_training()
    assert made.dataloader_train is None and not made.was_initialized


UNSUPPORTED = {
    "2d": ({"patch_size": [32, 32]}, {}, "is 2d"),
    "cascade": ({"previous_stage": "3d_lowres"}, {}, "is a stage of a cascade"),
    "several channels": ({}, {"channel_names": {"0": "CT", "1": "PET"}}, "has 2 input channels"),
    "MRI": ({"normalization_schemes": ["ZScoreNormalization"]}, {"channel_names": {"0": "T1"}}, "ZScoreNormalization"),
    "not preprocessed": ({"data_identifier": "nowhere"}, {}, "holds no preprocessed cases.*nnUNetv2_preprocess -d 999"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_cannot_work_ends_before_the_loaders_start(kind, make_trainer):
    configuration, dataset_json, message = UNSUPPORTED[kind]
    made = make_trainer(trainer.nnUNetTrainerFreeTumor)
    made.plans_manager.plans["configurations"][CONFIGURATION].update(configuration)
    made.plans_manager.get_configuration.cache_clear()
    made.dataset_json.update(dataset_json)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        made.run_training()
    assert made.dataloader_train is None and not made.was_initialized


def test_an_unknown_key_in_the_section_ends_before_the_loaders_start(make_trainer):
    made = make_trainer(trainer.nnUNetTrainerFreeTumor, probabilty=0.5)
    with pytest.raises(ValueError, match="freetumor.*has unknown keys; allowed are.*probabilty"):
        made.run_training()
    assert made.dataloader_train is None


def test_a_section_made_for_other_labels_is_refused(make_trainer):
    made = make_trainer(trainer.nnUNetTrainerFreeTumor, labels={"background": 0, "kidney": 1, "tumor": 2})
    with pytest.raises(ValueError, match="was made for the labels .*kidney"):
        made.run_training()


def test_a_trainer_that_skips_nnunets_transforms_is_refused_by_name(make_trainer):
    with pytest.raises(ValueError, match="FreeTumorNoLoading overrides get_dataloaders without"):
        make_trainer(FreeTumorNoLoading).run_training()


def test_transforms_that_cannot_run_on_cuda_are_refused_before_the_loaders_start(make_trainer, monkeypatch):
    monkeypatch.setattr(augmentation, "RUNS_ON_CUDA", augmentation.RUNS_ON_CUDA - {MirrorTransform})
    made = make_trainer(trainer.nnUNetTrainerFreeTumor)
    made.initialize()
    made.device = torch.device("cuda")
    with pytest.raises(ValueError, match="nnUNetTrainerFreeTumor cannot augment on a CUDA device: MirrorTransform"):
        made.on_train_start()
    assert made.dataloader_train is None


def test_the_mixin_keeps_what_the_other_trainer_changes(make_trainer, monkeypatch):
    made = make_trainer(FreeTumorNoMirroring)
    _steps(made, monkeypatch, [])
    assert not any(isinstance(leaf, MirrorTransform) for leaf in augmentation._leaves(made.second_half))
    assert made.inference_allowed_mirroring_axes is None


def test_the_network_is_the_one_that_plain_nnunet_builds(make_trainer):
    plain, ours = make_trainer(nnUNetTrainer), make_trainer(trainer.nnUNetTrainerFreeTumor)
    plain.initialize()
    ours.initialize()
    assert type(ours.network) is type(plain.network)
    assert {k: v.shape for k, v in ours.network.state_dict().items()} == {
        k: v.shape for k, v in plain.network.state_dict().items()
    }


def test_the_log_says_what_was_chosen(make_trainer):
    made = make_trainer(trainer.nnUNetTrainerFreeTumor, seed=7)
    made.on_train_start()
    text = Path(made.log_file).read_text()
    assert (
        "generator texture, no generator was trained for this dataset and fold, and no installed one was trained"
        in text
    )
    assert "FreeTumor: generator auto, seed 7, section from the plans file" in text
    assert f"FreeTumor section for {DATASET}, {PLANS}:" in text and "liver tumor" in text


def test_an_epoch_starts_its_draws_from_seed_rank_and_epoch_whatever_came_before(make_trainer):
    made = make_trainer(trainer.nnUNetTrainerFreeTumor)
    made.on_train_start()
    states = []
    for epoch in (3, 4, 3):
        made.current_epoch = epoch
        made.logger.local_logger.my_fantastic_logging["lrs"] = [0.0] * epoch
        made.on_train_epoch_start()
        states.append(torch.rand(4, generator=made.rng).tolist())
    assert states[0] == states[2] != states[1]
    assert "FreeTumor: draws from seed 0, rank 0, epoch 4" in Path(made.log_file).read_text()
