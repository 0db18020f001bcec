"""Training on the pool as well: shares, validation, and voxels that carry no loss."""

import functools
import itertools
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from pools import SPACING_MM, scan
from torch.nn.functional import cross_entropy

from nnunetv2_freetumor import startup, trainer
from nnunetv2_freetumor.cluster.reports import CaseReport
from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION, DATASET, PLANS
from nnunetv2_freetumor.files.cases import Case
from nnunetv2_freetumor.generator_training.trainer import nnUNetTrainerFreeTumorGenerator
from nnunetv2_freetumor.plan import SECTION, Section, read_section, to_json
from nnunetv2_freetumor.pool import command, masks, store
from nnunetv2_freetumor.pool.model import Model, has_met_lesions, predict_labels
from nnunetv2_freetumor.pool.preprocessing import reoriented

pytest_plugins = ["pools"]
REAL_LABELS = {"background": 0, "liver": 1, "tumor": 2}
REGIONS = {"background": 0, "liver": [1, 2], "tumor": 2}


@pytest.mark.parametrize("labeled", [4, 100, 3000])
@pytest.mark.parametrize("cases", [2, 40, 16131])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_the_copies_of_identifiers_meet_the_share(labeled, cases, share):
    own, others = store.copies_for(labeled, cases, share)
    found = others * cases / (own * labeled + others * cases)
    assert found / (1 - found) == pytest.approx(share / (1 - share), rel=0.06)
    assert own * labeled + others * cases <= 12 * max(labeled, cases) / min(share, 1 - share)


def test_the_default_share_is_that_of_all_cases_and_at_most_one_half():
    assert store.default_share(98, 2) == pytest.approx(0.02)
    assert store.default_share(4, 40) == 0.5


def fill(place, cases=3, **options):
    """Fill the pool with livers that have a hole each."""
    for seed in range(cases):
        image, mask = scan(seed)
        mask[10:12, 18:21, 20:23] = 0
        place.add(f"u{seed}", image, mask)
    assert place.run(**options) == 0


def make(place, kind=trainer.nnUNetTrainerFreeTumor, fold=0, **section):
    plans, dataset_json = (json.loads((place.dataset / f"{n}.json").read_text()) for n in (PLANS, "dataset"))
    plans[SECTION] |= section
    made = kind(plans | {"continue_training": False}, CONFIGURATION, fold, dataset_json, torch.device("cpu"))
    made.num_iterations_per_epoch, made.num_val_iterations_per_epoch = 2, 1
    made.perform_actual_validation = None
    return made


def log(made):
    return Path(made.log_file).read_text()


def loss_under(made, target, at, change):
    """Compare the loss before and after the prediction changes at some voxels."""
    heads = made.label_manager.num_segmentation_heads
    output = torch.randn(2, heads, *target.shape[2:], generator=torch.Generator().manual_seed(0), requires_grad=True)
    outputs = [output, output[..., ::2, ::2, ::2]] if made.enable_deep_supervision else output
    targets = [target, target[..., ::2, ::2, ::2]] if made.enable_deep_supervision else target
    loss = made.loss(outputs, targets)
    loss.backward()
    with torch.no_grad():
        other = output.clone()
        other[:, 1:2] += change * at  # one output alone: a softmax does not see what all of them share
        others = [other, other[..., ::2, ::2, ::2]] if made.enable_deep_supervision else other
        return loss.item(), made.loss(others, targets).item(), output.grad


def test_half_of_the_samples_come_from_a_large_pool_and_none_in_validation(place):
    fill(place)
    made = make(place)
    made.on_train_start()
    batches = [next(made.dataloader_train)["keys"] for _ in range(60)]
    share = np.mean([str(key).startswith(store.MARK) for keys in batches for key in keys])
    assert 0.35 < share < 0.65
    assert {str(k) for _ in range(10) for k in next(made.dataloader_val)["keys"]} == {"case_0"}
    assert "FreeTumor: 3 unlabeled cases in addition to 1 labeled ones; 50.0 % of the samples" in log(made)
    assert "default: share of all cases, at most a half" in log(made) and "cases with holes: 3" in log(made)
    assert "cases with voxels taken out: 3" in log(made) and "ml of holes: 0.864" in log(made)
    taken = 3 * int((store.read_volumes(place.pool, "u0").label == 3).sum())
    assert f"voxels taken out with their margin: {taken}" in log(made)


