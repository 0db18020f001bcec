"""The command add-unlabeled: what comes into the pool, what does not and why, and what it leaves alone."""

import functools
import hashlib
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_folders import write_volume
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from pools import LIVER, SHAPE, SPACING_MM, scan
from scipy import ndimage

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.cluster.local import attempt
from nnunetv2_freetumor.cluster.run import CaseWork
from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION, DATASET, PLANS
from nnunetv2_freetumor.files import hashes
from nnunetv2_freetumor.files.cases import read_case
from nnunetv2_freetumor.files.hashes import content_hash
from nnunetv2_freetumor.pool import case as pool_case
from nnunetv2_freetumor.pool import command, context, store, suspects, target
from nnunetv2_freetumor.pool import options as pool_options
from nnunetv2_freetumor.pool.images import ImageFile, find_images
from nnunetv2_freetumor.pool.marking import MarkOrder
from nnunetv2_freetumor.pool.model import Model

pytest_plugins = ["pools"]


def digest(*folders):
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(place, case):
    return store.read_volumes(place.pool, case)


def test_raw_data_labels_splits_plans_and_preprocessed_cases_stay_untouched_bit_for_bit(place):
    place.add("a", *scan(1))
    before = digest(place.root / "raw", place.dataset, place.images, place.hosts)
    assert place.run() == 0
    after = digest(place.root / "raw", place.dataset, place.images, place.hosts)
    assert {path: value for path, value in after.items() if str(place.pool) not in path} == before


def test_a_pool_case_is_what_nnunets_own_preprocessing_makes_of_the_same_files(place, tmp_path):
    place.add("a", *scan(1), spacing_mm=(3.0, 2.5, 2.0))
    assert place.run() == 0
    plans, dataset_json = (json.loads((place.dataset / f"{n}.json").read_text()) for n in (PLANS, "dataset"))
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    files = [str(place.images / "a.nii.gz")], str(place.hosts / "a.nii.gz")
    preprocessor = configuration.preprocessor_class(verbose=False)
    preprocessor.run_case_save(str(tmp_path / "own"), *files, manager, configuration, dataset_json)
    ours, theirs = nnUNetDatasetBlosc2(str(place.pool), ["a"]).load_case("a"), store.read_volumes(tmp_path, "own")
    assert np.array_equal(ours[0][:], theirs.image) and np.array_equal(ours[1][:], theirs.label)
    assert ours[0].dtype == theirs.image.dtype and ours[1].dtype == theirs.label.dtype
    assert set(ours[3]) == set(theirs.properties) and set(ours[3]["class_locations"]) == {1, 2}
    assert np.array_equal(ours[3]["class_locations"][1], theirs.properties["class_locations"][1])


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_other_file_types_give_the_same_case(ending, place):
    image, mask = scan(1)
    place.add("a", image, mask)
    place.add("b", image, ending=ending)
    write_volume(mask, place.hosts / "b.nii.gz", SPACING_MM)
    assert place.run() == 0
    assert np.array_equal(load(place, "a").image, load(place, "b").image)


def write_series(folder, array, modality="CT", left_out=()):
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in set(range(len(array))) - set(left_out):
        image = sitk.GetImageFromArray(array[index].astype(np.int16))
        image.SetSpacing(SPACING_MM[:0:-1])
        z_mm = index * SPACING_MM[0]
        tags = {"0008|0060": modality, "0020|000e": "1.2.3", "0020|0032": f"0\\0\\{z_mm}", "0020|0013": str(index)}
        tags |= {"0020|0037": "1\\0\\0\\0\\1\\0", "0008|0018": f"1.2.3.{index + 1}", "0020|000d": "1.2"}
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index:03d}.dcm"))
        writer.Execute(image)


