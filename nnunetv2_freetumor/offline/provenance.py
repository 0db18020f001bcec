"""What a synthetic case was made from, complete enough to make it again bit for bit."""

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

FORMAT = 1


class GeneratorFile(NamedTuple):
    """What draws a target's lesions; without a path and a hash it has no weights."""

    name: str
    path: str | None = None
    sha256: str | None = None


class Recipe(NamedTuple):
    """Everything that a synthetic case follows from, its two input files aside."""

    section: Section  # with the case's own seed
    lesions: int
    generators: tuple[GeneratorFile, ...]  # by target
    device: str


class Recorded(NamedTuple):
    """A provenance file, as far as it is needed to make its case again."""

    case: str
    source: dict[str, Any]  # case, dataset, and name and content hash of image and label
    recipe: Recipe  # generators without their paths
    result: dict[str, str]  # content hashes


def exact_hash(case: Case) -> str:
    """Hash voxels, their type and where they lie; neither the file's name nor its compression."""
    array = np.ascontiguousarray(case.array)
    place = [array.dtype.str, array.shape, case.spacing_mm, case.origin_mm, case.direction]
    digest = hashlib.sha256(json.dumps(place).encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def case_seed(seed: int, source: str, number: int) -> int:
    """Derive a case's seed from the run's, from its source and its number, whatever else is made beside it."""
    return int(hashlib.sha256(json.dumps([seed, source, number]).encode()).hexdigest()[:7], 16)


def record(
    case: str, source: dict[str, Any], recipe: Recipe, planted: list[Planted], image: Case, label: Case
) -> dict[str, Any]:
    """Write down what a case was made from, what is in it, and how its voxels hash."""
    return {
        "format": FORMAT,
        "case": case,
        "synthetic": True,
        "version": __version__,
        "torch": torch.__version__,
        "device": recipe.device,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "seed": recipe.section.seed,
        "source": source,
        "generators": [
            {"target": target.name, "name": generator.name, "sha256": generator.sha256}
            for target, generator in zip(recipe.section.targets, recipe.generators)
        ],
        "lesions_wanted": recipe.lesions,
        "lesions": [describe_lesion(lesion, image) for lesion in planted],
        "result": {"image": exact_hash(image), "label": exact_hash(label)},
        "section": to_json(recipe.section),
    }


def describe_lesion(lesion: Planted, image: Case) -> dict[str, Any]:
    """Describe a lesion for people."""
    return {
        "target": lesion.name,
        "center_mm": [round(value, 2) for value in image.to_patient_mm(lesion.center)],
        "diameter_mm": round(lesion.diameter_mm, 2),
        "volume_mm3": round(lesion.volume_mm3, 2),
        "contrast_hu": round(lesion.contrast_hu, 1),
    }


def read_record(path: str | Path) -> Recorded:
    """Read a provenance file.

    Raises:
        ValueError: it is missing, or none of this package, or one of another version.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise KeyError("format")
        recipe = Recipe(
            read_section(data["section"]),
            data["lesions_wanted"],
            tuple(GeneratorFile(item["name"], None, item["sha256"]) for item in data["generators"]),
            data["device"],
        )
        recorded = Recorded(data["case"], data["source"], recipe, data["result"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a provenance file of format {FORMAT} ({error}). 'synthesize-dataset' writes them to "
            "provenance/CASE.json of the dataset that it makes."
        ) from error
    if data["version"] != __version__:
        raise ValueError(
            f"{path} was written by nnunetv2_freetumor {data['version']}, and this is {__version__}, which may plant "
            f"otherwise. Install version {data['version']} to make its case again."
        )
    return recorded
