"""`nnUNetv2_freetumor plan`: the section, the clip window, and what ends with an error before training."""

import json
import os
import time

import numpy as np
import pytest
from nnunet_folders import LIVER, Folders, organ_case, write_volume
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from nnunetv2_freetumor.plan import read_section
from nnunetv2_freetumor.planning import clip_window, fingerprint
from nnunetv2_freetumor.planning import section as planning

MR = {"spacing": [2.0, 1.5, 1.5], "patch_size": [24, 48, 96], "normalization_schemes": ["ZScoreNormalization"]}


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setattr(fingerprint, "default_num_processes", 1)


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


@pytest.fixture
def label_free(folders):
    """Three cases without a tumor, planned with the window of healthy liver."""
    return folders.add_organs(2, tumors=0).plan(window_hu=(88.0, 132.0))


def section_of(folders):
    return read_section(folders.plans["freetumor"])


def test_plan_writes_what_the_trainer_would_derive_and_prints_it(folders, capsys):
    folders.add_organs(5).plan()
    derived = planning.section_for_training(folders.plans, folders.dataset_json)
    assert "freetumor" not in folders.plans
    planning.plan_command("101")
    assert section_of(folders) == derived
    assert planning.section_for_training(folders.plans, folders.dataset_json) == derived
    printed = capsys.readouterr().out
    for text in (
        "liver (1)",
        "tumor (2)",
        "measured on 10 tumors in 5 of 5",
        "host at 110 HU",
        "-20 to 200 HU",
        "Wrote",
    ):
        assert text in printed
    assert not [path for path in folders.preprocessed.iterdir() if path.name.startswith(".")]


def test_plan_again_replaces_the_section_and_says_so(folders, capsys):
    folders.add_organs(1).plan()
    planning.plan_command("Dataset101_Liver")
    plans = folders.plans
    plans["freetumor"] |= {"probability_tumor_free": 0.9, "generator": "lite"}
    plans["freetumor"]["targets"][0]["prior"]["texture"]["edge_scale_mm"] = 3.5
    folders.plans_file.write_text(json.dumps(plans))
    capsys.readouterr()
    planning.plan_command("101")
    section = section_of(folders)
    assert section.probability_tumor_free == 0.5
    (target,) = section.targets
    heading, *lost = capsys.readouterr().out.split("Replaced the freetumor section")[1].splitlines()[1:]
    assert heading == "Settings that the replaced section had otherwise; edit them again if you had edited them:"
    assert lost == [
        '  generator: was "lite", is "auto"',
        "  probability_tumor_free: was 0.9, is 0.5",
        f"  {target.name}.prior.texture.edge_scale_mm: was 3.5, is {target.prior.texture.edge_scale_mm}",
    ]

    planning.plan_command("101")
    assert "had otherwise" not in capsys.readouterr().out
    plans["freetumor"] = {"nonsense": 1}
    folders.plans_file.write_text(json.dumps(plans))
    planning.plan_command("101")
    assert (
        "The replaced section could not be read: freetumor plans: 'freetumor' has unknown keys"
        in capsys.readouterr().out
    )


def test_a_label_free_set_takes_the_prior_and_says_what_validation_cannot_do(label_free, capsys):
    planning.plan_command("101")
    (target,) = section_of(label_free).targets
    assert target.source == "prior liver: only 0 real tumors in 2 training cases, 10 are needed"
    printed = capsys.readouterr().out
    assert "labels in no training case: tumor; validation cannot measure them" in printed
    assert section_of(label_free).probability_tumor_free == 1.0
    assert "lesions in 70 % of the organ patches without a real tumor, and in 25 % of those with one" in printed


def test_before_preprocessing_the_window_is_widened_and_then_keeps_host_and_lesions(label_free, capsys):
    planning.plan_command("101")
    plans, printed = label_free.plans, capsys.readouterr().out
    assert "The clip window hides tumors: 'liver' needs" in printed and "Widened it to" in printed
    assert plans["freetumor_original_intensity"].items() >= {
        "percentile_00_5": 88.0, "percentile_99_5": 132.0, "std": 15.0,
    }.items()  # fmt: skip
    properties = plans["foreground_intensity_properties_per_channel"]["0"]
    core_hu = 110 - 0.65 * 90
    hu = np.array([110.0 - 16, 110.0, 110.0 + 16, core_hu - 16, core_hu, core_hu + 16], np.float32)
    z = CTNormalization(intensityproperties=properties).run(hu.copy())
    np.testing.assert_allclose(z * properties["std"] + properties["mean"], hu, atol=1e-3)
    span_hu = properties["percentile_99_5"] - properties["percentile_00_5"]
    assert span_hu / properties["std"] <= 6 + 1e-6
    label_free.preprocess()
    assert planning.section_for_training(plans, label_free.dataset_json) == section_of(label_free)
    assert planning.dataset_problems("101") == []


