"""Find the inputs of an evaluation: tumor/host pairs, and label maps of the same name in two folders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_freetumor.evaluation.scores import Pair
from nnunetv2_freetumor.plan import SECTION, read_section
from nnunetv2_freetumor.planning import roles

_SHOWN_NAMES = 5


class Labels(NamedTuple):
    """The labels of a dataset as evaluation needs them."""

    pairs: tuple[Pair, ...]
    values: frozenset[int]  # that a label map may hold, background and ignore label among them
    ignore: int | None
    file_ending: str
    channels: tuple[tuple[int, ...], ...]  # label values behind each channel of nnU-Net's probabilities

    def channel_of(self, pair: Pair) -> int | None:
        """Return the channel of nnU-Net's probabilities that is exactly a pair's tumor, or None."""
        return self.channels.index(pair.tumor) if pair.tumor in self.channels else None


def read_scored_labels(dataset_json: str | Path, plans_file: str | Path | None = None) -> Labels:
    """Read what to score: tumors and hosts from the plans' section or, without one, from the label names.

    Raises:
        ValueError: a file is missing or incomplete, or no label can be recognized as a tumor.
    """
    path = Path(dataset_json)
    data = read_json(path, "-djfile", ("labels", "file_ending"))
    plans = {} if plans_file is None else read_json(Path(plans_file), "-pfile", ())
    entries = {name: _values(value) for name, value in data["labels"].items()}
    ignore = entries.get("ignore", (None,))[0]
    foreground = [values for name, values in entries.items() if name != "ignore" and set(values) != {0}]
    labels = {value for values in entries.values() for value in values}
    by_region = any(len(values) > 1 for values in foreground)
    channels = foreground if by_region else [(value,) for value in sorted(labels - {ignore})]
    return Labels(
        pairs=_pairs(path, data, plans, entries),
        values=frozenset(labels | {0}),
        ignore=ignore,
        file_ending=data["file_ending"],
        channels=tuple(channels),
    )


def read_json(path: Path, flag: str, keys: Sequence[str]) -> dict[str, Any]:
    """Read an object from a JSON file and refuse one that lacks a key.

    Raises:
        ValueError: the file is missing, is not JSON, or lacks a key.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}; {flag} must name an existing JSON file.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} ({flag}) cannot be read as JSON: {error}.") from error
    missing = [key for key in keys if key not in data] if isinstance(data, dict) else ["object of keys and values"]
    if missing:
        raise ValueError(f"{path} ({flag}) must hold {', '.join(map(repr, keys)) or 'an object'}, but lacks {missing}.")
    return data


def _pairs(
    path: Path, data: dict[str, Any], plans: dict[str, Any], entries: dict[str, tuple[int, ...]]
) -> tuple[Pair, ...]:
    """Make a pair of each tumor label; a label for tumors of several hosts is scored once, in all of them."""
    hosts: dict[int, set[int]] = {}
    names: dict[int, str] = {values[0]: name for name, values in reversed(entries.items()) if len(values) == 1}
    for item in _targets(path, data, plans):
        hosts.setdefault(item.tumor_label, set()).update(item.host_labels)
        names.setdefault(item.tumor_label, item.name)
    return tuple(Pair(names[tumor], (tumor,), tuple(sorted(host))) for tumor, host in hosts.items())


def _targets(path: Path, data: dict[str, Any], plans: dict[str, Any]) -> Sequence[Any]:
    if SECTION in plans:
        section = read_section(plans[SECTION])
        if section.labels != data["labels"]:
            raise ValueError(
                f"The plans' freetumor section was made for the labels {section.labels}, but {path} has "
                f"{data['labels']}. Give plans and dataset.json of the same dataset, or leave out -pfile."
            )
        return section.targets
    name = plans.get("dataset_name") or data.get("name") or path.absolute().parent.name
    try:
        return roles.resolve(data, name, plans.get(roles.ROLES))
    except ValueError as error:
        raise ValueError(f"{path}: {error} Then give that plans file with -pfile.") from error


def _values(value: Any) -> tuple[int, ...]:
    return tuple(sorted({int(v) for v in value})) if isinstance(value, list | tuple) else (int(value),)


class PredictedCase(NamedTuple):
    """The files of one case that is scored."""

    case: str
    patient: str
    reference: Path
    prediction: Path
    probabilities: Path | None


