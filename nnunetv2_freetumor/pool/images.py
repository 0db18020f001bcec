"""Find CT images, read them from NIfTI, NRRD, MHA or a folder with a DICOM series, and tell what is no CT in HU."""

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from nnunetv2_freetumor.files.cases import ENDINGS, Case, case_name, from_image, read_case, to_image

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
NOT_CT, WRONG_HU, NO_HOST = "not CT", "wrong HU", "no host in view"
UNREADABLE, GEOMETRY, NO_MASK = "unreadable", "geometry mismatch", "no host mask"
DUPLICATE, NAME_TAKEN = "duplicate of a labeled case", "name taken"
NO_IMAGES = ("DICOMDIR",)  # begin as DICOM files do
MASK_FOLDER = "segmentations"  # beside an image: holds its masks, as in TotalSegmentator's data set
FAT_HU = -100.0  # every CT of a body holds voxels below this
SHIFTED_HU = (900.0, 1600.0)  # organs in files that hold HU + 1024
MARGIN_HU = 100.0  # around the plans' window, for the median of an organ
_UNEVEN = 0.1  # a gap between slices may differ by this share
_EVERY = 4  # of the voxels, along each axis, to look at


class Unusable(Exception):
    """Why a case cannot be used; the text begins with one of the reasons above."""

    def __init__(self, reason: str, detail: str) -> None:
        """Put the reason in front of the detail."""
        super().__init__(f"{reason}: {detail}")


class Unfit(Unusable):
    """Why a case must not be trained on, whatever an earlier run has made of it."""


def duplicate_of(labeled: str) -> Unfit:
    """Say that a labeled image is the same scan."""
    return Unfit(DUPLICATE, f"{labeled} holds the same voxels, and it would leak into training")


class ImageFile(NamedTuple):
    """An image, the name of its case, and the names that its masks may have below their folder."""

    case: str
    path: str
    masks: tuple[str, ...]


def find_images(images: str | Path) -> list[ImageFile]:
    """List the images in a folder and below it, or one image, each under the name of its file.

    Folders with DICOM files count as one image each. Images that have the same name go by their path. Links are
    followed; what lies in folders called `segmentations` is masks.

    Raises:
        ValueError: there are none.
    """
    root = Path(images)
    if root.is_file():
        return [ImageFile(case_name(root), str(root), (case_name(root), "."))]
    if not root.is_dir():
        raise ValueError(f"-i must be an image or a folder with images, but {root} is not there.")
    found = sorted(_walk(root))
    if not found:
        raise ValueError(
            f"{root} holds no CT images. Give a folder with files of {', '.join(ENDINGS)}, or with folders that hold "
            f"one DICOM series each ({', '.join(DICOM_ENDINGS)} or files without an ending)."
        )
    names = [case_name(path) for path in found]
    by_path = ["_".join((path.relative_to(root).parent / name).parts) for path, name in zip(found, names)]
    cases = _where_several(by_path, names)
    marks = [f"{case}_{zlib.crc32(str(path.relative_to(root)).encode()):08x}" for case, path in zip(cases, found)]
    together = Counter(path.parent for path in found)
    return [
        ImageFile(
            case, str(path), _mask_names(case, path.relative_to(root), together[path.parent] == 1, len(found) == 1)
        )
        for case, path in zip(_where_several(marks, cases), found)
    ]


def _mask_names(case: str, path: Path, one_in_folder: bool, only_one: bool) -> tuple[str, ...]:
    """Name a case's masks: as the case, at the image's own place, as its folder; those of an only image, anyhow."""
    names = [case, (path.parent / case_name(path)).as_posix()]
    names += [path.parent.as_posix()] * (one_in_folder and path.parent != Path()) + ["."] * only_one
    return tuple(dict.fromkeys(names))


def _where_several(longer: list[str], names: list[str]) -> list[str]:
    """Take longer names for those that occur several times."""
    times = Counter(names)
    return [long if times[name] > 1 else name for long, name in zip(longer, names)]


def _walk(root: Path) -> Iterator[Path]:
    walked = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in walked:  # links may lead in a circle
            below.clear()
            continue
        walked.add(real)
        below[:] = sorted(name for name in below if name != MASK_FOLDER)
        volumes = [name for name in files if name.lower().endswith(ENDINGS)]
        yield from (Path(folder) / name for name in volumes)
        others = sorted(name for name in files if name not in NO_IMAGES and not name.startswith("."))
        if not volumes and any(_is_dicom(Path(folder) / name) for name in others[:3]):
            yield Path(folder)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in DICOM_ENDINGS:
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return True  # so that it is listed, and its report says that it cannot be read


