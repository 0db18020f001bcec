"""Splits of a dataset with synthetic cases: validation holds real cases only.

nnU-Net splits whatever lies in imagesTr, so a name alone keeps nothing out of validation. It does keep to a
`splits_final.json`: its planner copies the one in the raw dataset beside the plans, and refuses one that differs.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_freetumor.cases import write_json

FILE = "splits_final.json"
SYNTHETIC = "synthetic_"  # how the names of synthetic cases begin
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


def check_place(preprocessed: Path | None) -> None:
    """Refuse splits beside the plans that somebody else has put there.

    Raises:
        ValueError: names the file and the ways out.
    """
    splits = None if preprocessed is None else read_splits(preprocessed)
    if splits and not any(case.startswith(SYNTHETIC) for split in splits for case in split["train"]):
        raise ValueError(
            f"{preprocessed}/{FILE} is there already and knows no synthetic case, so that nnU-Net would not use them "
            "as it should. Choose another dataset number with -o, or move that file away."
        )


def write_splits(splits: Splits, raw: Path, preprocessed: Path | None) -> None:
    """Write the splits into the raw dataset, and to where nnU-Net's trainers look for them."""
    if preprocessed is not None:
        preprocessed.mkdir(parents=True, exist_ok=True)
        write_json(splits, preprocessed / FILE)
    write_json(splits, raw / FILE)


def check_validation(cases: Collection[str], fold: int | str) -> None:
    """Refuse to validate a numbered fold on synthetic cases.

    Raises:
        ValueError: names one, and the way out.
    """
    found = [] if fold == "all" else [case for case in cases if case.startswith(SYNTHETIC)]
    if found:
        raise ValueError(
            f"Fold {fold} would be validated on {len(found)} synthetic case(s) ({found[0]} ...). Copy {FILE} from the "
            "raw dataset into the preprocessed one; folds that it does not hold cannot be trained."
        )


def read_splits(folder: Path) -> Splits | None:
    """Read the splits of a folder, where it has some."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
