"""The lesions of one case: measurements and picture of each, kept in a file so that no run repeats them."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from scipy import ndimage

from nnunetv2_freetumor.experiments.realism.features import FEATURES, measure_lesion
from nnunetv2_freetumor.files import cases
from nnunetv2_freetumor.pages.sheets import Views, upright

TILE = 96  # pixels
_TILE_MM = (50.0, 140.0)  # of a picture: 2.4 diameters, within these bounds


class Lesions(NamedTuple):
    """The lesions of one case from one source, in the order of the real ones; NaN if one could not be planted.

    Field names are a file format: pairs/CASE/SOURCE.npz.
    """

    features: Float[np.ndarray, "lesions features"]
    diameter_mm: Float[np.ndarray, "lesions"]
    tiles_hu: Integer[np.ndarray, "lesions n n"]  # axial pictures, the front up
    outlines: Float[np.ndarray, "lesions n n"]  # share of lesion
    side_mm: Float[np.ndarray, "lesions"]  # of each picture


class HostCrop(NamedTuple):
    """A case, cut to its host."""

    name: str
    hu: np.ndarray  # float32, whole numbers
    label: np.ndarray  # int32; the host has the target's labels
    spacing_mm: tuple[float, float, float]
    direction: tuple[float, ...]


class Specimen(NamedTuple):
    """One lesion to be measured, in its volume."""

    hu: np.ndarray
    lesion: np.ndarray
    host: np.ndarray


def save_lesions(lesions: Lesions, key: str, path: Path) -> None:
    """Write a case's lesions; the key describes everything that they depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with cases.replacing(path) as unfinished:
        np.savez_compressed(unfinished, key=np.array(key), **lesions._asdict())


def read_lesions(path: Path, key: str) -> Lesions | None:
    """Read the lesions of an earlier run if they have the same key."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as saved:
            return Lesions(*(saved[name] for name in Lesions._fields)) if str(saved["key"]) == key else None
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None


def measure_specimen(specimen: Specimen, crop: HostCrop) -> dict[str, Any] | None:
    """Measure a lesion and cut out its picture; None if too little host surrounds it."""
    features = measure_lesion(specimen.hu, specimen.lesion, specimen.host, crop.spacing_mm)
    if features is None:
        return None
    size_mm = equivalent_diameter_mm(specimen.lesion, crop)
    side_mm = float(np.clip(2.4 * size_mm, *_TILE_MM))
    hu, outline = _cut_tile(specimen, crop, side_mm)
    return dict(zip(Lesions._fields, (features, size_mm, hu, outline, side_mm)))


def _cut_tile(specimen: Specimen, crop: HostCrop, side_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut a square out of the axial slice that shows most of the lesion; return HU and share of lesion."""
    view = Views(specimen.hu, specimen.hu, specimen.lesion, crop.spacing_mm).turned(upright(crop.direction))
    level = int(view.mask.sum((1, 2)).argmax())
    middle = np.argwhere(view.mask[level]).mean(0)
    offsets_mm = ((np.arange(TILE) + 0.5) / TILE - 0.5) * side_mm
    at = np.meshgrid(*(m + offsets_mm / step for m, step in zip(middle, view.spacing_mm[1:])), indexing="ij")
    planes = (view.after_hu[level], view.mask[level].astype(np.float32))
    hu, outline = (ndimage.map_coordinates(plane, at, order=1, mode="nearest") for plane in planes)
    return np.rint(hu).astype(np.int16), outline.astype(np.float32)


def equivalent_diameter_mm(lesion: np.ndarray, crop: HostCrop) -> float:
    """Compute the diameter of the sphere of equal volume."""
    return float((6 / math.pi * lesion.sum() * math.prod(crop.spacing_mm)) ** (1 / 3))


def stack(rows: Sequence[dict[str, Any] | None]) -> Lesions:
    """Stack the rows of `measure_specimen`; None becomes NaN."""
    missing: dict[str, Any] = {
        "features": np.full(len(FEATURES), math.nan),
        "diameter_mm": math.nan,
        "tiles_hu": np.zeros((TILE, TILE), np.int16),
        "outlines": np.zeros((TILE, TILE), np.float32),
        "side_mm": math.nan,
    }
    filled = [row or missing for row in rows]
    parts = [np.array([row[name] for row in filled], np.asarray(missing[name]).dtype) for name in Lesions._fields]
    return Lesions(*(part.reshape(len(rows), *np.shape(missing[name])) for name, part in zip(Lesions._fields, parts)))
