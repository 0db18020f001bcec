"""Check that a case's files can be scored, read them, and score them; the processes of an evaluation run this."""

import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from nnunetv2_freetumor.evaluation.case_scores import score_case
from nnunetv2_freetumor.evaluation.inputs import Labels, PredictedCase
from nnunetv2_freetumor.evaluation.scores import CaseScore, Pair, Rule
from nnunetv2_freetumor.files.cases import GEOMETRY_TOLERANCE, Case, read_label

_PROBABILITIES = "probabilities"  # key in nnU-Net's CASE.npz
_LEAST_AGREEING_SHARE = 0.95  # of predicted tumor voxels: the tumor's probability is high enough to win there


def check_files(files: PredictedCase, labels: Labels) -> None:
    """Read a case's files and refuse what cannot be scored.

    Raises:
        ValueError: the files do not fit each other or dataset.json.
    """
    reference, prediction = read_label(files.reference), read_label(files.prediction)
    _check_grid(reference, prediction)
    for label in (reference, prediction):
        present = np.unique(label.array).astype(int).tolist()
        if unknown := sorted(set(present) - labels.values):
            raise ValueError(
                f"{label.path} holds the label {', '.join(map(str, unknown))}, but dataset.json only has "
                f"{', '.join(map(str, sorted(labels.values)))}. Is it a file of another dataset?"
            )
    if files.probabilities:
        shape = _header(files.probabilities).shape
        wanted = (len(labels.channels), *prediction.array.shape)
        if shape != wanted:
            raise ValueError(
                f"{files.probabilities} holds probabilities of shape {shape}, but the labels of dataset.json and "
                f"{files.prediction} need {wanted}. Remove the .npz files, or predict again with --save_probabilities."
            )


def score_files(files: PredictedCase, labels: Labels, rule: Rule) -> tuple[CaseScore, ...]:
    """Score one case, pair by pair."""
    reference, prediction = read_label(files.reference), read_label(files.prediction)
    truth, guess = (case.array.astype(np.int32) for case in (reference, prediction))
    scores = []
    for pair in labels.pairs:
        probability = read_probability(files.probabilities, labels, pair, guess) if files.probabilities else None
        spacing_mm = tuple(map(float, reference.spacing_mm))
        scores.append(
            score_case(
                files.case,
                files.patient,
                pair=pair,
                reference=truth,
                prediction=guess,
                spacing_mm=spacing_mm,
                rule=rule,
                probability=probability,
                ignore=labels.ignore,
            )
        )
    return tuple(scores)


def read_probability(
    path: Path, labels: Labels, pair: Pair, prediction: Integer[np.ndarray, "z y x"]
) -> Float[np.ndarray, "z y x"] | None:
    """Read only the tumor's channel of nnU-Net's probabilities.

    Returns:
        None if no channel is exactly this tumor.

    Raises:
        ValueError: the probabilities do not belong to the prediction.
    """
    channel = labels.channel_of(pair)
    if channel is None:
        return None
    head = _header(path)
    voxels = math.prod(head.shape[1:])
    if head.columns_first:
        probability = np.load(path)[_PROBABILITIES][channel]
    else:
        with zipfile.ZipFile(path) as archive, archive.open(f"{_PROBABILITIES}.npy") as stream:
            stream.seek(head.length + channel * voxels * head.kind.itemsize)
            data = stream.read(voxels * head.kind.itemsize)
        probability = np.frombuffer(data, head.kind).reshape(head.shape[1:])
    wins = probability[np.isin(prediction, pair.tumor)] >= 1 / max(len(labels.channels), 2) - 1e-3
    if wins.size and wins.mean() < _LEAST_AGREEING_SHARE:
        raise ValueError(
            f"{path} does not belong to the prediction next to it: the probability of '{pair.name}' is high in only "
            f"{wins.mean():.0%} of the voxels predicted as such. Predict again with --save_probabilities, or remove "
            "the .npz files to score without FROC and AUROC."
        )
    return probability.astype(np.float32)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    columns_first: bool
    kind: np.dtype
    length: int  # bytes in front of the numbers


def _header(path: Path) -> _Header:
    """Read the header of the probabilities in an .npz, without unpacking them."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{_PROBABILITIES}.npy") as stream:
            np.lib.format.read_magic(stream)
            shape, columns_first, kind = np.lib.format.read_array_header_1_0(stream)
            return _Header(shape, columns_first, kind, stream.tell())
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as nnU-Net's probabilities ({error}). Remove it, or predict again with "
            "--save_probabilities."
        ) from error


def _check_grid(reference: Case, prediction: Case) -> None:
    differences = [
        f"{name} {a} against {b}"
        for name, a, b, tolerance in (
            ("size (z, y, x)", reference.array.shape, prediction.array.shape, 0),
            ("spacing in mm", reference.spacing_mm, prediction.spacing_mm, GEOMETRY_TOLERANCE["spacing_mm"]),
        )
        if not np.allclose(a, b, rtol=0, atol=tolerance)
    ]
    if differences:
        raise ValueError(
            f"Reference {reference.path} and prediction {prediction.path} must be on the same grid, but differ "
            f"in {'; '.join(differences)}. Predict on the image that the reference was drawn on, or resample the "
            "prediction onto the reference's grid with nearest-neighbor interpolation."
        )