def test_a_folder_with_a_dicom_series_is_one_case(place):
    image, mask = scan(1)
    write_series(place.images / "series", image)
    write_series(place.images / "gap", scan(2)[0], left_out=[5, 6])
    write_series(place.images / "mr", scan(3)[0], modality="MR")
    write_volume(mask, place.hosts / "series.nii.gz", SPACING_MM)
    place.add("file", image, mask)
    assert place.run() == 1
    reasons = place.reasons()
    assert reasons["series"] == "done" and np.array_equal(load(place, "series").image, load(place, "file").image)
    assert "geometry mismatch: slices lie" in reasons["gap"] and "not CT: the DICOM modality is MR" in reasons["mr"]


def test_totalsegmentators_folders_are_read_as_they_are(place):
    image, mask = scan(1)
    place.add("a", image)
    (place.hosts / "a").mkdir()
    for name, array in {"liver": mask, "spleen": np.ones_like(mask), "liver_lesions": np.zeros_like(mask)}.items():
        write_volume(array, place.hosts / "a" / f"{name}.nii.gz", SPACING_MM)
    place.add("b", *scan(2))
    assert place.run() == 0
    assert np.array_equal(load(place, "a").label[0] == 1, mask == 1)


def test_a_name_map_translates_mask_names_and_values(place):
    (image, mask), names = scan(1), place.root / "names.json"
    place.add("a", image)
    (place.hosts / "a").mkdir()
    write_volume(mask, place.hosts / "a" / "segment_7.nii.gz", SPACING_MM)
    place.add("b", scan(2)[0], mask * 5)
    assert place.run() == 1 and place.reasons()["a"].startswith("no host mask: neither")
    assert "holds the value 5, which is no label of the dataset" in place.reasons()["b"]
    names.write_text('{"segment_7": "liver", "5": "Liver"}')
    assert place.run(name_map=str(names)) == 0
    names.write_text('{"5": "lever"}')
    with pytest.raises(ValueError, match="no label 'lever' with a single value; its labels are 'liver', 'tumor'"):
        place.run(name_map=str(names))
    with pytest.raises(ValueError, match="--name-map must be a JSON file, but .*missing.json does not exist"):
        place.run(name_map=str(place.root / "missing.json"))


def test_every_case_that_cannot_be_used_is_listed_with_its_reason_and_stops_no_other(place):
    image, mask = scan(1)
    place.add("good", image, mask)
    place.add("mri", np.abs(image) // 4, mask)
    place.add("shifted", scan(2)[0] + 1024, mask)
    place.add("doubled", (scan(3)[0] - 400).clip(-1024), mask)
    place.add("leg", scan(4)[0], mask * 0)
    place.add("alone", scan(5)[0])
    (place.images / "broken.nii.gz").write_bytes(b"no image")
    place.add("moved", scan(6)[0])
    write_volume(mask[:-1], place.hosts / "moved.nii.gz", SPACING_MM)
    place.add("copy", scan(100)[0].astype(np.float32), mask, ending=".nrrd")
    assert place.run() == 1
    expected = {
        "good": "done",
        "mri": "not CT: ",
        "shifted": "wrong HU: the host's median is 1134: subtract 1024",
        "doubled": "wrong HU: the host's median is -290 HU",
        "leg": "no host in view: less than 1 ml",
        "alone": "no host mask: neither",
        "broken": "unreadable: ",
        "moved": "geometry mismatch: ",
        "copy": "duplicate of a labeled case: case_0_0000.nii.gz",
    }
    reasons = place.reasons()
    assert set(reasons) == set(expected)
    assert [case for case, text in expected.items() if not reasons[case].startswith(text)] == []
    assert list(place.records()) == ["good"]


def test_the_content_of_a_scan_is_the_same_whatever_its_type_flips_and_turns():
    image = scan(1)[0]
    same = [
        image.astype(np.float32),
        image[::-1, :, ::-1],
        image.transpose(2, 0, 1),
        np.where(image < -1024, -2000, image),
    ]
    assert {content_hash(array) for array in [image, *same]} == {content_hash(image)}
    assert content_hash(scan(2)[0]) != content_hash(image)


def test_a_run_that_was_killed_goes_on_and_every_case_is_there_exactly_once(place, monkeypatch):
    for seed in range(4):
        place.add(f"case{seed}", *scan(seed))
    write, calls = store.write_json, []

    def killed(data, path):
        if path.parent.name == "records" and len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(path) if path.parent.name == "records" else None
        write(data, path)

    monkeypatch.setattr(store, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        place.run()
    (place.pool / ".unfinished-killed").mkdir()
    assert list(place.records()) == ["case0", "case1"]
    assert set(store.open_pool(place.pool, *_plans(place)).cases) == {"case0", "case1"}
    monkeypatch.setattr(store, "write_json", write)
    kept, times = digest(place.pool / "records"), {p: p.stat().st_mtime_ns for p in place.pool.glob("case[01]*")}
    assert place.run() == 0
    assert kept.items() <= digest(place.pool / "records").items()
    assert times == {p: p.stat().st_mtime_ns for p in place.pool.glob("case[01]*")}  # not made again
    assert list(place.records()) == [f"case{seed}" for seed in range(4)]
    assert not list(place.pool.glob(".unfinished-*"))
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(place.pool))) == [f"case{seed}" for seed in range(4)]