def test_planning_again_does_not_widen_again(label_free):
    planning.plan_command("101")
    first = label_free.plans
    planning.plan_command("101")
    assert label_free.plans == first


def test_after_preprocessing_plan_doctor_and_trainer_show_the_commands_that_repair(label_free):
    label_free.preprocess()
    before = label_free.plans_file.read_bytes()
    commands = (
        "  nnUNetv2_freetumor plan -d 101 -p nnUNetPlans --widen-window\n"
        "  nnUNetv2_preprocess -d 101 -plans_name nnUNetPlans -c 3d_fullres"
    )
    with pytest.raises(ValueError, match="hides tumors: 'liver' needs .* clips at 88 to 132 HU") as error:
        planning.plan_command("101")
    assert commands in str(error.value)
    assert label_free.plans_file.read_bytes() == before
    with pytest.raises(ValueError, match="hides tumors") as error:
        planning.section_for_training(label_free.plans, label_free.dataset_json)
    assert commands in str(error.value)
    assert any("no freetumor section" in problem for problem in planning.dataset_problems("101"))


def test_widen_window_writes_it_and_training_waits_for_new_data(label_free, capsys):
    folder = label_free.preprocess()
    planning.plan_command("101", widen=True)
    command = "nnUNetv2_preprocess -d 101 -plans_name nnUNetPlans -c 3d_fullres"
    assert f"Preprocess again:\n  {command}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=f"3d_fullres are older than the widened clip window.*\n  {command}"):
        planning.section_for_training(label_free.plans, label_free.dataset_json)
    assert any("older than the widened" in problem for problem in planning.dataset_problems("101"))
    os.utime(folder / "case_0.pkl", (time.time() + 1,) * 2)
    planning.section_for_training(label_free.plans, label_free.dataset_json)
    assert planning.dataset_problems("101") == []


def test_widen_window_leaves_a_window_that_fits(folders):
    folders.add_organs(1).plan().preprocess()
    planning.plan_command("101", widen=True)
    assert clip_window.ORIGINAL not in folders.plans


def test_plans_that_share_the_data_with_another_window_are_named(label_free, capsys):
    label_free.plan(window_hu=(88.0, 132.0), name="nnUNetResEncUNetLPlans")
    planning.plan_command("101")
    assert "nnUNetResEncUNetLPlans.json uses the same preprocessed data as nnUNetPlans.json" in capsys.readouterr().out
    assert any("uses the same preprocessed data" in problem for problem in planning.dataset_problems("101"))


def test_a_label_free_lung_needs_a_window_up_to_soft_tissue(tmp_path):
    folders = Folders(tmp_path, "Dataset102_Lung", {"background": 0, "lung": 1, "nodule": 2})
    image, label = organ_case(0, tumors=0)
    image[label == 1] -= 960.0
    folders.add("case_0", image, label)
    planning.plan_command(folders.plan(window_hu=(-1000.0, -19.0)).name)
    properties = folders.plans["foreground_intensity_properties_per_channel"]["0"]
    assert 60 < properties["percentile_99_5"] < 150
    assert properties["percentile_00_5"] == -1000


def test_several_targets_in_one_dataset_are_measured_each(tmp_path):
    labels = {"background": 0, "liver": 1, "tumor": 2, "kidney": 3, "spleen": 4}
    folders = Folders(tmp_path, "Dataset103_FLARE", labels)
    image, label = organ_case(0, tumors=2)
    label[(label == 1) & (np.arange(96) > 48)] = 3
    folders.add("case_0", image, label)
    planning.plan_command(folders.plan().name)
    section = section_of(folders)
    assert [(target.name, target.host_labels, target.tumor_label) for target in section.targets] == [
        ("liver", (1,), 2), ("kidney", (3,), 2),
    ]  # fmt: skip
    assert section.fingerprint["absent_labels"] == ["spleen"]