def test_a_pool_that_may_hold_a_newer_labeled_case_ends_before_the_first_epoch(place):
    fill(place)
    names = json.loads((place.pool / store.CONTENTS).read_text())
    del names["case_0"]  # which is validated on
    (place.pool / store.CONTENTS).write_text(json.dumps(names))
    with pytest.raises(ValueError, match="has not been compared with 1 newer labeled case.s. .case_0 "):
        make(place).on_train_start()


def test_a_split_that_validates_on_synthetic_cases_ends_before_the_first_epoch(place):
    split = [{"train": ["case_0"], "val": ["synthetic_case_1_00"]}]
    (place.dataset / "splits_final.json").write_text(json.dumps(split))
    with pytest.raises(ValueError, match="Fold 0 would be validated on 1 synthetic case.s."):
        make(place).do_split()


def test_fold_all_validates_on_its_training_cases_and_still_on_none_of_the_pool(place):
    fill(place)
    made = make(place, fold="all")
    made.on_train_start()
    assert set(made.dataloader_val.data_loader.indices) == {"case_0", "case_1"}
    assert {str(k) for _ in range(10) for k in next(made.dataloader_val)["keys"]} <= {"case_0", "case_1"}
    assert any(str(key).startswith(store.MARK) for key in made.dataloader_train.data_loader.indices)
    assert set(made.do_split()[1]) == {"case_0", "case_1"}  # what nnU-Net's final validation predicts


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0), (0.2, 0.2)])
def test_the_section_sets_the_share(share, expected, place):
    fill(place)
    made = make(place, unlabeled_share=share)
    made.on_train_start()
    keys = [str(key) for key in made.dataloader_train.data_loader.indices]
    assert np.mean([key.startswith(store.MARK) for key in keys]) == pytest.approx(expected, abs=0.02)


def test_a_share_that_is_none_is_refused_by_name(place):
    section = json.loads((place.dataset / f"{PLANS}.json").read_text())[SECTION]
    assert read_section(section).unlabeled_share is None and to_json(read_section(section))["unlabeled_share"] is None
    with pytest.raises(ValueError, match="'unlabeled_share' must lie between 0 and 1, but it is 1.5"):
        read_section(section | {"unlabeled_share": 1.5})
    assert Section.__dataclass_fields__["unlabeled_share"].default is None


def test_without_a_pool_everything_is_as_before(place):
    made = make(place)
    made.on_train_start()
    assert list(made.dataloader_train.data_loader.indices) == ["case_1"] and "unlabeled case" not in log(made)


def test_cases_that_nobody_has_looked_at_are_left_out_and_the_log_says_so(place):
    fill(place, tumor_free=False)
    made = make(place)
    made.on_train_start()
    assert list(made.dataloader_train.data_loader.indices) == ["case_1"]
    assert "WARNING: FreeTumor: 3 unlabeled cases are left out: they have not been checked for tumors" in log(made)
    assert f"add-unlabeled -d {DATASET} -p {PLANS} -c {CONFIGURATION} --mark-suspects" in log(made)


def test_a_pool_of_other_plans_ends_the_training_before_the_loaders_start(place):
    fill(place, cases=1)
    stamp = json.loads((place.pool / store.STAMP).read_text())
    (place.pool / store.STAMP).write_text(json.dumps(stamp | {"plans_hash": "0"}))
    made = make(place)
    with pytest.raises(ValueError, match="was made for other plans"):
        made.on_train_start()
    assert made.dataloader_train is None
    none_of_it = make(place, unlabeled_share=0.0)
    none_of_it.on_train_start()  # takes nothing from the pool, and does not look at it


