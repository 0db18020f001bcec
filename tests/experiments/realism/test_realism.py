"""Telling planted lesions from real ones: what is measured, who is compared with whom, and what is reported."""

import csv
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunetv2_freetumor import plan, priors
from nnunetv2_freetumor.experiments.phantom.cohort import IDENTITY
from nnunetv2_freetumor.experiments.realism import classifier, command
from nnunetv2_freetumor.experiments.realism.classifier import (
    Pairs,
    Votes,
    assess,
    auc_of,
    compare_generators,
    forest,
    halves,
    vote,
)
from nnunetv2_freetumor.experiments.realism.command import realism_command
from nnunetv2_freetumor.experiments.realism.contestants import make_contestants
from nnunetv2_freetumor.experiments.realism.data import find_cases, make_phantoms, prior_by_name
from nnunetv2_freetumor.experiments.realism.features import FEATURES, SHAPE_FEATURES, describe_shape, measure_lesion
from nnunetv2_freetumor.experiments.realism.pairs import Pairing, collect
from nnunetv2_freetumor.files.cases import Case, write_case
from nnunetv2_freetumor.offline.one_case import make_target
from nnunetv2_freetumor.offline.planting import plant
from nnunetv2_freetumor.synthesis.texture import TextureGenerator

MEASURE_SHAPE = Path(__file__).parents[4] / "shared" / "facts" / "measure_shape.py"
SPACING_MM = (4.0, 1.5, 1.5)
SHAPE_ZYX = (26, 64, 64)
PATIENTS, LESIONS = 8, 4
SIZES_MM = (11.0, 13.0, 15.0, 17.0)


@pytest.fixture(autouse=True)
def small_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grow few trees, so that the tests stay fast."""
    monkeypatch.setattr(classifier, "_TREES", 40)
    monkeypatch.setattr(classifier, "_SHUFFLES", 1)


def _ball(diameter_mm: float, shape=SHAPE_ZYX, spacing_mm=SPACING_MM) -> np.ndarray:
    axes = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    return sum((axis * step) ** 2 for axis, step in zip(axes, spacing_mm)) <= (diameter_mm / 2) ** 2


def _scan(noise_hu: float = 12.0, seed: int = 0) -> np.ndarray:
    return 110 + noise_hu * np.random.default_rng(seed).normal(size=SHAPE_ZYX).astype(np.float32)


def _feature(values: np.ndarray, name: str) -> float:
    return float(values[FEATURES.index(name)])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write patients whose 'real' tumors the texture generator drew, of four sizes each."""
    root = tmp_path_factory.mktemp("cohort")
    images, labels = root / "images", root / "labels"
    for folder in (images, labels):
        folder.mkdir()
    target = make_target(priors.load("liver"), (1,), 2)
    for patient in range(PATIENTS):
        hu = np.rint(_scan(seed=patient)).astype(np.int16)
        where = (Path("image"), Path("label"))
        scan, label = (
            Case(array, SPACING_MM, (0.0, 0.0, 0.0), IDENTITY, path)
            for array, path in zip((hu, np.ones(SHAPE_ZYX, np.uint8)), where)
        )
        for lesion, size in enumerate(SIZES_MM):
            section = Pairing(target, 1000 * patient + lesion + 7).section(size)
            planting = plant(scan, label, section, 1, torch.device("cpu"), TextureGenerator())
            scan, label = planting.image, planting.label
        write_case(scan, images / f"p{patient}_0000.nii.gz")
        write_case(label, labels / f"p{patient}.nii.gz")
    return images, labels


