"""Check what `add-unlabeled` is asked for before any work: options that go together, name maps, hosts and models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_freetumor.pool.context import Asked, Job
from nnunetv2_freetumor.pool.masks import model_values
from nnunetv2_freetumor.pool.model import Model, check_judge, has_met_lesions, load_model
from nnunetv2_freetumor.pool.target import DatasetPlans


def check_asked(images: str | None, mark_suspects: str | None, adding: Mapping[str, Any]) -> None:
    """Check that options go together.

    Args:
        images: value of `-i`.
        mark_suspects: value of `--mark-suspects`.
        adding: values of the options that need `-i`, by name.

    Raises:
        ValueError: the text names them.
    """
    if (images is None) == (mark_suspects is None):
        raise ValueError(
            "Give either -i with images to add, or --mark-suspects with a model that checks the pool for tumors."
        )
    given = [name for name, value in adding.items() if value]
    if mark_suspects is not None and given:
        raise ValueError(
            f"--mark-suspects only checks cases that are already in the pool, so {', '.join(given)} would have no "
            "effect: leave it out, or add images with -i."
        )


def job_for(asked: Asked, dataset: DatasetPlans, adds: bool) -> Job:
    """Find out before any work what cannot work for any case, and which models there are.

    Args:
        asked: what the user asked for.
        dataset: that the pool belongs to.
        adds: whether images are added; otherwise the judge looks at the pool.

    Raises:
        ValueError: a label, host masks or a model that cannot be used; or nothing that says where the hosts are.
    """
    for name in [*dict(asked.hosts.name_map).values(), *asked.hosts.annotates]:
        dataset.labels.named(name)
    judge = load_model(asked.judge, "cpu") if asked.judge else None
    if judge is not None:
        _check_judge(judge, dataset, asked.plans.configuration)
    _check_hosts(asked, dataset, adds)
    host_model = load_model(asked.hosts.model, "cpu") if asked.hosts.model else None
    looks = host_model is not None and _knows_lesions(host_model, asked, dataset)
    models = tuple(model.name for model in (host_model, judge) if model is not None)
    return Job(asked, models, looks and not (asked.judge or asked.tumor_free))


def _check_judge(judge: Model, dataset: DatasetPlans, configuration: str) -> None:
    check_judge(judge, dataset.plans, configuration, dataset.labels.lesion_names())
    if not has_met(judge, dataset):
        raise ValueError(
            f"The model {judge.segmenter.name} has never seen a tumor: no case of this dataset contains one, and its "
            "trainer plants none. It would call every scan clean. Train with -tr nnUNetTrainerFreeTumor."
        )


def _check_hosts(asked: Asked, dataset: DatasetPlans, adds: bool) -> None:
    masks, model = asked.hosts.masks, asked.hosts.model
    if adds and not (masks or model or any(target.host_hu for target in dataset.section.targets)):
        raise ValueError(
            "Nothing says where the hosts are: give --hosts with a folder of organ masks, or --host-model with a "
            "trained nnU-Net model that finds them."
        )
    if masks and model:
        raise ValueError("--hosts and --host-model both say where the hosts are: give only one of them.")
    if masks and not Path(masks).is_dir():
        raise ValueError(f"--hosts must be a folder with masks, but {masks} does not exist or is not a folder.")


def _knows_lesions(host_model: Model, asked: Asked, dataset: DatasetPlans) -> bool:
    """Check that a model knows a host of the dataset, and whether it knows its lesions and has met one in training."""
    found = set(model_values(host_model, dataset.labels, dict(asked.hosts.name_map)).values())
    if not found & dataset.labels.hosts:
        known = ", ".join(host_model.segmenter.labels)
        raise ValueError(
            f"--host-model has the labels {known}, and none of them means a host of this dataset: translate one with "
            "--name-map."
        )
    return bool(found & dataset.labels.lesions) and has_met(host_model, dataset)


def has_met(model: Model, dataset: DatasetPlans) -> bool:
    """Check whether a model has seen one of the dataset's lesions in training; see `has_met_lesions`."""
    absent = dataset.section.fingerprint.get("absent_labels", [])
    return has_met_lesions(model, dataset.plans["dataset_name"], absent, dataset.labels.lesion_names())


def read_name_map(path: str | None) -> dict[str, str]:
    """Read which names or values of masks stand for which of the dataset's labels.

    Raises:
        ValueError: the text names the file and what it must contain.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise ValueError(f"--name-map must be a JSON file, but {path} does not exist.")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--name-map {path} is not a JSON file ({error}).") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(
            f"--name-map {path} must map mask names to labels of the dataset, such as "
            '{"liver_segment_1": "liver"}, or values of label maps, such as {"5": "liver"}.'
        )
    return found
