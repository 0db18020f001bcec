"""The evaluation as files: evaluation.json, and lesions.csv with a line for every lesion and every prediction."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.evaluation.results import Evaluation, PairResult
from nnunetv2_freetumor.evaluation.scores import CaseScore, PredictedLesion, ReferenceLesion
from nnunetv2_freetumor.files.cases import replacing, write_json

_CENTER = ("center_z", "center_y", "center_x")
_COLUMNS = ("predictions", "pair", "case", "patient", "from", *_CENTER) + tuple(
    dict.fromkeys(
        name for name in (*ReferenceLesion._fields, *PredictedLesion._fields) if name != "center"
    )
)  # fmt: skip


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write everything as strict JSON; missing values are null."""
    pairs = {result.pair.name: _pair(result) for result in evaluation.pairs}
    head = {
        "version": __version__,
        "rule": evaluation.rule,
        "seed": evaluation.seed,
        "folders": evaluation.folders,
        "notes": evaluation.notes,
    }
    write_json(as_json({**head, "pairs": pairs}), path)


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write a line for every reference lesion and every connected prediction; missing values are empty."""
    with replacing(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, _COLUMNS)
        writer.writeheader()
        for result in evaluation.pairs:
            for name, scores in result.scores.items():
                for score in scores:
                    writer.writerows({"predictions": name, **line} for line in _lines(score))


def as_json(value: Any) -> Any:
    """Convert named tuples, arrays and NaN to types of strict JSON."""
    if hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return as_json(value.tolist())
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _pair(result: PairResult) -> dict[str, Any]:
    return {
        "labels": {"tumor": result.pair.tumor, "host": result.pair.host},
        "summaries": result.summaries,
        "comparison": result.comparison,
        "gap": result.gap,
        "cases": result.scores,
    }


def _lines(score: CaseScore) -> Iterator[dict[str, Any]]:
    for source, lesions in (("reference", score.lesions), ("prediction", score.predictions)):
        for lesion in lesions:
            values = as_json(lesion)
            center = dict(zip(_CENTER, values.pop("center")))
            yield {"pair": score.pair, "case": score.case, "patient": score.patient, "from": source, **center, **values}
