"""Synthetic tumors in one raw case: what changes, what must not, what is recorded, and each error's text."""

import json
from pathlib import Path

import numpy as np
import pytest
from generator_examples import lite, make_card

from nnunetv2_freetumor import __version__, cli
from nnunetv2_freetumor.files import cases
from nnunetv2_freetumor.files.cases import Case, case_name, read_case, read_label, write_case
from nnunetv2_freetumor.generators.weights import save_generator
from nnunetv2_freetumor.offline import planting
from nnunetv2_freetumor.offline.one_case import synthesize_case

REAL_CT = Path(__file__).parents[3] / "shared" / "data" / "ct"
TURNED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
ORIGIN_MM = (-50.0, 12.5, 300.0)


@pytest.fixture
def raw(tmp_path, organ_phantom):
    """Write a phantom as a raw case: an organ (1) and a small structure (3) in it."""
    image = organ_phantom.image[0, 0].round().numpy().astype(np.int16)
    label = organ_phantom.label[0, 0].numpy().astype(np.uint8)
    label[18:21, 26:28, 26:28] = 3
    for array, name in ((image, "patient_0000.nii.gz"), (label, "patient_label.nii.gz")):
        write_case(Case(array, organ_phantom.spacing_mm, ORIGIN_MM, TURNED, tmp_path / name), tmp_path / name)
    return tmp_path


def plant(raw, **changes):
    settings = {
        "image": raw / "patient_0000.nii.gz",
        "label": raw / "patient_label.nii.gz",
        "output": raw / "out",
        "prior": "liver",
        "host": 1,
        "tumor": 2,
        "diameter_mm": 14.0,
        "device": "cpu",
    }
    synthesize_case(**(settings | changes))
    return json.loads((raw / "out" / "patient.json").read_text())


def rewrite(raw, name, edit):
    case = read_case(raw / name)
    write_case(case._replace(array=edit(case.array)), raw / name)


def before_and_after(raw):
    images = [read_case(raw / name) for name in ("patient_0000.nii.gz", "out/patient_0000.nii.gz")]
    labels = [read_label(raw / name) for name in ("patient_label.nii.gz", "out/patient.nii.gz")]
    return *images, *labels


def test_everything_outside_the_host_stays_as_it_is(raw):
    plant(raw, lesions=2)
    image, new_image, label, new_label = before_and_after(raw)
    changed = (image.array != new_image.array) | (label.array != new_label.array)
    assert changed.any() and (label.array[changed] == 1).all()
    assert set(np.unique(new_label.array)) == {0, 1, 2, 3}
    for old, new in ((image, new_image), (label, new_label)):
        assert new.array.dtype == old.array.dtype and new[1:-1] == old[1:-1]


def test_a_learned_generator_of_a_file_draws_the_lesions_and_is_named(raw, capsys):
    path = raw / "mine.safetensors"
    save_generator(lite(), make_card(name="mine"), path)
    assert plant(raw, generator=str(path))["generator"] == "mine"
    assert f"FreeTumor: liver: generator mine ({path}), requested by name" in capsys.readouterr().out
    learned = before_and_after(raw)[1].array
    plant(raw)
    plain = before_and_after(raw)[1].array
    assert 0 < np.abs(learned - plain).max() <= 42  # the residual's bound and two roundings


def test_the_record_tells_where_the_lesions_are(raw):
    record = plant(raw, lesions=2, seed=3)
    image, new_image, label, new_label = before_and_after(raw)
    assert (record["version"], record["seed"], record["generator"]) == (__version__, 3, "texture")
    assert record["prior"] == "liver" and record["inputs"]["image"] == "patient_0000.nii.gz"
    assert record["requested"] == {"lesions": 2, "diameter_mm": 14.0}
    tumor = new_label.array == 2
    assert sum(lesion["volume_mm3"] for lesion in record["lesions"]) == pytest.approx(tumor.sum() * 12.0)
    in_patient = np.array([image.to_patient_mm(tuple(map(float, voxel))) for voxel in np.argwhere(tumor)])
    for lesion in record["lesions"]:
        assert lesion["diameter_mm"] == pytest.approx(14, rel=0.15)
        assert np.linalg.norm(in_patient - lesion["center_mm"], axis=1).min() < 3
        assert lesion["contrast_hu"] < -10
    first, second = (np.array(lesion["center_mm"]) for lesion in record["lesions"])
    assert np.linalg.norm(first - second) > 14


def test_the_same_seed_gives_the_same_tumor_and_another_seed_another(raw):
    new = []
    for seed in (1, 1, 2):
        plant(raw, seed=seed)
        new.append(before_and_after(raw)[1].array)
    assert (new[0] == new[1]).all() and (new[0] != new[2]).any()


