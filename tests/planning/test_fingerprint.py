"""The tumor fingerprint of a dataset: measured once on raw CT, cached, and bad input refused by name."""

import json
import os

import numpy as np
import pytest
from nnunet_folders import HOST_HU, LIVER, NOISE_HU, SPACING_MM, Folders, organ_case

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.plan import Target
from nnunetv2_freetumor.planning import fingerprint
from nnunetv2_freetumor.planning.measured_prior import with_measurements

LIVER_TARGET = Target(
    name="liver", tumor_label=2, lesion_labels=(2,), prior=priors.load("liver"), source="prior liver", host_labels=(1,)
)


def measure(folders, targets=(LIVER_TARGET,), processes=1):
    cache = folders.preprocessed / fingerprint.FINGERPRINT_FILE
    return fingerprint.measure_dataset(folders.raw, folders.dataset_json, targets, cache, processes)


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


def test_a_dataset_gives_back_what_was_put_into_it(folders):
    measured = measure(folders.add_organs(5))
    liver = measured["targets"]["liver"]
    assert (measured["cases"], measured["absent_labels"]) == (5, [])
    assert (liver["cases_with_host"], liver["cases_with_tumor"], liver["tumors"]) == (5, 5, 10)
    assert liver["tumors_per_case"]["p50"] == 2
    assert liver["diameter_mm"]["p50"] == pytest.approx(16, abs=0.5)
    assert liver["ln_diameter"]["sd"] < 0.02
    assert liver["contrast_hu"]["p50"] == pytest.approx(-50, abs=4)
    assert liver["host"]["median_hu"]["p50"] == pytest.approx(HOST_HU, abs=1)
    assert liver["host"]["sd_hu"]["p50"] == pytest.approx(NOISE_HU, rel=0.15)
    assert liver["host"]["low_hu"]["p50"] == pytest.approx(HOST_HU - 2.6 * NOISE_HU, abs=5)


def test_ten_tumors_take_the_place_of_the_priors_numbers_and_say_so(folders):
    target = with_measurements(LIVER_TARGET, measure(folders.add_organs(5))["targets"]["liver"], 5)
    sizes, prior = target.prior.sizes, LIVER_TARGET.prior
    assert np.exp(sizes[0].ln_mm_mean) == pytest.approx(16, abs=0.5)
    assert sizes[0].min_mm < 16 < sizes[0].max_mm
    assert sizes[1:] == prior.sizes[1:]
    assert target.prior.texture.k_mean == pytest.approx(50 / 90, abs=0.05)
    assert target.prior.texture.edge_scale_mm == pytest.approx(0.75, abs=0.25)
    assert target.prior.texture.edge_depth_mm == pytest.approx(1.5, abs=0.4)
    assert target.prior.shape.elongation_logit[0] > 2
    assert target.prior.texture.rim_hu == prior.texture.rim_hu
    assert target.source == (
        "sizes, axis ratios, contrast, edge measured on 10 tumors in 5 of 5 training cases; the rest from prior liver"
    )


def test_axis_ratios_move_by_what_the_tumors_differ_from_the_masks_behind_the_prior():
    masks = {"elongation_logit": (1.32, 0.88), "flatness_logit": (1.41, 0.93)}  # of the liver, in tumor_shapes.csv
    numbers = {"n": 12, "mean": 2.5, "sd": 0.3, "p05": 2.2, "p50": 2.5, "p95": 2.9}
    measured = {"tumors": 12, "cases_with_tumor": 6, "ln_diameter": numbers, "diameter_mm": numbers}
    measured |= dict.fromkeys(("k", "edge_width_mm", "edge_depth_mm"))
    for shift, scale in ((0.0, 1.0), (0.4, 0.75)):
        logits = {name: numbers | {"mean": mean + shift, "sd": sd * scale} for name, (mean, sd) in masks.items()}
        drawn = with_measurements(LIVER_TARGET, measured | logits, 6).prior.shape
        for name in masks:
            mean, sd = getattr(LIVER_TARGET.prior.shape, name)
            assert getattr(drawn, name) == pytest.approx((mean + shift, sd * scale), abs=1e-3)


def test_nine_tumors_leave_the_prior_as_it_is_and_say_so(folders):
    folders.add_organs(4).add("case_4", *organ_case(4, tumors=1))
    target = with_measurements(LIVER_TARGET, measure(folders)["targets"]["liver"], 5)
    assert target.prior == LIVER_TARGET.prior
    assert target.source == "prior liver: only 9 real tumors in 5 training cases, 10 are needed"


def test_covid_lesions_give_opacity_instead_of_contrast_and_keep_their_patches():
    numbers = {"n": 12, "mean": 0.4, "sd": 0.1, "p05": 0.3, "p50": 0.4, "p95": 0.6}
    measured = {name: numbers for name in ("ln_diameter", "diameter_mm", "k", "elongation_logit", "flatness_logit")}
    measured |= {"tumors": 12, "cases_with_tumor": 6, "edge_width_mm": None, "edge_depth_mm": None}
    prior = priors.load("covid19")
    target = Target(name="covid19", tumor_label=1, lesion_labels=(1,), prior=prior, source="", host_hu=(-950.0, -500.0))
    found = with_measurements(target, measured, 6).prior
    assert found.texture.opacity == (0.3, 0.6)
    assert (found.texture.k_mean, found.shape) == (prior.texture.k_mean, prior.shape)