def test_ignored_voxels_carry_no_loss_and_no_gradient_without_an_ignore_label(place):
    fill(place, cases=1)
    made = make(place)
    made.on_train_start()
    target = torch.zeros(2, 1, 8, 8, 8, dtype=torch.int16)
    target[:, :, 2:6] = 1
    target[0, 0, 3:5, 2:6, 2:6] = 3
    ignored = target == 3
    before, after, gradient = loss_under(made, target, ignored, 20.0)
    assert before == after and not gradient[ignored.expand_as(gradient)].any()
    before, after, _ = loss_under(made, target, ~ignored, 20.0)
    assert before != after


def test_ignored_voxels_reach_the_loss_and_keep_their_image_whatever_is_planted(place, monkeypatch):
    fill(place)
    made = make(place, unlabeled_share=1.0, probability_tumor_free=1.0, untouched_share=0.0)
    made.on_train_start()
    made.on_train_epoch_start()
    seen = []
    augment = trainer.augmentation.augment

    def _augment(second_half, image, label, ids):
        seen.append((image, label))
        return augment(second_half, image, label=label, ids=ids)

    monkeypatch.setattr(trainer.augmentation, "augment", _augment)
    for _ in range(3):
        batch = next(made.dataloader_train)
        assert np.isfinite(made.train_step(batch)["loss"])
        (image, label), ignored = seen.pop(), batch["target"] == 3
        assert ignored.any() and (label[ignored] == 3).all() and torch.equal(image[ignored], batch["data"][ignored])


@pytest.mark.parametrize("labels", [REAL_LABELS, REGIONS], ids=["labels", "regions"])
def test_every_level_of_deep_supervision_leaves_the_ignored_voxels_out_of_a_real_step(labels, place):
    place.change_labels(labels)
    if labels is REGIONS:
        _to_regions(place)
    fill(place)
    made = make(place, unlabeled_share=1.0)
    made.on_train_start()
    made.on_train_epoch_start()
    outputs, targets = [], []

    def _keep(_module, _inputs, levels):
        for level in levels:
            level.retain_grad()
        outputs.extend(levels)

    made.network.register_forward_hook(_keep)
    made.loss.register_forward_pre_hook(lambda _m, args: targets.extend(args[1]))
    made.train_step(next(made.dataloader_train))
    assert len(outputs) == len(targets) > 1
    for output, target, weight in zip(outputs, targets, [1, *[0.5] * len(targets[2:]), 0]):
        ignored = target[:, -1:].bool() if labels is REGIONS else target == 3
        assert ignored.any() and not ignored.all()
        if weight:  # nnU-Net leaves the coarsest level out
            assert not output.grad[ignored.expand_as(output)].any() and output.grad.any()


class LearnsFromEverything(trainer.FreeTumorMixin):
    """Its loss takes the ignore label for background."""

    def _build_loss(self):
        return DeepSupervisionWrapper(lambda out, target: cross_entropy(out, target[:, 0].long() % 3), [1.0, 0.0])


class KnowsNoIgnoreLabel(trainer.FreeTumorMixin):
    """Its loss takes the ignore label for a class that the network has not."""

    def _build_loss(self):
        return DeepSupervisionWrapper(lambda out, target: cross_entropy(out, target[:, 0].long()), [1.0, 0.0])


class LeavesIgnoredOut(trainer.FreeTumorMixin):
    """Its loss follows nnU-Net's label manager, as nnUNetTrainerCELoss's does."""

    def _build_loss(self):
        ignored = self.label_manager.ignore_label if self.label_manager.has_ignore_label else -100
        loss = functools.partial(cross_entropy, ignore_index=ignored)
        return DeepSupervisionWrapper(lambda out, target: loss(out, target[:, 0].long()), [1.0, 0.0])