def _plans(place):
    plans, dataset_json = (json.loads((place.dataset / f"{name}.json").read_text()) for name in (PLANS, "dataset"))
    return plans, CONFIGURATION, dataset_json


def test_a_pool_of_other_plans_is_refused(place):
    place.add("a", *scan(1))
    place.run()
    plans, _, dataset_json = _plans(place)
    plans["configurations"][CONFIGURATION]["spacing"] = [5.0, 2.0, 2.0]
    with pytest.raises(
        ValueError, match="was made for other plans or labels .plans_hash .* Delete that folder and run"
    ):
        store.open_pool(place.pool, plans, CONFIGURATION, dataset_json)
    stamp = json.loads((place.pool / store.STAMP).read_text())
    (place.pool / store.STAMP).write_text(json.dumps(stamp | {"plans_hash": "0"}))
    with pytest.raises(ValueError, match="was made for other plans"):
        place.run()


def test_a_worker_that_outlives_a_run_works_with_the_plans_and_cases_of_the_next_one(place):
    place.add("a", *scan(1))
    choice = target.PlansChoice(str(place.dataset), PLANS, CONFIGURATION)
    job = context.Job(context.Asked(choice, context.HostSource(masks=str(place.hosts)), tumor_free=True))

    def work_of(run, case):
        done = lambda *_: False  # noqa: E731
        work = CaseWork(run, pool_case.add_case, done, functools.partial(context.JobContext, job))
        return attempt(work, __version__, ImageFile(case, str(place.images / f"{case}.nii.gz"), (case,)))

    assert place.run() == 0 and work_of("first", "a").state == "done"
    shutil.rmtree(place.pool)
    place.change_labels({"background": 0, "liver": 1, "tumor": 2, "spleen": 3})
    shutil.copy(place.images / "a.nii.gz", place.root / "raw" / DATASET / "imagesTr" / "case_2_0000.nii.gz")
    place.add("b", *scan(2))
    place.run()  # writes stamp and contents, as the client does
    assert work_of("second", "a").reason.startswith("duplicate of a labeled case: case_2_0000.nii.gz")
    store.withdraw(place.pool, "b")
    assert work_of("second", "b").counts["cases with unannotated classes"]


def test_orders_are_small_and_a_context_is_built_from_what_travels(place):
    choice = target.PlansChoice(str(place.dataset), PLANS, CONFIGURATION)
    job = context.Job(context.Asked(choice, context.HostSource(masks=str(place.hosts))))
    assert len(pickle.dumps((ImageFile("a", "/a.nii.gz", ("a",)), MarkOrder("a"), job))) < 1000
    assert pickle.loads(pickle.dumps(functools.partial(context.JobContext, job))).args == (job,)


