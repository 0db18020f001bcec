"""The study's protocol: arms, settings, runs, and what is frozen."""

import dataclasses
import json

import pytest

from nnunetv2_freetumor import plan, priors
from nnunetv2_freetumor.evaluation.inputs import Labels
from nnunetv2_freetumor.experiments.study import command, data, protocol
from nnunetv2_freetumor.experiments.study.data import TrainingCases
from nnunetv2_freetumor.experiments.study.design import (
    ALL_ARMS,
    ARMS,
    ASSIGNMENT_KEY,
    FIXED_RADII_MM,
    TEXTURE_ARM,
    THRESHOLD_ARM,
    Budget,
    Setting,
    assignment_of,
    bundled,
    read_assignment,
)
from nnunetv2_freetumor.experiments.study.trials import HeldOutCases, StudyContext
from nnunetv2_freetumor.plan import Section, Target

BUDGET = Budget(epochs=2, iterations=3, recipe="short")
TRAINING = TrainingCases(tuple(f"sick_{i}" for i in range(9)), tuple(f"healthy_{i}" for i in range(5)))
SETTINGS = command._settings((8, 4), 3)


def section(**changes):
    """Make a section whose prior was measured: its sizes differ from the bundled ones."""
    measured = dataclasses.replace(priors.load("liver"), lesions_per_patch=(1.0,))
    target = Target(
        name="liver",
        host_labels=(1,),
        tumor_label=2,
        lesion_labels=(2,),
        prior=measured,
        source="measured on 30 tumors",
    )
    return Section(targets=(target,), labels={"background": 0, "liver": 1, "tumor": 2}, plans_hash="x", **changes)


def arm_sections():
    """Make every arm's section from one that was measured."""
    return {name: arm.change(bundled(section())) for name, arm in ALL_ARMS.items()}


def test_the_smallest_setting_comes_first_then_the_label_free_one():
    assert [setting.name for setting in SETTINGS] == ["4 labeled", "label-free", "8 labeled"]


def test_no_case_is_trained_and_validated_on():
    for run in data.choose_cases(TRAINING, SETTINGS, 3):
        assert not set(run.training) & set(run.validation)
        assert run.validation


def test_a_quarter_of_the_labeled_cases_is_tumor_free_and_label_free_cases_all_are():
    for run in data.choose_cases(TRAINING, SETTINGS, 3):
        sick = sum(case.startswith("sick") for case in run.training)
        assert (len(run.training), sick) == {"4 labeled": (4, 3), "label-free": (3, 0), "8 labeled": (8, 6)}[
            run.setting
        ]


def test_seeds_train_on_other_cases_and_the_same_seed_on_the_same():
    runs, again = (data.choose_cases(TRAINING, SETTINGS, seeds) for seeds in (3, 2))
    assert len({run.training for run in runs if run.setting == "4 labeled"}) > 1
    assert set(again) < set(runs)


def test_every_run_is_a_fold_of_its_own():
    runs = data.choose_cases(TRAINING, SETTINGS, 3)
    assert len({run.fold for run in runs}) == len(runs) == 9


def test_too_few_cases_are_refused_with_their_numbers():
    with pytest.raises(ValueError, match="'16 labeled' needs 12 .* with tumors, 4 without, .* has 9 and 5.*--labeled"):
        data.choose_cases(TRAINING, [Setting("16 labeled", 16)], 1)


def test_a_setting_that_leaves_no_case_to_validate_on_is_refused():
    with pytest.raises(ValueError, match="one more to validate on"):
        data.choose_cases(TrainingCases(("a", "b", "c"), ("d",)), [Setting("4 labeled", 4)], 1)


def test_no_number_of_a_section_is_measured_on_the_studys_labels():
    target = bundled(section()).targets[0]
    assert target.prior == priors.load("liver")
    assert target.source.startswith("bundled prior liver")


def test_each_ablation_changes_one_factor_of_the_texture_arm():
    sections = arm_sections()
    base = plan.to_json(sections[TEXTURE_ARM])
    changed = {
        name: sorted(key for key in base if plan.to_json(made)[key] != base[key]) for name, made in sections.items()
    }
    assert changed["share_low"] == changed["share_high"] == ["probability_tumor_bearing", "probability_tumor_free"]
    assert changed["free_only"] == ["tumor_free_patches_only"]
    assert changed["fixed_radii"] == ["targets"]
    assert changed["after_intensity"] == [] and ALL_ARMS["after_intensity"].after_intensity


def test_ellipsoids_have_fixed_radii_and_smooth_surfaces():
    prior = arm_sections()["ellipsoids"].targets[0].prior
    assert [size.min_mm / 2 for size in prior.sizes] == list(FIXED_RADII_MM)
    assert all(size.max_mm - size.min_mm < 0.1 for size in prior.sizes)
    assert prior.shape.roughness == prior.shape.lobe_odds == (0.0, 0.0)


