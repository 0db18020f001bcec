"""Read and write CT cases: size, spacing, origin, direction and integer type stay as they are.

Arrays have SimpleITK's axis order (z, y, x), and `spacing_mm` has the same order. `origin_mm` and `direction` are
SimpleITK's own: x, y, z in the patient's coordinates (left, posterior, superior).
"""

import contextlib
import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import SimpleITK as sitk

NIFTI_ENDINGS = (".nii", ".nii.gz")
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl")
SLICE_AXIS = 0
GEOMETRY_TOLERANCE = {"spacing_mm": 1e-3, "origin_mm": 1e-2, "direction": 1e-3}


class Case(NamedTuple):
    """A volume and where it lies in the patient."""

    array: np.ndarray  # (z y x), in the file's own type
    spacing_mm: tuple[float, ...]  # of z, y, x
    origin_mm: tuple[float, ...]  # x, y, z of the center of voxel (0, 0, 0)
    direction: tuple[float, ...]  # 3 x 3, row by row; columns are the directions of the x, y and z axis
    path: Path

    def with_array(self, array: np.ndarray) -> "Case":
        """Put other voxels, in this case's own type, into the same place."""
        assert array.shape == self.array.shape, "a case keeps its size"
        return self._replace(array=array.astype(self.array.dtype, copy=False))

    def to_patient_mm(self, index: tuple[float, ...]) -> tuple[float, ...]:
        """Turn a voxel index (z, y, x) into the patient's coordinates (x, y, z) in mm."""
        steps_mm = np.asarray(index[::-1]) * np.asarray(self.spacing_mm[::-1])
        return tuple(float(v) for v in np.asarray(self.origin_mm) + np.reshape(self.direction, (3, 3)) @ steps_mm)


def case_name(path: Path) -> str:
    """Return the name of an image's case: without file extension and nnU-Net's channel number."""
    name = next((path.name[: -len(ending)] for ending in ENDINGS if path.name.lower().endswith(ending)), path.name)
    return name.removesuffix("_0000")


def read_case(path: str | Path) -> Case:
    """Read a volume with SimpleITK.

    Raises:
        ValueError: the file is missing or truncated, is no volume of three axes, or contains NaN or infinite voxels.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Give the path of an existing volume, for example CASE_0000.nii.gz.")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read as a medical image ({_last_line(error)}).") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        size = "x".join(map(str, image.GetSize()))
        raise ValueError(
            f"{path} must be one volume with three axes and one value per voxel, but it has size {size} with "
            f"{image.GetNumberOfComponentsPerPixel()} value(s) per voxel. Split it into single volumes."
        )
    case = from_image(image, path)
    if path.name.lower().endswith(NIFTI_ENDINGS):
        _check_complete(path)
    check_finite(case.array, case.path)
    return case


def from_image(image: sitk.Image, path: Path) -> Case:
    """Make a case from SimpleITK's image."""
    return Case(
        array=sitk.GetArrayFromImage(image),
        spacing_mm=image.GetSpacing()[::-1],
        origin_mm=image.GetOrigin(),
        direction=image.GetDirection(),
        path=path,
    )


def to_image(case: Case) -> sitk.Image:
    """Make SimpleITK's image of a case."""
    image = sitk.GetImageFromArray(case.array)
    image.SetSpacing(case.spacing_mm[::-1])
    image.SetOrigin(case.origin_mm)
    image.SetDirection(case.direction)
    return image


def read_label(path: str | Path) -> Case:
    """Read a label map in its own type.

    Raises:
        ValueError: as `read_case`, and where a voxel is not a whole number.
    """
    case = read_case(path)
    if case.array.dtype.kind == "f" and (fraction := case.array != np.round(case.array)).any():
        raise ValueError(
            f"{path} must contain integer labels, but {int(fraction.sum())} voxels have fractional values, for example "
            f"{case.array[fraction][0]:g}. Was it interpolated? Resample it with nearest neighbor, or threshold it."
        )
    return case


