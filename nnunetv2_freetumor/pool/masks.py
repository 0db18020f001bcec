"""Host masks for CT without labels: files of the same name, TotalSegmentator's folders, or a trained model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_freetumor.files.cases import ENDINGS, Case, check_same_geometry, read_label
from nnunetv2_freetumor.plan import Section
from nnunetv2_freetumor.planning import roles
from nnunetv2_freetumor.pool.images import GEOMETRY, MASK_FOLDER, NO_MASK, UNREADABLE, Unusable
from nnunetv2_freetumor.pool.model import Model, predict_labels

LABEL_MAP = None  # a file that holds several labels


class PoolLabels(NamedTuple):
    """What a dataset's label values mean to the pool."""

    labels: list[roles.Label]
    hosts: frozenset[int]
    lesions: frozenset[int]  # all tumors and cysts: never taught as organ, never annotated in a pool
    ignore: int

    def lesion_names(self) -> list[str]:
        """Name the labels that are lesions throughout."""
        return [label.name for label in self.labels if label.values <= self.lesions]

    def organs(self) -> frozenset[int]:
        """Give the values that masks have to annotate before what is left of a scan counts as background."""
        return frozenset[int]().union(*(label.values for label in self.labels)) - self.lesions

    def named(self, name: str) -> int:
        """Give the value that a dataset's label stands for, without the lesions that its region may include.

        Raises:
            ValueError: the dataset has no such label, or it stands for several.
        """
        for label in self.labels:
            values = label.values if label.values <= self.lesions else label.values - self.lesions
            if _plain(label.name) == _plain(name) and len(values) == 1:
                return min(values)
        known = ", ".join(repr(label.name) for label in self.labels)
        raise ValueError(f"The dataset has no single label '{name}'; its labels are {known}.")

    def matched(self, name: str) -> int | None:
        """Give the value for a mask's name: of the label with that name, or with that organ and side; None without one.

        A name that tells of lesions stands for a lesion.
        """
        exact = [label for label in self.labels if _plain(label.name) == _plain(name)]
        if exact:
            return self.named(name)
        words = roles.split_words(name)
        if words & roles.LESION_WORDS:
            return min(self.lesions)
        for organ in roles.ORGAN_WORDS.values():
            found = [label for label in self.labels if self._is_organ(label, organ, words)]
            if words & organ and not words & roles.ELSEWHERE and len(found) == 1:
                return self.named(found[0].name)
        return None

    def _is_organ(self, label: roles.Label, organ: set[str], words: frozenset[str]) -> bool:
        sides = [side for side in roles.SIDES if side in label.words]
        names_it = bool(label.words & organ) and not label.words & roles.ELSEWHERE and not label.values <= self.lesions
        return names_it and all(side in words for side in sides)


def pool_labels(section: Section, dataset_json: dict[str, Any], ignore: int) -> PoolLabels:
    """Take from the section which labels are hosts and which lesions."""
    hosts = frozenset(value for target in section.targets for value in target.host_labels)
    lesions = frozenset(v for target in section.targets for v in (target.tumor_label, *target.lesion_labels))
    return PoolLabels(roles.read_labels(dataset_json["labels"]), hosts, lesions, ignore)


def value_for(name: str, known: PoolLabels, name_map: Mapping[str, str]) -> int | None:
    """Give the value for a mask's name, by the name map where it has that name."""
    return known.named(name_map[name]) if name in name_map else known.matched(name)


def annotated_values(names: Mapping[str, int], known: PoolLabels) -> frozenset[int]:
    """Tell which labels the masks of these names annotate; one kidney of two does not annotate 'kidney'."""
    whole = set()
    for value in set(names.values()) - known.lesions:
        sides = {side for name, v in names.items() if v == value for side in _sides(name)}
        label = next(label for label in known.labels if value in label.values)
        if len(sides) != 1 or sides <= label.words:
            whole.add(value)
    return frozenset(whole)


def _sides(name: str) -> Iterable[str]:
    return roles.split_words(name) & set(roles.SIDES)


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


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