def test_a_model_is_loaded_once_for_all_cases_and_masks_are_listed_once_for_each(place, judge, monkeypatch):
    for case, seed in {"a": 1, "b": 2}.items():
        place.add(case, *scan(seed))
    loaded, listed = [], []
    list_masks = pool_case.list_masks
    monkeypatch.setattr(context, "load_model", lambda path, _: loaded.append(path) or fake_model())
    monkeypatch.setattr(pool_case, "list_masks", lambda c, file: listed.append(file.case) or list_masks(c, file))
    assert place.run(tumor_free=False, judge="model") == 0
    assert loaded == [str(Path("model").absolute())] and listed == ["a", "b"]
    assert place.run(tumor_free=False, judge="model") == 0
    assert len(loaded) == 1, "nothing is left to do"


def label_one(place, image):
    """Make a labeled case of a scan."""
    shutil.copy(place.images / f"{image}.nii.gz", place.root / "raw" / DATASET / "imagesTr" / "case_2_0000.nii.gz")


@pytest.mark.parametrize("again", [{}, {"images": None, "hosts": False, "tumor_free": False, "mark_suspects": "m"}])
def test_a_pool_scan_that_becomes_a_labeled_case_leaves_the_pool(place, judge, again):
    for case, seed in {"one": 1, "two": 2}.items():
        place.add(case, *scan(seed))
    assert place.run() == 0
    label_one(place, "one")
    assert place.run(**again) == 1
    assert place.reasons()["one"].startswith("duplicate of a labeled case: case_2_0000.nii.gz holds the same voxels")
    assert list(place.records()) == ["two"] and not list(place.pool.glob("one*"))


def test_a_pool_that_was_not_compared_with_a_labeled_case_is_not_trained_on(place):
    place.add("a", *scan(1))
    assert place.run() == 0
    store.check_compared(place.pool, ["case_0", "case_1"])
    label_one(place, "a")
    with pytest.raises(
        ValueError, match="not been compared with 1 newer labeled case.s. .case_2 .*'nnUNetv2_freetumor add-"
    ):
        store.check_compared(place.pool, ["case_0", "case_2"])
    assert store.open_pool(place.pool, *_plans(place)).cases == ("a",)
    where = target.read_dataset(target.PlansChoice(str(place.dataset), PLANS, CONFIGURATION))
    hashes.labeled_contents(command._labeled_images(where), place.pool / store.CONTENTS)  # and was killed after that
    store.check_compared(place.pool, ["case_0", "case_2"])
    found = store.open_pool(place.pool, *_plans(place))
    assert (found.cases, found.waiting) == ((), 0)


