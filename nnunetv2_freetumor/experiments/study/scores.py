"""Keep a trial's scores as JSON, so that a study goes on where it was stopped."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunetv2_freetumor.evaluation.scores import CaseScore, PredictedLesion, ReferenceLesion, Sweep


def to_json(scores: Sequence[CaseScore]) -> list[dict[str, Any]]:
    """Turn scores into what `json.dump` takes; NaN becomes null."""
    return [
        _without_nan(score._asdict())
        | {
            "lesions": [_without_nan(lesion._asdict()) for lesion in score.lesions],
            "predictions": [_without_nan(lesion._asdict()) for lesion in score.predictions],
            "sweep": None if score.sweep is None else [part.tolist() for part in score.sweep],
        }
        for score in scores
    ]


def from_json(data: Sequence[dict[str, Any]]) -> list[CaseScore]:
    """Read what `to_json` wrote."""
    return [
        CaseScore(
            **_with_nan(item)
            | {
                "lesions": tuple(_lesion(ReferenceLesion, lesion) for lesion in item["lesions"]),
                "predictions": tuple(_lesion(PredictedLesion, lesion) for lesion in item["predictions"]),
                "sweep": None if item["sweep"] is None else Sweep(*(np.array(part) for part in item["sweep"])),
            }
        )
        for item in data
    ]


def _lesion(kind: Any, data: dict[str, Any]) -> Any:
    return kind(**_with_nan(data) | {"center": tuple(data["center"])})


def _without_nan(data: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in data.items()}


def _with_nan(data: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in data.items()}
