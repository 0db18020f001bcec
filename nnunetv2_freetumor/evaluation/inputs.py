"""Find the cases of an evaluation: label maps of the same name in a folder of references and one of predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nnunetv2_freetumor.evaluation.labels import Labels, read_json

SHOWN_NAMES = 5


class Files(NamedTuple):
    """The files of one case."""

    case: str
    patient: str
    reference: Path
    prediction: Path
    probabilities: Path | None


class Cohort(NamedTuple):
    """Cases that are scored together."""

    files: tuple[Files, ...]
    notes: tuple[str, ...]  # what was left out, for people to read

    @property
    def names(self) -> tuple[str, ...]:
        """Name the cases."""
        return tuple(files.case for files in self.files)

    @property
    def has_probabilities(self) -> bool:
        """Tell whether every case has probabilities."""
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
        chill: score what both folders hold; otherwise they must hold the same cases.
        only: cases that must be there; no others are scored.
        patients: which patient each case belongs to; by default each case is a patient.

    Raises:
        ValueError: a missing folder, cases that are missing, or probabilities of some cases only.
    """
    ending = labels.file_ending
    there, predicted = _cases(Path(references), ending), _cases(Path(predictions), ending)
    if not there & predicted:
        raise ValueError(
            f"{references} and {predictions} have no case in common: their files *{ending} are {_some(there)} and "
            f"{_some(predicted)}. Give the folder with reference labels, and the one with predictions of these cases."
        )
    _check_complete(references, predictions, there, predicted, chill)
    if lacking := sorted(set(only) - predicted):
        raise ValueError(
            f"{predictions} must hold every case that it is compared on, but it lacks {_some(lacking)}. Predict them "
            "with this model too."
        )
    chosen = tuple(only) or tuple(sorted(there & predicted))
    notes = [
        f"Left out, for {folder} does not have them: {_some(cases)}."
        for folder, cases in ((predictions, there - predicted), (references, predicted - there))
        if cases
    ]
    if lacking := [case for case in chosen if case not in (patients or dict.fromkeys(chosen))]:
        raise ValueError(f"--patients must name a patient for each case, but it lacks {_some(lacking)}.")
    files = tuple(
        Files(
            case,
            str((patients or {}).get(case, case)),
            Path(references) / f"{case}{ending}",
            Path(predictions) / f"{case}{ending}",
            Path(predictions) / f"{case}.npz",
        )
        for case in chosen
    )
    return Cohort(*_with_probabilities(files, Path(predictions), [] if only else notes))


def read_patients(path: str | Path | None) -> dict[str, str] | None:
    """Read which patient each case belongs to, from JSON such as {"case_1": "patient_a"}."""
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
            "Predict them too, or score only what is there with --chill."
        )
    if extra := predicted - there:
        raise ValueError(
            f"{predictions} holds predictions that {references} has no reference for: {_some(extra)}. Give the folder "
            "with their references, or score only what both folders hold with --chill."
        )


def _with_probabilities(
    files: tuple[Files, ...], folder: Path, notes: list[str]
) -> tuple[tuple[Files, ...], tuple[str, ...]]:
    lacking = [item.case for item in files if not (item.probabilities and item.probabilities.is_file())]
    if not lacking:
        return files, tuple(notes)
    if len(lacking) < len(files):
        raise ValueError(
            f"{folder} has probabilities (CASE.npz) of {len(files) - len(lacking)} cases, but not of {_some(lacking)}. "
            "FROC and AUROC need them of every case: predict all with --save_probabilities, or remove the .npz files."
        )
    note = (
        f"{folder} has no probabilities (CASE.npz), so there is no FROC and no AUROC. nnUNetv2_predict writes them "
        "with --save_probabilities, nnUNetv2_train with --npz."
    )
    return tuple(item._replace(probabilities=None) for item in files), (*notes, note)


def _some(names: Sequence[str] | set[str]) -> str:
    first = sorted(names)[:SHOWN_NAMES]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "") or "none"