def test_a_label_free_set_names_the_absent_label_and_still_measures_the_host(folders):
    measured = measure(folders.add_organs(2, tumors=0))
    assert measured["absent_labels"] == ["tumor"]
    liver = measured["targets"]["liver"]
    assert (liver["tumors"], liver["cases_with_tumor"], liver["diameter_mm"]) == (0, 0, None)
    assert liver["host"]["median_hu"]["p50"] == pytest.approx(HOST_HU, abs=1)


def test_the_result_is_kept_until_a_file_or_the_roles_change(folders, monkeypatch):
    measured = measure(folders.add_organs(2))
    del folders.dataset_json["dataset"]  # the same files, found by nnU-Net in imagesTr and labelsTr
    calls = []
    honest = fingerprint._measure_files
    monkeypatch.setattr(fingerprint, "_measure_files", lambda *a, **k: calls.append(a) or honest(*a, **k))
    assert measure(folders) == measured and not calls
    os.utime(folders.raw / "labelsTr" / "case_0.nii.gz", (1, 1))
    assert measure(folders) == measured and len(calls) == 2
    other = Target(name="x", tumor_label=2, lesion_labels=(2,), prior=priors.load("lung"), source="", host_labels=(1,))
    assert set(measure(folders, (other,))["targets"]) == {"x"} and len(calls) == 4


def test_the_cache_is_plain_json_and_nothing_half_written_stays(folders, monkeypatch):
    measured = measure(folders.add_organs(1))
    known = json.loads((folders.preprocessed / fingerprint.FINGERPRINT_FILE).read_text(), parse_constant=pytest.fail)
    assert known["fingerprint"] == measured
    os.utime(folders.raw / "labelsTr" / "case_0.nii.gz", (1, 1))
    monkeypatch.setattr(fingerprint, "_measure_files", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        measure(folders)
    assert [path.name for path in folders.preprocessed.iterdir()] == [fingerprint.FINGERPRINT_FILE]


@pytest.mark.slow
def test_several_processes_measure_the_same_and_pass_errors_on(folders):
    one = measure(folders.add_organs(2), processes=1)
    (folders.preprocessed / fingerprint.FINGERPRINT_FILE).unlink()
    assert measure(folders, processes=2) == one
    image, label = organ_case(0)
    image[0, 0, 0] = np.nan
    folders.add("case_1", image, label)
    with pytest.raises(ValueError, match=r"case_1_0000\.nii\.gz contains 1 NaN"):
        measure(folders, processes=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_voxels_are_refused_by_file(folders, bad):
    image, label = organ_case(0)
    image[3, 4, 5:7] = bad
    folders.add("case_0", image, label)
    with pytest.raises(ValueError, match=r"case_0_0000\.nii\.gz contains 2 NaN or infinite voxels.*Replace them"):
        measure(folders)


def test_image_and_label_of_different_size_are_refused_by_file(folders):
    image, label = organ_case(0)
    folders.add("case_0", image, label[1:])
    with pytest.raises(
        ValueError, match=r"case_0_0000.* and label .*case_0\.nii.* same geometry.*voxels \(24, 48, 96\)"
    ):
        measure(folders)


def test_image_and_label_of_different_spacing_are_refused_by_file(folders):
    folders.add("case_0", *organ_case(0), spacing_mm=(3.0, 1.5, 1.5))
    with pytest.raises(ValueError, match=r"spacing in mm of \(2, 1\.5, 1\.5\) and the label \(3, 1\.5, 1\.5\)"):
        measure(folders)


def test_another_origin_is_said_aloud_but_not_refused_as_in_nnunet(folders, capsys):
    folders.add("case_0", *organ_case(0), spacing_mm=SPACING_MM, origin_mm=(9.0, 0.0, 0.0))
    measure(folders)
    assert "case_0.nii.gz differ in origin" in capsys.readouterr().out


def test_a_host_label_in_no_case_is_refused_by_name(folders):
    image, label = organ_case(0)
    folders.add("case_0", image, np.where(label == 1, 0, label).astype(np.uint8))
    with pytest.raises(
        ValueError, match=r"host of 'liver', 'liver' \(label 1\), occurs in none of the 1 training cases"
    ):
        measure(folders)


def test_a_host_by_hu_in_no_case_is_refused(folders):
    folders.add_organs(1)
    lung = Target(
        name="lung", tumor_label=2, lesion_labels=(2,), prior=priors.load("lung"), source="", host_hu=(-950.0, -500.0)
    )
    with pytest.raises(
        ValueError, match="No connected tissue of -950 to -500 HU inside the body .* no host for 'lung'"
    ):
        measure(folders, (lung,))


def test_missing_and_unreadable_files_are_refused_by_name(folders):
    with pytest.raises(ValueError, match=r"imagesTr holds no training case with ending \.nii\.gz"):
        measure(folders)
    path = folders.add_organs(2).raw / "labelsTr" / "case_1.nii.gz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"labelsTr/case_1\.nii\.gz cannot be read as a medical image"):
        measure(folders)
    path.unlink()
    with pytest.raises(ValueError, match=r"labelsTr/case_1\.nii\.gz is missing"):
        measure(folders)


def test_regions_are_present_where_one_of_their_labels_is(folders):
    folders.dataset_json["labels"] = {**LIVER, "liver": [1, 2], "anything": [2, 3], "nothing": [3, 4], "ignore": 5}
    assert measure(folders.add_organs(1))["absent_labels"] == ["nothing"]