@pytest.mark.parametrize("kind", [LearnsFromEverything, KnowsNoIgnoreLabel])
def test_a_trainer_whose_loss_learns_from_ignored_voxels_is_refused_before_the_loaders_start(kind, place):
    fill(place, cases=1)
    made = make(place, kind)
    with pytest.raises(ValueError, match="this trainer's loss does not ignore them. Use a trainer whose loss supports"):
        made.on_train_start()
    assert made.dataloader_train is None
    make(place, kind, unlabeled_share=0.0).on_train_start()
    make(place, LeavesIgnoredOut).on_train_start()


def test_regions_get_an_ignore_channel_in_training_and_none_in_validation(place):
    place.change_labels(REGIONS)
    _to_regions(place)
    fill(place, cases=1)
    made = make(place, unlabeled_share=1.0)
    made.on_train_start()
    batch = next(made.dataloader_train)
    assert 3 in batch["target"]
    target = torch.zeros(2, 3, 8, 8, 8, dtype=torch.bool)
    target[:, 0, 2:6] = True
    target[0, 2, 3:5, 2:6, 2:6] = True
    ignored = target[:, 2:]
    before, after, gradient = loss_under(made, target, ignored, 20.0)
    assert before == after and not gradient[ignored.expand_as(gradient)].any()
    before, after, _ = loss_under(made, target[:, :2], ignored, 20.0)  # as in validation
    assert before != after
    made.on_train_epoch_start()
    assert np.isfinite(made.train_step(batch)["loss"])
    assert np.isfinite(made.validation_step(next(made.dataloader_val))["loss"])


def _to_regions(place):
    dataset_json = json.loads((place.dataset / "dataset.json").read_text()) | {"regions_class_order": [1, 2]}
    (place.dataset / "dataset.json").write_text(json.dumps(dataset_json))
    for path in place.dataset.glob(f"{PLANS}_{CONFIGURATION}/*.pkl"):
        _rename_places(path)


def _rename_places(path):
    properties = pickle.loads(path.read_bytes())
    places = properties["class_locations"]
    properties["class_locations"] = {(1, 2): places[1], 2: places[2]}
    path.write_bytes(pickle.dumps(properties))


def test_without_ignored_voxels_the_loss_is_nnunets_own_bit_for_bit(place):
    fill(place, cases=1)
    plain, ours = make(place, unlabeled_share=0.0), make(place)
    plain.on_train_start()
    ours.on_train_start()
    target = torch.zeros(2, 1, 8, 8, 8, dtype=torch.int16)
    target[:, :, 2:6], target[0, 0, 3, 3, 3] = 1, 2
    assert loss_under(plain, target, target > 0, 1.0)[:2] == loss_under(ours, target, target > 0, 1.0)[:2]


def test_a_generator_trains_on_the_pools_organs_too(place):
    fill(place)
    made = make(place, nnUNetTrainerFreeTumorGenerator)
    made.initialize()
    made.pool = made._open_pool()
    made.dataset_class = store.nnUNetDatasetBlosc2
    training, validation = made.get_tr_and_val_datasets()
    assert training.share == 0.5 and validation.identifiers == ["case_0"]
    assert training.load_case("unlabeled:u0")[1][0].max() == 3


def _of_pool(batch):
    return [index for index, key in enumerate(batch["keys"]) if str(key).startswith(store.MARK)]


def test_a_generator_plants_into_the_pools_organs_and_its_card_says_so(place):
    fill(place)
    changes = {"side_voxels": [16, 16, 16], "lesions_per_step": 2, "validation_iterations": 1, "judge_weight": 0.0}
    made = make(place, nnUNetTrainerFreeTumorGenerator, unlabeled_share=0.5, recipe_changes=changes)
    made.num_iterations_per_epoch = 2
    made.on_train_start()
    made.on_train_epoch_start()
    # which cases a batch holds is drawn: go on until there is one
    drawn = ((batch, _of_pool(batch)) for batch in itertools.islice(made.dataloader_train, 1000))
    made.train_step(next(batch for batch, of_pool in drawn if not of_pool))  # it needs to have met a real tumor
    alone, of_pool = next((batch, of_pool) for batch, of_pool in drawn if of_pool)
    only = {name: alone[name][of_pool] for name in ("data", "target")}
    assert not (only["target"] == 2).any()  # no real tumor there
    before = made._terms.steps
    made.train_step(only)
    assert made._terms.steps == before + 1
    assert made.make_card("none").training_data.endswith("fold 0, and the organs of 3 unlabeled cases")
    assert "3 unlabeled cases in addition to 1 labeled ones" in log(made)


