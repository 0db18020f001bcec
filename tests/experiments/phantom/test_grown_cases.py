"""Tumors grown in a scan: inside the organ only, real noise kept, same seed same tumor; and the cases made of them."""

import dataclasses
import json
import re

import numpy as np
import pytest
from phantom_examples import SHAPE, SPACING_MM, scan

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.experiments.bundled import command
from nnunetv2_freetumor.experiments.phantom import tumors
from nnunetv2_freetumor.experiments.phantom.growing import grow_in_case
from nnunetv2_freetumor.files.cases import read_case, read_label, write_case
from nnunetv2_freetumor.generators.weights import Card
from nnunetv2_freetumor.plan import Section, Target, read_section, to_json


@pytest.mark.parametrize("family", tumors.FAMILIES + tumors.HELD_OUT_FAMILIES)
def test_tumors_grow_inside_the_organ_and_nothing_else_changes(family):
    image, host = scan()
    grown = grow_in_case(image, host, 2, [1], family, diameter_mm=(10.0, 20.0))
    tumor = grown.label.array == 2
    assert tumor.sum() * 6.75 > 2 * 200 and not (tumor & ~host).any()
    assert np.array_equal(grown.image.array[~host], image.array[~host])
    assert np.array_equal(grown.label.array > 0, host)


def test_a_tumor_keeps_the_scanner_s_noise_and_differs_from_its_organ():
    image, host = scan()
    grown = grow_in_case(image, host, 1, [3], "compact", diameter_mm=(24.0, 25.0))
    tumor = grown.label.array == 2
    rough = [
        np.abs(np.diff(case.array.astype(float), axis=2))[:, :, :-1][tumor[:, :, 1:-1]].mean()
        for case in (image, grown.image)
    ]
    assert 0.6 < rough[1] / rough[0] < 1.2
    assert abs(grown.image.array[tumor].mean() - image.array[tumor].mean()) > 8


def test_the_same_seed_grows_the_same_tumors_and_another_seed_others():
    image, host = scan()
    first, again, other = (grow_in_case(image, host, 2, [seed], diameter_mm=(8.0, 15.0)) for seed in (5, 5, 6))
    assert np.array_equal(first.image.array, again.image.array)
    assert not np.array_equal(first.label.array, other.label.array)


def test_the_contrast_follows_the_phase_of_the_scan():
    depth = []
    for host_hu in (55.0, 110.0):
        image, host = scan(host_hu)
        grown = grow_in_case(image, host, 1, [9], "budding", diameter_mm=(20.0, 21.0))
        depth.append(host_hu - grown.image.array[grown.label.array == 2].mean())
    assert 0 < depth[0] < depth[1]


def dataset(tmp_path):
    """Write an empty raw dataset and one scan with its label map."""
    image, host = scan()
    write_case(image, tmp_path / "ct.nii.gz")
    write_case(image.with_array(host.astype(np.uint8)), tmp_path / "liver.nii.gz")
    write_case(image.with_array(np.zeros(SHAPE, np.uint8)), tmp_path / "empty.nii.gz")
    raw = tmp_path / "raw"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    (raw / "dataset.json").write_text(
        json.dumps({"numTraining": 0, "labels": {"background": 0, "liver": 1, "tumor": 2}})
    )
    return raw


def test_each_real_scan_gives_variants_and_the_dataset_says_that_no_tumor_is_real(tmp_path):
    raw = dataset(tmp_path)
    command.write_grown_cases(raw, [(tmp_path / "ct.nii.gz", tmp_path / "liver.nii.gz")])
    labels = [read_label(path).array for path in sorted((raw / "labelsTr").glob("*.nii.gz"))]
    assert len(labels) == command.VARIANTS and all((label == 2).any() for label in labels)
    assert not np.array_equal(labels[0], labels[1])
    assert read_case(raw / "imagesTr" / "real_00_0_0000.nii.gz").spacing_mm == pytest.approx(SPACING_MM)
    written = json.loads((raw / "dataset.json").read_text())
    assert written["numTraining"] == command.VARIANTS and written["phantoms"] is True


def test_what_cannot_be_grown_in_is_named(tmp_path):
    raw = dataset(tmp_path)
    with pytest.raises(ValueError, match="empty.nii.gz has no voxel of label 1, the liver"):
        command.write_grown_cases(raw, [(tmp_path / "ct.nii.gz", tmp_path / "empty.nii.gz")])
    with pytest.raises(ValueError, match="--real takes pairs of files, CT LABEL CT LABEL ..., but 3 were given"):
        command.make_bundled_command(tmp_path, ["a", "b", "c"], "someone")
    with pytest.raises(ValueError, match=re.escape("--attribution is missing: the card must give source and license")):
        command.make_bundled_command(tmp_path, ["a", "b"])


def test_the_bundled_card_names_no_real_tumor_and_no_case_of_a_dataset():
    trained = Card(
        name="x",
        kind="lite",
        hosts=("liver",),
        window_hu=(-175.0, 250.0),
        spacing_mm=(1.5, 1.5, 1.5),
        side_voxels=(32, 32, 32),
        sign=-1,
        activation="tanh",
        recipe="lite",
        training_data="Dataset902",
        training_cases=("phantom_000",),
        real_tumors=("liver",),
    )
    card = command.finish_card(trained, 3, "Someone, CC BY 4.0")
    assert card.real_tumors == () and card.training_cases == () and card.dataset == ""
    assert "4 variants of each of 3 real CTs (Someone, CC BY 4.0)" in card.training_data
    assert "real CT" not in command.finish_card(trained, 0, "").training_data
    assert "No real tumor" in card.not_seen


def test_the_bundled_generator_learns_over_the_measured_and_over_the_bundled_prior(tmp_path):
    prior = priors.load("liver")
    texture = dataclasses.replace(prior.texture, edge_depth_mm=0.2)
    measured = Target(
        name="liver",
        tumor_label=2,
        lesion_labels=(2,),
        prior=dataclasses.replace(prior, texture=texture),
        source="measured",
        host_labels=(1,),
    )
    section = Section(targets=(measured,), labels={}, plans_hash="")
    path = tmp_path / "nnUNetPlans.json"
    path.write_text(json.dumps({"freetumor": to_json(section)}))
    command._write_recipe(path, {"judge_weight": 0.0})
    written = read_section(json.loads(path.read_text())["freetumor"])
    assert [target.prior.texture for target in written.targets] == [texture, prior.texture]
    assert (written.recipe, written.judge, written.recipe_changes) == ("lite", "off", {"judge_weight": 0.0})
