"""The unlabeled pool: CT without tumor labels, preprocessed as a configuration's cases are, in a folder of its own.

A case exists once its record exists, which is written last. The folder is stamped with the plans and labels that it was
made for. Nothing in it is ever used for validation.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_freetumor.files.cases import replacing_all, write_json
from nnunetv2_freetumor.files.hashes import compared_cases, read_contents

STAMP, RECORDS, UNFINISHED = "stamp.json", "records", ".unfinished-*"
CONTENTS = "labeled_contents.json"  # hashes of the labeled images that the pool was compared with
MARK = "unlabeled:"  # prefix of pool cases in a training set; no file name of a labeled case has it
_LARGEST_SHARE = 0.5  # of each batch, unless the section says otherwise
_FINE, _COARSE = 10, 1  # copies of the identifiers that are repeated less
_OF_PLANS = ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel")
_OF_CONFIGURATION = (
    "preprocessor_name spacing normalization_schemes use_mask_for_norm resampling_fn_data resampling_fn_data_kwargs "
    "resampling_fn_seg resampling_fn_seg_kwargs"
).split()


class Record(NamedTuple):
    """One case of the pool. Field names are a file format: records/CASE.json of a pool."""

    case: str
    source: str  # the image that it was made from
    settings: str  # see `JobContext.settings_of`
    cleared: str  # who has checked it for tumors: 'tumor-free' (the user), a model's name, or nobody ('')
    content: str  # hash of the image's voxels
    counts: dict[str, float]  # what was taken out of the loss


class Pool(NamedTuple):
    """The cases that may be trained on."""

    folder: Path
    cases: tuple[str, ...]
    waiting: int  # cases held back, because they have not been checked for tumors
    again: int  # duplicates of other cases
    counts: dict[str, float]


class Volumes(NamedTuple):
    """A preprocessed case."""

    image: np.ndarray  # (1 x y z) float32, z-scores
    label: np.ndarray  # (1 x y z) int16
    properties: dict[str, Any]


class WithPool:
    """A labeled training set and a pool as one data set for nnU-Net's loader, which draws from its identifiers."""

    def __init__(self, labeled: Any, pool: Pool, share: float) -> None:
        """Repeat the identifiers so that about this share of the draws comes from the pool."""
        self._labeled, self._pool = labeled, nnUNetDatasetBlosc2(str(pool.folder), list(pool.cases))
        own = [str(name) for name in labeled.identifiers]
        copies = copies_for(len(own), len(pool.cases), share)
        names = [*own * copies[0], *[MARK + case for case in pool.cases] * copies[1]]
        self.identifiers = np.array(names, dtype=object)  # drawing from a list copies it each time

    @property
    def share(self) -> float:
        """Return the share of the draws that comes from the pool."""
        return float(np.mean([name.startswith(MARK) for name in self.identifiers]))

    def load_case(self, identifier: str) -> Any:
        """Load a case as nnU-Net's data sets do."""
        if identifier.startswith(MARK):
            return self._pool.load_case(identifier.removeprefix(MARK))
        return self._labeled.load_case(identifier)


def copies_for(labeled: int, pool: int, share: float) -> tuple[int, int]:
    """Choose how often to repeat labeled and pool identifiers for a share of draws, within 5 % of their ratio."""
    if share >= 1:
        return 0, 1
    ratio = share * labeled / ((1 - share) * pool)  # pool copies for each labeled copy
    scale = _FINE if 1 / _FINE < ratio < _FINE else _COARSE
    return (max(1, round(scale / ratio)), scale) if ratio < 1 else (scale, max(1, round(scale * ratio)))


def default_share(labeled: int, pool: int) -> float:
    """Return the pool's share of all cases, at most one half."""
    return min(pool / (labeled + pool), _LARGEST_SHARE)


def pool_folder(preprocessed: str | Path, plans: dict[str, Any], configuration: str) -> Path:
    """Return the pool's folder, beside the folder of the configuration's own cases."""
    identifier = PlansManager(plans).get_configuration(configuration).data_identifier
    return Path(preprocessed) / f"{identifier}_unlabeled"


def ignore_value(dataset_json: dict[str, Any]) -> int:
    """Return the label value that carries no loss: the dataset's own ignore label, or the next free number."""
    labels = dataset_json["labels"]
    if "ignore" in labels:
        return int(labels["ignore"])
    return max(max(value) if isinstance(value, list | tuple) else int(value) for value in labels.values()) + 1


