"""Which judge a training gets: loading nnU-Net's models, refusing what cannot judge, and the log's words for it."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_freetumor import trainer
from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION, DATASET, LABELS, PLANS
from nnunetv2_freetumor.files.checkpoints import CHECKPOINT
from nnunetv2_freetumor.plan import read_section
from nnunetv2_freetumor.synthesis.planter import ACCEPTED, JUDGED
from nnunetv2_freetumor.training import epoch_log, judge_choice
from nnunetv2_freetumor.training.judge import JudgeGate
from nnunetv2_freetumor.training.segmenter import load_segmenter

pytest_plugins = ["tiny_trainings"]

CPU = torch.device("cpu")
FEW = {"min_judge_tumors": 1}  # the tiny dataset has two


@pytest.fixture
def baseline(make_trainer):
    """Give the model folder of a finished, untrained nnUNetTrainer on fold 0."""
    made = make_trainer(nnUNetTrainer)
    made.initialize()
    made.logger.local_logger.my_fantastic_logging["mean_fg_dice"].append(np.float64(0.5))
    made.logger.local_logger.my_fantastic_logging["train_losses"].append(np.float32(0.5))
    folder = Path(made.output_folder_base)
    for name, data in (("plans", made.plans_manager.plans), ("dataset", made.dataset_json)):
        (folder / f"{name}.json").write_text(json.dumps(data))
    made.save_checkpoint(str(folder / "fold_0" / CHECKPOINT))
    return folder


def resolve(made):
    """Choose the judge of a trainer; give the gate and what its log says."""
    section = read_section(made.plans_manager.plans["freetumor"])
    gate = judge_choice.resolve_judge(section, made)
    return gate, Path(made.log_file).read_text()


def make(make_trainer, **section):
    return make_trainer(trainer.nnUNetTrainerFreeTumor, **section)


def test_a_model_predicts_as_it_does_in_nnunet(baseline):
    segmenter = load_segmenter(baseline, 0, CPU)
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(baseline), (0,))
    predictor.network.eval()
    patch = torch.randn(2, 1, *segmenter.patch_size)
    with torch.no_grad():
        assert torch.equal(segmenter.logits(patch), predictor.network(patch))
        torch.testing.assert_close(segmenter.logits(patch[:1]), predictor.network(patch[:1]))
    assert not any(weight.requires_grad for weight in segmenter.network.parameters())
    assert (segmenter.patch_size, segmenter.spacing_mm) == ((16, 32, 32), (4.0, 2.0, 2.0))
    assert segmenter.intensity.mean_hu == 100.0 and segmenter.labels == LABELS and segmenter.dataset == DATASET


def test_a_model_that_does_not_exist_is_refused_with_the_command_that_trains_it(tmp_path):
    folder = tmp_path / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    with pytest.raises(ValueError, match="There is no trained model .*fold_0. Train it with") as error:
        load_segmenter(folder, 0, CPU)
    assert str(error.value).endswith(f"  nnUNetv2_train {DATASET} 3d_fullres 0 -p nnUNetPlans")
    with pytest.raises(ValueError, match="3d_fullres 1 -p Small -tr nnUNetTrainerX$"):
        load_segmenter(folder.parent / "nnUNetTrainerX__Small__3d_fullres", 1, CPU)


def test_an_unfinished_model_is_refused_with_the_command_that_finishes_it(baseline):
    (baseline / "fold_0" / CHECKPOINT).rename(baseline / "fold_0" / "checkpoint_latest.pth")
    with pytest.raises(ValueError, match=f"is unfinished: it has no {CHECKPOINT}. Finish it with\n.* --c$"):
        load_segmenter(baseline, 0, CPU)


class Dangerous:
    """A pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "was here")


def test_a_checkpoint_that_wants_to_run_code_is_refused_and_does_not_run(baseline, tmp_path):
    path = baseline / "fold_0" / CHECKPOINT
    whole = torch.load(path, weights_only=False)
    torch.save({**whole, "extra": Dangerous(tmp_path / "evil")}, path)
    with pytest.raises(ValueError, match="nothing in it was executed"):
        load_segmenter(baseline, 0, CPU)
    assert not (tmp_path / "evil").exists()


