"""The folder of a synthetic dataset over several runs, where sources, splits or settings change; cases made again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from generator_examples import lite, make_card
from nnunet_folders import organ_case, write_volume
from synthetic_sets import FOLDER_SETTINGS, NAME, contents, make

from nnunetv2_freetumor.files.cases import read_case, read_label
from nnunetv2_freetumor.generators.weights import save_generator
from nnunetv2_freetumor.offline import case as synthetic_case
from nnunetv2_freetumor.offline import dataset as command
from nnunetv2_freetumor.offline import folder as dataset_folder
from nnunetv2_freetumor.offline import orders as synthetic_orders
from nnunetv2_freetumor.offline.dataset import synthesize_dataset
from nnunetv2_freetumor.offline.sources import from_folders
from nnunetv2_freetumor.planning import section
from nnunetv2_freetumor.planning.fingerprint import measure_dataset

pytest_plugins = ["synthetic_sets"]
pytestmark = pytest.mark.usefixtures("environment")
FROM_DATASET = {"dataset": "101", "lesions": 1, "workers": 1}


def read_json(path):
    return json.loads(path.read_text())


def test_a_run_whose_first_try_made_nothing_goes_on(dataset, tmp_path, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(synthetic_case, "plant", lambda *_: (_ for _ in ()).throw(ValueError("No space left on device")))
        folder, code = make(tmp_path, **FROM_DATASET)
    assert code == 1 and not list((folder / "provenance").iterdir())
    folder, code = make(tmp_path, **FROM_DATASET)
    splits = read_json(tmp_path / "preprocessed" / NAME / "splits_final.json")
    assert code == 0 and sum(case.startswith("synthetic") for case in splits[0]["train"]) == 4
    assert read_json(folder / "splits_final.json") == splits


def test_a_run_that_was_killed_before_its_first_case_goes_on(folders, tmp_path):
    (tmp_path / "raw" / NAME / ".unfinished-settings").mkdir(parents=True)
    assert make(tmp_path, **folders, **FOLDER_SETTINGS)[1] == 0


def test_settings_that_were_damaged_are_named(folders, tmp_path):
    folder, _ = make(tmp_path, **folders, **FOLDER_SETTINGS)
    (folder / "settings.json").write_text("")
    with pytest.raises(
        ValueError, match=r"settings.json is not valid JSON .* Choose another folder with -o, or delete"
    ):
        make(tmp_path, **folders, **FOLDER_SETTINGS)


def test_splits_beside_the_plans_are_written_only_for_a_dataset_of_nnunets_own_folder(dataset, tmp_path):
    elsewhere = tmp_path / "elsewhere" / dataset.name
    assert synthesize_dataset(str(elsewhere), **FROM_DATASET) == 0
    assert (elsewhere / "splits_final.json").is_file()
    assert not (tmp_path / "preprocessed" / dataset.name / "splits_final.json").exists()


def test_splits_that_somebody_has_edited_stay_as_they_are(dataset, tmp_path, capsys):
    folder, _ = make(tmp_path, **FROM_DATASET)
    file = tmp_path / "preprocessed" / NAME / "splits_final.json"
    own = [{"train": ["case_0", "synthetic_case_0_00"], "val": ["case_1"]}]
    file.write_text(json.dumps(own))
    assert make(tmp_path, **FROM_DATASET)[1] == 0
    assert read_json(file) == own and f"{file} was edited by hand; left unchanged." in capsys.readouterr().out
    file.write_text(json.dumps([{"train": ["case_0", "synthetic_case_0_00"], "val": ["case_0"]}]))
    with pytest.raises(ValueError, match="Fold 0 would be trained on 1 synthetic case.s. made from its validation"):
        make(tmp_path, **FROM_DATASET)


def test_patients_that_the_sources_splits_keep_together_stay_together(dataset, tmp_path):
    known = [{"train": ["case_2", "case_3", "case_4"], "val": ["case_0", "case_1"]}]
    (tmp_path / "preprocessed" / dataset.name / "splits_final.json").write_text(json.dumps(known))
    folder, _ = make(tmp_path, **FROM_DATASET)
    real = [{part: [c for c in cases if c.startswith("case")] for part, cases in split.items()} for split in
            read_json(folder / "splits_final.json")]  # fmt: skip
    assert real == known * 5


def test_a_fold_that_validates_on_what_a_generator_has_seen_gets_no_synthetic_case(dataset, tmp_path, capsys):
    path = tmp_path / "mine.safetensors"
    save_generator(lite(), make_card(name="mine", dataset=dataset.name, training_cases=("case_3",)), path)
    folder, code = make(tmp_path, generator=str(path), **FROM_DATASET)
    splits = read_json(folder / "splits_final.json")
    bare = [fold for fold, split in enumerate(splits) if not any("synthetic" in case for case in split["train"])]
    (seen,) = [fold for fold, split in enumerate(splits) if split["val"] == ["case_3"]]
    assert code == 0 and bare == [seen]
    assert (
        f"Fold {seen} gets no synthetic cases, because the generator was trained on its validation cases"
        in capsys.readouterr().out
    )


def test_folds_without_synthetic_cases_for_other_reasons_are_not_put_on_the_generator(dataset, tmp_path, capsys):
    for case in ("case_1", "case_2", "case_3", "case_4"):
        label = dataset.raw / "labelsTr" / f"{case}.nii.gz"
        array = read_label(label).array
        write_volume((array == 9).astype(array.dtype), label)
    folder, code = make(tmp_path, **FROM_DATASET)
    assert code == 1 and len(list((folder / "provenance").iterdir())) == 1
    assert "The generator was trained on" not in capsys.readouterr().out


def test_cases_whose_source_has_changed_are_made_again(folders, tmp_path, capsys):
    folder, _ = make(tmp_path, **folders, **FOLDER_SETTINGS)
    before = contents(folder)
    write_volume(organ_case(7, tumors=0)[0], Path(folders["images"]) / "b_0000.nii.gz")
    assert make(tmp_path, **folders, **FOLDER_SETTINGS)[1] == 0
    after = contents(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert {name for name in changed if "_a_" in name} == set() and len(
        changed
    ) == 3  # image, provenance and states of sources
    assert "1 source(s) have changed since the last run (b ...): their cases are recreated." in capsys.readouterr().out
    assert (
        read_case(folder / "imagesTr" / "synthetic_b_00_0000.nii.gz").array[0, 0, 0]
        == (read_case(Path(folders["images"]) / "b_0000.nii.gz").array[0, 0, 0])
    )


def test_a_real_case_that_was_corrected_is_copied_again_and_its_synthetic_cases_are_made_again(dataset, tmp_path):
    section.plan_command("101", widen=True)
    folder, _ = make(tmp_path, **FROM_DATASET)
    before, label = contents(folder), dataset.raw / "labelsTr" / "case_2.nii.gz"
    array = read_label(label).array.copy()
    array[tuple(np.argwhere(array == 1)[0])] = 0
    write_volume(array, label)
    assert make(tmp_path, **FROM_DATASET)[1] == 0
    assert (folder / "labelsTr" / "case_2.nii.gz").read_bytes() == label.read_bytes()
    changed = {name for name, data in contents(folder).items() if data != before[name]}
    assert all("case_2" in name or name == "sources.json" for name in changed)
    assert {"labelsTr/case_2.nii.gz", "labelsTr/synthetic_case_2_00.nii.gz"} <= changed


def test_a_copy_that_was_cut_short_is_not_taken_for_a_case(dataset, tmp_path, monkeypatch):
    def cut(_source, target):
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(dataset_folder.shutil, "copyfile", cut)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, **FROM_DATASET)
    folder, code = make(tmp_path, **FROM_DATASET)
    assert code == 0
    for name in ("imagesTr/case_0_0000.nii.gz", "labelsTr/case_0.nii.gz"):
        assert (folder / name).read_bytes() == (dataset.raw / name).read_bytes()


def test_another_section_does_not_go_on_with_a_dataset(folders, tmp_path):
    make(tmp_path, **folders, **FOLDER_SETTINGS)
    with pytest.raises(ValueError, match="begun with other settings .section was"):
        make(tmp_path, **folders, **(FOLDER_SETTINGS | {"prior": "kidney"}))


def test_cases_of_one_source_differ_and_so_do_their_numbers_of_lesions(folders, tmp_path):
    settings = {key: value for key, value in FOLDER_SETTINGS.items() if key not in ("workers", "lesions")}
    request = synthetic_orders.Request(per_case=40, lesions=None, seed=0, generator="texture", device="cpu")
    sources = from_folders(**folders, **settings)
    orders = synthetic_orders.make_orders(sources, tmp_path, request).orders
    assert len({order.settings.section.seed for order in orders}) == 80
    assert len({order.settings.lesions for order in orders if order.source.case == "a"}) > 1
    folder, _ = make(tmp_path, **folders, **FOLDER_SETTINGS, per_case=2)
    one, other = (read_label(folder / "labelsTr" / f"synthetic_a_0{n}.nii.gz").array for n in range(2))
    assert (one != other).any()


def order_of(folder, folders, generator="texture"):
    """Order the first case once more."""
    source = folder / "provenance" / "synthetic_a_00.json"
    return synthetic_orders.order_again(str(source), str(folder), folders["images"], folders["hosts"], generator)


def test_a_generator_file_that_is_replaced_during_a_run_fails_its_cases(folders, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_generator(lite(), make_card(name="mine"), path)
    folder, _ = make(tmp_path, **folders, **FOLDER_SETTINGS, generator=str(path))
    order = order_of(folder, folders, str(path))
    save_generator(lite(seed=2), make_card(name="mine"), path)
    with pytest.raises(OSError, match="mine.safetensors has changed since this run began. Start the run again"):
        synthetic_case.make_case(order)


def test_a_case_is_made_with_one_thread_and_the_number_of_threads_comes_back(folders, tmp_path, monkeypatch):
    seen, plant, before = [], synthetic_case.plant, torch.get_num_threads()
    monkeypatch.setattr(synthetic_case, "plant", lambda *args: (seen.append(torch.get_num_threads()), plant(*args))[1])
    torch.set_num_threads(2)
    try:
        make(tmp_path, **folders, **FOLDER_SETTINGS)
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device, workers, expected", [("cuda", None, 1), ("cpu", None, None), ("cuda", 3, 3)])
def test_one_process_works_on_one_gpu_unless_somebody_wants_more(
    folders, tmp_path, monkeypatch, device, workers, expected
):
    asked = []
    monkeypatch.setattr(command, "choose_device", lambda name: torch.device(name))
    monkeypatch.setattr(command, "run_cases", lambda *_, **settings: asked.append(settings["workers"]) or [])
    make(tmp_path, **folders, **(FOLDER_SETTINGS | {"workers": workers}), device=device)
    assert asked == [expected]


def test_fewer_lesions_than_asked_for_are_counted_and_the_reason_is_kept(folders, tmp_path, capsys):
    folder, code = make(tmp_path, **folders, **(FOLDER_SETTINGS | {"lesions": 150}))
    report = read_json(folder / "report.json")
    case = report["cases"][0]
    assert code == 0 and case["counts"]["lesions"] < case["counts"]["lesions asked for"] == 150
    assert (
        case["reason"].startswith("There is no room for more") and "lesions asked for: 300" in capsys.readouterr().out
    )


def test_a_result_that_comes_out_otherwise_is_refused_when_made_again(folders, tmp_path):
    folder, _ = make(tmp_path, **folders, **FOLDER_SETTINGS)
    source = folder / "provenance" / "synthetic_a_00.json"
    made = read_json(source)
    assert made["cpu"] and made["torch"]
    source.write_text(json.dumps(made | {"result": made["result"] | {"image": "0" * 64}}))
    text = "The image of synthetic_a_00 does not match its provenance: PyTorch, the device or the kind of"
    with pytest.raises(ValueError, match=text):
        synthesize_dataset(str(tmp_path / "again"), remake=str(source), **folders)
    assert not list((tmp_path / "again" / "imagesTr").iterdir())


def test_a_case_is_not_made_again_into_a_dataset(dataset, tmp_path):
    folder, _ = make(tmp_path, **FROM_DATASET)
    source = str(folder / "provenance" / "synthetic_case_0_00.json")
    for place in (dataset.raw, folder):
        with pytest.raises(ValueError, match="is a dataset, and its splits do not include synthetic_case_0_00"):
            synthesize_dataset(str(place), remake=source)
    assert len(list((dataset.raw / "labelsTr").iterdir())) == 5


@pytest.mark.parametrize(
    "options, named",
    [({"dataset": "101"}, "-d"), ({"per_case": 2, "seed": 3}, "-n, --seed"), ({"device": "cuda"}, "-device")],
)
def test_what_a_provenance_file_decides_is_not_asked_for(folders, tmp_path, options, named):
    folder, _ = make(tmp_path, **folders, **FOLDER_SETTINGS)
    source = str(folder / "provenance" / "synthetic_a_00.json")
    with pytest.raises(ValueError, match=f"takes everything from the provenance file: leave out {named}"):
        synthesize_dataset(str(tmp_path / "again"), remake=source, **folders, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_case_of_a_gpu_needs_one_to_be_made_again(folders, tmp_path):
    folder, _ = make(tmp_path, **folders, **FOLDER_SETTINGS)
    source = folder / "provenance" / "synthetic_a_00.json"
    source.write_text(json.dumps(read_json(source) | {"device": "cuda"}))
    with pytest.raises(ValueError, match="was made on CUDA, but PyTorch finds no CUDA device. Use a machine with"):
        synthesize_dataset(str(tmp_path / "again"), remake=str(source), **folders)


def test_planted_tumors_are_not_measured_as_real_ones(dataset, tmp_path):
    folder, _ = make(tmp_path, per_case=2, **FROM_DATASET)
    targets = section.derive_section(dataset.plans, dataset.dataset_json).targets
    real = measure_dataset(dataset.raw, dict(dataset.dataset_json), targets, tmp_path / "a.json", 1)
    both = measure_dataset(folder, read_json(folder / "dataset.json"), targets, tmp_path / "b.json", 1)
    assert both == real and both["cases"] == 5
    for path in [*folder.glob("*Tr/case_*")]:
        path.unlink()
    planted = measure_dataset(folder, read_json(folder / "dataset.json"), targets, tmp_path / "c.json", 1)
    (target,) = planted["targets"].values()
    assert target["tumors"] == 0 and target["cases_with_host"] == 10 and planted["absent_labels"] == []
