"""Made-up evaluations: label maps in folders, and results whose numbers are written by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from nnunet_folders import LIVER, write_volume

from nnunetv2_freetumor.evaluation.inputs import Cohort, PredictedCase
from nnunetv2_freetumor.evaluation.results import OTHER, OURS, Evaluation, PairResult
from nnunetv2_freetumor.evaluation.scores import (
    ALL_SIZES,
    THRESHOLDS,
    CaseScore,
    Difference,
    Estimate,
    FrocPoint,
    Pair,
    PredictedLesion,
    ReferenceLesion,
    Rule,
    Summary,
    size_names,
)

PAIR = Pair("tumor", (2,), (1,))
SHAPE, SPACING_MM = (10, 24, 24), (4.0, 2.0, 2.0)
NAMES = (*size_names(Rule().bounds_mm), ALL_SIZES)


def label_map(*tumors: tuple[int, int, int], radius_mm: float = 6.0) -> np.ndarray:
    """Make an organ (1) with spheres of tumor (2) at these voxels."""
    label = np.zeros(SHAPE, np.uint8)
    label[1:-1, 2:-2, 2:-2] = 1
    grid = np.indices(SHAPE)
    for center in tumors:
        distance = [(axis - at) * mm for axis, at, mm in zip(grid, center, SPACING_MM)]
        label[np.sqrt(sum(d**2 for d in distance)) < radius_mm] = 2
    return label


class Folders:
    """A folder of references, folders of predictions, and dataset.json."""

    def __init__(self, root: Path, labels: dict[str, Any] | None = None, **more: Any) -> None:
        self.root = root
        self.djfile = root / "dataset.json"
        self.djfile.write_text(json.dumps({"labels": labels or LIVER, "file_ending": ".nii.gz", **more}))

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def write(self, folder: str, **cases: np.ndarray) -> Path:
        """Write label maps and give their folder."""
        (self.root / folder).mkdir(exist_ok=True)
        for case, array in cases.items():
            write_volume(array, self.root / folder / f"{case}.nii.gz", SPACING_MM)
        return self.root / folder

    def probabilities(self, folder: str, **cases: np.ndarray) -> None:
        """Write nnU-Net's probabilities: .9 for what the label map shows."""
        for case, label in cases.items():
            chances = np.stack([np.where(label == value, 0.9, 0.05) for value in range(3)]).astype(np.float32)
            np.savez_compressed(self.root / folder / f"{case}.npz", probabilities=chances)


def two_cases(root: Path) -> Folders:
    """Write two lesions in case a, none in b; one is found, one missed, and b has a false alarm."""
    folders = Folders(root)
    folders.write("ref", a=label_map((4, 6, 6), (5, 17, 17)), b=label_map())
    folders.write("pred", a=label_map((4, 6, 6)), b=label_map((5, 12, 12)))
    return folders


def estimate(value: float, count: int = 12) -> Estimate:
    """Return a value with an interval of .1 to both sides."""
    return Estimate(value, max(value - 0.1, 0.0), min(value + 0.1, 1.0), count)


def summary(shift: float = 0.0, froc: bool = True) -> Summary:
    """Return numbers of which only the sensitivity is shifted."""
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    sensitivity = {name: estimate(0.3 + 0.15 * i + shift, 12 - 2 * i) for i, name in enumerate(NAMES)}
    sensitivity[NAMES[3]] = nothing
    points = tuple(
        FrocPoint(t, 3 * (1 - t) ** 2, {n: e._replace(value=e.value * (1 - t / 2)) for n, e in sensitivity.items()})
        for t in THRESHOLDS
    )
    return Summary(
        "tumor", 9, 3, 20, sensitivity,
        Estimate(0.8, 0.3, 1.4, 9), Estimate(0.3, 0.1, 0.6, 9), Estimate(1.1, 0.2, 2.0, 9),
        estimate(0.9, 6),
        estimate(0.5, 3), estimate(0.8, 9) if froc else nothing, estimate(0.6, 8), estimate(0.7, 8), estimate(0.9, 9),
        points if froc else (),
    )  # fmt: skip


def scores(dice: float = 0.6) -> tuple[CaseScore, ...]:
    """Return case a with one lesion found and one missed, and case b with a false alarm."""
    lesions = (
        ReferenceLesion(1, (4, 6, 6), 12.0, 0.9, True, 0.7, 0.8, 0.9, 1.0),
        ReferenceLesion(2, (5, 17, 17), 11.5, 0.8, False, 0.0, 0.0, 0.0, math.nan),
    )
    hit = PredictedLesion(1, (4, 6, 6), 12.0, 0.9, "true positive", 0.9)
    alarm = PredictedLesion(1, (5, 12, 12), 12.0, 0.9, "false positive", 0.9)
    return (
        CaseScore("a", "a", "tumor", dice, 0.7, 0.9, lesions, (hit,), 0.9, None),
        CaseScore("b", "b", "tumor", math.nan, math.nan, 0.9, (), (alarm,), 0.9, None),
    )


def evaluation(other: bool = True, froc: bool = True) -> Evaluation:
    """Return an evaluation of one pair."""
    both = (OURS, OTHER) if other else (OURS,)
    difference = Difference(0.1, -0.05, 0.2, 0.04, 12)
    keys = [f"sensitivity {name}" for name in NAMES] + ["false positives per scan", "dice"]
    result = PairResult(
        pair=PAIR,
        scores={name: scores(0.6 - 0.1 * i) for i, name in enumerate(both)},
        summaries={name: summary(-0.1 * i, froc) for i, name in enumerate(both)},
        comparison=dict.fromkeys(keys, difference) if other else {},
        gap={},
    )
    return Evaluation(Rule(), 0, {"references": "ref", OURS: "pred"}, ("something <is> missing.",), (result,))


def cohort(folders: Folders) -> Cohort:
    """Return the files of `two_cases`."""
    files = [PredictedCase(n, n, folders / f"ref/{n}.nii.gz", folders / f"pred/{n}.nii.gz", None) for n in "ab"]
    return Cohort(tuple(files), ())
