"""What a synthetic case was made from, complete enough to recreate it bit for bit."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.files.cases import Case
from nnunetv2_freetumor.plan import Section, read_section, to_json
from nnunetv2_freetumor.synthesis.planted import Planted

_FORMAT = 1


class GeneratorFile(NamedTuple):
    """The generator of a target's lesions; without path and hash it has no weights."""

    name: str
    path: str | None = None
    sha256: str | None = None


class PlantingSettings(NamedTuple):
    """Everything that a synthetic case depends on besides its two input files."""

    section: Section  # with the case's own seed
    lesions: int
    generators: tuple[GeneratorFile, ...]  # by target
    device: str


class Recorded(NamedTuple):
    """The parts of a provenance file that are needed to recreate its case."""

    case: str
    source: dict[str, Any]  # case, dataset, and name and content hash of image and label
    settings: PlantingSettings  # generators without their paths
    result: dict[str, str]  # content hashes


def exact_hash(case: Case) -> str:
    """Hash voxels, data type and geometry, but neither the file's name nor its compression."""
    array = np.ascontiguousarray(case.array)
    place = [array.dtype.str, array.shape, case.spacing_mm, case.origin_mm, case.direction]
    digest = hashlib.sha256(json.dumps(place).encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def case_seed(seed: int, source: str, number: int) -> int:
    """Derive a case's seed from the run's seed, its source and its number, whatever else is made."""
    return int(hashlib.sha256(json.dumps([seed, source, number]).encode()).hexdigest()[:7], 16)


def record(
    case: str, source: dict[str, Any], settings: PlantingSettings, planted: list[Planted], image: Case, label: Case
) -> dict[str, Any]:
    """Return the provenance of a case: what it was made from, its lesions, and the hashes of its voxels."""
    return {
        "format": _FORMAT,
        "case": case,
        "synthetic": True,
        "version": __version__,
        "torch": torch.__version__,
        "device": settings.device,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "seed": settings.section.seed,
        "source": source,
        "generators": [
            {"target": target.name, "name": generator.name, "sha256": generator.sha256}
            for target, generator in zip(settings.section.targets, settings.generators)
        ],
        "lesions_wanted": settings.lesions,
        "lesions": [describe_lesion(lesion, image) for lesion in planted],
        "result": {"image": exact_hash(image), "label": exact_hash(label)},
        "section": to_json(settings.section),
    }


def describe_lesion(lesion: Planted, image: Case) -> dict[str, Any]:
    """Return the numbers of a lesion that are recorded."""
    return {
        "target": lesion.name,
        "center_mm": [round(value, 2) for value in image.to_patient_mm(lesion.center)],
        "diameter_mm": round(lesion.diameter_mm, 2),
        "volume_mm3": round(lesion.volume_mm3, 2),
        "contrast_hu": round(lesion.contrast_hu, 1),
    }


def read_provenance(path: str | Path) -> Recorded:
    """Read a provenance file.

    Raises:
        ValueError: it is missing, not a provenance file, or from another version of this package.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise KeyError("format")
        settings = PlantingSettings(
            read_section(data["section"]),
            data["lesions_wanted"],
            tuple(GeneratorFile(item["name"], None, item["sha256"]) for item in data["generators"]),
            data["device"],
        )
        recorded = Recorded(data["case"], data["source"], settings, data["result"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a provenance file of format {_FORMAT} ({error}). 'synthesize-dataset' writes them to "
            "provenance/CASE.json in the new dataset."
        ) from error
    if data["version"] != __version__:
        raise ValueError(
            f"{path} was written by nnunetv2_freetumor {data['version']}, but this is {__version__}, which may plant "
            f"differently. Install version {data['version']} to recreate its case."
        )
    return recorded
