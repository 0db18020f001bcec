"""Check what `add-unlabeled` is asked for before any work: options that go together, name maps, hosts and models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_freetumor.pool.masks import model_values
from nnunetv2_freetumor.pool.model import Model, check_judge, has_met_lesions, load_model
from nnunetv2_freetumor.pool.orders import Job, Place


def check_asked(images: str | None, mark_suspects: str | None, adding: Mapping[str, Any]) -> None:
    """Refuse options that do not go together.

    Args:
        images: of `-i`.
        mark_suspects: of `--mark-suspects`.
        adding: values of the options that go with `-i` only, by name.

    Raises:
        ValueError: names them.
    """
    if (images is None) == (mark_suspects is None):
        raise ValueError("Give either -i with images to add, or --mark-suspects with a model that looks at the pool.")
    given = [name for name, value in adding.items() if value]
    if mark_suspects is not None and given:
        raise ValueError(
            f"--mark-suspects looks at the cases that the pool holds, and {', '.join(given)} would do nothing there: "
            "leave it out, or add images with -i."
        )


def check_job(job: Job, place: Place, adds: bool) -> None:
    """Find out before any work what cannot work for any case.

    Raises:
        ValueError: a label, host masks or a model that cannot serve; or nothing that says where the hosts are.
    """
    for name in [*dict(job.name_map).values(), *job.annotates]:
        place.labels.named(name)
    if job.judge:
        model = load_model(job.judge, "cpu")
        check_judge(model, place.plans, job.configuration, place.labels.lesion_names())
        if not met_lesions(model, place):
            raise ValueError(
                f"The model {model.segmenter.name} has never been shown a tumor: no case of this dataset holds one, "
                "and its trainer plants none. It would find every scan clean. Train with -tr nnUNetTrainerFreeTumor."
            )
    if adds and not (job.hosts or job.host_model or any(target.host_hu for target in place.section.targets)):
        raise ValueError(
            "Nothing says where the hosts are: give --hosts with a folder of organ masks, or --host-model with a "
            "trained nnU-Net model that finds them."
        )
    if job.hosts and job.host_model:
        raise ValueError("--hosts and --host-model both say where the hosts are: give one of them.")
    if job.hosts and not Path(job.hosts).is_dir():
        raise ValueError(f"--hosts must be a folder with masks, but {job.hosts} is not there or no folder.")
    if job.host_model:
        found = set(model_values(load_model(job.host_model, "cpu"), place.labels, dict(job.name_map)).values())
        if not found & place.labels.hosts:
            known = ", ".join(load_model(job.host_model, "cpu").segmenter.labels)
            raise ValueError(f"--host-model knows the labels {known}, and none is a host here: give a --name-map.")


def host_model_looks(job: Job, place: Place) -> bool:
    """Tell whether the host model is who looks for tumors: it knows them, and no judge and no user has a say."""
    model = load_model(job.host_model, "cpu")
    known = set(model_values(model, place.labels, dict(job.name_map)).values()) & place.labels.lesions
    return not (job.judge or job.tumor_free) and bool(known) and met_lesions(model, place)


def met_lesions(model: Model, place: Place) -> bool:
    """Tell whether a model has been shown one of the dataset's lesions; see `has_met_lesions`."""
    absent = place.section.fingerprint.get("absent_labels", [])
    return has_met_lesions(model, place.plans["dataset_name"], absent, place.labels.lesion_names())


def read_name_map(path: str | None) -> dict[str, str]:
    """Read which names or values of masks stand for which of the dataset's labels.

    Raises:
        ValueError: names the file and what it must hold.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise ValueError(f"--name-map must be a JSON file, but there is no file {path}.")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--name-map {path} is no JSON file ({error}).") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(
            f"--name-map {path} must map names of masks to labels of the dataset, such as "
            '{"liver_segment_1": "liver"}, or values of label maps, such as {"5": "liver"}.'
        )
    return found