def test_what_is_no_model_of_ct_is_refused(baseline):
    path = baseline / "fold_0" / CHECKPOINT
    whole = torch.load(path, weights_only=False)
    weights = dict(list(whole["network_weights"].items())[1:])
    torch.save({**whole, "network_weights": weights}, path)
    with pytest.raises(ValueError, match=r"network of .* cannot be built: .*nnUNetTrainer\) must be installed here"):
        load_segmenter(baseline, 0, CPU)
    torch.save({"state_dict": weights}, path)
    with pytest.raises(ValueError, match="is not an nnU-Net checkpoint: it must contain network_weights"):
        load_segmenter(baseline, 0, CPU)
    torch.save(whole, path)
    plans = json.loads((baseline / "plans.json").read_text())
    plans["configurations"][CONFIGURATION]["normalization_schemes"] = ["ZScoreNormalization"]
    (baseline / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"takes a 3d network with one CT channel .* and ZScoreNormalization"):
        load_segmenter(baseline, 0, CPU)
    (baseline / "plans.json").unlink()
    with pytest.raises(ValueError, match="is no nnU-Net model folder: it lacks plans.json"):
        load_segmenter(baseline, 0, CPU)


def test_auto_takes_the_folds_finished_baseline(baseline, make_trainer):
    gate, log = resolve(make(make_trainer, **FEW))
    assert isinstance(gate, JudgeGate) and gate.channels == [2]
    assert f"FreeTumor: judge {baseline / 'fold_0'}; a lesion is kept if the judge marks at least this share" in log
    assert "<10 mm: 30 %, 10-20 mm: 50 %, 20-50 mm: 70 %, >=50 mm: 70 %" in log


def test_auto_without_a_finished_baseline_says_how_to_get_one(make_trainer):
    gate, log = resolve(make(make_trainer))
    assert gate is None and "FreeTumor: no judge: " in log
    assert f"\n  nnUNetv2_train {DATASET} {CONFIGURATION} 0 -p {PLANS}" in log


def test_off_means_off(baseline, make_trainer):
    gate, log = resolve(make(make_trainer, judge="off", **FEW))
    assert gate is None and "no judge, as set in the plans' freetumor section or when" in log


def test_a_judge_of_few_tumors_is_off_with_a_warning(baseline, make_trainer):
    gate, log = resolve(make(make_trainer))
    assert gate is None
    assert "WARNING: FreeTumor: judge off for 'liver tumor': it was trained on only " in log
    assert "fewer than min_judge_tumors (20)" in log


def test_tumors_are_counted_in_the_training_cases_until_there_are_enough(make_trainer):
    made = make(make_trainer)
    made.dataset_class = judge_choice.infer_dataset_class(made.preprocessed_dataset_folder)
    training, validation = made.do_split()
    (whole,) = judge_choice.count_tumors(made, {2}, 20).values()
    assert whole in (1, 2) and training == ["case_1"] and validation == ["case_0"]
    assert judge_choice.count_tumors(made, {2, 1}, 1)[1] == 1
    assert judge_choice.count_tumors(made, {7}, 20) == {7: 0}
    assert judge_choice.count_tumors(made, {2}, 0) == {2: 0}


def test_a_model_folder_named_in_the_plans_is_taken(baseline, make_trainer, tmp_path):
    other = tmp_path / "elsewhere" / "nnUNetTrainer__Other__3d_fullres"
    shutil.copytree(baseline, other)
    for judge in (str(other), str(other / "fold_0"), baseline.name):
        gate, log = resolve(make(make_trainer, judge=judge, **FEW))
        assert isinstance(gate, JudgeGate) and "FreeTumor: judge " in log
    with pytest.raises(ValueError, match="There is no trained model"):
        resolve(make(make_trainer, judge=str(tmp_path / "nnUNetTrainer__Nowhere__3d_fullres"), **FEW))
    with pytest.raises(ValueError, match="'judge' must be auto, off, or a model folder .*nowhere', and there is no"):
        resolve(make(make_trainer, judge=str(tmp_path / "nowhere"), **FEW))


