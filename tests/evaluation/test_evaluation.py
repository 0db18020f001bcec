"""nnUNetv2_freetumor evaluate: what it reads, what it writes, and what it refuses before any scoring."""

import csv
import json
import math
import shlex

import numpy as np
import pytest
from evaluation_examples import PAIR, SPACING_MM, Folders, evaluation, label_map, two_cases
from nnunet_folders import LIVER, write_volume

from nnunetv2_freetumor import cli
from nnunetv2_freetumor.evaluation.command import evaluate_command
from nnunetv2_freetumor.evaluation.files import as_json
from nnunetv2_freetumor.evaluation.inputs import read_scored_labels
from nnunetv2_freetumor.evaluation.results import evaluation_text, p_text
from nnunetv2_freetumor.evaluation.scores import Pair
from nnunetv2_freetumor.evaluation.volumes import read_probability
from nnunetv2_freetumor.plan import SECTION, Section, Target, to_json
from nnunetv2_freetumor.priors import load
from nnunetv2_freetumor.training import lesion_evaluation


def run(folders, **options):
    """Evaluate in this process and give evaluation.json, read without the NaN that strict JSON does not know."""
    given = {"references": folders / "ref", "predictions": folders / "pred", "dataset_json": folders.djfile}
    evaluate_command(**{**given, "processes": 1, **options})
    output = options.get("output", folders / "pred" / "freetumor_evaluation")
    return json.loads((output / "evaluation.json").read_text(), parse_constant=lambda text: pytest.fail(text))


@pytest.fixture
def folders(tmp_path):
    return two_cases(tmp_path)


# What it does


def test_a_lesion_found_a_lesion_missed_and_a_false_alarm_are_counted(folders):
    result = run(folders)["pairs"]["tumor"]
    assert result["labels"] == {"tumor": [2], "host": [1]}
    summary = result["summaries"]["predictions"]
    assert (summary["cases"], summary["tumor_free_cases"], summary["lesions"]) == (2, 1, 2)
    assert summary["sensitivity"]["all"]["value"] == 0.5 and summary["false_positives_per_scan"]["value"] == 0.5
    assert summary["froc"] == [] and summary["auroc"]["value"] is None
    first, second = result["cases"]["predictions"]
    assert [lesion["found"] for lesion in first["lesions"]] == [True, False]
    assert second["dice"] == 0 and second["predictions"][0]["kind"] == "false positive"


def test_the_csv_has_a_line_for_every_lesion_and_every_prediction(folders):
    run(folders)
    with (folders / "pred/freetumor_evaluation/lesions.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["case"], line["from"]) for line in lines] == [
        ("a", "reference"),
        ("a", "reference"),
        ("a", "prediction"),
        ("b", "prediction"),
    ]
    missed = lines[1]
    assert (missed["found"], missed["surface_distance_mm"], missed["kind"]) == ("False", "", "")
    assert [missed[f"center_{axis}"] for axis in "zyx"] == ["5", "17", "17"]


def test_the_table_is_printed_and_given_and_says_that_there_are_no_probabilities(folders, capsys):
    paths = (folders / "ref", folders / "pred", folders.djfile)
    text = evaluate_command(*paths, processes=1)
    assert capsys.readouterr().out == text + "\n"
    assert "tumor (label 2 in label 1): 2 lesions in 2 scans, 1 of them tumor-free" in text
    assert "sensitivity all" in text and "has no probabilities (CASE.npz), so there is no FROC" in text
    assert max(map(len, text.split("Note:")[0].splitlines())) <= 120


def test_the_table_stays_narrow_beside_another_model_and_p_values_are_readable():
    assert max(map(len, evaluation_text(evaluation()).split("Note:")[0].splitlines())) <= 120
    assert [p_text(p) for p in (0.0004, 0.04, math.nan)] == ["<0.001", "0.040", "-"]


def test_probabilities_give_froc_and_auroc(folders):
    folders.probabilities("pred", a=label_map((4, 6, 6)), b=label_map((5, 12, 12)))
    result = run(folders)["pairs"]["tumor"]
    summary = result["summaries"]["predictions"]
    assert len(summary["froc"]) == 11 and summary["auroc"]["value"] == 0.5
    assert result["cases"]["predictions"][0]["probability"] == pytest.approx(0.9)