def test_a_label_that_the_map_uses_already_is_said(raw, capsys):
    plant(raw)
    assert "Warning" not in capsys.readouterr().out
    plant(raw, tumor=3)  # the small structure, which is no tumor
    voxels = int((before_and_after(raw)[2].array == 3).sum())
    printed = capsys.readouterr().out
    assert f"Warning: Label 3 already marks {voxels} voxels; they count as real tumor and stay untouched." in printed
    assert "choose another --tumor." in printed


def test_real_tumors_of_the_case_stay_and_are_kept_clear(raw):
    rewrite(raw, "patient_label.nii.gz", lambda label: np.where(label == 3, 2, label).astype(np.uint8))
    plant(raw)
    _, _, label, new_label = before_and_after(raw)
    planted = np.argwhere((new_label.array == 2) & (label.array != 2)) * label.spacing_mm
    real = np.argwhere(label.array == 2) * label.spacing_mm
    assert (new_label.array[label.array == 2] == 2).all()
    assert np.linalg.norm(planted[:, None] - real[None], axis=-1).min() >= 5


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32])
def test_other_types_of_image_and_label_are_kept(raw, kind):
    rewrite(raw, "patient_0000.nii.gz", lambda image: image.astype(kind))
    rewrite(raw, "patient_label.nii.gz", lambda label: label.astype(kind))
    plant(raw)
    image, new_image, label, new_label = before_and_after(raw)
    assert new_image.array.dtype == new_label.array.dtype == kind
    assert (new_label.array == 2).any()
    assert (image.array == new_image.array)[label.array != 1].all()


def test_a_lung_without_a_label_is_found(raw):
    def lung(image):
        rng = np.random.default_rng(0)
        organ = read_label(raw / "patient_label.nii.gz").array > 0
        return np.where(organ, -800 + 20 * rng.standard_normal(image.shape), image).astype(np.int16)

    rewrite(raw, "patient_0000.nii.gz", lung)
    organ = read_label(raw / "patient_label.nii.gz").array == 1
    rewrite(raw, "patient_label.nii.gz", np.zeros_like)
    record = plant(raw, prior="lung", host=None)
    _, _, _, new_label = before_and_after(raw)
    assert len(record["lesions"]) == 1 and record["lesions"][0]["contrast_hu"] > 100
    assert organ[new_label.array == 2].mean() > 0.95 and set(np.unique(new_label.array)) == {0, 2}


def test_more_lesions_than_fit_are_said(raw, capsys, monkeypatch):
    monkeypatch.setattr(planting, "TRIES_PER_LESION", 2)
    record = plant(raw, lesions=9, diameter_mm=30.0)
    planted = len(record["lesions"])
    assert 1 <= planted < 9
    assert f"Planted {planted} of 9 lesion(s). There is no room for more" in capsys.readouterr().out


def test_a_host_smaller_than_the_smallest_lesion_is_said_and_is_no_error(raw, capsys):
    record = plant(raw, host=3)
    image, new_image, label, new_label = before_and_after(raw)
    assert record["lesions"] == []
    assert (image.array == new_image.array).all() and (label.array == new_label.array).all()
    assert (
        "Planted 0 of 1 lesion(s). The host (144 mm3) is smaller than the smallest lesion (diameter 14.0"
        in capsys.readouterr().out
    )


