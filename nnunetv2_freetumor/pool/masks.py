"""Host masks for CT without labels: files of the same name, TotalSegmentator's folders, or a trained model."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunetv2_freetumor.files.cases import ENDINGS, Case, check_same_geometry, read_label
from nnunetv2_freetumor.pool.images import GEOMETRY, MASK_FOLDER, NO_MASK, UNREADABLE, Unusable
from nnunetv2_freetumor.pool.labels import PoolLabels, annotated_values, value_for
from nnunetv2_freetumor.pool.model import Model, predict_labels

LABEL_MAP = None  # a file that holds several labels


class Masks(NamedTuple):
    """A label map in the dataset's values, and which of these the masks annotate."""

    label: np.ndarray  # (z y x) int16
    annotated: frozenset[int]
    bytes_in: int = 0  # of the files that were read


def read_masks(
    folder: Path, names: Sequence[str], image: Case, known: PoolLabels, name_map: Mapping[str, str]
) -> Masks:
    """Read a case's masks: one label map `NAME.nii.gz`, or a folder `NAME` with one mask file for each organ.

    Args:
        folder: with all masks.
        names: that this case's may have there, see `mask_files`.
        image: the case.
        known: the dataset's labels.
        name_map: names or values of masks to labels of the dataset.

    Raises:
        Unusable: there are none, they cannot be read, or do not lie on the image's grid.
        ValueError: the name map names a label that the dataset has not.
    """
    files = mask_files(folder, names, image.path, known, name_map)
    if not files:
        at = folder / names[0]
        raise Unusable(NO_MASK, f"neither {at}.nii.gz nor {at}/ORGAN.nii.gz names a host")
    single = next((path for path, value in files.items() if value is LABEL_MAP), None)
    if single is not None:
        return _from_values(_read(single, image), single, known, name_map)
    return _from_files({path: value for path, value in files.items() if value is not None}, image, known)


def mask_files(
    folder: Path, names: Sequence[str], image: str | Path, known: PoolLabels, name_map: Mapping[str, str]
) -> dict[Path, int | None]:
    """List a case's mask files and the label that each stands for; one label map stands for all of its own.

    The first of the names that leads to a label map or to a folder with masks of known labels counts. The image itself
    is never its own label map.

    Raises:
        ValueError: the name map names a label that the dataset has not.
    """
    endings = [*ENDINGS, *map(str.upper, ENDINGS)]
    maps = (folder / f"{name}{ending}" for name in names for ending in endings)
    single = next((path for path in maps if path.is_file() and path != Path(image)), None)
    if single is not None:
        return {single: LABEL_MAP}
    for place in (folder / name / below for name in names for below in ("", MASK_FOLDER)):
        found = {path: value_for(name, known, name_map) for name, path in _files_in(place)}
        wanted = {path: value for path, value in found.items() if value is not None}
        if wanted:
            return dict(wanted)
    return {}


def _files_in(folder: Path) -> Iterable[tuple[str, Path]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
        if ending:
            yield path.name[: -len(ending)], path


def _read(path: Path, image: Case) -> np.ndarray:
    try:
        label = read_label(path)
    except ValueError as error:
        raise Unusable(UNREADABLE, str(error)) from error
    try:
        check_same_geometry(image, label)
    except ValueError as error:
        raise Unusable(GEOMETRY, str(error)) from error
    return label.array


def _from_files(files: Mapping[Path, int], image: Case, known: PoolLabels) -> Masks:
    label = np.zeros(image.array.shape, dtype=np.int16)
    for path, value in sorted(files.items(), key=lambda item: item[1] in known.lesions):  # lesions over organs
        mask = _read(path, image) > 0
        label[mask & ((label == 0) | (value in known.lesions))] = value
    annotated = annotated_values({path.name: value for path, value in files.items()}, known)
    return Masks(label, annotated, sum(path.stat().st_size for path in files))


def _from_values(array: np.ndarray, path: Path, known: PoolLabels, name_map: Mapping[str, str]) -> Masks:
    """Take a label map in the dataset's own values, or in values that the name map translates."""
    present = {int(value) for value in np.unique(array)} - {0}
    given = {int(key): known.named(name) for key, name in name_map.items() if key.isdigit()}
    own = frozenset().union(*(label.values for label in known.labels), {known.ignore})
    if name_map and not given:
        raise Unusable(
            NO_MASK, f'{path} is a label map, and --name-map names none of its values, as {{"5": "liver"}} does'
        )
    meaning = given or {value: value for value in present}
    label = np.zeros(array.shape, dtype=np.int16)
    for value in present & set(meaning):
        if meaning[value] not in own:
            raise Unusable(NO_MASK, f"{path} holds the value {value}, which is no label of the dataset: use --name-map")
        label[array == value] = meaning[value]
    return Masks(label, frozenset(meaning.values()) - known.lesions - {known.ignore}, path.stat().st_size)


def predict_masks(model: Model, image: Case, known: PoolLabels, name_map: Mapping[str, str]) -> Masks:
    """Predict hosts, and lesions where the model knows them, and translate them by their names.

    Raises:
        ValueError: the name map names a label that the dataset has not.
    """
    values = model_values(model, known, name_map)
    predicted = predict_labels(model, image)
    label = np.zeros(predicted.shape, dtype=np.int16)
    for of_model, meaning in values.items():
        label[predicted == of_model] = meaning
    names = {name: value for name in model.segmenter.labels if (value := value_for(name, known, name_map))}
    return Masks(label, annotated_values(names, known))


def model_values(model: Model, known: PoolLabels, name_map: Mapping[str, str]) -> dict[int, int]:
    """Translate a model's label values into the dataset's; where labels nest, the innermost one names a value."""
    translated = {}
    entries = [(name, value) for name, value in model.segmenter.labels.items() if name not in ("background", "ignore")]
    by_size = sorted(entries, key=lambda entry: -len(entry[1]) if isinstance(entry[1], list) else 0)
    for name, value in by_size:
        meaning = value_for(name, known, name_map)
        if meaning is not None:
            translated.update(dict.fromkeys(value if isinstance(value, list) else [value], meaning))
    return translated
