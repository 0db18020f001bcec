"""What is asked of the pool: the settings of a run, its orders, and which of them are done already."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_freetumor.files.hashes import FileStates, read_contents, state_of
from nnunetv2_freetumor.plan import SECTION, Section, read_section
from nnunetv2_freetumor.pool import store
from nnunetv2_freetumor.pool.masks import PoolLabels, mask_files, pool_labels


class Job(NamedTuple):
    """What all cases of a run share; paths are absolute."""

    preprocessed: str  # the dataset's folder
    plans_name: str
    configuration: str
    hosts: str = ""  # folder of masks
    host_model: str = ""
    name_map: tuple[tuple[str, str], ...] = ()
    annotates: tuple[str, ...] = ()
    tumor_free: bool = False
    judge: str = ""
    models: tuple[str, ...] = ()  # names of host model and judge: one that was trained on is another one
    host_model_looks: bool = False  # it has learned what a tumor is, and nobody else looks
    device: str = ""  # of the models; each worker chooses without one


class Order(NamedTuple):
    """One image to add."""

    case: str
    image: str
    masks: tuple[str, ...]  # names that its masks may have
    job: Job


class Place(NamedTuple):
    """Where a pool lies and what its cases are made with."""

    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    manager: PlansManager
    configuration: ConfigurationManager
    section: Section
    labels: PoolLabels


def read_place(preprocessed: str, plans_name: str, configuration: str) -> Place:
    """Read the target dataset's plans, again only where they have changed: a cluster's workers outlive a run."""
    plans_file, dataset_file = (Path(preprocessed) / f"{name}.json" for name in (plans_name, "dataset"))
    return _read_place(plans_file, dataset_file, configuration, state_of(plans_file, dataset_file))


@lru_cache(maxsize=1)
def _read_place(plans_file: Path, dataset_file: Path, configuration: str, _state: FileStates) -> Place:
    folder = plans_file.parent
    plans, dataset_json = (json.loads(file.read_text(encoding="utf-8")) for file in (plans_file, dataset_file))
    section, manager = read_section(plans[SECTION]), PlansManager(plans)
    labels = pool_labels(section, dataset_json, store.ignore_value(dataset_json))
    settings = manager.get_configuration(configuration)
    at = store.pool_folder(folder, plans, configuration)
    return Place(at, plans, dataset_json, manager, settings, section, labels)


def place_of(job: Job) -> Place:
    """Read where a job's pool lies."""
    return read_place(job.preprocessed, job.plans_name, job.configuration)


def settings_of(order: Order) -> str:
    """Say what a case's files depend on beside the plans: options, models, and the state of image and masks."""
    job, place = order.job, place_of(order.job)
    name_map, masks = dict(job.name_map), dict[Path, int | None]()
    if job.hosts:
        masks = mask_files(Path(job.hosts), order.masks, order.image, place.labels, name_map)
    files = [path for path in (Path(order.image), *masks) if path.exists()]
    options = [job.hosts, job.host_model, job.name_map, job.annotates, job.tumor_free, job.judge, job.models]
    return json.dumps([options, [str(path) for path in files], state_of(*files)])


def is_done(order: Order) -> bool:
    """Tell whether a case is in the pool as it was ordered, and no labeled case has the same voxels by now."""
    folder = place_of(order.job).folder
    record = store.read_record(folder, order.case)
    if record is None or record.source != order.image or record.content in labeled(folder):
        return False
    return record.settings == settings_of(order)


def labeled(folder: Path) -> Mapping[str, str]:
    """Name the labeled images by the hashes of their voxels."""
    path = folder / store.CONTENTS
    return _labeled(path, state_of(path))


@lru_cache(maxsize=1)
def _labeled(path: Path, _state: FileStates) -> dict[str, str]:
    return read_contents(path)