def test_an_assignment_survives_the_plans_file():
    runs = data.choose_cases(TRAINING, SETTINGS, 1)
    assignment = assignment_of(ALL_ARMS["ellipsoids"], BUDGET, runs)
    assert read_assignment(json.loads(json.dumps({ASSIGNMENT_KEY: plan.to_json(assignment)}))) == assignment


def test_plans_without_an_assignment_are_refused():
    with pytest.raises(ValueError, match="nnUNetPlans.json has no entry 'freetumor_study'.*nnUNetTrainerFreeTumor"):
        read_assignment({"plans_name": "nnUNetPlans"})


def test_a_judged_arm_is_judged_by_the_real_arm_of_the_same_setting_and_seed(tmp_path):
    runs = data.choose_cases(TRAINING, SETTINGS, 2)
    trials = command.list_trials(["real", "texture_judged", "lite"], SETTINGS, runs, 2)
    after = {trial.name: trial.after for trial in trials}
    assert after["4_labeled/texture_judged/seed_1"] == "4_labeled/real/seed_1"
    assert {after[name] for name in after if "judged" not in name} == {""}
    assert (
        assignment_of(ALL_ARMS["lite_judged"], BUDGET, runs).judged
        and arm_sections()["lite_judged"].generator == "lite"
    )
    assert {section.judge for section in arm_sections().values()} == {"off"}


def test_arms_whose_generator_does_not_serve_the_datasets_organs_stay_out_or_are_refused_by_name(capsys):
    kidney = dataclasses.replace(section().targets[0], prior=priors.load("kidney"))
    plans = {plan.SECTION: plan.to_json(dataclasses.replace(section(), targets=(kidney,)))}
    assert data.servable(plans, ["real", "texture", "lite", "threshold"], asked=False) == [
        "real",
        "texture",
        "threshold",
    ]
    assert "Leaving out the arm 'lite'. The generator 'lite" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--arms: 'lite' cannot run on this dataset. .* needs 'kidney'"):
        data.servable(plans, ["lite"], asked=True)
    assert data.servable({plan.SECTION: plan.to_json(section())}, ["lite"], asked=True) == ["lite"]


def test_a_judged_arm_without_its_judge_is_refused(tmp_path):
    runs = data.choose_cases(TRAINING, SETTINGS, 1)
    context = StudyContext(
        tmp_path,
        "D",
        "3d",
        "cpu",
        False,
        HeldOutCases(tmp_path, tmp_path, Labels((), frozenset({0}), None, ".nii.gz", ())),
        {},
    )
    with pytest.raises(
        ValueError, match="texture_judged needs the network of the arm real as judge.*Add real to --arms"
    ):
        command._check_judges(context, command.list_trials(["texture_judged"], SETTINGS, runs, 1))
    command._check_judges(context, command.list_trials(["texture_judged", "real"], SETTINGS, runs, 1))


def test_all_seeds_of_the_smallest_and_the_label_free_setting_come_before_the_others():
    runs = data.choose_cases(TRAINING, SETTINGS, 2)
    trials = command.list_trials([*ARMS, THRESHOLD_ARM], SETTINGS, runs, 2)
    settings = [trial.setting for trial in trials]
    assert settings.index("8 labeled") == len(settings) - settings.count("8 labeled")


def test_arms_that_need_real_tumors_stay_out_of_the_label_free_setting():
    runs = data.choose_cases(TRAINING, SETTINGS, 1)
    trials = command.list_trials([*ARMS, THRESHOLD_ARM], SETTINGS, runs, 1)
    assert [t.arm for t in trials if t.setting == "label-free"] == [
        "ellipsoids",
        "texture",
        "lite",
        "threshold",
    ]


def test_a_frozen_protocol_cannot_be_changed(tmp_path):
    protocol.keep(tmp_path / "protocol.json", {"seeds": 3, "budget": 1})
    protocol.keep(tmp_path / "protocol.json", {"seeds": 3, "budget": 1})
    with pytest.raises(ValueError, match="protocol.json was frozen with another seeds.*another folder with -o"):
        protocol.keep(tmp_path / "protocol.json", {"seeds": 4, "budget": 1})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"labeled": (4, 4)}, "--labeled must be different numbers"),
        ({"labeled": (), "label_free_cases": 0}, "--labeled must be given unless there are label-free cases"),
        ({"label_free_cases": -1}, "--label-free-cases must be 0 or more"),
        ({"seeds": 0}, "--seeds must be 1 to 100"),
        ({"jobs": 0}, "--jobs must be 1 or more"),
        ({"hours": 0.0}, "--hours must be above 0"),
        ({"arms": ["texture", "magic"]}, "--arms must be some of real, .*, threshold, but it contains magic"),
        ({"device": "tpu"}, "-device must be cpu or cuda"),
        ({"epochs": -1}, "--epochs and --iterations must be 1 or more"),
    ],
)
def test_a_wrong_option_ends_before_anything_is_made(tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        command.study_command(tmp_path / "study", **options)
    assert not list((tmp_path / "study").glob("*"))