def test_another_model_is_compared_case_by_case(folders):
    folders.write("better", a=label_map((4, 6, 6), (5, 17, 17)), b=label_map())
    result = run(folders, other=folders / "better")["pairs"]["tumor"]
    assert result["summaries"]["other"]["sensitivity"]["all"]["value"] == 1
    assert result["comparison"]["sensitivity all"]["value"] == -0.5
    assert result["comparison"]["false positives per scan"]["value"] == 0.5


def test_an_external_cohort_gives_a_gap(folders):
    folders.write("ref2", z=label_map((4, 6, 6)))
    folders.write("pred2", z=label_map((4, 6, 6)))
    result = run(folders, external=[folders / "ref2", folders / "pred2"])["pairs"]["tumor"]
    assert result["gap"]["sensitivity all"]["value"] == 0.5
    assert result["gap"]["false positives per scan"]["value"] == -0.5


@pytest.mark.slow
def test_several_processes_score_as_one_does(folders):
    assert run(folders, processes=2, output=folders / "two") == run(folders, processes=1, output=folders / "one")


def test_patients_and_rule_are_taken_and_told(folders):
    (folders / "patients.json").write_text('{"a": "p", "b": "p"}')
    result = run(
        folders, patients=folders / "patients.json", bounds_mm=[5, 15], min_iou=0.9, tolerance_mm=1.0, min_voxels=3
    )
    assert result["rule"] == {"min_iou": 0.9, "bounds_mm": [5.0, 15.0], "tolerance_mm": 1.0, "min_voxels": 3}
    assert set(result["pairs"]["tumor"]["summaries"]["predictions"]["sensitivity"]) == {
        "<5 mm", "5-15 mm", ">=15 mm", "all",
    }  # fmt: skip
    assert [case["patient"] for case in result["pairs"]["tumor"]["cases"]["predictions"]] == ["p", "p"]


def test_chill_scores_what_has_a_prediction_and_says_so(folders):
    folders.write("ref", c=label_map())
    result = run(folders, chill=True)
    assert result["pairs"]["tumor"]["summaries"]["predictions"]["cases"] == 2
    assert result["notes"][0] == f"Not scored, because they are missing in {folders / 'pred'}: c."


def test_what_the_reference_ignores_counts_on_neither_side(tmp_path):
    folders = Folders(tmp_path, {**LIVER, "ignore": 3})
    reference = label_map((4, 6, 6))
    reference[:, 12:] = 3
    folders.write("ref", a=reference)
    folders.write("pred", a=label_map((4, 6, 6), (5, 17, 17)))
    summary = run(folders)["pairs"]["tumor"]["summaries"]["predictions"]
    assert summary["false_positives_per_scan"]["value"] == 0 and summary["dice"]["value"] == 1


# Labels


def test_each_tumor_label_is_a_pair_and_one_label_in_several_organs_is_scored_once(tmp_path):
    two = {"background": 0, "liver": 1, "liver_tumor": 2, "kidney": 3, "kidney_tumor": 4}
    assert read_scored_labels(Folders(tmp_path, two).djfile).pairs == (
        Pair("liver_tumor", (2,), (1,)),
        Pair("kidney_tumor", (4,), (3,)),
    )
    shared = {"background": 0, "liver": 1, "kidney": 2, "pancreas": 3, "tumor": 4}
    assert read_scored_labels(Folders(tmp_path, shared).djfile).pairs == (Pair("tumor", (4,), (1, 2, 3)),)


def test_regions_have_a_channel_each_and_labels_one_each_with_background(tmp_path):
    labels = read_scored_labels(Folders(tmp_path, {**LIVER, "ignore": 3}).djfile)
    assert labels.channels == ((0,), (1,), (2,)) and labels.ignore == 3 and labels.values == {0, 1, 2, 3}
    regions = {"background": 0, "liver": [1, 2], "liver_tumor": [2]}
    labels = read_scored_labels(Folders(tmp_path, regions).djfile)
    assert labels.channels == ((1, 2), (2,)) and labels.pairs == (Pair("liver_tumor", (2,), (1,)),)
    assert labels.channel_of(labels.pairs[0]) == 1


