"""Synthetic datasets: what is in them, that validation stays real, and that every case can be made again."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from generator_examples import lite, make_card
from nnunet_folders import Folders, organ_case, write_volume
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from synthetic_sets import FOLDER_SETTINGS, NAME, contents, make

from nnunetv2_freetumor import cli
from nnunetv2_freetumor.files.cases import read_case, read_label
from nnunetv2_freetumor.generators.weights import save_generator
from nnunetv2_freetumor.offline import case as synthetic_case
from nnunetv2_freetumor.offline.dataset import synthesize_dataset
from nnunetv2_freetumor.offline.sources import from_folders
from nnunetv2_freetumor.plan import SECTION, read_section
from nnunetv2_freetumor.planning.roles import resolve
from nnunetv2_freetumor.trainer import nnUNetTrainerFreeTumor
from nnunetv2_freetumor.training import synthetic_splits
from nnunetv2_freetumor.training.synthetic_splits import SplitGuardMixin, check_split, make_splits

pytest_plugins = ["synthetic_sets"]
pytestmark = pytest.mark.usefixtures("environment")
needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="the extra [cluster] is missing"
)


def provenance(folder, case):
    return json.loads((folder / "provenance" / f"{case}.json").read_text())


def validation_by_nnunet(folder, fold):
    """Ask nnU-Net's own do_split for the validation cases of a dataset whose preprocessing holds all of its cases."""

    class Cases:
        def __init__(self, *_, **__):
            self.identifiers = self.get_identifiers(None)

        @staticmethod
        def get_identifiers(_):
            return [path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").glob("*.nii.gz")]

    trainer = nnUNetTrainer.__new__(nnUNetTrainer)
    trainer.fold, trainer.dataset_class = fold, Cases
    trainer.preprocessed_dataset_folder = trainer.folder_with_segs_from_previous_stage = None
    trainer.preprocessed_dataset_folder_base = str(folder.parent.parent / "preprocessed" / folder.name)
    trainer.print_to_log_file = lambda *_: None
    return trainer.do_split()


def test_a_dataset_gets_synthetic_cases_beside_its_real_ones(dataset, tmp_path, capsys):
    folder, code = make(tmp_path, dataset="101", per_case=2, lesions=1, workers=1)
    names = [path.name for path in sorted((folder / "labelsTr").iterdir())]
    real, synthetic = [n for n in names if n.startswith("case_")], [n for n in names if n.startswith("synthetic_case_")]
    assert code == 0 and len(real) == 5 and len(synthetic) == 10 and len(names) == 15
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == dataset.dataset_json["labels"] and description["numTraining"] == 15
    assert "dataset" not in description  # of files that lie elsewhere
    for name in real:
        assert (folder / "labelsTr" / name).read_bytes() == (dataset.raw / "labelsTr" / name).read_bytes()
    assert "10 synthetic and 5 real case(s); splits_final.json keeps synthetic ones out" in capsys.readouterr().out


def test_a_synthetic_case_differs_from_its_source_inside_the_host_only(dataset, tmp_path):
    folder, _ = make(tmp_path, dataset="101", lesions=1, workers=1)
    image, label = (read(dataset.raw / part) for read, part in (
        (read_case, "imagesTr/case_0_0000.nii.gz"), (read_label, "labelsTr/case_0.nii.gz")))  # fmt: skip
    new_image = read_case(folder / "imagesTr" / "synthetic_case_0_00_0000.nii.gz")
    new_label = read_label(folder / "labelsTr" / "synthetic_case_0_00.nii.gz")
    changed = (image.array != new_image.array) | (label.array != new_label.array)
    assert changed.any() and (label.array[changed] == 1).all()
    assert (new_label.array != label.array).any() and (new_label.array[label.array == 2] == 2).all()
    made = provenance(folder, "synthetic_case_0_00")
    (lesion,) = made["lesions"]
    assert made["synthetic"] and made["source"]["dataset"] == "Dataset101_Liver" and made["seed"] > 0
    assert lesion["target"] == "liver" and lesion["diameter_mm"] > 3 and lesion["contrast_hu"] < 0
    assert made["generators"] == [{"target": "liver", "name": "texture", "sha256": None}]
    assert len(made["source"]["image"]["sha256"]) == 64 and made["source"]["label"]["name"] == "case_0.nii.gz"
    assert str(tmp_path) not in json.dumps(made)


@pytest.mark.parametrize("with_file", [True, False])
def test_no_synthetic_case_enters_validation_by_nnunet_s_own_split(dataset, tmp_path, with_file):
    folder, _ = make(tmp_path, dataset="101", lesions=1, workers=1)
    preprocessed = tmp_path / "preprocessed" / NAME
    if not with_file:  # nnU-Net's planner brings it back from the raw dataset
        (preprocessed / "splits_final.json").unlink()
        (preprocessed / "dataset_fingerprint.json").write_text("{}")
        ExperimentPlanner("901")
    seen = []
    for fold in range(5):
        training, validation = validation_by_nnunet(folder, fold)
        seen += validation
        assert len(validation) == 1 and not validation[0].startswith("synthetic")
        assert f"synthetic_{validation[0]}_00" not in training  # made from the validation case: the same patient
        assert len(training) == 8
    assert sorted(seen) == [f"case_{i}" for i in range(5)]


def test_validation_with_synthetic_cases_or_on_their_sources_is_refused():
    assert nnUNetTrainerFreeTumor.do_split is SplitGuardMixin.do_split
    check_split(["synthetic_a_00"], ["synthetic_a_00", "a"], "all")
    check_split(["b", "synthetic_b_00", "synthetic_a_b_00"], ["a"], 5)
    with pytest.raises(ValueError, match=r"Fold 5 would be validated on 1 synthetic case\(s\) \(synthetic_a_00 ...\)"):
        check_split(["b"], ["a", "synthetic_a_00"], 5)
    with pytest.raises(
        ValueError, match=r"Fold 0 would be trained on 1 synthetic .* validation cases \(synthetic_a_b_01"
    ):
        check_split(["b", "synthetic_a_b_01", "synthetic_b_00"], ["a_b"], 0)


def test_splits_keep_patients_apart_and_know_what_a_generator_has_seen():
    known = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    synthetic = {"synthetic_a_00": "a", "synthetic_b_00": "b"}
    splits = make_splits(["a", "b"], synthetic, known, seen=["b"])
    assert len(splits) == 5  # nnU-Net would make up a fold that is not there
    assert splits[0] == splits[2] == {"train": ["a"], "val": ["b"]}  # the generator was trained on b
    assert splits[1] == {"train": ["b", "synthetic_b_00"], "val": ["a"]}
    assert make_splits(["a", "b"], synthetic, None)[0] == {"train": ["b", "synthetic_b_00"], "val": ["a"]}
    assert make_splits(["a"], {"synthetic_a_00": "a"}, None) == [{"train": ["a", "synthetic_a_00"], "val": []}] * 5


def test_folders_make_a_dataset_without_validation_and_say_so(folders, tmp_path, capsys):
    folder, code = make(tmp_path, **folders, **FOLDER_SETTINGS)
    assert code == 0 and "too few real labeled cases to validate on: train fold 'all'" in capsys.readouterr().out
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "liver": 1, "liver_tumor": 2}
    assert [role.prior_name for role in resolve(description, NAME)] == ["liver"]
    assert validation_by_nnunet(folder, 0) == (["synthetic_a_00", "synthetic_b_00"], [])