def test_roles_that_the_user_has_written_into_the_plans_are_used(folders):
    folders.dataset_json["labels"] = {"background": 0, "organ": 1, "thing": 2}
    folders.add_organs(1).plan()
    with pytest.raises(ValueError, match=r"names no supported organ.*'organ', 'thing'(.|\n)*freetumor_roles"):
        planning.plan_command("101")
    folders.plan(freetumor_roles=[{"prior": "liver", "host": ["organ"], "tumor": "thing"}])
    planning.plan_command("101")
    assert section_of(folders).targets[0].host_labels == (1,)


def test_a_section_for_other_labels_or_plans_is_refused(folders):
    folders.add_organs(1).plan()
    planning.plan_command("101")
    with pytest.raises(ValueError, match="made for the labels"):
        planning.section_for_training(folders.plans, {**folders.dataset_json, "labels": {**LIVER, "cyst": 3}})
    other = folders.plans
    other["foreground_intensity_properties_per_channel"]["0"]["mean"] = 0.0
    with pytest.raises(ValueError, match="made for other plans"):
        planning.section_for_training(other, folders.dataset_json)


@pytest.mark.parametrize(
    ("configuration", "channels", "changes", "problem"),
    [
        ("2d", {"0": "CT"}, {}, "configuration '2d' is 2d, and tumors are planted in 3d: train '3d_fullres'"),
        ("3d_cascade_fullres", {"0": "CT"}, {}, "is a stage of a cascade: train '3d_fullres' or '3d_lowres'"),
        ("3d_fullres", {"0": "CT", "1": "PET"}, {}, r"has 2 input channels \(CT, PET\): use one CT channel"),
        ("3d_fullres", {"0": "T1"}, {"configurations": {"3d_fullres": MR}}, "by ZScoreNormalization, .* in HU"),
    ],
)
def test_what_synthesis_does_not_work_for_is_refused(folders, configuration, channels, changes, problem):
    folders.dataset_json["channel_names"] = channels
    for values in changes.get("configurations", {}).values():
        values |= {"architecture": {}, "data_identifier": "nnUNetPlans_3d_fullres"}
    folders.plan(**changes)
    with pytest.raises(ValueError, match=f"FreeTumor cannot train here: .*{problem}"):
        planning.check_configuration(folders.plans, configuration, folders.dataset_json)
    if configuration == "3d_fullres":
        with pytest.raises(ValueError, match=problem):
            planning.plan_command("101")


def test_a_single_ct_channel_in_3d_is_accepted(folders):
    planning.check_configuration(folders.plan().plans, "3d_fullres", folders.dataset_json)


def test_missing_folders_datasets_and_plans_are_refused_with_the_way_out(folders, monkeypatch):
    with pytest.raises(ValueError, match="Could not find a dataset with the ID 7"):
        planning.plan_command("7")
    with pytest.raises(
        ValueError, match="nnUNetPlans.json does not exist. Run 'nnUNetv2_plan_and_preprocess -d 101 --no_pp'"
    ):
        planning.plan_command("101")
    folders.plan(name="OtherPlans")
    with pytest.raises(ValueError, match="nnUNetPlans.json does not exist; other plans: OtherPlans"):
        planning.plan_command("101")
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(ValueError, match="nnUNet_preprocessed is not set.*export nnUNet_preprocessed="):
        planning.plan_command("101")


def test_without_raw_data_the_trainer_asks_for_a_planned_section(folders, monkeypatch):
    folders.plan()
    monkeypatch.setenv("nnUNet_raw", str(folders.raw.parent / "elsewhere"))
    with pytest.raises(ValueError, match="real tumors are measured on the raw CT. Run 'nnUNetv2_freetumor plan -d"):
        planning.section_for_training(folders.plans, folders.dataset_json)


def test_a_host_that_no_case_holds_ends_planning(folders):
    image, label = organ_case(0)
    path = folders.add("case_0", image, label)
    write_volume(np.where(label == 1, 0, label).astype(np.uint8), folders.raw / "labelsTr" / "case_0.nii.gz")
    folders.plan()
    with pytest.raises(ValueError, match=r"host of 'liver', 'liver' \(label 1\), occurs in none"):
        planning.plan_command("101")
    assert path.exists() and "freetumor" not in folders.plans
