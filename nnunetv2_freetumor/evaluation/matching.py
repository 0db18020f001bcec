"""Match predicted tumors with reference tumors, one to one.

The protocol is that of the PI-CAI challenge (Saha et al., Lancet Oncology 2024): tumors are the 26-connected components
of the two masks, a pair may match if its intersection over union (IoU) reaches a minimum, and of all assignments of
predictions to lesions the one with the most pairs counts, and among those the one with the largest sum of IoU.
What follows from that:

* reference tumors that touch, even at a corner, are one lesion;
* one prediction over two lesions finds one of them at most, and a prediction that fills the organ finds none, as its
  IoU with every lesion is small;
* of two predictions in one lesion one is a true positive and the other is "touching".

A prediction that is not assigned is "touching" if a tenth of its own voxels or more lies on reference tumors, and
counts neither as found nor as a false positive: it points a reader at a real tumor. Any other is a false positive,
even one that fills the organ. (PI-CAI is stricter: there a prediction below the minimum IoU with every lesion is a
false positive, even one that lies inside a lesion.)
"""

from typing import NamedTuple

import cc3d
import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from scipy.optimize import linear_sum_assignment

TRUE_POSITIVE, FALSE_POSITIVE, TOUCHING = "true positive", "false positive", "touching"
MISSED = -1
TOUCHING_SHARE = 0.1  # of a prediction's voxels on reference tumors


class Components(NamedTuple):
    """The connected components of a mask."""

    mask: Bool[np.ndarray, "z y x"]  # with the components that were left out
    labels: Integer[np.ndarray, "z y x"]  # 0 background, 1 to n
    voxels: Int[np.ndarray, "n"]


class Matching(NamedTuple):
    """The predictions assigned to lesions; both are counted from 0, in the order of their labels."""

    partners: Int[np.ndarray, "lesions"]  # the prediction assigned to each lesion, or MISSED
    shared_voxels: Int[np.ndarray, "lesions"]  # with that prediction; 0 when missed
    iou: Float[np.ndarray, "lesions"]  # likewise
    covered_voxels: Int[np.ndarray, "lesions"]  # by any prediction
    kinds: tuple[str, ...]  # of the predictions


class _Overlaps(NamedTuple):
    """The lesions and predictions that share voxels, one row per such pair."""

    lesions: Int[np.ndarray, "pairs"]
    predictions: Int[np.ndarray, "pairs"]
    voxels: Int[np.ndarray, "pairs"]
    touching: Int[np.ndarray, "touching"]  # predictions on tumors of any size


def find_components(mask: Bool[np.ndarray, "z y x"], min_voxels: int = 1) -> Components:
    """Label the 26-connected components that have at least `min_voxels` voxels."""
    kept = cc3d.dust(mask, threshold=min_voxels, connectivity=26) if min_voxels > 1 else mask
    labels = cc3d.connected_components(kept, connectivity=26)
    return Components(mask, labels, np.bincount(labels[kept])[1:])


def match(lesions: Components, predictions: Components, min_iou: float) -> Matching:
    """Assign predictions to lesions one to one: as many pairs of at least `min_iou` as possible, then the most IoU."""
    overlaps = _overlaps(lesions, predictions)
    iou = overlaps.voxels / (
        lesions.voxels[overlaps.lesions] + predictions.voxels[overlaps.predictions] - overlaps.voxels
    )
    chosen = _assign(overlaps, iou, min_iou)
    number = len(lesions.voxels)
    partners, shared, best = np.full(number, MISSED), np.zeros(number, int), np.zeros(number)
    matched, assigned = overlaps.lesions[chosen], overlaps.predictions[chosen]
    partners[matched], shared[matched], best[matched] = assigned, overlaps.voxels[chosen], iou[chosen]
    covered = np.bincount(overlaps.lesions, overlaps.voxels, number).astype(int)
    return Matching(
        partners,
        shared,
        iou=best,
        covered_voxels=covered,
        kinds=_kinds(len(predictions.voxels), overlaps.touching, assigned),
    )


def _overlaps(lesions: Components, predictions: Components) -> _Overlaps:
    """Count the shared voxels of every pair that has any."""
    of_lesion = lesions.labels[lesions.mask].astype(int)
    of_prediction = predictions.labels[lesions.mask].astype(int)
    kept = (of_lesion > 0) & (of_prediction > 0)
    columns = len(predictions.voxels) + 1
    pairs, voxels = np.unique(of_lesion[kept] * columns + of_prediction[kept], return_counts=True)
    on_tumor = np.bincount(of_prediction, minlength=columns)[1:]
    touching = np.flatnonzero((on_tumor > 0) & (on_tumor >= TOUCHING_SHARE * predictions.voxels))
    return _Overlaps(pairs // columns - 1, pairs % columns - 1, voxels, touching)


def _assign(overlaps: _Overlaps, iou: Float[np.ndarray, "pairs"], min_iou: float) -> Int[np.ndarray, "chosen"]:
    """Return the rows of the assignment."""
    enough = np.flatnonzero(iou >= min_iou)
    lesions, row = np.unique(overlaps.lesions[enough], return_inverse=True)
    predictions, column = np.unique(overlaps.predictions[enough], return_inverse=True)
    pair = np.full((len(lesions), len(predictions)), -1)
    pair[row, column] = enough
    gain = np.zeros(pair.shape)
    gain[row, column] = 1 + iou[enough]  # the 1 puts the number of pairs before their overlap
    chosen = pair[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]


def _kinds(number: int, touching: Int[np.ndarray, "touching"], assigned: Int[np.ndarray, "chosen"]) -> tuple[str, ...]:
    kinds = np.full(number, FALSE_POSITIVE, dtype=object)
    kinds[touching] = TOUCHING
    kinds[assigned] = TRUE_POSITIVE
    return tuple(kinds.tolist())