def test_the_command_line_does_it(raw, capsys):
    files = f"-i {raw}/patient_0000.nii.gz -l {raw}/patient_label.nii.gz -o {raw}/out"
    settings = "--prior liver --host 1 --tumor 2 -n 1 --diameter-mm 12 --seed 4 -device cpu"
    assert cli.main(f"synthesize {files} {settings}".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Planted 1 of 1 lesion(s)." and "mm" in lines[1]
    assert lines[2:] == [str(raw / "out" / name) for name in ("patient_0000.nii.gz", "patient.nii.gz", "patient.json")]


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"prior": "spleen"}, "no bundled prior 'spleen'; choose one of covid19, kidney, liver"),
        ({"generator": "magic"}, "no generator named 'magic'.* may also be auto or texture"),
        ({"host": 7}, "host is empty: .*patient_label.nii.gz has no voxel of host 7, only the labels 0, 1, 3"),
        ({"host": None}, "--host is missing: with the prior 'liver', give the label of the organ"),
        ({"host": None, "prior": "lung"}, "host is empty: .*patient_0000.nii.gz shows no lung.* with --host"),
        ({"tumor": 1}, r"--tumor must be a label above 0 and none of --host \[1\], but it is 1"),
        ({"tumor": 300}, "--tumor 300 does not fit into .*patient_label.nii.gz, whose type is uint8"),
        ({"lesions": 0}, "-n must be 1 or more, but it is 0"),
        ({"diameter_mm": -3.0}, "--diameter-mm must be a length above 0 mm, but it is -3.0"),
        ({"device": "tpu"}, "-device must be cpu or cuda, but it is 'tpu'"),
        ({"seed": -1}, "'seed' must lie between 0"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_written(raw, changes, text):
    with pytest.raises(ValueError, match=text):
        plant(raw, **changes)
    assert not (raw / "out").exists() or not list((raw / "out").iterdir())


def test_an_output_folder_that_cannot_be_written_to_is_refused_before_reading(raw):
    (raw / "file").write_text("")
    with pytest.raises(ValueError, match=r"The output folder .*file/out is not writable"):
        plant(raw, output=raw / "file" / "out", image=raw / "missing.nii.gz")


def test_the_input_is_never_overwritten(raw):
    before = read_case(raw / "patient_0000.nii.gz").array
    with pytest.raises(
        ValueError, match="would overwrite the input .*patient_0000.nii.gz. Choose another folder with -o"
    ):
        plant(raw, output=raw)
    assert (read_case(raw / "patient_0000.nii.gz").array == before).all()


def test_an_image_and_a_label_of_different_geometry_are_refused(raw):
    case = read_label(raw / "patient_label.nii.gz")
    write_case(case._replace(origin_mm=(0.0, 0.0, 0.0)), case.path)
    with pytest.raises(ValueError, match="patient_0000.nii.gz and label .*patient_label.nii.gz .* differ in origin_mm"):
        plant(raw)


def test_nan_voxels_are_refused(raw):
    rewrite(raw, "patient_0000.nii.gz", lambda image: np.where(image > 150, np.nan, image).astype(np.float32))
    with pytest.raises(ValueError, match="patient_0000.nii.gz contains .* NaN or infinite voxels"):
        plant(raw)


def test_a_label_with_fractions_is_refused(raw):
    rewrite(raw, "patient_label.nii.gz", lambda label: (label * 0.5).astype(np.float32))
    with pytest.raises(ValueError, match="patient_label.nii.gz must contain integer labels"):
        plant(raw)


def test_an_image_that_is_not_in_hu_is_refused(raw):
    rewrite(raw, "patient_0000.nii.gz", lambda image: (image + 1024).astype(np.uint16))
    with pytest.raises(ValueError, match="does not look like CT in HU: the host's median is 11.*subtracting 1024"):
        plant(raw)


def test_an_interrupted_run_leaves_nothing_half_written(raw, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cases, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        plant(raw)
    assert list((raw / "out").iterdir()) == []


@pytest.mark.parametrize(
    "file, name",
    [("a/case_7_0000.nii.gz", "case_7"), ("scan.nii.gz", "scan"), ("x.y_0000.nrrd", "x.y"), ("b.mha", "b")],
)
def test_the_cases_name_is_nnunets(file, name):
    assert case_name(Path(file)) == name


REAL_CASES = [
    ("abdomen_c_ct", "abdomen_c_organs", "liver", 1),
    pytest.param("abdomen_a_ct", "abdomen_a_liver", "liver", 1, marks=pytest.mark.slow),
    pytest.param("trunk_b_ct", "trunk_b_organs", "liver", 1, marks=pytest.mark.slow),
    ("trunk_b_ct", "trunk_b_organs", "pancreas", 2),
    ("trunk_b_ct", "trunk_b_organs", "kidney", 3),
    pytest.param("trunk_b_ct", "trunk_b_organs", "lung", 4, marks=pytest.mark.slow),
    pytest.param("chest_a_ct", "chest_a_lung", "lung", 1, marks=pytest.mark.slow),
    pytest.param("chest_f_ct", "chest_f_lung_nodule", "lung", 1, marks=pytest.mark.slow),
    pytest.param("chest_f_ct", "chest_f_lung_nodule", "covid19", 1, marks=pytest.mark.slow),
]


@pytest.mark.skipif(not REAL_CT.is_dir(), reason="the shared real CT are not beside this repository")
@pytest.mark.parametrize("image, label, prior, host", REAL_CASES)
def test_real_ct_is_untouched_outside_the_host(tmp_path, image, label, prior, host):
    ct, labels = REAL_CT / f"{image}.nii.gz", REAL_CT / f"{label}.nii.gz"
    synthesize_case(ct, labels, tmp_path, prior, tumor=9, host=host, lesions=2, seed=5, device="cpu")
    before, after = read_case(ct), read_case(tmp_path / f"{image}_0000.nii.gz")
    label_before, label_after = read_label(labels), read_label(tmp_path / f"{image}.nii.gz")
    changed = (before.array != after.array) | (label_before.array != label_after.array)
    fat = {"kidney", "pancreas"} & {prior}
    allowed = (label_before.array == host) | ((label_before.array == 0) & bool(fat))
    assert changed.any() and allowed[changed].all()
    assert after.array.dtype == before.array.dtype and label_after.array.dtype == label_before.array.dtype
    assert after[1:-1] == before[1:-1] and label_after[1:-1] == label_before[1:-1]
    record = json.loads((tmp_path / f"{image}.json").read_text())
    assert len(record["lesions"]) == 2