def model_that_says(place, label, kind=nnUNetTrainer):
    """Leave a finished model whose network calls every voxel one label."""
    made = make(place, kind)
    made.initialize()
    for head in made.network.decoder.seg_layers:
        torch.nn.init.zeros_(head.weight)
        head.bias.data = torch.eye(3)[label]
    made.save_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
    folder = Path(made.output_folder).parent
    (folder / "plans.json").write_text(json.dumps(made.plans_manager.plans))
    (folder / "dataset.json").write_text(json.dumps(made.dataset_json))
    return str(folder)


def test_a_trained_model_finds_hosts_and_clears_what_it_has_looked_at(place, capsys):
    place.add("a", scan(1)[0])
    model = model_that_says(place, 1)
    assert place.run(hosts=False, tumor_free=False, host_model=model) == 0
    name = f"{Path(model).name}/fold_0"
    assert place.records()["a"]["cleared"].startswith(name)
    assert f"WARNING: {model} found no tumor in any of these 1 case(s)" in capsys.readouterr().out
    assert (store.read_volumes(place.pool, "a").label == 1).all()
    model_that_says(place, 2)
    assert place.run(hosts=False, tumor_free=False, host_model=model, annotates=["liver"]) == 1
    assert place.reasons()["a"].startswith("no host in view")


def test_a_cluster_s_client_needs_no_gpu_and_the_report_comes_first(place, monkeypatch):
    place.add("a", scan(1)[0])
    done = [CaseReport("a", "done")]
    monkeypatch.setattr(command, "run_cases", lambda *_, **__: done)
    options = {"host_model": model_that_says(place, 1), "scheduler": "tcp://there:1", "device": "cuda"}
    assert command.add_unlabeled_command(DATASET, str(place.images), **options) == 0
    monkeypatch.setattr(store, "open_pool", lambda *_: 1 / 0)
    done.append(CaseReport("b", "skipped", "why"))
    with pytest.raises(ZeroDivisionError):
        command.add_unlabeled_command(DATASET, str(place.images), **options)
    assert place.reasons() == {"a": "done", "b": "why"}


def test_a_trained_model_marks_suspects_and_a_case_that_is_all_suspect_waits(place, capsys):
    fill(place, cases=1, tumor_free=False)
    model = model_that_says(place, 2)
    second_round = {"images": None, "hosts": False, "tumor_free": False, "mark_suspects": model}
    assert place.run(**second_round) == 1
    assert place.reasons() == {"u0": "no host in view: all of it may be tumor"}
    assert place.records()["u0"]["cleared"] == ""
    model_that_says(place, 1)
    assert "found no tumor" not in capsys.readouterr().out
    assert place.run(**second_round) == 0 and place.records()["u0"]["cleared"].startswith(f"{Path(model).name}/fold_0 ")
    assert f"WARNING: {model} found no tumor in any of these 1 case(s). Check that it finds" in capsys.readouterr().out
    plans = json.loads((Path(model) / "plans.json").read_text())
    plans["configurations"][CONFIGURATION]["spacing"] = [5.0, 2.0, 2.0]
    (Path(model) / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="was trained with other plans or another configuration than the pool's"):
        place.run(**second_round)


def test_a_model_that_has_never_been_shown_a_tumor_clears_nothing(place):
    place.change_labels(REAL_LABELS, fingerprint={"absent_labels": ["tumor"]})
    place.add("a", scan(1)[0])
    model = model_that_says(place, 1)
    assert place.run(hosts=False, tumor_free=False, host_model=model) == 0
    assert place.records()["a"]["cleared"] == ""
    for options in ({"judge": model, "tumor_free": False}, {"images": None, "hosts": False, "mark_suspects": model}):
        with pytest.raises(ValueError, match="has never seen a tumor: no case of this dataset contains one"):
            place.run(**options)


