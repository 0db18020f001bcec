"""Files that an earlier version wrote are read, kept, and written again in the same form."""

import csv
import dataclasses
import functools
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_examples import label_map, two_cases
from nnunet_folders import write_volume
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from safetensors.torch import save_file

from nnunetv2_freetumor.cluster.reports import CaseReport, write_reports
from nnunetv2_freetumor.evaluation.command import evaluate_command
from nnunetv2_freetumor.evaluation.inputs import read_scored_labels
from nnunetv2_freetumor.experiments.study.design import Budget, Setting
from nnunetv2_freetumor.experiments.study.preparation import Prepared
from nnunetv2_freetumor.experiments.study.protocol import freeze
from nnunetv2_freetumor.experiments.study.results import ArmScores, arm_results, machine
from nnunetv2_freetumor.experiments.study.results import results_to_json as rows_to_json
from nnunetv2_freetumor.experiments.study.trials import (
    RULE,
    HeldOutCases,
    StudyContext,
    scores_from_json,
    scores_to_json,
)
from nnunetv2_freetumor.files.hashes import read_contents
from nnunetv2_freetumor.generator_training.adversaries import ADVERSARIES
from nnunetv2_freetumor.generator_training.log import LOGGER_PREFIX as GENERATOR_KEY
from nnunetv2_freetumor.generator_training.log import NAMES
from nnunetv2_freetumor.generator_training.recipes import RECIPES
from nnunetv2_freetumor.generator_training.step import Networks
from nnunetv2_freetumor.generators.networks import FreeTumorNet, LiteNet
from nnunetv2_freetumor.generators.weights import load_generator
from nnunetv2_freetumor.offline.dataset import synthesize_dataset
from nnunetv2_freetumor.offline.provenance import read_provenance
from nnunetv2_freetumor.plan import SECTION, read_section, to_json
from nnunetv2_freetumor.planning.section import check_origin
from nnunetv2_freetumor.pool.store import (
    check_compared,
    find_record,
    open_pool,
    read_records,
    write_record,
    write_stamp,
)
from nnunetv2_freetumor.training import start
from nnunetv2_freetumor.training.epoch_log import COUNT_KEY, register
from nnunetv2_freetumor.training.recognition import RECOGNIZED, WATCHED

WRITTEN = Path(__file__).parent / "written_before"
ROOT = "$ROOT"  # in the files: the folder that everything lay in
CONFIGURATION = "3d_fullres"
GONE = {"quality": "by_size", "second_draw": False}  # settings that every section held and none holds now
PROVENANCES = sorted(WRITTEN.glob("synthetic*/provenance/*.json"), key=str)


def text_of(name, root="/somewhere"):
    return (WRITTEN / name).read_text(encoding="utf-8").replace(ROOT, str(root))


def load(name, root="/somewhere"):
    return json.loads(text_of(name, root))


def copy(name, target, root="/somewhere"):
    """Copy a folder of the files, with their paths filled in."""
    for source in sorted((WRITTEN / name).rglob("*.json")):
        path = target / source.relative_to(WRITTEN / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text_of(source.relative_to(WRITTEN), root), encoding="utf-8")
    return target


def in_order(value):
    """Give a text that tells values and the order of keys."""
    return json.dumps(value, indent=1)


def without_what_went(before, now):
    """Leave out of a section what has gone."""
    assert before.items() >= GONE.items() and not GONE.keys() & now.keys()
    return {name: value for name, value in before.items() if name not in GONE}


def assert_alike(before, now, where=""):
    """Compare keys, their order and all values, numbers within what another machine may round differently."""
    if isinstance(before, dict):
        assert list(before) == list(now), where
        for name in before:
            assert_alike(before[name], now[name], f"{where}/{name}")
    elif isinstance(before, list):
        assert len(before) == len(now), where
        for index, pair in enumerate(zip(before, now)):
            assert_alike(*pair, f"{where}/{index}")
    elif isinstance(before, float):
        assert now == pytest.approx(before, rel=1e-4, abs=1e-6), where
    else:
        assert before == now and type(before) is type(now), where


@pytest.fixture
def plans():
    return load("model/plans.json")


@pytest.fixture
def dataset_json():
    return load("model/dataset.json")


# Model folders


def test_a_section_of_the_plans_is_read_and_written_again_with_its_keys_in_their_order(plans, dataset_json):
    before = plans[SECTION]
    section = read_section(before)
    now = to_json(section)
    assert in_order(now) == in_order(without_what_went(before, now))
    assert section.seed == 0 and section.targets[0].source.startswith("sizes, axis ratios, contrast, edge measured on")
    check_origin(section, plans, dataset_json)