@pytest.mark.parametrize("other", ["fold_1", "fold_all"])
def test_a_judge_that_has_seen_the_validation_cases_is_refused(baseline, make_trainer, other):
    (baseline / "fold_0").rename(baseline / other)
    for judge in (baseline, baseline / other):
        with pytest.raises(ValueError, match=f"{other} has been trained on cases that fold 0 validates on") as error:
            resolve(make(make_trainer, judge=str(judge), **FEW))
        assert f"nnUNetv2_train {DATASET} {CONFIGURATION} 0 -p {PLANS}" in str(error.value)


def test_on_fold_all_any_fold_may_judge(baseline):
    shutil.copytree(baseline / "fold_0", baseline / "fold_all")
    assert judge_choice.find_judge("auto", baseline, "all") == (baseline, "all")
    assert judge_choice.find_judge(str(baseline / "fold_0"), baseline, "all") == (baseline, "0")
    assert judge_choice.find_judge(str(baseline), baseline, "all") == (baseline, "all")


def test_a_judge_of_another_dataset_or_with_other_labels_is_refused(baseline, make_trainer):
    names = {"background": 0, "liver": 1, "lesion": 2}
    (baseline / "dataset.json").write_text(json.dumps({"labels": names, "channel_names": {"0": "CT"}}))
    with pytest.raises(ValueError, match="knows the labels 'liver', 'lesion', but none is called 'tumor'"):
        resolve(make(make_trainer, **FEW))
    plans = json.loads((baseline / "plans.json").read_text())
    (baseline / "plans.json").write_text(json.dumps(plans | {"dataset_name": "Dataset111_Other"}))
    with pytest.raises(ValueError, match=f"was trained on Dataset111_Other, not on {DATASET}"):
        resolve(make(make_trainer, **FEW))


def _log_epochs(made, shares):
    """Log epochs of 20 small lesions each, with these accepted shares."""
    epoch_log.register(made.logger, 0)
    for epoch, share in enumerate(shares):
        for names, value in ((JUDGED, 20.0), (ACCEPTED, 20 * share)):
            made.logger.log(epoch_log.COUNT_KEY + names[0], value, epoch)


def test_a_size_that_the_judge_hardly_accepts_passes_from_the_next_epoch_on(baseline, make_trainer):
    made = make(make_trainer, **FEW)
    made.planter = made.make_synthesizer(read_section(made.plans_manager.plans["freetumor"]))
    gate = made.planter.gate
    for shares in ([0.0, 0.2], [0.3, 0.3, 0.3], [0.8, 0.0, 0.6, 0.1, 0.8]):  # too few; just enough; unlucky epochs
        _log_epochs(made, shares)
        assert epoch_log.ungate(made.planter, made.logger) == [] and gate.ungated == frozenset()
    _log_epochs(made, [0.3, 0.25, 0.2, 0.9])
    (text,) = epoch_log.ungate(made.planter, made.logger)
    assert gate.ungated == {0} and epoch_log.ungate(made.planter, made.logger) == []
    assert "the judge accepted only 25 % of the lesions of <10 mm, fewer than 30 % (min_accepted_share)" in text


def test_a_size_that_is_rare_in_each_epoch_passes_once_enough_were_judged(baseline, make_trainer):
    made = make(make_trainer, **FEW)
    made.planter = made.make_synthesizer(read_section(made.plans_manager.plans["freetumor"]))
    epoch_log.register(made.logger, 0)
    for epoch in range(6):
        made.logger.log(epoch_log.COUNT_KEY + JUDGED[3], 9.0, epoch)
        made.logger.log(epoch_log.COUNT_KEY + ACCEPTED[3], 1.0, epoch)
        assert bool(epoch_log.ungate(made.planter, made.logger)) == (epoch == 5)


def test_few_lesions_and_epochs_from_before_ungate_nothing(baseline, make_trainer):
    made = make(make_trainer, **FEW)
    made.planter = made.make_synthesizer(read_section(made.plans_manager.plans["freetumor"]))
    epoch_log.register(made.logger, 2)  # NaN
    made.logger.log(epoch_log.COUNT_KEY + JUDGED[1], 9.0, 2)
    made.logger.log(epoch_log.COUNT_KEY + ACCEPTED[1], 0.0, 2)
    assert epoch_log.ungate(made.planter, made.logger) == []
    assert math.isnan(epoch_log.history(made.logger)[JUDGED[0]][0])