def check_same_geometry(image: Case, label: Case) -> None:
    """Refuse an image and a label that do not lie on the same voxel grid.

    Raises:
        ValueError: names both files, what differs, and the way out.
    """
    pairs = {"size (z, y, x)": (image.array.shape, label.array.shape)} | {
        name: (getattr(image, name), getattr(label, name))
        for name, tolerance in GEOMETRY_TOLERANCE.items()
        if not np.allclose(getattr(image, name), getattr(label, name), rtol=0, atol=tolerance)
    }
    differences = [f"{name} {_show(a)} against {_show(b)}" for name, (a, b) in pairs.items() if a != b]
    if differences:
        raise ValueError(
            f"Image {image.path} and label {label.path} must have the same geometry, but they differ in "
            f"{'; '.join(differences)}. Take the label that was drawn on this image, or resample the label onto the "
            "image's grid with nearest neighbor interpolation."
        )


def write_case(case: Case, path: str | Path) -> None:
    """Write a volume whole or not at all."""
    with replacing(path) as unfinished:
        sitk.WriteImage(to_image(case), str(unfinished), useCompression=True)


def write_json(data: Any, path: str | Path) -> None:
    """Write JSON whole or not at all."""
    write_text(json.dumps(data, indent=2) + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Write text whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; the file replaces `path` once the whole block has succeeded."""
    path = Path(path)
    with replacing_all(path.parent) as unfinished:
        yield unfinished / path.name


@contextlib.contextmanager
def replacing_all(folder: Path) -> Iterator[Path]:
    """Yield a folder whose files move into `folder`, one rename each, once the whole block has succeeded.

    It lies inside `folder`: a rename within a file system is atomic, file names keep the endings that SimpleITK goes
    by, and a run that was killed leaves nothing that nnU-Net would take for a case.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        yield Path(unfinished)
        for file in sorted(Path(unfinished).iterdir()):
            os.replace(file, folder / file.name)


def check_writable(folder: str | Path) -> Path:
    """Create an output folder if it is missing, and check that it is writable before any work is done.

    Raises:
        ValueError: names the folder and the reason.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(
            f"The output folder {folder} is not writable ({error.strerror}). Choose another folder with -o, or change "
            "its permissions."
        ) from error


def _check_complete(path: Path) -> None:
    """Refuse truncated NIfTI files; SimpleITK reads missing voxels as 0, which is tissue in CT.

    Raises:
        ValueError: names the file.
    """
    image = nibabel.Nifti1Image.from_filename(path)
    stored: Any = image.dataobj  # the header's own offset is set to 0 in reading
    expected = stored.offset + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    if (found := _unpacked_bytes(path, expected)) < expected:
        raise ValueError(
            f"{path} cannot be read as a medical image (it is truncated: {found} of {expected} bytes). Copy or "
            "download it again."
        )


def _unpacked_bytes(path: Path, expected: int) -> int:
    """Count a file's bytes as they are after unpacking; gzip writes their number at the end of a file."""
    if path.suffix.lower() != ".gz":
        return path.stat().st_size
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        if int.from_bytes(file.read(), "little") == expected % 2**32:
            return expected
    found = 0  # truncated, or packed in several parts, of which only the last one's size stands at the end
    with gzip.open(path) as unpacked, contextlib.suppress(EOFError, zlib.error, gzip.BadGzipFile):
        while part := unpacked.read(1 << 20):
            found += len(part)
    return found


def check_finite(array: np.ndarray, path: Path) -> None:
    """Refuse NaN and infinite voxels of an array that was read from a file.

    Raises:
        ValueError: names the file, how many there are and where the first one is.
    """
    if path.name.lower().endswith(NIFTI_ENDINGS):  # SimpleITK reads their NaN and infinite voxels as 0
        image = nibabel.Nifti1Image.from_filename(path)
        if image.get_data_dtype().kind != "f":
            return
        array = np.asanyarray(image.dataobj).T
    if np.isfinite(array).all():
        return
    bad = np.argwhere(~np.isfinite(array))
    raise ValueError(
        f"{path} contains {len(bad)} NaN or infinite voxels, the first at (z, y, x) = {tuple(bad[0].tolist())}. "
        "Replace them with finite values, in CT for example -1024 (air), and try again."
    )


def _show(values: Iterable[float | int]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