def test_the_labeled_images_are_those_that_nnunet_knows(place):
    raw, file = place.root / "raw" / DATASET, place.dataset / "dataset.json"
    (raw / "imagesTs").mkdir()
    (raw / "labelsTs").mkdir()
    for case in ("seen", "unseen"):
        (raw / "imagesTs" / f"{case}_0000.nii.gz").touch()
    (raw / "labelsTs" / "seen.nii.gz").touch()
    where = target.read_dataset(target.PlansChoice(str(place.dataset), PLANS, CONFIGURATION))
    expected = {f"case_{i}": raw / "imagesTr" / f"case_{i}_0000.nii.gz" for i in range(2)}
    test = {"test seen": raw / "imagesTs" / "seen_0000.nii.gz"}
    assert command._labeled_images(where) == expected | test
    listed = {"x": {"images": ["other/x.nii.gz", "other/y.nii.gz"], "label": "z.nii.gz"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dataset": listed}))
    where = target.read_dataset(target.PlansChoice(str(place.dataset), PLANS, CONFIGURATION))
    assert command._labeled_images(where) == {"x": raw / "other" / "x.nii.gz"} | test


def test_the_labeled_images_read_so_far_are_not_read_again(place, monkeypatch):
    images = sorted((place.root / "raw" / DATASET / "imagesTr").iterdir())
    cases, cache, calls = {path.name: path for path in images}, place.root / "cache.json", []

    def read(path):
        calls.append(path)
        if calls == images:
            raise KeyboardInterrupt
        return read_case(path)

    monkeypatch.setattr(hashes, "read_case", read)
    with pytest.raises(KeyboardInterrupt):
        hashes.labeled_contents(cases, cache)
    assert hashes.labeled_contents(cases, cache).keys() == {content_hash(read_case(path).array) for path in images}
    assert calls == [*images, images[1]]
    images[0].touch()
    monkeypatch.setattr(hashes, "read_case", lambda _path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hashes.labeled_contents(cases, cache)
    assert hashes.compared_cases(cache) == set(cases)  # what was known, and is not looked at yet
    hashes.labeled_contents({images[1].name: images[1]}, cache)
    assert hashes.compared_cases(cache) == {images[1].name}


def test_cases_whose_image_mask_or_model_has_changed_are_made_again(place, judge, monkeypatch):
    for case, seed in {"a": 1, "b": 2, "c": 3}.items():
        place.add(case, *scan(seed))

    def made_by(run):
        before = {case: file.stat().st_mtime_ns for case, file in files.items()}
        assert run() == 0
        return [case for case, file in files.items() if file.stat().st_mtime_ns != before[case]]

    files = {case: place.pool / "records" / f"{case}.json" for case in "abc"}
    assert place.run() == 0 and made_by(place.run) == []
    mask = scan(1)[1]
    mask[10:12, 18:21, 20:23] = 0
    place.add("a", scan(1)[0], mask)
    assert made_by(place.run) == ["a"] and load(place, "a").label[0][11, 19, 21] == 3
    place.add("c", scan(30)[0])
    assert made_by(place.run) == ["c"]
    with_judge = functools.partial(place.run, tumor_free=False, judge="model")
    assert made_by(with_judge) == ["a", "b", "c"] and made_by(with_judge) == []
    monkeypatch.setattr(context, "load_model", lambda *_: fake_model("Judge/fold_0 trained on"))
    monkeypatch.setattr(pool_options, "load_model", lambda *_: fake_model("Judge/fold_0 trained on"))
    assert made_by(with_judge) == ["a", "b", "c"]


def test_a_case_whose_mask_is_gone_stays_in_the_pool_as_it_was(place):
    """Masks may come in batches, each in a folder of its own."""
    for case, seed in {"a": 1, "b": 2}.items():
        place.add(case, *scan(seed))
    (place.hosts / "b.nii.gz").rename(place.root / "b.nii.gz")
    assert place.run() == 1
    before = digest(place.pool / "records")
    (place.hosts / "a.nii.gz").unlink()
    (place.root / "b.nii.gz").rename(place.hosts / "b.nii.gz")
    assert place.run() == 1
    assert before.items() < digest(place.pool / "records").items() and list(place.records()) == ["a", "b"]
    assert place.reasons()["a"].startswith("no host mask: neither")
    assert place.reasons()["a"].endswith("; the case from an earlier run was kept")


def test_a_case_that_may_be_tumor_all_over_leaves_the_pool(place, judge, monkeypatch):
    place.add("a", *scan(1))
    assert place.run() == 0
    everywhere = lambda _model, image, _names: np.ones(image.shape[1:], dtype=bool)  # noqa: E731
    monkeypatch.setattr(suspects, "predict_lesions", everywhere)
    assert place.run(tumor_free=False, judge="model") == 1
    said = "no host in view: all of it may be tumor; the case from an earlier run was removed"
    assert place.reasons()["a"] == said and place.records() == {}
    assert store.open_pool(place.pool, *_plans(place)).cases == ()


def test_unlabeled_is_not_healthy_and_cases_wait_until_somebody_has_looked(place, capsys):
    place.add("a", *scan(1))
    assert place.run(tumor_free=False) == 0
    said = capsys.readouterr().out
    assert (
        "1 case(s) are held back" in said
        and f"-d {DATASET} -c {CONFIGURATION} -p {PLANS} --mark-suspects MODEL" in said
    )
    found = store.open_pool(place.pool, *_plans(place))
    assert found.cases == () and found.waiting == 1
    assert place.run(tumor_free=True) == 0  # the word is a setting: the case is made again with it
    assert store.open_pool(place.pool, *_plans(place)).cases == ("a",)


def test_holes_are_taken_out_with_a_margin_of_5_mm_and_counted(place):
    image, mask = scan(1)
    mask[10:12, 18:21, 20:23] = 0
    place.add("a", image, mask)
    assert place.run() == 0
    label = load(place, "a").label[0]
    assert (label[10:12, 18:21, 20:23] == 3).all() and (label[9, 18:21, 20:23] == 3).all()
    assert label[10, 15, 21] == 1 and label[10, 16, 21] == 3  # 6 and 4 mm away
    counts = place.records()["a"]["counts"]
    assert counts["cases with holes"] == 1.0 and counts["ml of holes"] == pytest.approx(18 * 16 / 1000)
    assert counts["cases with voxels taken out"] == 1.0
    assert counts["voxels taken out with their margin"] == (label == 3).sum()
    for key, places in load(place, "a").properties["class_locations"].items():
        assert (load(place, "a").label[tuple(np.asarray(places).T)] == key).all() if len(places) else True


def test_a_hole_that_the_target_grid_would_swallow_is_taken_out_all_the_same(place):
    image, mask = (np.kron(array, np.ones((4, 2, 2), dtype=array.dtype)) for array in scan(1))
    hole = slice(47, 49), slice(40, 44), slice(44, 48)  # 2 x 4 x 4 mm, between the centers of two target slices
    mask[hole] = 0
    image[hole] = 40
    place.add("a", image, mask, spacing_mm=(1.0, 1.0, 1.0))
    assert place.run() == 0
    label = load(place, "a").label[0]
    assert label.shape == SHAPE and (label[11:13, 20:22, 22:24] == 3).all()


def test_the_margin_is_measured_from_the_nearest_marked_voxel_wherever_it_lies():
    marked = np.random.default_rng(0).random((20, 30, 30)) > 0.998
    spacing_mm = (3.0, 1.2, 0.8)
    expected = ndimage.distance_transform_edt(~marked, sampling=spacing_mm) <= 5.0
    assert marked.sum() > 10 and np.array_equal(suspects.within_mm(marked, 5.0, spacing_mm), expected)


def fake_model(name="Judge/fold_0"):
    """Make a model that is never run."""
    return Model(name, SimpleNamespace(labels={"background": 0, "liver": 1, "tumor": 2}), None, {}, "")


@pytest.fixture
def judge(monkeypatch):
    def _lesions(_model, image, _names):
        found = np.zeros(image.shape[1:], dtype=bool)
        found[11, 19, 21] = True
        return found

    for module in (context, pool_options):
        monkeypatch.setattr(module, "load_model", lambda *_: fake_model())
    monkeypatch.setattr(pool_options, "_check_judge", lambda *_: None)
    monkeypatch.setattr(suspects, "predict_lesions", _lesions)


def test_a_judges_suspects_are_taken_out_at_once_or_in_a_second_round_alike(place, judge):
    place.add("a", *scan(1))
    assert place.run(tumor_free=False, judge="model") == 0
    at_once = load(place, "a")
    assert at_once.label[0][11, 19, 21] == 3 and place.records()["a"]["cleared"] == "Judge/fold_0"
    assert place.run(tumor_free=False) == 0
    assert (load(place, "a").label[0][LIVER] == 1).all() and place.records()["a"]["cleared"] == ""
    taken, of_judge = "voxels taken out with their margin", "suspects"
    names = ["cases with voxels taken out", taken, f"cases with {of_judge}", f"ml of {of_judge}"]
    for _ in range(2):
        assert place.run(images=None, tumor_free=False, hosts=False, mark_suspects="model") == 0
        assert np.array_equal(load(place, "a").label, at_once.label)
        assert place.records()["a"]["cleared"] == "Judge/fold_0"
        assert place.records()["a"]["counts"]["ml of suspects"] == 0.016
        assert list(place.records()["a"]["counts"]) == names, "in one order, whatever Python's hashes are"
    assert place.run(tumor_free=False) == 0 and place.records()["a"]["cleared"] == "Judge/fold_0"  # marks stay


def test_classes_that_the_masks_do_not_annotate_are_taken_out_of_the_background(place):
    place.change_labels({"background": 0, "liver": 1, "tumor": 2, "spleen": 3})
    place.add("a", *scan(1))
    assert place.run() == 0
    label = load(place, "a").label[0]
    assert set(np.unique(label)) == {1, 4} and place.records()["a"]["counts"]["cases with unannotated classes"] == 1.0
    assert place.run(annotates=["spleen"]) == 0
    assert set(np.unique(load(place, "a").label)) <= {-1, 0, 1}


def test_one_kidney_of_two_does_not_annotate_the_kidneys(place):
    labels = {"background": 0, "kidney": 1, "tumor": 2}
    place.change_labels(labels)
    image, mask = scan(1)
    for case, names in {"one": ["kidney_left"], "two": ["kidney_left", "kidney_right"]}.items():
        place.add(case, image + (case == "two"))
        (place.hosts / case).mkdir()
        for name in names:
            write_volume(mask, place.hosts / case / f"{name}.nii.gz", SPACING_MM)
    assert place.run() == 0
    assert 3 in load(place, "one").label and 3 not in load(place, "two").label


def test_the_datasets_own_ignore_label_is_used_where_there_is_one(place):
    place.change_labels({"background": 0, "liver": 1, "tumor": 2, "ignore": 3})
    image, mask = scan(1)
    mask[10:12, 18:21, 20:23] = 0
    place.add("a", image, mask)
    assert place.run() == 0
    volumes = load(place, "a")
    assert 3 in volumes.label and (-1, 0, 1, 2) in volumes.properties["class_locations"]


def test_files_of_the_same_name_in_different_folders_go_by_their_path(place):
    for folder, seed in (("x", 1), ("y", 2)):
        (place.images / folder).mkdir()
        write_volume(scan(seed)[0], place.images / folder / "ct_0000.nii.gz", SPACING_MM)
        write_volume(scan(seed)[1], place.hosts / f"{folder}_ct.nii.gz", SPACING_MM)
    assert place.run() == 0 and list(place.records()) == ["x_ct", "y_ct"]


def test_the_report_says_what_was_read_and_written(place):
    image, mask = scan(1)
    write_series(place.images / "a", image)
    write_volume(mask, place.hosts / "a.nii.gz", SPACING_MM)
    assert place.run() == 0
    (case,) = json.loads((place.pool / "report.json").read_text())["cases"]
    read = [*(place.images / "a").iterdir(), place.hosts / "a.nii.gz"]
    written = [*place.pool.glob("a*"), place.pool / "records" / "a.json"]
    assert case["counts"]["bytes_in"] == sum(path.stat().st_size for path in read)
    assert case["counts"]["bytes_out"] == sum(path.stat().st_size for path in written)
    assert case["counts"]["files_out"] == len(written) == 4 and case["counts"]["seconds"] > 0


def test_no_two_scans_share_a_name_even_where_a_path_reads_like_a_name(place):
    for at, seed in (("x/ct.nii.gz", 1), ("y/ct.nii.gz", 2), ("x_ct.nii.gz", 3)):
        (place.images / at).parent.mkdir(exist_ok=True)
        write_volume(scan(seed)[0], place.images / at, SPACING_MM)
    found = find_images(place.images)
    assert [image.case for image in found][1:2] != ["x_ct"] and len({image.case for image in found}) == 3
    assert "y_ct" in {image.case for image in found} and find_images(place.images) == found


def test_another_scan_of_the_same_name_takes_no_ones_place(place):
    place.add("a", *scan(1))
    assert place.run() == 0
    before, other = digest(place.pool / "records"), place.root / "other"
    other.mkdir()
    write_volume(scan(2)[0], other / "a.nii.gz", SPACING_MM)
    assert place.run(images=str(other)) == 1 and digest(place.pool / "records") == before
    assert place.reasons()["a"] == (
        f"name taken: {place.images / 'a.nii.gz'} is a different scan with this name; rename one of the files"
    )
    write_volume(scan(1)[0], other / "a.nii.gz", SPACING_MM)  # the same scan, moved
    assert place.run(images=str(other)) == 0 and place.records()["a"]["source"] == str(other / "a.nii.gz")


def test_a_folder_given_as_the_image_may_be_a_series_itself(place):
    image, mask = scan(1)
    write_series(place.images / "series", image)
    write_volume(mask, place.hosts / "series.nii.gz", SPACING_MM)
    assert place.run(images=str(place.images / "series")) == 0 and list(place.records()) == ["series"]


def test_what_lies_beside_the_images_is_no_image_and_what_cannot_be_opened_is_listed(place):
    place.add("good", *scan(1))
    (place.images / "disk").mkdir()
    (place.images / "disk" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (place.images / "lost").mkdir()
    (place.images / "lost" / "IM1").symlink_to(place.root / "nowhere")
    assert place.run() == 1
    reasons = place.reasons()
    assert set(reasons) == {"good", "lost"} and reasons["lost"].startswith("unreadable: ")


def test_readers_that_reorient_get_what_nnunets_own_reader_gives(place, tmp_path):
    file = place.dataset / f"{PLANS}.json"
    plans = json.loads(file.read_text()) | {"image_reader_writer": "NibabelIOWithReorient"}
    file.write_text(json.dumps(plans))
    for folder, array in ((place.images, scan(1)[0]), (place.hosts, scan(1)[1])):
        image = sitk.GetImageFromArray(array[:, ::-1].copy())
        image.SetSpacing(SPACING_MM[::-1])
        image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
        sitk.WriteImage(image, str(folder / "a.nii.gz"))
    assert place.run() == 0
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    files = [str(place.images / "a.nii.gz")], str(place.hosts / "a.nii.gz")
    dataset_json = json.loads((place.dataset / "dataset.json").read_text())
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, seg, _ = preprocessor.run_case(*files, manager, configuration, dataset_json)
    assert np.allclose(load(place, "a").image, data, atol=1e-5) and np.array_equal(load(place, "a").label, seg)


def test_one_image_takes_totalsegmentators_output_folder_as_it_is(place):
    image, mask = scan(1)
    place.add("a", image)
    write_volume(mask, place.hosts / "liver.nii.gz", SPACING_MM)
    assert place.run(images=str(place.images / "a.nii.gz")) == 0
    assert np.array_equal(load(place, "a").label[0] == 1, mask == 1)
    place.add("b", scan(2)[0])
    assert place.run() == 1 and place.reasons()["b"].startswith("no host mask")  # of two, nobody knows whose it is


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": None}, "Give either -i with images to add, or --mark-suspects"),
        ({"hosts": "nowhere"}, "--hosts must be a folder with masks, but .*nowhere does not exist"),
        (
            {"images": "nowhere", "hosts": "."},
            "-i must be an image or a folder with images, but .*nowhere does not exist",
        ),
        ({"judge": "Trainer__Plans__3d_fullres"}, "There is no trained model .*fold_0. Train it with"),
        ({"annotates": ["spleen"]}, "no label 'spleen' with a single value"),
        ({"configuration": "2d"}, "nnUNetPlans.json has no configuration '2d'. It has: 3d_fullres"),
    ],
)
def test_what_cannot_work_ends_before_any_case(options, message, place):
    with pytest.raises(ValueError, match=message):
        command.add_unlabeled_command(DATASET, **{"images": str(place.images), "workers": 1, **options})
    assert not place.pool.exists()


def test_the_shape_of_the_phantom_is_the_one_the_tests_count_on():
    assert scan(0)[0].shape == SHAPE