def read_ct(path: str | Path) -> Case:
    """Read an image file or a folder with one DICOM series.

    Raises:
        Unusable: it cannot be read, is another modality, or its slices do not make a volume.
    """
    path = Path(path)
    try:
        return _read_series(path) if path.is_dir() else read_case(path)
    except (ValueError, RuntimeError) as error:
        raise Unusable(UNREADABLE, " ".join(str(error).split())) from error


def _read_series(folder: Path) -> Case:
    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise ValueError(f"{folder} holds {len(series)} DICOM series; give each series a folder of its own.")
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    if (modality := _tag(reader, 0, "0008|0060")) not in ("CT", ""):
        raise Unusable(NOT_CT, f"the DICOM modality is {modality}")
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{folder} is no volume of one value per voxel.")
    _check_slices(reader, image.GetSize()[2])
    return from_image(image, folder)


def _tag(reader: sitk.ImageSeriesReader, index: int, tag: str) -> str:
    return reader.GetMetaData(index, tag).strip() if reader.HasMetaDataKey(index, tag) else ""


def _check_slices(reader: sitk.ImageSeriesReader, slices: int) -> None:
    """Refuse series with missing slices: SimpleITK stacks what is there."""
    places = [_tag(reader, index, "0020|0032") for index in range(slices)]
    if slices < 3 or not all(places):
        return
    at_mm = np.array([[float(value) for value in place.split("\\")] for place in places])
    gaps_mm = np.linalg.norm(np.diff(at_mm, axis=0), axis=1)
    if np.abs(gaps_mm / np.median(gaps_mm) - 1).max() > _UNEVEN:
        raise Unusable(GEOMETRY, f"slices lie {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm apart; some may be missing")


def bytes_of(path: str | Path) -> int:
    """Add up what an image takes on disk; of a folder, its files."""
    path = Path(path)
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def check_looks_like_ct(image: Case) -> None:
    """Refuse images that hold neither fat nor air.

    Raises:
        Unusable: says what the image holds.
    """
    if min(image.array.shape) < 2:
        raise Unusable(GEOMETRY, f"the image has {' x '.join(map(str, image.array.shape))} voxels")
    part = _thinned(image.array)
    low, high = float(part.min()), float(part.max())
    if low > FAT_HU and high < SHIFTED_HU[0]:  # otherwise it may be HU + 1024, which its host tells
        raise Unusable(NOT_CT, f"values lie between {low:g} and {high:g}; CT holds fat and air, below {FAT_HU:g} HU")


def check_host_hu(image: Case, host: np.ndarray, window_hu: tuple[float, float]) -> None:
    """Refuse images whose host organ has no HU that this dataset's organs could have.

    Raises:
        Unusable: says which, and what is likely wrong.
    """
    median = float(np.median(image.array[host]))
    low, high = window_hu[0] - MARGIN_HU, window_hu[1] + MARGIN_HU
    lowest = float(_thinned(image.array).min())
    if lowest > FAT_HU and SHIFTED_HU[0] <= median <= SHIFTED_HU[1]:
        raise Unusable(WRONG_HU, f"the host's median is {median:.0f}: subtract 1024 from every voxel")
    if lowest > FAT_HU:
        raise Unusable(NOT_CT, f"no voxel is below {lowest:g}; CT holds fat and air, below {FAT_HU:g} HU")
    if not low <= median <= high:
        raise Unusable(
            WRONG_HU, f"the host's median is {median:.0f} HU, and this dataset's lie in {low:.0f}..{high:.0f}"
        )


def in_readers_orientation(case: Case, plans: dict[str, Any]) -> Case:
    """Turn a volume as nnU-Net's reader does that the plans name."""
    return reoriented(case, "RAS") if "Reorient" in plans.get("image_reader_writer", "") else case


def _thinned(array: np.ndarray) -> np.ndarray:
    """Take some of a large volume's voxels."""
    return array[tuple(slice(None, None, _EVERY if size >= 16 * _EVERY else 1) for size in array.shape)]


def orientation_of(case: Case) -> str:
    """Name where a volume's axes point to, such as LPS."""
    return sitk.DICOMOrientImageFilter().GetOrientationFromDirectionCosines(case.direction)


def reoriented(case: Case, orientation: str) -> Case:
    """Turn and flip a volume's axes into an orientation such as RAS."""
    return from_image(sitk.DICOMOrient(to_image(case), orientation), case.path)