def test_the_plans_section_tells_tumor_and_host(tmp_path):
    names = {"background": 0, "parenchyma": 1, "class_2": 2}
    folders = Folders(tmp_path, names)
    target = Target(
        name="liver", host_labels=(1,), tumor_label=2, lesion_labels=(2,), prior=load("liver"), source="bundled"
    )
    plans = folders / "plans.json"
    plans.write_text(json.dumps({SECTION: to_json(Section(targets=(target,), labels=names, plans_hash=""))}))
    assert read_scored_labels(folders.djfile, plans).pairs == (Pair("class_2", (2,), (1,)),)
    other = Folders(tmp_path, LIVER)
    with pytest.raises(ValueError, match="section was made for the labels .*parenchyma.* or leave out -pfile"):
        read_scored_labels(other.djfile, plans)


def test_one_channel_of_the_probabilities_is_read_whatever_their_layout(tmp_path):
    folders = two_cases(tmp_path)
    labels = read_scored_labels(folders.djfile)
    chances = np.random.default_rng(1).random((3, 4, 5, 6)).astype(np.float32)
    nothing = np.zeros((4, 5, 6), np.int32)
    for name, array in (("c", chances), ("columns", np.asfortranarray(chances))):
        np.savez_compressed(tmp_path / f"{name}.npz", probabilities=array)
        read = read_probability(tmp_path / f"{name}.npz", labels, PAIR, nothing)
        assert np.array_equal(read, chances[2])


def test_strict_json_has_no_nan():
    assert as_json({"a": (math.nan, np.float32(1), np.arange(2), math.inf)}) == {"a": [None, 1.0, [0, 1], None]}


# What it refuses


def _no_tumor(folders):
    folders.djfile.write_text(json.dumps({"labels": {"background": 0, "spleen": 1}, "file_ending": ".nii.gz"}))


def _other_spacing(folders):
    write_volume(label_map(), folders / "pred/b.nii.gz", (4.0, 2.0, 2.5))


def _wrong_probabilities(folders):
    folders.probabilities("pred", a=label_map(), b=label_map())


