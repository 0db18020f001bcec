"""Find the hosts of a CT without labels: in mask files, by a trained model, or by HU."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nnunetv2_freetumor.files.cases import ENDINGS, Case, check_same_geometry, read_label
from nnunetv2_freetumor.pool.context import JobContext
from nnunetv2_freetumor.pool.images import (
    GEOMETRY,
    MASK_FOLDER,
    NO_MASK,
    UNREADABLE,
    ImageFile,
    Unusable,
    check_host,
)
from nnunetv2_freetumor.pool.labels import PoolLabels, annotated_values, value_for
from nnunetv2_freetumor.pool.model import Model, predict_labels
from nnunetv2_freetumor.pool.target import DatasetPlans
from nnunetv2_freetumor.synthesis.hosts import host_mask

LABEL_MAP = None  # a file that holds several labels

MaskFiles = dict[Path, int | None]  # and the value that each stands for


class Masks(NamedTuple):
    """A label map in the dataset's values, and which of these values the masks annotate."""

    label: np.ndarray  # (z y x) int16
    annotated: frozenset[int]
    bytes_in: int = 0  # of the files that were read


def list_masks(context: JobContext, file: ImageFile) -> MaskFiles:
    """List a case's mask files: one label map `NAME.nii.gz`, or a folder `NAME` with one mask file for each organ.

    The first of the case's names that leads to a label map or to a folder with masks of known labels counts. The image
    itself is never its own label map. The list is empty without a folder of masks, or if the case has none.

    Raises:
        ValueError: the name map names a label that the dataset does not have.
    """
    hosts, known = context.job.asked.hosts, context.dataset.labels
    if not hosts.masks:
        return {}
    masks, name_map = Path(hosts.masks), dict(hosts.name_map)
    endings = [*ENDINGS, *map(str.upper, ENDINGS)]
    maps = (masks / f"{name}{ending}" for name in file.masks for ending in endings)
    single = next((path for path in maps if path.is_file() and path != Path(file.path)), None)
    if single is not None:
        return {single: LABEL_MAP}
    for folder in (masks / name / below for name in file.masks for below in ("", MASK_FOLDER)):
        found = {path: value_for(name, known, name_map) for name, path in _files_in(folder)}
        wanted = {path: value for path, value in found.items() if value is not None}
        if wanted:
            return dict(wanted)
    return {}


def find_hosts(context: JobContext, file: ImageFile, files: MaskFiles, image: Case) -> Masks:
    """Find a case's hosts in its mask files, by the host model or by HU, and check that they are in view and in HU.

    Raises:
        Unusable: there are no masks, they cannot be read or do not lie on the image's grid, or the host is too small or
            has HU that no host of this dataset has.
        ValueError: the name map names a label that the dataset does not have.
    """
    hosts, known = context.job.asked.hosts, context.dataset.labels
    if context.host_model is not None:
        masks = predict_masks(context.host_model, image, known, dict(hosts.name_map))
    elif hosts.masks:
        masks = _read_masks(
            Path(hosts.masks) / file.masks[0], files, image=image, known=known, name_map=dict(hosts.name_map)
        )
    else:
        masks = Masks(np.zeros(image.array.shape, dtype=np.int16), frozenset())
    check_host(image, _host_voxels(context.dataset, image, masks.label), context.window_hu)
    return masks


def _host_voxels(dataset: DatasetPlans, image: Case, label: np.ndarray) -> np.ndarray:
    """Mark all hosts of a raw case (z y x), by label or by HU."""
    host = np.isin(label, sorted(dataset.labels.hosts))
    spacing_mm = (image.spacing_mm[0], image.spacing_mm[1], image.spacing_mm[2])
    for target in dataset.section.targets:
        if target.host_hu is not None:
            hu, labels = torch.from_numpy(image.array.astype("f4")), torch.from_numpy(label.astype("i4"))
            host |= host_mask(target, hu[None, None], labels[None, None], spacing_mm)[0, 0].numpy()
    return host


def _read_masks(wanted: Path, files: MaskFiles, image: Case, known: PoolLabels, name_map: Mapping[str, str]) -> Masks:
    if not files:
        raise Unusable(NO_MASK, f"neither {wanted}.nii.gz nor {wanted}/ORGAN.nii.gz of a known organ exists")
    single = next((path for path, value in files.items() if value is LABEL_MAP), None)
    if single is not None:
        return _from_values(_read(single, image), single, known, name_map)
    return _from_files({path: value for path, value in files.items() if value is not None}, image, known)


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
    """Read a label map in the dataset's own values, or in values that the name map translates."""
    present = {int(value) for value in np.unique(array)} - {0}
    given = {int(key): known.named(name) for key, name in name_map.items() if key.isdigit()}
    own = frozenset().union(*(label.values for label in known.labels), {known.ignore})
    if name_map and not given:
        raise Unusable(
            NO_MASK,
            f'{path} is a label map, but --name-map translates none of its values: add some, as in {{"5": "liver"}}',
        )
    meaning = given or {value: value for value in present}
    label = np.zeros(array.shape, dtype=np.int16)
    for value in present & set(meaning):
        if meaning[value] not in own:
            raise Unusable(
                NO_MASK, f"{path} holds the value {value}, which is no label of the dataset: map it with --name-map"
            )
        label[array == value] = meaning[value]
    return Masks(label, frozenset(meaning.values()) - known.lesions - {known.ignore}, path.stat().st_size)


def predict_masks(model: Model, image: Case, known: PoolLabels, name_map: Mapping[str, str]) -> Masks:
    """Predict hosts, and lesions if the model knows them, and translate its labels by their names.

    Raises:
        ValueError: the name map names a label that the dataset does not have.
    """
    values = model_values(model, known, name_map)
    predicted = predict_labels(model, image)
    label = np.zeros(predicted.shape, dtype=np.int16)
    for of_model, meaning in values.items():
        label[predicted == of_model] = meaning
    names = {name: value for name in model.segmenter.labels if (value := value_for(name, known, name_map))}
    return Masks(label, annotated_values(names, known))


def model_values(model: Model, known: PoolLabels, name_map: Mapping[str, str]) -> dict[int, int]:
    """Map a model's label values to the dataset's; where labels nest, the innermost one names a value."""
    translated = {}
    entries = [(name, value) for name, value in model.segmenter.labels.items() if name not in ("background", "ignore")]
    by_size = sorted(entries, key=lambda entry: -len(entry[1]) if isinstance(entry[1], list) else 0)
    for name, value in by_size:
        meaning = value_for(name, known, name_map)
        if meaning is not None:
            translated.update(dict.fromkeys(value if isinstance(value, list) else [value], meaning))
    return translated