def _pairs(count: int = 16, each: int = 6, shift: float = 0.0, seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    real, planted = rng.normal(size=(2, count * each, len(FEATURES)))
    planted[:, 0] += shift
    return Pairs(real, planted, np.repeat(np.arange(count), each))


def test_shape_is_measured_as_the_real_tumors_were():
    if not MEASURE_SHAPE.is_file():
        pytest.skip("the reference measurement of ../shared/facts is not there")
    spec = importlib.util.spec_from_file_location("measure_shape", MEASURE_SHAPE)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    lesion = _ball(16.0) | np.roll(_ball(9.0), 5, axis=2)
    theirs = reference.measure(lesion[ndimage.find_objects(lesion.astype(int))[0]], SPACING_MM)
    mine = dict(zip(SHAPE_FEATURES, describe_shape(lesion, np.array(SPACING_MM))))
    assert math.exp(mine["ln volume mm3"]) == pytest.approx(theirs["volume_mm3"])
    for name, key in (
        ("elongation", "elongation_2_1"),
        ("flatness", "flatness_3_1"),
        ("sphericity", "sphericity_smooth"),
        ("solidity", "solidity"),
    ):
        assert mine[name] == pytest.approx(theirs[key], rel=1e-5)


def test_contrast_noise_and_edge_are_read_in_hu_and_mm():
    spacing_mm, shape = (1.0, 1.0, 1.0), (56, 56, 56)
    axes = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    distance = np.sqrt(sum(axis**2.0 for axis in axes)) - 10
    noise = 10 * np.random.default_rng(0).normal(size=shape)
    measured = {}
    for depth_mm, scale_mm in ((0.0, 0.3), (2.0, 0.3), (0.0, 1.2)):
        hu = (100 + noise - 60 / (1 + np.exp((distance + depth_mm) / scale_mm))).astype(np.float32)
        measured[depth_mm, scale_mm] = measure_lesion(hu, distance <= 0, np.ones(shape, bool), spacing_mm)
    sharp, inset, soft = measured.values()
    assert _feature(sharp, "core contrast HU") == pytest.approx(-60, abs=3)
    assert _feature(sharp, "half-contrast depth mm") == pytest.approx(0, abs=0.5)
    assert _feature(inset, "half-contrast depth mm") == pytest.approx(2, abs=0.6)
    assert _feature(soft, "edge width 10-90 mm") > _feature(sharp, "edge width 10-90 mm") + 1.5
    assert _feature(sharp, "fine band inside / host") == pytest.approx(0, abs=0.1)
    assert _feature(sharp, "contrast +3..+4 mm HU") == pytest.approx(0, abs=3)
    assert all(np.isfinite(values).all() for values in measured.values())


def test_smoothed_noise_shows_in_the_texture():
    hu, lesion = _scan(), _ball(24.0)
    smooth = np.where(lesion, 110 + 0.3 * (hu - 110), hu)
    plain, smoothed = (measure_lesion(image, lesion, np.ones_like(lesion), SPACING_MM) for image in (hu, smooth))
    assert _feature(plain, "fine band inside / host") == pytest.approx(0, abs=0.1)
    assert _feature(smoothed, "fine band inside / host") == pytest.approx(math.log(0.3), abs=0.15)
    assert _feature(smoothed, "gradient inside / host") < -0.6


def test_a_lesion_without_host_around_it_is_not_measured():
    lesion = _ball(14.0)
    assert measure_lesion(_scan(), lesion, np.zeros_like(lesion), SPACING_MM) is None


def test_lesions_of_one_kind_cannot_be_told_apart_and_shifted_ones_can():
    same, apart = _pairs(), _pairs(shift=6.0)
    assert auc_of(vote(forest(0), same), same.patient, 0).value == pytest.approx(0.5, abs=0.12)
    found = assess("apart", apart, 0)
    assert found.auc.value > 0.98 and found.auc_linear.value > 0.95
    assert found.clues[0].feature == FEATURES[0] and found.clues[0].shift_sd == pytest.approx(6, rel=0.25)
    assert found.clues[0].importance == max(clue.importance for clue in found.clues) > 0.1
    assert found.by_group["intensity"].value > 0.98
    assert found.by_group["shape"].value == pytest.approx(0.5, abs=0.15)


def test_the_auc_is_the_share_of_pairs_won_and_its_interval_holds_it():
    votes, patient = Votes(np.array([0.9, 0.6, 0.3]), np.array([0.5, 0.6, 0.1])), np.array([0, 1, 1])
    found = auc_of(votes, patient, 0)
    assert found.value == pytest.approx((3 + 2.5 + 1) / 9)
    assert found.low <= found.value <= found.high and found.count == 3


def test_two_generators_are_compared_on_the_same_lesions():
    rng, patient = np.random.default_rng(1), np.repeat(np.arange(10), 4)
    clear = Votes(rng.uniform(0.6, 1, 40), rng.uniform(0, 0.4, 40))
    unclear = Votes(rng.uniform(0, 1, 40), rng.uniform(0, 1, 40))
    assert compare_generators(clear, clear, patient, 0).value == 0
    found = compare_generators(clear, unclear, patient, 0)
    assert found.value == pytest.approx(auc_of(clear, patient, 0).value - auc_of(unclear, patient, 0).value)
    assert found.low > 0 and found.p < 0.01


def test_halves_pair_real_lesions_of_the_same_patient():
    pairs = _pairs(count=3, each=5)
    same = halves(pairs, 0)
    assert len(same.real) == len(same.planted) == 6 and np.bincount(same.patient).tolist() == [2, 2, 2]
    rows = {tuple(row) for row in np.concatenate([same.real, same.planted])}
    assert len(rows) == 12 and rows <= {tuple(row) for row in pairs.real}


def test_partners_have_the_size_of_the_real_lesion_and_are_the_same_for_all_generators(cohort, tmp_path):
    one = find_cases(*cohort, None, 1)[0]
    pairing = Pairing(make_target(priors.load("liver"), (1,), 2), 3)
    texture, constant = make_contestants(["texture", "constant"], "liver", 0)
    real, drawn, flat = (collect(one, source, pairing, tmp_path, "cpu") for source in (None, texture, constant))
    assert len(real.features) == LESIONS
    assert np.abs(np.log(drawn.diameter_mm / real.diameter_mm)).max() <= 0.15
    assert np.array_equal(drawn.outlines, flat.outlines) and not np.array_equal(drawn.tiles_hu, flat.tiles_hu)
    shape = [FEATURES.index(name) for name in SHAPE_FEATURES]
    assert np.array_equal(drawn.features[:, shape], flat.features[:, shape])


def test_what_was_measured_is_read_again_unless_something_changed(cohort, tmp_path):
    one = find_cases(*cohort, None, 1)[0]
    target = make_target(priors.load("liver"), (1,), 2)
    (texture,) = make_contestants(["texture"], "liver", 0)
    first = collect(one, texture, Pairing(target, 3), tmp_path, "cpu")
    never = texture._replace(build=lambda device: pytest.fail("it was measured before"))
    again = collect(one, never, Pairing(target, 3), tmp_path, "cpu")
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    other = collect(one, texture, Pairing(target, 4), tmp_path, "cpu")
    assert not np.array_equal(first.features, other.features)
    for file in tmp_path.rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:200])
    assert np.array_equal(collect(one, texture, Pairing(target, 3), tmp_path, "cpu").features, first.features)