class Trainer(nnUNetTrainer):
    """A trainer as far as the choice of generators and judge asks for one."""

    def __init__(self, **parts):
        vars(self).update(parts)

    def print_to_log_file(self, *texts, **_):
        """Leave the log out."""


def trainer(plans, folder, epoch):
    """Stand in for a trainer of fold 1."""
    return Trainer(
        output_folder=str(folder),
        output_folder_base=str(folder.parent),
        current_epoch=epoch,
        fold=1,
        local_rank=0,
        configuration_name=CONFIGURATION,
        plans_manager=SimpleNamespace(plans=plans, plans_name=plans["plans_name"]),
    )


@pytest.mark.parametrize("name", ["freetumor_chosen", "freetumor_chosen_texture"])
def test_what_a_resumed_training_started_with_is_taken_and_kept(name, plans, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(start, "resolve_judge", lambda section, _: asked.append(section.judge))
    record = tmp_path / "freetumor_chosen.json"
    record.write_text(text_of(f"model/{name}.json"))
    generators, _ = start.settle(read_section(plans[SECTION]), trainer(plans, tmp_path, epoch=2))
    before = load(f"model/{name}.json")
    assert asked == [before["judge"]] != ["auto"]
    assert [g._asdict() | {"path": g.path and str(g.path)} for g in generators] == before["generators"]
    assert record.read_text() == text_of(f"model/{name}.json")


def test_a_new_training_notes_its_choice_under_the_same_keys(plans, tmp_path):
    fold = tmp_path / "model" / "fold_1"
    fold.mkdir(parents=True)
    section = read_section(plans[SECTION] | {"generator": "texture"})
    start.settle(section, trainer(plans, fold, epoch=0))
    before, now = load("model/freetumor_chosen_texture.json"), json.loads((fold / "freetumor_chosen.json").read_text())
    assert list(now) == list(before) and now["judge"] == before["judge"]
    assert [list(choice) for choice in now["generators"]] == [list(choice) for choice in before["generators"]]


@pytest.mark.parametrize(("kind", "key"), [("freetumor", COUNT_KEY), ("generator", GENERATOR_KEY)])
def test_the_names_in_a_checkpoints_log_are_still_logged(kind, key, tmp_path):
    logger = MetaLogger(str(tmp_path), False)
    register(logger, 0, key, *([NAMES] if key == GENERATOR_KEY else []))
    log = logger.local_logger.my_fantastic_logging
    went = "freetumor/drawn_again"  # with `second_draw`
    came = [COUNT_KEY + name for name in (*WATCHED, *RECOGNIZED)]
    assert [n for n in log if n.startswith(key) and n not in came] == [
        n for n in load("logger_names.json")[kind] if n != went
    ]


def test_the_count_that_went_does_not_hold_up_the_progress_of_a_resumed_training(tmp_path):
    logger = MetaLogger(str(tmp_path), False)
    log = logger.local_logger.my_fantastic_logging
    log["freetumor/drawn_again"], log["freetumor/samples"], log["freetumor_generator/other"] = [0.0], [2.0], [1.0]
    register(logger, 1)
    assert "freetumor/drawn_again" not in log and log["freetumor/samples"] == [2.0] and log["freetumor_generator/other"]


def published():
    recipe = RECIPES["published"]
    return Networks(FreeTumorNet(2), ADVERSARIES[recipe.adversarial]((-175.0, 250.0)).network(), recipe, 2)


def ours():
    recipe = RECIPES["lite"]
    return Networks(LiteNet(), ADVERSARIES[recipe.adversarial]((-175.0, 250.0)).network(), recipe, 1)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("lite", LiteNet),
        ("freetumor", functools.partial(FreeTumorNet, 2)),
        ("training lite", ours),
        ("training published", published),
    ],
)
def test_saved_weights_have_the_names_and_shapes_of_todays_networks(name, build):
    with torch.device("meta"):
        tensors = build().state_dict()
    assert {key: list(tensor.shape) for key, tensor in tensors.items()} == load("saved_names.json")[name]


def test_a_generator_with_its_card_is_loaded(tmp_path):
    shapes, card = load("saved_names.json")["lite"], load("generator/card.json")
    tensors = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "generator.safetensors", {"format": "pt", "card": json.dumps(card)})
    loaded = load_generator(tmp_path / "generator.safetensors")
    assert in_order(dataclasses.asdict(loaded.card)) == in_order(card)
    assert all(bool((tensor == 0.01).all()) for tensor in loaded.network.state_dict().values())


# The unlabeled pool


@pytest.fixture
def pool(tmp_path):
    return copy("pool", tmp_path / "pool")


