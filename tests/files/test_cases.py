"""Cases keep their geometry and type, bad ones are refused by name, and files are never half written."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_freetumor.files.cases import (
    Case,
    check_same_geometry,
    check_writable,
    read_case,
    read_label,
    replacing,
    replacing_all,
    write_case,
    write_json,
)

TURNED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def make_case(path, kind=np.int16, **changes):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 100, (3, 4, 5)).astype(kind)
    return Case(array, (2.5, 0.8, 0.7), (10.0, -20.0, 30.5), TURNED, path)._replace(**changes)


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.int32, np.uint16, np.float32])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_case_survives_writing_and_reading(tmp_path, kind, ending):
    case = make_case(tmp_path / f"case{ending}", kind)
    write_case(case, case.path)
    read = read_case(case.path)
    assert read.array.dtype == kind and (read.array == case.array).all()
    for name in ("spacing_mm", "origin_mm", "direction"):
        assert np.allclose(getattr(read, name), getattr(case, name), atol=1e-6)


def test_spacing_has_the_arrays_axis_order(tmp_path):
    write_case(make_case(tmp_path / "case.nii.gz"), tmp_path / "case.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "case.nii.gz"))
    assert image.GetSize() == (5, 4, 3) and np.allclose(image.GetSpacing(), (0.7, 0.8, 2.5))


def test_voxels_are_found_in_the_patient_as_simpleitk_finds_them(tmp_path):
    case = make_case(tmp_path / "case.nii.gz")
    write_case(case, case.path)
    image = sitk.ReadImage(str(case.path))
    assert np.allclose(
        case.to_patient_mm((2.0, 1.0, 3.5)), image.TransformContinuousIndexToPhysicalPoint((3.5, 1.0, 2.0))
    )


def test_a_case_with_other_voxels_keeps_type_and_geometry(tmp_path):
    case = make_case(tmp_path / "case.nii.gz")
    other = case.with_array(case.array.astype(np.float32) + 1)
    assert other.array.dtype == np.int16 and other[1:] == case[1:]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_voxels_are_refused(tmp_path, value):
    case = make_case(tmp_path / "bad_0000.nii.gz", np.float32)
    case.array[1, 2, 3] = value
    write_case(case, case.path)
    with pytest.raises(
        ValueError, match=r"bad_0000.nii.gz contains 1 NaN or infinite voxels, the first at .* = \(1, 2, 3\)"
    ):
        read_case(case.path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no file .*nowhere.nii.gz"):
        read_case(tmp_path / "nowhere.nii.gz")


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "text.nii.gz").write_text("no image")
    with pytest.raises(ValueError, match="text.nii.gz cannot be read as a medical image"):
        read_case(tmp_path / "text.nii.gz")


@pytest.mark.parametrize("kind", [np.int16, np.float32])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kind, ending):
    """SimpleITK reads the missing voxels of NIfTI as 0."""
    case = make_case(tmp_path / f"case{ending}", kind)
    write_case(case, case.path)
    case.path.write_bytes(case.path.read_bytes()[:-11])
    with pytest.raises(ValueError, match="cannot be read as a medical image"):
        read_case(case.path)


def test_a_file_that_is_packed_in_several_parts_is_read(tmp_path):
    case = make_case(tmp_path / "case.nii.gz")
    write_case(case, case.path)
    data = gzip.decompress(case.path.read_bytes())
    case.path.write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:]) + gzip.compress(b""))
    assert (read_case(case.path).array == case.array).all()


def test_a_volume_of_four_axes_is_refused(tmp_path):
    sitk.WriteImage(sitk.Image((2, 3, 4, 5), sitk.sitkInt16), str(tmp_path / "four.nii.gz"))
    with pytest.raises(ValueError, match="four.nii.gz must be one volume with three axes .* size 2x3x4x5"):
        read_case(tmp_path / "four.nii.gz")


def test_label_numbers_must_be_whole(tmp_path):
    label = make_case(tmp_path / "label.nii.gz", np.float32)
    write_case(label, label.path)
    assert read_label(label.path).array.dtype == np.float32
    label.array[0, 0, :2] = 0.5
    write_case(label, label.path)
    with pytest.raises(
        ValueError, match="label.nii.gz must contain integer labels, but 2 voxels have fractional values.* 0.5"
    ):
        read_label(label.path)


@pytest.mark.parametrize(
    "changes, difference",
    [
        ({"array": np.zeros((3, 4, 6))}, r"size \(z, y, x\) \(3, 4, 5\) against \(3, 4, 6\)"),
        ({"spacing_mm": (2.5, 0.8, 0.71)}, r"spacing_mm \(2.5, 0.8, 0.7\) against \(2.5, 0.8, 0.71\)"),
        ({"origin_mm": (10.0, -20.0, 31.0)}, r"origin_mm \(10, -20, 30.5\) against \(10, -20, 31\)"),
        ({"direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)}, r"direction \(0, -1, 0, "),
    ],
)
def test_image_and_label_of_different_geometry_are_refused(tmp_path, changes, difference):
    image, label = make_case(tmp_path / "image.nii.gz"), make_case(tmp_path / "label.nii.gz", **changes)
    with pytest.raises(ValueError, match=rf"image.nii.gz and label .*label.nii.gz .*{difference}.*resample the label"):
        check_same_geometry(image, label)


def test_rounding_of_the_header_is_no_difference(tmp_path):
    image = make_case(tmp_path / "image.nii.gz")
    check_same_geometry(image, image._replace(spacing_mm=(2.50001, 0.8, 0.7), origin_mm=(10.001, -20.0, 30.5)))


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json({"old": 1}, tmp_path / "record.json")
    with pytest.raises(RuntimeError, match="stopped"), replacing(tmp_path / "record.json") as unfinished:
        unfinished.write_text("half")
        raise RuntimeError("stopped")
    assert json.loads((tmp_path / "record.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_several_files_appear_together(tmp_path):
    with replacing_all(tmp_path) as unfinished:
        (unfinished / "a").write_text("a")
        (unfinished / "b").write_text("b")
        assert not (tmp_path / "a").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_killed_run_leaves_no_half_written_file(tmp_path):
    script = (
        "import sys, time\nfrom nnunetv2_freetumor.files.cases import replacing\n"
        "with replacing(sys.argv[1]) as path:\n"
        "    path.write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "case.nii.gz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.kill()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_an_output_folder_is_made_before_any_work(tmp_path):
    assert check_writable(tmp_path / "new" / "folder").is_dir()
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_an_output_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output folder .*file/folder is not writable \(.+\). Choose another"):
        check_writable(tmp_path / "file" / "folder")
