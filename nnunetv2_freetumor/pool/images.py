"""Find CT images, read them from NIfTI, NRRD, MHA or a folder with a DICOM series, and refuse what is not CT in HU."""

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from nnunetv2_freetumor.files.cases import ENDINGS, Case, case_name, from_image, read_case
from nnunetv2_freetumor.files.hashes import content_hash
from nnunetv2_freetumor.pool.counts import milliliters

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
NOT_CT, WRONG_HU, NO_HOST = "not CT", "wrong HU", "no host in view"
UNREADABLE, GEOMETRY, NO_MASK = "unreadable", "geometry mismatch", "no host mask"
DUPLICATE, NAME_TAKEN = "duplicate of a labeled case", "name taken"
NO_IMAGES = ("DICOMDIR",)  # begin as DICOM files do
MASK_FOLDER = "segmentations"  # beside an image: holds its masks, as in TotalSegmentator's data set
_FAT_BELOW_HU = -100.0  # every CT of a body has voxels below this
_SHIFTED_HU = (900.0, 1600.0)  # organs in files that hold HU + 1024
_MARGIN_HU = 100.0  # around the plans' window, for the median of an organ
_MIN_HOST_ML = 1.0
_UNEVEN = 0.1  # a gap between slices may differ by this share
_EVERY = 4  # of the voxels, along each axis, to look at


class Unusable(Exception):
    """A case cannot be used; the text begins with one of the reasons above."""

    def __init__(self, reason: str, detail: str) -> None:
        """Begin the text with the reason."""
        super().__init__(f"{reason}: {detail}")


class Unfit(Unusable):
    """A case must not be trained on, not even as an earlier run has made it."""


def duplicate_of(labeled: str) -> Unfit:
    """Return the error for a scan that is also a labeled case."""
    return Unfit(DUPLICATE, f"{labeled} holds the same voxels, so this scan would leak into training")


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
        ValueError: there are no images.
    """
    root = Path(images)
    if root.is_file():
        return [ImageFile(case_name(root), str(root), (case_name(root), "."))]
    if not root.is_dir():
        raise ValueError(f"-i must be an image or a folder with images, but {root} does not exist.")
    found = sorted(_walk(root))
    if not found:
        raise ValueError(
            f"{root} contains no CT images. Give a folder with {', '.join(ENDINGS)} files, or with subfolders that "
            f"contain one DICOM series each ({', '.join(DICOM_ENDINGS)}, or files without an extension)."
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
    """List names that a case's masks may have: the case's, its image's path, its folder; any for an only image."""
    names = [case, (path.parent / case_name(path)).as_posix()]
    names += [path.parent.as_posix()] * (one_in_folder and path.parent != Path()) + ["."] * only_one
    return tuple(dict.fromkeys(names))


def _where_several(longer: list[str], names: list[str]) -> list[str]:
    """Replace names that occur several times by longer ones."""
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


class Scan(NamedTuple):
    """A CT as it was read."""

    image: Case
    content: str  # hash of its voxels
    bytes_in: int  # on disk


def read_scan(path: str | Path) -> Scan:
    """Read a CT: an image file, or a folder with one DICOM series.

    Raises:
        Unusable: it cannot be read, is another modality, its slices make no volume, or it has neither fat nor air.
    """
    path = Path(path)
    try:
        image = _read_series(path) if path.is_dir() else read_case(path)
    except (ValueError, RuntimeError) as error:
        raise Unusable(UNREADABLE, " ".join(str(error).split())) from error
    _check_looks_like_ct(image)
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    return Scan(image, content_hash(image.array), sum(file.stat().st_size for file in files))


def _read_series(folder: Path) -> Case:
    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise ValueError(f"{folder} contains {len(series)} DICOM series; put each series in its own folder.")
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    if (modality := _tag(reader, 0, "0008|0060")) not in ("CT", ""):
        raise Unusable(NOT_CT, f"the DICOM modality is {modality}")
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{folder} is not a 3D volume with one value per voxel.")
    _check_slices(reader, image.GetSize()[2])
    return from_image(image, folder)


def _tag(reader: sitk.ImageSeriesReader, index: int, tag: str) -> str:
    return reader.GetMetaData(index, tag).strip() if reader.HasMetaDataKey(index, tag) else ""


def _check_slices(reader: sitk.ImageSeriesReader, slices: int) -> None:
    """Refuse series with missing slices: SimpleITK stacks what is there."""
    origins = [_tag(reader, index, "0020|0032") for index in range(slices)]
    if slices < 3 or not all(origins):
        return
    at_mm = np.array([[float(value) for value in origin.split("\\")] for origin in origins])
    gaps_mm = np.linalg.norm(np.diff(at_mm, axis=0), axis=1)
    if np.abs(gaps_mm / np.median(gaps_mm) - 1).max() > _UNEVEN:
        raise Unusable(GEOMETRY, f"slices lie {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm apart; some may be missing")


def _check_looks_like_ct(image: Case) -> None:
    if min(image.array.shape) < 2:
        raise Unusable(GEOMETRY, f"the image has {' x '.join(map(str, image.array.shape))} voxels")
    part = _thinned(image.array)
    low, high = float(part.min()), float(part.max())
    if low > _FAT_BELOW_HU and high < _SHIFTED_HU[0]:  # otherwise it may be HU + 1024, which its host shows
        raise Unusable(
            NOT_CT, f"values range from {low:g} to {high:g}, but CT contains fat or air, below {_FAT_BELOW_HU:g} HU"
        )


def check_host(image: Case, host: np.ndarray, window_hu: tuple[float, float]) -> None:
    """Check that a host is in view, and that its median HU is plausible for this dataset.

    Args:
        image: the CT.
        host: (z y x), its voxels.
        window_hu: that preprocessing clips to.

    Raises:
        Unusable: the text says what is likely wrong.
    """
    if milliliters(int(host.sum()), image.spacing_mm) < _MIN_HOST_ML:
        raise Unusable(NO_HOST, f"less than {_MIN_HOST_ML:g} ml of it")
    median = float(np.median(image.array[host]))
    low, high = window_hu[0] - _MARGIN_HU, window_hu[1] + _MARGIN_HU
    lowest = float(_thinned(image.array).min())
    if lowest > _FAT_BELOW_HU and _SHIFTED_HU[0] <= median <= _SHIFTED_HU[1]:
        raise Unusable(WRONG_HU, f"the host's median is {median:.0f}: subtract 1024 from every voxel")
    if lowest > _FAT_BELOW_HU:
        raise Unusable(
            NOT_CT, f"the lowest value is {lowest:g}, but CT contains fat or air, below {_FAT_BELOW_HU:g} HU"
        )
    if not low <= median <= high:
        raise Unusable(
            WRONG_HU, f"the host's median is {median:.0f} HU, but in this dataset hosts have {low:.0f} to {high:.0f} HU"
        )


def _thinned(array: np.ndarray) -> np.ndarray:
    """Return every fourth voxel along the large axes of a volume."""
    return array[tuple(slice(None, None, _EVERY if size >= 16 * _EVERY else 1) for size in array.shape)]