REFUSED = {
    "no folder": (lambda f: None, {"references": "nowhere"}, "There is no folder nowhere"),
    "no dataset.json": (lambda f: None, {"dataset_json": "gone.json"}, "There is no file gone.json; -djfile must"),
    "broken dataset.json": (lambda f: f.djfile.write_text("{"), {}, "-djfile.* cannot be read as JSON"),
    "no labels": (lambda f: f.djfile.write_text("{}"), {}, r"must hold 'labels', 'file_ending', but lacks"),
    "no tumor label": (_no_tumor, {}, "names no supported organ.*(?s:.*)Then give that plans file with -pfile"),
    "nothing in common": (
        lambda f: [(f / f"pred/{c}.nii.gz").rename(f / f"pred/x{c}.nii.gz") for c in "ab"],
        {},
        r"have no case in common: their files \*\.nii\.gz are a, b and xa, xb",
    ),
    "missing prediction": (lambda f: f.write("ref", c=label_map()), {}, "lacks 1 of the 3 cases .* has: c.*--chill"),
    "missing reference": (
        lambda f: f.write("pred", c=label_map()),
        {},
        "holds predictions without a reference in .*: c.*--chill",
    ),
    "other shape": (
        lambda f: f.write("pred", b=label_map()[:-1]),
        {},
        r"must be on the same grid, but differ in size \(z, y, x\) \(10, 24, 24\) against \(9, 24, 24",
    ),
    "other spacing": (_other_spacing, {}, r"differ in spacing in mm \(4\.0, 2\.0, 2\.0\) against \(4\.0, 2\.0, 2\.5\)"),
    "unknown label": (
        lambda f: f.write("pred", b=label_map() * 4),
        {},
        "holds the label 4, but dataset.json only has 0",
    ),
    "some probabilities": (
        lambda f: f.probabilities("pred", a=label_map()),
        {},
        r"has probabilities \(CASE\.npz\) of 1 cases, but not of b",
    ),
    "probabilities of another case": (_wrong_probabilities, {}, "does not belong to the prediction next to it"),
    "probabilities of another size": (
        lambda f: f.probabilities("pred", a=label_map()[1:], b=label_map()),
        {},
        r"a\.npz holds probabilities of shape \(3, 9, 24, 24\), but .* need \(3, 10, 24, 24\)",
    ),
    "no probabilities inside": (
        lambda f: [np.savez(f / f"pred/{c}.npz", softmax=np.zeros(1)) for c in "ab"],
        {},
        "cannot be read as nnU-Net's probabilities .*probabilities.npy",
    ),
    "falling bounds": (lambda f: None, {"bounds_mm": [20, 10]}, "--bounds-mm must be rising and above 0, .* is 20 10"),
    "no overlap": (lambda f: None, {"min_iou": 0.0}, "--min-iou must be above 0 and at most 1, but it is 0"),
    "no tolerance": (lambda f: None, {"tolerance_mm": 0.0}, "--tolerance-mm must be above 0"),
    "no voxels": (lambda f: None, {"min_voxels": 0}, "--min-voxels must be 1 or more"),
    "no processes": (lambda f: None, {"processes": 0}, "-np must be 1 or more"),
    "one external folder": (lambda f: None, {"external": ["x"]}, "-external needs two folders, LABELS PREDICTIONS"),
    "images are missing": (lambda f: None, {"images": "nowhere"}, r"CASE_0000\.nii\.gz of each case, but a_0000"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_scored_is_refused_by_name_and_leaves_no_result(kind, folders):
    change, options, message = REFUSED[kind]
    change(folders)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        run(folders, **options)
    assert not (folders / "pred/freetumor_evaluation/evaluation.json").exists()


def test_another_model_without_all_cases_is_refused_also_with_chill(folders):
    folders.write("other", a=label_map())
    with pytest.raises(ValueError, match="other must hold every case that it is compared on, but it lacks b"):
        run(folders, other=folders / "other", chill=True)
    with pytest.raises(ValueError, match="other lacks 1 of the 2 cases"):
        run(folders, other=folders / "other")


def test_patients_must_name_every_case(folders):
    (folders / "patients.json").write_text('{"a": "p"}')
    with pytest.raises(ValueError, match="--patients must name a patient for each case, but it lacks b"):
        run(folders, patients=folders / "patients.json")


def test_a_users_mistake_is_one_line_on_the_command_line(folders, capsys):
    words = ["evaluate", "-ref", "nowhere", "-pred", str(folders / "pred"), "-djfile", str(folders.djfile)]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith("nnUNetv2_freetumor: error: There is no folder nowhere")


# After training


@pytest.fixture
def model(folders, monkeypatch):
    """Return a fold's folder as nnU-Net leaves it: only the validation cases are predicted."""
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    (folders / "fold_0").mkdir()
    (folders / "pred").rename(folders / "fold_0/validation")
    folders.write("ref", training_case=label_map())
    (folders / "plans.json").write_text("{}")
    return folders


def test_validation_predictions_are_scored_beside_summary_json(model, capsys):
    text = lesion_evaluation.evaluate_validation(model / "fold_0", model / "ref")
    assert (model / "fold_0/validation/freetumor_evaluation/evaluation.json").is_file()
    assert text.startswith(
        "FreeTumor: lesion-level evaluation of the validation cases\ntumor (label 2 in label 1): 2 lesions in 2 scans"
    )


def test_a_label_free_set_is_scored_for_its_false_alarms(tmp_path):
    folders = Folders(tmp_path)
    folders.write("ref", a=label_map(), b=label_map())
    folders.write("pred", a=label_map(), b=label_map((5, 12, 12)))
    summary = run(folders)["pairs"]["tumor"]["summaries"]["predictions"]
    assert summary["lesions"] == 0 and summary["false_positives_per_scan"]["value"] == 0.5


def test_what_cannot_be_scored_after_training_is_told_with_the_command_that_repeats_it(model, capsys):
    (model / "dataset.json").unlink()
    text = lesion_evaluation.evaluate_validation(model / "fold_0", model / "ref")
    assert text.startswith("WARNING: FreeTumor: the validation predictions were not scored at lesion level: There is")
    program, *words = shlex.split(text.splitlines()[-1])
    assert program == "nnUNetv2_freetumor"
    options = vars(cli.build_parser().parse_args(words))
    assert options.pop("command") == "evaluate" and options["chill"]
    assert options["predictions"] == str(model / "fold_0/validation")
    assert capsys.readouterr().out == text + "\n"


def test_spacing_is_the_files_own(folders):
    lesion = run(folders)["pairs"]["tumor"]["cases"]["predictions"][0]["lesions"][0]
    voxels = int((label_map((4, 6, 6)) == 2).sum())
    assert lesion["volume_ml"] == pytest.approx(voxels * math.prod(SPACING_MM) / 1000)