@pytest.mark.slow
def test_texture_cannot_be_told_from_texture_but_constant_lesions_can(cohort, tmp_path, capsys):
    images, labels = map(str, cohort)
    realism_command(tmp_path, images, labels, host=[1], tumor=2, generators=["texture"], controls=True, device="cpu")
    report = json.loads((tmp_path / "realism.json").read_text())
    texture, constant = report["generators"]
    assert texture["auc"]["value"] == pytest.approx(0.5, abs=0.2) and texture["auc"]["low"] < 0.6
    assert constant["auc"]["value"] > 0.95
    assert report["control_real_against_real"]["low"] < 0.5 < report["control_real_against_real"]["high"]
    assert [report["differences"][0][key] for key in ("first", "second")] == ["texture", "constant"]
    assert report["differences"][0]["high"] < 0
    with (tmp_path / "realism.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * report["pairs"] and {row["source"] for row in rows} == {"real", "texture", "constant"}
    page = (tmp_path / "realism.html").read_text()
    assert page.count("data:image/png") == 2 and "src='http" not in page
    assert (tmp_path / "realism_texture.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "| texture " in printed and "What gives constant away" in printed
    assert (tmp_path / "realism.md").read_text().count("| generator") == 1


def test_untrained_weights_behind_the_published_interface_give_themselves_away(cohort):
    (contestant,) = make_contestants(["freetumor_random"], "liver", 0)
    generator, again = (contestant.build(torch.device("cpu")) for _ in range(2))
    assert generator.window_mm == again.window_mm > 0
    assert all(torch.equal(a, b) for a, b in zip(generator.network.parameters(), again.network.parameters()))


def test_phantoms_that_are_there_are_not_made_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("nnunetv2_freetumor.experiments.phantom.cohort._fill", asked.append)
    make_phantoms(tmp_path, 3, 1)
    assert len(asked) == 3 and {spec.options["family"] for spec in asked} == {"invading"}
    (tmp_path / "phantoms" / "labelsTs" / "test_001.nii.gz").touch()
    asked.clear()
    make_phantoms(tmp_path, 4, 1)
    assert [spec.case for spec in asked] == ["test_000", "test_002", "test_003"]
    (tmp_path / "phantoms" / "made_with.json").write_text("{}")
    with pytest.raises(ValueError, match="phantoms that were made with other settings. Choose another folder with -o"):
        make_phantoms(tmp_path, 3, 1)


def test_a_prior_can_come_from_a_plans_file(tmp_path):
    prior = priors.load("liver")
    section = plan.Section(targets=(make_target(prior, (1,), 2),), labels={}, plans_hash="")
    path = tmp_path / "plans.json"
    path.write_text(json.dumps({plan.SECTION: plan.to_json(section)}))
    assert prior_by_name(str(path), 2) == prior
    with pytest.raises(ValueError, match=r"has no target with --tumor 3, only 2 \(liver\)"):
        prior_by_name(str(path), 3)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has no freetumor section. Run 'nnUNetv2_freetumor plan'"):
        prior_by_name(str(path), 2)
    with pytest.raises(ValueError, match="must be a plans file or a bundled prior such as liver, but there is no file"):
        prior_by_name(str(tmp_path / "none.json"), 2)


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"labels": None}, "-i and -l belong together"),
        ({"labels": "nowhere"}, "-l must be a folder, but there is no folder nowhere"),
        ({"host": None}, "--host is missing"),
        ({"tumor": None}, "--tumor is missing"),
        ({"tumor": 1}, r"--tumor must be a label above 0 and none of --host \[1\], but it is 1"),
        ({"tumor": 5}, "20 or more tumors .label 5.* they hold 0 tumors, 0 of them with room. Check --tumor"),
        ({"host": [9]}, "has no voxel of host 9, only the labels 1, 2"),
        ({"cases": 3}, "--cases must be 8 or more, but it is 3"),
        ({"generators": ["nonsense"]}, "no generator named 'nonsense'.*Also possible: texture, constant"),
        ({"generators": ["texture", "texture"]}, "--generators must name at least one generator and each only once"),
        ({"prior": "nose"}, "nose"),
        ({"images": None, "labels": None}, "--host and --tumor belong to -i and -l"),
    ],
)
def test_wrong_input_is_refused_with_a_way_out(wrong, text, cohort, tmp_path):
    images, labels = map(str, cohort)
    given = {"images": images, "labels": labels, "host": [1], "tumor": 2, "device": "cpu"} | wrong
    with pytest.raises(ValueError, match=text):
        realism_command(tmp_path, **given)


def test_too_few_patients_and_missing_images_are_refused(cohort, tmp_path):
    images, labels = cohort
    few = tmp_path / "labels"
    few.mkdir()
    with pytest.raises(ValueError, match=r"must hold label maps CASE.nii.gz, but it holds none"):
        find_cases(images, few, None, None)
    (few / "p0.nii.gz").write_bytes((labels / "p0.nii.gz").read_bytes())
    with pytest.raises(ValueError, match="tumors of 8 or more patients are needed, but there are 1"):
        realism_command(tmp_path / "out", str(images), str(few), host=[1], tumor=2, device="cpu")
    with pytest.raises(ValueError, match="lacks p0"):
        find_cases(images, few, {"other": "a"}, None)
    (few / "stray.nii.gz").touch()
    with pytest.raises(ValueError, match="stray_0000.nii.gz is missing"):
        find_cases(images, few, None, None)
    assert command._PHANTOM_CASES == 24