@pytest.mark.slow
def test_a_training_with_a_judge_logs_its_shares_and_continues_with_what_it_ungated(
    baseline, make_trainer, monkeypatch
):
    monkeypatch.setattr(epoch_log, "LEAST_JUDGED", 1)
    always = {"probability_tumor_free": 1.0, "probability_tumor_bearing": 1.0, "min_visibility": 0.0, **FEW}
    made = make_trainer(trainer.nnUNetTrainerFreeTumor_1epoch, min_quality=[1.0] * 4, **always)
    made.run_training()
    counts = epoch_log.history(made.logger)
    judged = sum(counts[name][0] for name in JUDGED)
    assert judged > 0 and sum(counts[name][0] for name in ACCEPTED) == counts["planted"][0] == 0
    assert counts["rejected"][0] > 0
    ungated = made.planter.gate.ungated
    text = Path(made.log_file).read_text()
    assert ungated and "FreeTumor: judge accepted " in text
    assert "WARNING: FreeTumor: so far the judge accepted only 0 % of the lesions of" in text
    again = make_trainer(trainer.nnUNetTrainerFreeTumor_1epoch)
    again.num_epochs = 2
    again.load_checkpoint(str(Path(made.output_folder) / CHECKPOINT))
    again.run_training()
    assert again.planter.gate.ungated >= ungated
    assert epoch_log.history(again.logger)["planted"][1] > 0
    assert "kept anyway" in Path(again.log_file).read_text()


def test_a_resumed_training_keeps_the_judge_and_the_generators_that_it_started_with(make_trainer, baseline):
    away = baseline.with_name("not_finished_yet")
    baseline.rename(away)
    first = make(make_trainer, min_judge_tumors=0)
    section = read_section(first.plans_manager.plans["freetumor"])
    Path(first.output_folder).mkdir(parents=True, exist_ok=True)
    assert first.make_synthesizer(section).gate is None
    away.rename(baseline)  # the baseline is finished while the training waits

    resumed = make(make_trainer, min_judge_tumors=0)
    resumed.current_epoch = 3
    synthesizer = resumed.make_synthesizer(section)
    assert synthesizer.gate is None and [type(g).__name__ for g in synthesizer.generators] == ["TextureGenerator"]
    assert "generators and judge as chosen when this training started" in Path(resumed.log_file).read_text()

    anew = make(make_trainer, min_judge_tumors=0)
    assert anew.make_synthesizer(section).gate is not None
    resumed.current_epoch = 3
    assert resumed.make_synthesizer(section).gate is not None, "the new start took the old one's place"
    record = json.loads((Path(anew.output_folder) / "freetumor_chosen.json").read_text())
    assert record["judge"] == str(baseline / "fold_0")
    assert record["generators"][0]["generator"] == "texture" and record["generators"][0]["path"] is None


def test_a_judge_that_is_neither_a_word_nor_a_folder_is_named_with_what_is_allowed(make_trainer):
    made = make(make_trainer, judge="on")
    with pytest.raises(ValueError, match="'judge' must be auto, off, or a model folder .* but it is 'on'"):
        resolve(made)


def test_a_judge_that_too_few_tumors_switch_off_is_recorded_as_off(make_trainer, baseline):
    first = make(make_trainer, min_judge_tumors=20)
    section = read_section(first.plans_manager.plans["freetumor"])
    Path(first.output_folder).mkdir(parents=True, exist_ok=True)
    assert (baseline / "fold_0").is_dir() and first.make_synthesizer(section).gate is None
    record = json.loads((Path(first.output_folder) / "freetumor_chosen.json").read_text())
    assert record["judge"] == "off"

    resumed = make(make_trainer, min_judge_tumors=1)  # as if more tumors had been annotated meanwhile
    resumed.current_epoch = 3
    assert resumed.make_synthesizer(read_section(resumed.plans_manager.plans["freetumor"])).gate is None