class Cohort(NamedTuple):
    """Cases that are scored together."""

    files: tuple[PredictedCase, ...]
    notes: tuple[str, ...]  # for people: what was left out

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the cases."""
        return tuple(files.case for files in self.files)

    @property
    def has_probabilities(self) -> bool:
        """Return whether every case has probabilities."""
        return all(files.probabilities for files in self.files)


def open_cohort(
    references: str | Path,
    predictions: str | Path,
    labels: Labels,
    *,
    chill: bool = False,
    only: Sequence[str] = (),
    patients: Mapping[str, str] | None = None,
) -> Cohort:
    """Find the cases that both folders hold.

    Args:
        chill: score the cases that are in both folders; otherwise the folders must hold the same cases.
        only: score these cases only; all of them must be there.
        patients: the patient of each case; by default each case is a patient.

    Raises:
        ValueError: a folder or a case is missing, or only some cases have probabilities.
    """
    ending = labels.file_ending
    there, predicted = _cases(Path(references), ending), _cases(Path(predictions), ending)
    if not there & predicted:
        raise ValueError(
            f"{references} and {predictions} have no case in common: their files *{ending} are {_some(there)} and "
            f"{_some(predicted)}. Give a folder with reference label maps and one with predictions of the same cases."
        )
    _check_complete(references, predictions, there=there, predicted=predicted, chill=chill)
    if lacking := sorted(set(only) - predicted):
        raise ValueError(
            f"{predictions} must hold every case that it is compared on, but it lacks {_some(lacking)}. Predict them "
            "with this model too."
        )
    chosen = tuple(only) or tuple(sorted(there & predicted))
    notes = [
        f"Not scored, because they are missing in {folder}: {_some(cases)}."
        for folder, cases in ((predictions, there - predicted), (references, predicted - there))
        if cases
    ]
    if lacking := [case for case in chosen if case not in (patients or dict.fromkeys(chosen))]:
        raise ValueError(f"--patients must name a patient for each case, but it lacks {_some(lacking)}.")
    files = tuple(
        PredictedCase(
            case,
            str((patients or {}).get(case, case)),
            reference=Path(references) / f"{case}{ending}",
            prediction=Path(predictions) / f"{case}{ending}",
            probabilities=Path(predictions) / f"{case}.npz",
        )
        for case in chosen
    )
    return Cohort(*_with_probabilities(files, Path(predictions), [] if only else notes))


def read_patients(path: str | Path | None) -> dict[str, str] | None:
    """Read the patient of each case from JSON such as {"case_1": "patient_a"}."""
    return None if path is None else {k: str(v) for k, v in read_json(Path(path), "--patients", ()).items()}


def _cases(folder: Path, ending: str) -> set[str]:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. Give folders with label maps (*{ending}).")
    return {path.name.removesuffix(ending) for path in folder.glob(f"[!.]*{ending}") if path.is_file()}


def _check_complete(
    references: str | Path, predictions: str | Path, there: set[str], predicted: set[str], chill: bool
) -> None:
    if chill:
        return
    if missing := there - predicted:
        raise ValueError(
            f"{predictions} lacks {len(missing)} of the {len(there)} cases that {references} has: {_some(missing)}. "
            "Predict them too, or score only the others with --chill."
        )
    if extra := predicted - there:
        raise ValueError(
            f"{predictions} holds predictions without a reference in {references}: {_some(extra)}. Give the folder of "
            "their references, or score only the cases in both folders with --chill."
        )


def _with_probabilities(
    files: tuple[PredictedCase, ...], folder: Path, notes: list[str]
) -> tuple[tuple[PredictedCase, ...], tuple[str, ...]]:
    lacking = [item.case for item in files if not (item.probabilities and item.probabilities.is_file())]
    if not lacking:
        return files, tuple(notes)
    if len(lacking) < len(files):
        raise ValueError(
            f"{folder} has probabilities (CASE.npz) of {len(files) - len(lacking)} cases, but not of {_some(lacking)}. "
            "FROC and AUROC need them for all cases: predict all with --save_probabilities, or remove the .npz files."
        )
    note = (
        f"{folder} has no probabilities (CASE.npz), so there is no FROC and no AUROC. nnUNetv2_predict writes them "
        "with --save_probabilities, nnUNetv2_train with --npz."
    )
    return tuple(item._replace(probabilities=None) for item in files), (*notes, note)


def _some(names: Sequence[str] | set[str]) -> str:
    first = sorted(names)[:_SHOWN_NAMES]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "") or "none"