def preprocessing_hash(plans: dict[str, Any], configuration: str) -> str:
    """Hash what a configuration's preprocessed arrays depend on; plans that share arrays have the same hash."""
    settings = PlansManager(plans).get_configuration(configuration).configuration
    parts = {name: plans.get(name) for name in _OF_PLANS} | {name: settings.get(name) for name in _OF_CONFIGURATION}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write_stamp(folder: Path, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> None:
    """Stamp the pool's folder, which makes it one."""
    write_json(_stamp(plans, configuration, dataset_json), folder / STAMP)


def check_stamp(folder: Path, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> None:
    """Check that a pool was made for these plans and labels.

    Raises:
        ValueError: the text names the folder, what differs and the way out.
    """
    found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    wanted = _stamp(plans, configuration, dataset_json)
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        changes = "; ".join(f"{name} was {found.get(name)}, is {wanted[name]}" for name in different)
        raise ValueError(
            f"The unlabeled pool {folder} was made for other plans or labels ({changes}), so its cases do not fit. "
            "Delete that folder and run 'nnUNetv2_freetumor add-unlabeled' again, or restore the old plans and labels."
        )


def _stamp(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> dict[str, Any]:
    labels = {"labels": dataset_json["labels"], "ignore": ignore_value(dataset_json)}
    return {"plans_hash": preprocessing_hash(plans, configuration)} | labels


def open_pool(folder: Path, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> Pool | None:
    """Return the pool with its cases, duplicates left out; None if there is no pool.

    Raises:
        ValueError: it was made for other plans or labels, or it is not known what it was compared with.
    """
    if not (folder / STAMP).is_file():
        return None
    check_stamp(folder, plans, configuration, dataset_json)
    if not (folder / CONTENTS).is_file():
        raise ValueError(
            f"The unlabeled pool {folder} has lost {CONTENTS}, the list of labeled cases that it was compared with. "
            "Repeat the last 'nnUNetv2_freetumor add-unlabeled' command: it recreates that file and keeps the cases."
        )
    contents = read_contents(folder / CONTENTS)
    records = [record for record in read_records(folder) if record.content not in contents]
    used = {record.content: record for record in reversed(records) if record.cleared}  # the first of each scan
    waiting = {record.content for record in records} - set(used)
    counts: Counter[str] = Counter()
    for record in used.values():
        counts.update(record.counts)
    cases = tuple(sorted(record.case for record in used.values()))
    return Pool(folder, cases, waiting=len(waiting), again=len(records) - len(used) - len(waiting), counts=dict(counts))


def check_compared(folder: Path, labeled: Iterable[str]) -> None:
    """Check that the pool was compared with these labeled cases: one of them may be in it, without its label.

    Raises:
        ValueError: the text names the cases and the way out.
    """
    unknown = sorted(set(labeled) - compared_cases(folder / CONTENTS))
    if unknown:
        raise ValueError(
            f"The unlabeled pool {folder} has not been compared with {len(unknown)} newer labeled case(s) "
            f"({unknown[0]} ...). A scan that is in both would leak into training. Repeat the last "
            "'nnUNetv2_freetumor add-unlabeled' command: it removes such scans and keeps the other cases."
        )


def read_records(folder: Path) -> list[Record]:
    """Read the records of all cases, sorted by name."""
    return [_read(path) for path in sorted((folder / RECORDS).glob("*.json"))]


def find_record(folder: Path, case: str) -> Record | None:
    """Read a case's record; None if the pool does not have the case."""
    path = _record_file(folder, case)
    return _read(path) if path.is_file() else None


def _read(path: Path) -> Record:
    return Record(**json.loads(path.read_text(encoding="utf-8")))


def _record_file(folder: Path, case: str) -> Path:
    return folder / RECORDS / f"{case}.json"


def write_volumes(folder: Path, record: Record, volumes: Volumes, patch_size: Sequence[int]) -> list[Path]:
    """Write a case as nnU-Net does, its record last, so that no half-written case counts; return its files."""
    _record_file(folder, record.case).unlink(missing_ok=True)
    image, label, properties = volumes
    (blocks, chunks), (blocks_seg, chunks_seg) = (
        comp_blosc2_params(array.shape, tuple(patch_size), array.itemsize) for array in (image, label)
    )
    with replacing_all(folder) as unfinished:
        nnUNetDatasetBlosc2.save_case(
            image, label, properties, str(unfinished / record.case), chunks, blocks, chunks_seg, blocks_seg
        )
    files = _case_files(folder, record.case)
    write_record(folder, record)
    return files


def write_label(folder: Path, record: Record, volumes: Volumes, patch_size: Sequence[int]) -> None:
    """Replace a case's label map and class locations, and its record last."""
    blocks, chunks = comp_blosc2_params(volumes.label.shape, tuple(patch_size), volumes.label.itemsize)
    with replacing_all(folder) as unfinished:
        nnUNetDatasetBlosc2.save_seg(volumes.label, str(unfinished / f"{record.case}_seg"), chunks, blocks)
        write_pickle(volumes.properties, str(unfinished / f"{record.case}.pkl"))
    write_record(folder, record)


def _case_files(folder: Path, case: str) -> list[Path]:
    return [folder / f"{case}{ending}" for ending in (".b2nd", "_seg.b2nd", ".pkl")] + [_record_file(folder, case)]


def write_record(folder: Path, record: Record) -> None:
    """Write a case's record, after its files."""
    write_json(record._asdict(), _record_file(folder, record.case))


def read_volumes(folder: Path, case: str) -> Volumes:
    """Read all of a case."""
    image, label, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
    return Volumes(np.asarray(image[:]), np.asarray(label[:]), properties)


def withdraw(folder: Path, case: str) -> None:
    """Remove a case from the pool, its record first."""
    for path in reversed(_case_files(folder, case)):
        path.unlink(missing_ok=True)
