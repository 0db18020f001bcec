"""Recognize the same scan in two CTs by their voxels, whatever their file type, header or orientation."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_freetumor.files.cases import read_case, write_json

RANGE_HU = (-1024, 3071)  # padding and metal are stored differently here and there


FileStates = tuple[tuple[int, int], ...]


def state_of(*paths: Path) -> FileStates:
    """Return the files' sizes and modification times; as long as these stay, the files are unchanged."""
    return tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


def content_hash(array: np.ndarray) -> str:
    """Hash how often each HU occurs, and the size: the same for any type, flip, turn, origin and spacing.

    Two different scans with the same histogram of some million voxels do not occur.
    """
    low, high = RANGE_HU
    values = np.rint(np.clip(array.ravel(), low, high)).astype(np.int16) - low
    counts = np.bincount(values, minlength=high - low + 1).astype("<i8")
    return hashlib.sha256(repr(sorted(array.shape)).encode() + counts.tobytes()).hexdigest()[:24]


def file_hash(path: str | Path) -> str:
    """Hash a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def labeled_contents(images: Mapping[str, Path], cache: Path) -> dict[str, str]:
    """Map the hashes of labeled images to their names; what has not changed since comes from the cache.

    Args:
        images: the images of labeled cases by the cases' names.
        cache: file that keeps the hashes; a run that was stopped goes on with what it has.
    """
    known: dict[str, Any] = json.loads(cache.read_text(encoding="utf-8")) if cache.is_file() else {}
    found: dict[str, Any] = {}
    try:
        for case, path in tqdm(sorted(images.items()), desc="labeled cases", unit="case", disable=None):
            state = [str(path), *state_of(path)[0]]
            entry = known.get(case)
            found[case] = entry if entry and entry[:3] == state else [*state, content_hash(read_case(path).array)]
        known = {}
    finally:
        write_json(known | found, cache)
    return read_contents(cache)


def read_contents(cache: Path) -> dict[str, str]:
    """Read what `labeled_contents` has written."""
    return {entry[3]: Path(entry[0]).name for entry in json.loads(cache.read_text(encoding="utf-8")).values()}


def compared_cases(cache: Path) -> set[str]:
    """List the labeled cases that `labeled_contents` has read."""
    return set(json.loads(cache.read_text(encoding="utf-8")))
