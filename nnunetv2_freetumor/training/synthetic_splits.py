"""Splits of a dataset with synthetic cases: validation holds real cases only.

nnU-Net splits whatever lies in imagesTr, so a name alone keeps nothing out of validation. It does keep to a
`splits_final.json`: its planner copies the one in the raw dataset beside the plans, and refuses one that differs.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_freetumor.files.cases import write_json
from nnunetv2_freetumor.files.synthetic_names import is_synthetic, source_of

SPLITS_FILE = "splits_final.json"
FOLDS = 5  # nnU-Net draws a split of its own for a fold that the file does not hold

Splits = list[dict[str, list[str]]]


def make_splits(
    real: Collection[str], synthetic: Mapping[str, str], known: Splits | None, seen: Collection[str] = ()
) -> Splits:
    """Split a dataset so that validation holds real cases only, and training nothing that was made from them.

    Args:
        real: the real labeled cases.
        synthetic: each synthetic case and the case that it was made from.
        known: the splits of the dataset that the real cases come from; nnU-Net's own otherwise.
        seen: cases that a learned generator was trained on; a fold that validates on one gets no synthetic case.
    """
    splits = known or _real_splits(sorted(real))
    if not splits:
        return [{"train": sorted({*real, *synthetic}), "val": []} for _ in range(FOLDS)]
    folds = []
    for index in range(max(FOLDS, len(splits))):
        train, val = (set(splits[index % len(splits)][part]) & set(real) for part in ("train", "val"))
        allowed = set() if val & set(seen) else {case for case, source in synthetic.items() if source in train}
        folds.append({"train": sorted(train | allowed), "val": sorted(val)})
    return folds


def _real_splits(real: list[str]) -> Splits:
    """Split as nnU-Net does; with two to four cases leave one out, with fewer nothing can be split."""
    if len(real) >= FOLDS:
        return generate_crossval_split(real, seed=12345, n_splits=FOLDS)
    return [{"train": [c for c in real if c != out], "val": [out]} for out in real] if len(real) > 1 else []


def check_place(preprocessed: Path) -> None:
    """Refuse splits beside the plans that somebody else has put there.

    Raises:
        ValueError: names the file and the ways out.
    """
    splits = read_splits(preprocessed)
    if splits and not any(is_synthetic(case) for split in splits for case in split["train"]):
        raise ValueError(
            f"{preprocessed}/{SPLITS_FILE} exists and lists no synthetic case, so nnU-Net would not use "
            "the synthetic cases as intended. Choose another dataset number with -o, or move that file away."
        )


def edited_splits(folders: Sequence[Path], written: Collection[str]) -> list[Path]:
    """List the split files that somebody has changed since they were written.

    Args:
        folders: where split files may lie.
        written: what `stamp_of` has given for all splits that were written there.

    Raises:
        ValueError: such splits do not keep synthetic cases apart from validation.
    """
    edited = []
    for folder in folders:
        splits = read_splits(folder)
        if splits is not None and stamp_of(splits) not in written:
            edited.append(folder / SPLITS_FILE)
            for fold, split in enumerate(splits):
                check_split(split["train"], split["val"], fold)
    return edited


def stamp_of(splits: Splits) -> str:
    """Hash splits."""
    return hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:16]


def write_splits(splits: Splits, folders: Sequence[Path]) -> None:
    """Write the splits into the raw dataset, and to where nnU-Net's trainers look for them."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(splits, folder / SPLITS_FILE)


def check_split(training: Collection[str], validation: Collection[str], fold: int | str) -> None:
    """Refuse a numbered fold that is validated on synthetic cases, or on what these were made from.

    Raises:
        ValueError: names one, and the way out.
    """
    if fold == "all":
        return
    fix = f"Copy {SPLITS_FILE} from the raw dataset into the preprocessed one; only its folds can be trained."
    if found := [case for case in validation if is_synthetic(case)]:
        raise ValueError(f"Fold {fold} would be validated on {len(found)} synthetic case(s) ({found[0]} ...). {fix}")
    if found := [case for case in training if is_synthetic(case) and source_of(case) in validation]:
        raise ValueError(
            f"Fold {fold} would be trained on {len(found)} synthetic case(s) made from its validation cases "
            f"({found[0]} ...). {fix}"
        )


def read_splits(folder: Path) -> Splits | None:
    """Read the splits of a folder, where it has some."""
    path = folder / SPLITS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class SplitGuardMixin(nnUNetTrainer):
    """Refuse a numbered fold that would validate on synthetic cases, or on what these were made from."""

    def do_split(self) -> tuple[list[str], list[str]]:
        """Split as nnU-Net does, and look at what that gives."""
        training, validation = super().do_split()
        check_split(training, validation, self.fold)
        return training, validation