def test_a_pool_is_opened_with_its_cases(pool, plans, dataset_json):
    opened = open_pool(pool, plans, CONFIGURATION, dataset_json)
    assert opened.cases == ("later_1", "scan_0", "scan_1", "scan_2")
    assert (opened.waiting, opened.again, opened.counts["cases with holes"]) == (1, 0, 1.0)
    labeled = load("pool/labeled_contents.json")
    check_compared(pool, labeled)
    assert read_contents(pool / "labeled_contents.json").keys() == {content for *_, content in labeled.values()}


def test_stamp_and_records_of_a_pool_are_written_again_as_they_were(pool, plans, dataset_json, tmp_path):
    again = tmp_path / "again"
    (again / "records").mkdir(parents=True)
    write_stamp(again, plans, CONFIGURATION, dataset_json)
    assert (again / "stamp.json").read_text() == text_of("pool/stamp.json")
    for record in read_records(pool):
        write_record(again, record)
        assert (again / "records" / f"{record.case}.json").read_text() == text_of(f"pool/records/{record.case}.json")
        assert find_record(again, record.case) == record


@pytest.mark.parametrize("name", ["pool/report.json", "synthetic/report.json"])
def test_a_report_says_the_same_of_the_same_cases(name, tmp_path):
    reports = [CaseReport(**case) for case in load(name)["cases"]]
    write_reports(reports, tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text() == text_of(name)


# Synthetic datasets


def scan(case):
    """Make a CT of whole numbers, the same on every machine: a block of liver in fat, with noise."""
    rng = np.random.RandomState({"a": 5, "b": 6}[case])
    label = np.zeros((24, 40, 48), np.uint8)
    label[4:-4, 6:-6, 8:-8] = 1
    return (np.where(label, 110, -90) + rng.randint(-12, 13, label.shape)).astype(np.int16), label


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Two scans and their liver masks; a third whose mask has another size."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for case in "ab":
        for name, array, ending in zip(("images", "masks"), scan(case), ("_0000", "")):
            (tmp_path / name).mkdir(exist_ok=True)
            write_volume(array, tmp_path / name / f"{case}{ending}.nii.gz", (3.0, 2.0, 2.0))
    shutil.copy(tmp_path / "masks" / "a.nii.gz", tmp_path / "masks" / "c.nii.gz")
    write_volume(scan("a")[0][:-1], tmp_path / "images" / "c_0000.nii.gz", (3.0, 2.0, 2.0))
    return {"images": str(tmp_path / "images"), "hosts": str(tmp_path / "masks")}


def skip_on_another_machine(provenance):
    """Skip where last bits may differ."""
    here = {"cpu": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    made_on = {name: provenance[name] for name in here}
    if here != made_on:
        pytest.skip(f"made with {made_on}, and this is {here}: last bits may differ")


def assert_provenance_is_kept(before, now):
    section = without_what_went(before["section"], now["section"])
    assert in_order(now) == in_order(before | {"section": section})


@pytest.mark.parametrize("path", PROVENANCES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_provenance_file_is_read_and_tells_the_same_recipe(path):
    before, read = json.loads(path.read_text()), read_provenance(path)
    now = to_json(read.settings.section)
    assert in_order(now) == in_order(without_what_went(before["section"], now))
    assert (read.case, read.source, read.result) == (before["case"], before["source"], before["result"])
    assert (read.settings.lesions, read.settings.device) == (before["lesions_wanted"], before["device"])
    known = [(generator.name, generator.sha256) for generator in read.settings.generators]
    assert known == [(generator["name"], generator["sha256"]) for generator in before["generators"]]


@pytest.mark.parametrize("name", ["synthetic", "synthetic_lite"])
def test_a_case_is_made_again_from_its_provenance_with_the_same_voxels(name, sources, tmp_path):
    source = WRITTEN / name / "provenance" / "synthetic_a_00.json"
    before = json.loads(source.read_text())
    skip_on_another_machine(before)
    assert synthesize_dataset(str(tmp_path / "again"), remake=str(source), **sources) == 0
    now = json.loads((tmp_path / "again" / "provenance" / "synthetic_a_00.json").read_text())
    assert_provenance_is_kept(before, now)


def test_a_synthetic_dataset_that_lacks_its_images_is_completed_with_its_own_settings(sources, tmp_path):
    folder = copy("synthetic", tmp_path / "raw" / "Dataset901_Planted", tmp_path)
    asked = {"prior": "liver", "host": [1], "tumor": 2, "lesions": 2, "seed": 3, "workers": 1}
    assert synthesize_dataset(str(folder), **sources, **asked) == 1
    for name in ("settings.json", "dataset.json", "splits_final.json"):
        assert (folder / name).read_text() == text_of(f"synthetic/{name}")
    before, now = load("synthetic/report.json", tmp_path), json.loads((folder / "report.json").read_text())
    for one, other in zip(before["cases"], now["cases"], strict=True):
        assert list(one) == list(other) and list(one.get("counts", {})) == list(other.get("counts", {}))
        assert (one["case"], one["state"], one.get("reason")) == (other["case"], other["state"], other.get("reason"))
    for case in ("synthetic_a_00", "synthetic_b_00"):
        before = load(f"synthetic/provenance/{case}.json")
        now = json.loads((folder / f"provenance/{case}.json").read_text())
        assert list(now) == list(before) and now["source"] == before["source"] and now["seed"] == before["seed"]
        assert [list(lesion) for lesion in now["lesions"]] == [list(lesion) for lesion in before["lesions"]]
        skip_on_another_machine(before)
        assert_provenance_is_kept(before, now)


# Evaluations


@pytest.fixture
def evaluated(tmp_path):
    """Evaluate what was evaluated before: two cases, another model, and a second cohort."""
    folders = two_cases(tmp_path)
    folders.probabilities("pred", a=label_map((4, 6, 6)), b=label_map((5, 12, 12)))
    other = folders.write("other", a=label_map((4, 6, 6), (5, 17, 17)), b=label_map())
    more = {"other": str(other), "external": [str(folders / "ref"), str(other)], "processes": 1}
    evaluate_command(str(folders / "ref"), str(folders / "pred"), str(folders.djfile), **more)
    return folders / "pred" / "freetumor_evaluation"


def test_an_evaluation_of_the_same_predictions_has_the_same_keys_and_numbers(evaluated, tmp_path):
    now = json.loads((evaluated / "evaluation.json").read_text())
    assert_alike(load("evaluation/evaluation.json", tmp_path), now)
    lines = [list(csv.reader(text.splitlines())) for text in (text_of("evaluation/lesions.csv"), read(evaluated))]
    assert lines[0][0] == lines[1][0]
    for before, after in zip(*lines, strict=True):
        assert_alike([number(value) for value in before], [number(value) for value in after])


def read(folder):
    return (folder / "lesions.csv").read_text(encoding="utf-8")


def number(text):
    try:
        return float(text)
    except ValueError:
        return text


def test_the_table_of_lesions_that_a_training_left_has_the_same_columns(evaluated):
    before, now = (
        next(csv.reader(text.splitlines())) for text in (text_of("evaluation/lesions_of_training.csv"), read(evaluated))
    )
    assert before == now


# Studies


def test_a_frozen_protocol_is_taken_for_what_would_be_frozen_now(plans, dataset_json, tmp_path):
    protocol, folder = load("study/protocol.json"), tmp_path / "preprocessed"
    (folder / "gt_segmentations").mkdir(parents=True)
    label = np.zeros((3, 4, 4), np.uint8)
    label[1, 1, 1] = 2
    for index in range(14):
        write_volume(label, folder / "gt_segmentations" / f"case_{index:02d}.nii.gz")
    for name, value in (("nnUNetPlans", plans), ("dataset", dataset_json)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "protocol.json").write_text(text_of("study/protocol.json"))
    labels = read_scored_labels(folder / "dataset.json", folder / "nnUNetPlans.json")
    context = StudyContext(
        tmp_path, protocol["dataset"], CONFIGURATION, "cpu", True, HeldOutCases(tmp_path, tmp_path, labels), {}
    )
    settings = [Setting(**setting) for setting in protocol["settings"]]
    prepared = Prepared(context, folder, plans, protocol["test"])
    runs = freeze(prepared, Budget(**protocol["budget"]), settings, protocol["seeds"])
    assert [to_json(run) for run in runs] == protocol["runs"]
    assert (tmp_path / "protocol.json").read_text() == text_of("study/protocol.json")
    assert all((folder / f"freetumor_study_{arm}.json").is_file() for arm in protocol["sections"])


def test_what_a_trial_scored_is_read_and_sums_up_to_the_same_row():
    done, results = load("study/run.json"), load("study/results.json")
    scores = scores_from_json(done["scores"])
    assert_alike(done["scores"], json.loads(json.dumps(scores_to_json(scores))))
    before = results["rows"][-1]
    readings = {(before["setting"], before["arm"]): ArmScores(before["title"], {0: scores})}
    (now,) = json.loads(json.dumps(rows_to_json(arm_results(readings, RULE))))
    over_the_baseline = {"gain": before["gain"], "in_host_gain": before["in_host_gain"]}
    assert_alike(before, now | over_the_baseline)
    assert list(results) == ["machine", "seconds", "rows"] and list(machine("cpu")) == list(results["machine"])
    assert math.isfinite(done["seconds"])