def test_a_run_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(folders, tmp_path):
    whole, _ = make(tmp_path, **folders, **FOLDER_SETTINGS)
    expected = contents(whole)
    stamp = (whole / "labelsTr" / "synthetic_a_00.nii.gz").stat().st_mtime_ns
    (whole / "provenance" / "synthetic_b_00.json").unlink()  # killed between two files
    (whole / "labelsTr" / "synthetic_b_00.nii.gz").unlink()
    (whole / "imagesTr" / ".unfinished-x").mkdir()
    assert make(tmp_path, **folders, **FOLDER_SETTINGS)[1] == 0
    assert contents(whole) == expected and not list(whole.rglob(".unfinished*"))
    assert (whole / "labelsTr" / "synthetic_a_00.nii.gz").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"was begun with other settings \(.*seed was 0, now 1\)"):
        make(tmp_path, **folders, **FOLDER_SETTINGS, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("with_dask", [pytest.param(True, marks=needs_dask), False])
def test_one_and_two_workers_write_the_same_bytes(folders, tmp_path, with_dask, monkeypatch):
    """With dask's worker processes, and without the extra in processes of the standard library."""
    alone, _ = make(tmp_path, "Dataset901_Alone", **folders, **FOLDER_SETTINGS, per_case=2)
    if not with_dask:
        monkeypatch.setitem(sys.modules, "distributed", None)
    many, code = make(tmp_path, "Dataset902_Many", **folders, **(FOLDER_SETTINGS | {"workers": 2}), per_case=2)
    assert code == 0 and contents(alone) == contents(many) and len(contents(alone)) == 16


@pytest.mark.parametrize("kind", ["dataset", "folders"])
def test_a_case_is_made_again_bit_for_bit_from_its_provenance(kind, request, tmp_path, capsys):
    if kind == "dataset":
        request.getfixturevalue("dataset")
        settings, places, case = {"dataset": "101", "workers": 1}, {}, "synthetic_case_1_00"
    else:
        places = request.getfixturevalue("folders")
        settings, case = FOLDER_SETTINGS | places, "synthetic_b_00"
    folder, _ = make(tmp_path, **settings)
    source = folder / "provenance" / f"{case}.json"
    assert synthesize_dataset(str(tmp_path / "again"), remake=str(source), **places) == 0
    assert f"{case} is in {tmp_path / 'again'}, bit for bit" in capsys.readouterr().out
    made, again = contents(folder), contents(tmp_path / "again")
    assert len(again) == 3 and all(made[name] == data for name, data in again.items())


def test_a_learned_generator_is_named_with_its_hash_and_must_be_the_same_again(folders, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_generator(lite(), make_card(name="mine"), path)
    folder, _ = make(tmp_path, **folders, **FOLDER_SETTINGS, generator=str(path))
    known = provenance(folder, "synthetic_a_00")["generators"]
    assert known[0]["name"] == "mine" and len(known[0]["sha256"]) == 64
    again = {"remake": str(folder / "provenance" / "synthetic_a_00.json"), "generator": str(path), **folders}
    assert synthesize_dataset(str(tmp_path / "again"), **again) == 0
    save_generator(lite(seed=2), make_card(name="mine"), path)
    with pytest.raises(ValueError, match="is not the generator 'mine' of this case. Give its file with --generator"):
        synthesize_dataset(str(tmp_path / "other"), **again)


def test_what_cannot_be_made_again_is_said(folders, tmp_path):
    folder, _ = make(tmp_path, **folders, **FOLDER_SETTINGS)
    source = folder / "provenance" / "synthetic_a_00.json"
    again = {"output": str(tmp_path / "again"), "remake": str(source)}
    with pytest.raises(ValueError, match="was made from folders of images and masks: give both with -i and -l"):
        synthesize_dataset(**again)
    shutil.copy(Path(folders["images"]) / "b_0000.nii.gz", Path(folders["images"]) / "a_0000.nii.gz")
    with pytest.raises(ValueError, match="a_0000.nii.gz does not hold the voxels that synthetic_a_00 was made from"):
        synthesize_dataset(**again, **folders)
    source.write_text(source.read_text().replace('"version": "0.1.0"', '"version": "0.0.9"', 1))
    with pytest.raises(ValueError, match="written by nnunetv2_freetumor 0.0.9, but this is .* Install version 0.0.9"):
        synthesize_dataset(**again, **folders)
    for data in (b"{}", b"[]", b"\x1f\x8b", b'{"format": 1}'):
        source.write_bytes(data)
        with pytest.raises(ValueError, match="is not a provenance file of format 1"):
            synthesize_dataset(**again, **folders)
    source.unlink()
    with pytest.raises(ValueError, match="is not a provenance file of format 1"):
        synthesize_dataset(**again, **folders)


def test_bad_inputs_are_reported_and_stop_nothing(folders, tmp_path, capsys):
    images, masks = Path(folders["images"]), Path(folders["hosts"])
    shutil.copy(images / "a_0000.nii.gz", images / "lonely_0000.nii.gz")
    for case in ("broken", "organs", "empty", "cut short", "moved"):
        shutil.copy(images / "a_0000.nii.gz", images / f"{case}_0000.nii.gz")
        label = organ_case(0, tumors=0)[1]
        write_volume({"organs": label * 7, "empty": label * 0}.get(case, label), masks / f"{case}.nii.gz")
    (images / "broken_0000.nii.gz").write_text("no image")
    (images / "cut short_0000.nii.gz").write_bytes((images / "a_0000.nii.gz").read_bytes()[:-1000])
    mirrored = nibabel.load(masks / "moved.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(mirrored.dataobj, mirrored.affine @ np.diag([-1, 1, 1, 1])), masks / "moved.nii.gz"
    )
    holes = organ_case(0, tumors=0)[0].astype(np.float32)
    holes[5, 5, 5] = np.nan
    write_volume(holes, images / "nan.mha")
    write_volume(organ_case(0, tumors=0)[1], masks / "nan.nrrd")
    line = (
        f"synthesize-dataset -i {images} -l {masks} -o {tmp_path / NAME} --prior liver --host 1 --tumor 2 --workers 1"
    )
    assert cli.main(line.split()) == 1
    printed = capsys.readouterr().out
    for text in (
        "9 case(s): 2 done, 7 skipped, 0 failed.",
        f"no mask CASE.nii.gz in {masks} (lonely)",
        "CASE_0000.nii.gz cannot be read as a medical image (",
        "CASE.nii.gz holds the labels 7, which are neither background nor --host nor --tumor",
        "The host is empty",
        "CASE_0000.nii.gz cannot be read as a medical image (it is truncated",
        "CASE.nii.gz must have the same geometry, but they differ in",
        "CASE.mha contains 1 NaN or infinite voxels, the first at (z, y, x) = (5, 5, 5)",
    ):
        assert text in printed
    report = json.loads((tmp_path / NAME / "report.json").read_text())
    assert [case["state"] for case in report["cases"]].count("skipped") == 7
    assert len(list((tmp_path / NAME / "labelsTr").iterdir())) == 2


@pytest.mark.parametrize(
    "settings, text",
    [
        ({}, "Give either -d DATASET, or both -i IMAGES and -l HOSTS"),
        ({"dataset": "101", "images": "x"}, "Give either -d DATASET, or both"),
        ({"dataset": "101", "prior": "liver"}, "With -d, priors, hosts and tumors come from the plans"),
        ({"images": "x", "hosts": "y"}, "-i and -l also need --prior and --tumor"),
        ({"images": "x", "hosts": "y", "prior": "liver", "host": [1], "tumor": 3}, "labels 1, 2, 3 ... without gaps"),
        (
            {"images": "x", "hosts": "y", "prior": "liver", "host": [1], "tumor": 2},
            "There is no folder x. -i and -l must be",
        ),
        ({"dataset": "101", "per_case": 0}, "-n must be at least 1, but it is 0"),
        ({"dataset": "101", "lesions": 0}, "--lesions must be at least 1, but it is 0"),
        ({"dataset": "101", "device": "tpu"}, "-device must be cpu or cuda, but it is 'tpu'"),
        ({"dataset": "101", "seed": -1}, "'seed' must lie between 0"),
        ({"dataset": "101", "output": "elsewhere"}, "-o must end in a valid dataset name for nnU-Net"),
        ({"dataset": "101", "workers": 0}, "--workers must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_named_and_nothing_is_written(dataset, tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        synthesize_dataset(**({"output": str(tmp_path / "raw" / NAME), "workers": 1} | settings))
    assert not (tmp_path / "raw" / NAME).exists()


def test_folders_and_splits_of_others_are_left_alone(dataset, tmp_path):
    with pytest.raises(ValueError, match="Dataset101_Liver exists and was not made by this command"):
        make(tmp_path, dataset.name, dataset="101", workers=1)
    synthetic_splits.write_splits([{"train": ["a"], "val": ["b"]}], [dataset.raw, tmp_path / "preprocessed" / NAME])
    with pytest.raises(ValueError, match="splits_final.json exists and lists no synthetic case"):
        make(tmp_path, dataset="101", workers=1)


def test_an_output_that_is_a_file_is_refused(dataset, tmp_path):
    (tmp_path / "raw" / NAME).write_text("")
    with pytest.raises(ValueError, match=rf"The output folder .*{NAME} is not writable"):
        make(tmp_path, dataset="101", workers=1)


def test_a_dataset_without_cases_is_refused(dataset, tmp_path):
    (dataset.raw / "dataset.json").write_text(json.dumps(dataset.dataset_json | {"dataset": {}}))
    with pytest.raises(ValueError, match="Dataset101_Liver has no training cases in nnUNet_raw"):
        make(tmp_path, dataset="101", workers=1)


@pytest.mark.parametrize("place", ["raw", "preprocessed"])
def test_a_number_that_another_dataset_has_is_refused(folders, tmp_path, place):
    (tmp_path / place / "Dataset901_Other").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="holds Dataset901_Other, but nnU-Net needs every dataset to have its own number"
    ):
        make(tmp_path, **folders, **FOLDER_SETTINGS)
    assert not (tmp_path / "raw" / NAME).exists()


def test_folders_that_hold_no_pair_or_two_images_of_one_name_are_refused(folders, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"empty holds no image \(.nii.gz, .nii, .nrrd, "):
        make(tmp_path, images=str(empty), hosts=folders["hosts"], **FOLDER_SETTINGS)
    with pytest.raises(ValueError, match="No image in .*images has a mask of the same name in .*empty"):
        make(tmp_path, images=folders["images"], hosts=str(empty), **FOLDER_SETTINGS)
    write_volume(organ_case(0)[0], Path(folders["images"]) / "a.mha")
    with pytest.raises(ValueError, match="a_0000.nii.gz and .*a.mha are both case a. Remove one of them"):
        make(tmp_path, **folders, **FOLDER_SETTINGS)
    assert not (tmp_path / "raw" / NAME).exists()


def test_other_sources_do_not_go_on_with_a_dataset(folders, tmp_path):
    make(tmp_path, **folders, **FOLDER_SETTINGS)
    (Path(folders["images"]) / "a_0000.nii.gz").unlink()
    with pytest.raises(ValueError, match="holds synthetic_a_00, which was made from a source that is not given now"):
        make(tmp_path, **folders, **FOLDER_SETTINGS)


def test_names_with_spaces_and_other_file_types_are_taken(folders, tmp_path):
    images, masks = Path(folders["images"]), Path(folders["hosts"])
    for case, ending in (("a b (1)", ".mha"), ("c.d", ".nrrd")):
        write_volume(organ_case(3, tumors=0)[0], images / f"{case}{ending}")
        write_volume(organ_case(3, tumors=0)[1], masks / f"{case}.nii.gz")
    folder, code = make(tmp_path, **folders, **FOLDER_SETTINGS)
    names = {path.name for path in (folder / "labelsTr").iterdir()}
    assert code == 0 and {"synthetic_a b (1)_00.nii.gz", "synthetic_c.d_00.nii.gz"} <= names
    assert set(validation_by_nnunet(folder, 0)[0]) == {name.removesuffix(".nii.gz") for name in names}


def test_a_case_that_fails_halfway_leaves_no_image_without_a_label(folders, tmp_path, monkeypatch):
    write = synthetic_case.cases.write_case

    def full(case, path):
        if path.parent.name == "labelsTr" and "_a_" in path.name:
            raise OSError("No space left on device")
        write(case, path)

    monkeypatch.setattr(synthetic_case.cases, "write_case", full)
    folder, code = make(tmp_path, **folders, **FOLDER_SETTINGS)
    assert code == 1 and [path.name for path in (folder / "imagesTr").iterdir()] == ["synthetic_b_00_0000.nii.gz"]
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 1


def test_a_dataset_with_synthetic_cases_is_no_source(dataset, tmp_path):
    dataset.add("synthetic_x_00", *organ_case(9))
    dataset.plan()
    with pytest.raises(ValueError, match=r"holds synthetic cases \(synthetic_x_00 ...\).*Give the dataset that they"):
        make(tmp_path, dataset="101", workers=1)


@pytest.mark.parametrize("prior", ["liver", "pancreas", "kidney", "lung", "covid19"])
def test_the_names_of_labels_are_understood_again(folders, prior):
    description = from_folders(**folders, prior=prior, host=[1, 2], tumor=3).dataset_json
    (role,) = resolve(description, "Dataset001_X")
    assert (role.prior_name, role.host_labels, role.tumor_label) == (prior, (1, 2), 3)


def test_each_of_several_targets_gets_lesions_in_its_own_host(tmp_path):
    """A kidney (3) with its tumor (4) beside the liver."""
    dataset = Folders(
        tmp_path, "Dataset102_Two", {"background": 0, "liver": 1, "liver_tumor": 2, "kidney": 3, "kidney_tumor": 4}
    )
    for seed in range(2):
        image, label = organ_case(seed, tumors=0)
        label[:, :, 48:][label[:, :, 48:] == 1] = 3
        dataset.add(f"case_{seed}", image, label)
    dataset.plan(window_hu=(-150.0, 250.0))
    folder, code = make(tmp_path, dataset="102", per_case=3, lesions=2, workers=1)
    assert code == 0 and "section" in provenance(folder, "synthetic_case_0_00")
    planted = [np.unique(read_label(path).array) for path in (folder / "labelsTr").glob("synthetic*")]
    targets = {
        lesion["target"]
        for path in (folder / "provenance").iterdir()
        for lesion in json.loads(path.read_text())["lesions"]
    }
    assert targets == {"liver", "kidney"} and {2, 4} <= set(np.concatenate(planted).tolist())
    for path in (folder / "labelsTr").glob("synthetic*"):
        before = read_label(dataset.raw / "labelsTr" / f"{path.name.split('_00')[0][10:16]}.nii.gz").array
        after = read_label(path).array
        assert set(before[after == 2].tolist()) <= {1} and set(before[after == 4].tolist()) <= {3, 0}
    assert SECTION not in dataset.plans and read_section(provenance(folder, "synthetic_case_0_00")["section"])