def test_a_model_that_was_shown_synthetic_tumors_may_judge(monkeypatch):
    monkeypatch.setenv(startup.VARIABLE, startup.EXT_TRAINER)

    def judge(trainer_name, dataset=DATASET):
        segmenter = SimpleNamespace(dataset=dataset, name=f"{trainer_name}__Plans__3d/fold_0")
        return Model("", segmenter, None, {}, "")

    assert has_met_lesions(judge("nnUNetTrainerFreeTumor_5epochs"), DATASET, ["tumor"], ["tumor"])
    assert not has_met_lesions(judge("nnUNetTrainer"), DATASET, ["tumor"], ["tumor"])
    assert has_met_lesions(judge("nnUNetTrainer"), DATASET, ["tumor"], ["tumor", "cyst"])
    assert has_met_lesions(judge("nnUNetTrainer", "Dataset001_Other"), DATASET, ["tumor"], ["tumor"])


def test_a_model_finds_hosts_in_the_orientation_of_its_own_reader_and_gives_them_on_the_images_grid():
    image = Case(scan(1)[0], SPACING_MM, (0.0, 0.0, 0.0), (0, 0, 1, 1, 0, 0, 0, -1, 0), Path())
    seen = []
    predictor = SimpleNamespace(
        predict_single_npy_array=lambda array, about: seen.append((array[0], about["spacing"])) or array[0] > 80
    )
    for reader in ("SimpleITKIO", "NibabelIOWithReorient"):
        model = Model("", None, predictor, {"image_reader_writer": reader}, "")
        assert np.array_equal(predict_labels(model, image), image.array > 80)
    assert np.array_equal(seen[0][0], image.array) and seen[0][1] == list(SPACING_MM)
    turned = reoriented(image, "RAS")
    assert np.array_equal(seen[1][0], turned.array) and seen[1][1] == list(turned.spacing_mm)
    assert turned.array.shape != image.array.shape


def test_islands_that_a_model_takes_for_the_organ_are_neither_host_nor_background(place, monkeypatch):
    image, mask = scan(1)
    mask[2:4, 4:8, 4:8] = 1
    place.add("a", image)
    monkeypatch.setattr(masks, "predict_labels", lambda *_: mask)
    assert place.run(hosts=False, host_model=model_that_says(place, 1)) == 0
    label = store.read_volumes(place.pool, "a").label[0]
    assert (label[2:4, 4:8, 4:8] == 3).all() and (label[12, 20, 20], label[4, 4, 4]) == (1, 0)
    counts = place.records()["a"]["counts"]
    assert counts["cases with islands"] == 1.0 and counts["ml of islands"] == pytest.approx(32 * 16 / 1000)


def test_a_second_round_sends_back_what_it_takes_for_tumor_throughout_whoever_had_cleared_it(place):
    fill(place, cases=1)
    assert place.records()["u0"]["cleared"] == "tumor-free"
    model = model_that_says(place, 2)
    assert place.run(images=None, hosts=False, tumor_free=False, mark_suspects=model) == 1
    assert place.records()["u0"]["cleared"] == ""


@pytest.mark.slow
def test_an_epoch_with_a_pool_trains_and_continues(place):
    fill(place)
    made = make(place, trainer.nnUNetTrainerFreeTumor_1epoch, probability_tumor_free=1.0)
    made.run_training()
    assert np.isfinite(made.logger.local_logger.my_fantastic_logging["train_losses"]).all()
    again = make(place, trainer.nnUNetTrainerFreeTumor_1epoch)
    again.num_epochs = 2
    again.load_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
    again.run_training()
    assert len(again.logger.local_logger.my_fantastic_logging["train_losses"]) == 2
    assert "FreeTumor: 3 unlabeled cases" in log(again)
