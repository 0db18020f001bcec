"""Score the demo's predictions: Dice, lesions found by size, false positives.

Label maps hold 0 background, 1 host organ, 2 tumor.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_freetumor.plan import SIZE_NAMES, size_index

FOUND_SHARE = 0.1  # of a lesion's voxels that must be predicted as tumor for it to count as found
TUMOR = 2
CONNECTED_26 = np.ones((3, 3, 3), dtype=int)


class LesionScore(NamedTuple):
    """One reference lesion."""

    diameter_mm: float
    found: bool


class CaseScore(NamedTuple):
    """One test case; Dice is NaN where neither reference nor prediction has a voxel."""

    case: str
    organ_dice: float  # host organ with its tumors
    tumor_dice: float
    lesions: tuple[LesionScore, ...]
    false_positives: int  # connected predictions that touch no reference tumor


class SizeRow(NamedTuple):
    """Lesions of one size class over all cases."""

    name: str
    lesions: int
    found: int


def score_case(
    case: str,
    reference: Integer[np.ndarray, "z y x"],
    prediction: Integer[np.ndarray, "z y x"],
    spacing_mm: Sequence[float],
) -> CaseScore:
    """Compare a prediction with its reference."""
    truth, guess = reference == TUMOR, prediction == TUMOR
    lesions, _ = ndimage.label(truth, CONNECTED_26)
    guesses, number = ndimage.label(guess, CONNECTED_26)
    touching = set(np.unique(guesses[truth])) - {0}
    sizes = np.bincount(lesions[truth])[1:]
    hits = np.bincount(lesions[truth & guess], minlength=len(sizes) + 1)[1:]
    voxel_mm3 = math.prod(spacing_mm)
    found = tuple(
        LesionScore((6 / math.pi * size * voxel_mm3) ** (1 / 3), bool(hit >= FOUND_SHARE * size))
        for size, hit in zip(sizes.tolist(), hits.tolist())
    )
    return CaseScore(case, dice(reference > 0, prediction > 0), dice(truth, guess), found, number - len(touching))


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Give the Dice overlap of two masks, NaN when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else math.nan


def rows_by_size(scores: Sequence[CaseScore]) -> list[SizeRow]:
    """Count lesions and found lesions of each size class."""
    lesions = [lesion for score in scores for lesion in score.lesions]
    rows = []
    for index, name in enumerate(SIZE_NAMES):
        chosen = [lesion for lesion in lesions if size_index(lesion.diameter_mm) == index]
        rows.append(SizeRow(name, len(chosen), sum(lesion.found for lesion in chosen)))
    return rows
