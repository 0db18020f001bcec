"""What users give `add-unlabeled`: folders of all kinds, damaged files, options that do not go together."""

import json
import os

import numpy as np
import pytest
import torch
from nnunet_folders import write_volume
from pools import SPACING_MM, scan

from nnunetv2_freetumor.cluster.reports import CaseReport, summary_lines
from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION, DATASET, PLANS
from nnunetv2_freetumor.plan import SECTION
from nnunetv2_freetumor.pool import command, store, suspects
from nnunetv2_freetumor.pool.context import Job
from nnunetv2_freetumor.pool.images import find_images

pytest_plugins = ["pools"]


@pytest.mark.parametrize("ending", [".nii", ".NII", ".nii.gz", ".Nii.GZ"])
def test_damaged_files_are_refused_however_their_ending_is_written(ending, place):
    for case, image in (("cut", scan(1)[0]), ("nan", np.where(scan(2)[1] == 1, np.nan, scan(2)[0]).astype("f4"))):
        place.add(case, image, scan(1)[1], ending=ending.lower())
        (place.images / f"{case}{ending.lower()}").rename(place.images / f"{case}{ending}")
    whole = (place.images / f"cut{ending}").read_bytes()
    (place.images / f"cut{ending}").write_bytes(whole[: len(whole) // 2])
    assert place.run() == 1 and place.records() == {}
    assert [reason.split(":")[0] for reason in place.reasons().values()] == ["unreadable", "unreadable"]


def test_masks_are_found_however_their_ending_is_written(place):
    for case in ("map", "folder"):
        place.add(case, *scan(1))
    (place.hosts / "map.nii.gz").rename(place.hosts / "map.NII.GZ")
    (place.hosts / "folder").mkdir()
    (place.hosts / "folder.nii.gz").rename(place.hosts / "folder" / "liver.NII.GZ")
    assert place.run() == 0 and len(place.records()) == 2


def test_totalsegmentators_data_set_is_read_as_it_is(place):
    for case, seed in (("s0000", 1), ("s0001", 2)):
        image, mask = scan(seed)
        (place.images / case / "segmentations").mkdir(parents=True)
        write_volume(image, place.images / case / "ct.nii.gz", SPACING_MM)
        for name, array in (("liver", mask), ("spleen", mask * 0)):
            write_volume(array, place.images / case / "segmentations" / f"{name}.nii.gz", SPACING_MM)
    assert (
        command.add_unlabeled_command(
            DATASET, str(place.images), hosts=str(place.images), tumor_free=True, workers=1, device="cpu"
        )
        == 0
    )
    assert sorted(place.records()) == ["s0000_ct", "s0001_ct"]


def test_masks_may_lie_as_their_images_do(place):
    for patient, seed in (("p1", 1), ("p2", 2)):
        for folder, array in zip((place.images, place.hosts), scan(seed)):
            (folder / patient).mkdir()
            write_volume(array, folder / patient / "venous.nii.gz", SPACING_MM)
            write_volume(np.roll(array, 1, 2), folder / patient / "native.nii.gz", SPACING_MM)
    assert place.run() == 0
    assert sorted(place.records()) == ["p1_native", "p1_venous", "p2_native", "p2_venous"]


def test_masks_of_a_folder_are_not_taken_for_one_of_several_images_there(place):
    (place.images / "p1").mkdir()
    (place.hosts / "p1").mkdir()
    for name in ("venous", "native"):
        write_volume(scan(1)[0], place.images / "p1" / f"{name}.nii.gz", SPACING_MM)
    write_volume(scan(1)[1], place.hosts / "p1" / "liver.nii.gz", SPACING_MM)
    assert place.run() == 1
    assert all(reason.startswith("no host mask") for reason in place.reasons().values())


def test_linked_folders_are_followed_and_circles_end(place):
    elsewhere = place.root / "elsewhere"
    elsewhere.mkdir()
    write_volume(scan(1)[0], elsewhere / "a.nii.gz", SPACING_MM)
    os.symlink(elsewhere, place.images / "link")
    os.symlink(place.images, elsewhere / "back")
    assert [image.case for image in find_images(place.images)] == ["a"]


def test_a_name_that_nnunet_gives_to_label_maps_is_refused(place):
    place.add("x", *scan(1))
    place.add("x_seg", *scan(2))
    assert place.run() == 1
    assert place.reasons()["x_seg"] == "name taken: nnU-Net reserves NAME_seg for label maps; rename the file"
    label = store.read_volumes(place.pool, "x").label
    assert set(np.unique(label)) <= {-1, 0, 1, 3}


def test_a_scan_under_several_names_counts_once(place, capsys):
    for case in ("a", "b"):
        place.add(case, *scan(1))
    place.add("c", *scan(2))
    assert place.run() == 0
    assert "1 case(s) are duplicates of other pool cases; duplicate scans count once" in capsys.readouterr().out
    assert open_pool(place).cases == ("a", "c")
    (place.images / "c.nii.gz").rename(place.images / "z.nii.gz")
    (place.hosts / "c.nii.gz").rename(place.hosts / "z.nii.gz")
    assert place.run(tumor_free=False) == 0
    found = open_pool(place)
    assert (found.cases, found.waiting) == (("c",), 1), "z is cleared as c; a and b were added again, and wait"


def open_pool(place, **changes):
    plans, dataset_json = (json.loads((place.dataset / f"{name}.json").read_text()) for name in (PLANS, "dataset"))
    plans["configurations"][CONFIGURATION] |= changes
    return store.open_pool(place.pool, plans, CONFIGURATION, dataset_json)


def test_plans_that_share_preprocessed_arrays_share_the_pool_and_others_are_refused(place):
    place.add("a", *scan(1))
    assert place.run() == 0
    assert open_pool(place, patch_size=[8, 8, 8], batch_size=7).cases == ("a",)
    for change in (
        {"resampling_fn_data": "resample_torch_simple"},
        {"preprocessor_name": "Other"},
        {"spacing": [1, 1, 1]},
    ):
        with pytest.raises(ValueError, match="was made for other plans or labels"):
            open_pool(place, **change)


def test_a_run_that_ends_before_the_labeled_images_are_read_leaves_no_pool(place, monkeypatch):
    place.add("a", *scan(1))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "labeled_contents", killed)
        with pytest.raises(KeyboardInterrupt):
            place.run()
    assert open_pool(place) is None
    assert place.run() == 0 and open_pool(place).cases == ("a",)
    (place.pool / store.CONTENTS).unlink()
    with pytest.raises(
        ValueError, match="has lost labeled_contents.json.* Repeat the last 'nnUNetv2_freetumor add-unl"
    ):
        open_pool(place)
    assert place.run() == 0 and open_pool(place).cases == ("a",)


def test_nothing_that_says_where_the_hosts_are_ends_before_any_scan_is_read(place):
    place.add("a", *scan(1))
    with pytest.raises(ValueError, match="Nothing says where the hosts are: give --hosts .*, or --host-model"):
        place.run(hosts=False)
    plans = json.loads((place.dataset / f"{PLANS}.json").read_text())
    plans[SECTION]["targets"][0] |= {"host_labels": [], "host_hu": [90.0, 130.0]}
    (place.dataset / f"{PLANS}.json").write_text(json.dumps(plans))
    assert place.run(hosts=False) == 0


@pytest.mark.parametrize(
    "options", [{"judge": "m"}, {"hosts": "m"}, {"host_model": "m"}, {"tumor_free": True}, {"annotates": ["liver"]}]
)
def test_marking_refuses_options_that_would_do_nothing(options, place):
    flag = "--" + next(iter(options)).replace("_", "-")
    with pytest.raises(
        ValueError, match=f"--mark-suspects only checks cases that are already in the pool, so {flag} would"
    ):
        command.add_unlabeled_command(DATASET, mark_suspects="m", **options)


@pytest.mark.parametrize("workers", [None, 1])
def test_a_device_that_is_not_there_ends_before_any_scan_is_read(place, workers):
    place.add("a", *scan(1))
    with pytest.raises(ValueError, match="-device must be cpu or cuda, but it is 'gpu'"):
        command.add_unlabeled_command(DATASET, str(place.images), hosts=str(place.hosts), device="gpu", workers=workers)


@pytest.mark.parametrize(("options", "workers"), [({"judge": "m"}, 1), ({}, None), ({"judge": "m", "workers": 3}, 3)])
def test_one_process_works_with_a_model_on_a_gpu(options, workers, place, monkeypatch):
    monkeypatch.setattr(command, "choose_device", lambda _: torch.device("cuda"))
    given = []
    monkeypatch.setattr(command, "check_cluster", lambda *_: None)
    monkeypatch.setattr(command.options, "job_for", lambda asked, *_, **__: Job(asked))
    monkeypatch.setattr(command, "run_cases", lambda *_, **settings: given.append(settings["workers"]) or [])
    place.add("a", *scan(1))
    command.add_unlabeled_command(DATASET, str(place.images), hosts=str(place.hosts), **options)
    assert given == [workers]


def test_a_label_map_whose_values_the_name_map_does_not_name_is_refused(place):
    place.add("a", *scan(1))
    names = place.root / "names.json"
    names.write_text('{"liver": "liver"}')
    assert place.run(name_map=str(names)) == 1
    assert (
        'is a label map, but --name-map translates none of its values: add some, as in {"5": "liver"}'
        in place.reasons()["a"]
    )


def test_holes_that_open_into_the_scans_first_slices_are_holes_and_dents_are_none():
    label = np.zeros((20, 30, 30), dtype=np.int16)
    label[:14, 5:25, 5:25] = 1
    label[:6, 10:18, 10:18] = 0  # the scan begins in the middle of the organ, and of what is in it
    label[10:14, 10:18, 10:18] = 0  # open at the organ's own end
    holes = suspects.find_holes(label, [1], 9, (2.0, 1.0, 1.0))
    assert holes[:6, 10:18, 10:18].all() and holes.sum() == 6 * 8 * 8


def test_like_reasons_come_together_whatever_their_numbers_and_folders():
    reports = [CaseReport(f"c{i}", "skipped", f"wrong HU: the host's median is {-300.5 - i} HU") for i in range(5)]
    reports += [CaseReport(f"s{i}", "skipped", f"unreadable: /d/s{i} holds {i} series, too many") for i in range(4)]
    lines = summary_lines(reports)
    assert lines[1:] == [
        "  skipped: 5 x wrong HU: the host's median is -300.5 HU (c0, c1, c2 ...)",
        "  skipped: 4 x unreadable: /d/CASE holds 0 series, too many (s0, s1, s2 ...)",
    ]
    many = CaseReport("a", "done", counts={"bytes_in": 1234567.0})
    assert "  bytes_in: 1234567" in summary_lines([many])
