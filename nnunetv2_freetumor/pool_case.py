"""Add one CT to the unlabeled pool: read, check, find its hosts, preprocess, take out what may be tumor, write."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_freetumor import pool, pool_images
from nnunetv2_freetumor.case_reports import CaseReport
from nnunetv2_freetumor.cases import Case
from nnunetv2_freetumor.contents import content_hash, read_contents
from nnunetv2_freetumor.hosts import host_mask
from nnunetv2_freetumor.intensity import from_plans
from nnunetv2_freetumor.plan import SECTION, Section, read_section
from nnunetv2_freetumor.pool_hosts import Masks, model_values, predict_masks, read_masks
from nnunetv2_freetumor.pool_images import Unusable
from nnunetv2_freetumor.pool_labels import PoolLabels, pool_labels
from nnunetv2_freetumor.pool_segmenter import load_model, predict_lesions
from nnunetv2_freetumor.suspects import find_holes, keep_places, take_out

TUMOR_FREE = "tumor-free"  # the user's word
CONTENTS = "labeled_contents.json"
MIN_HOST_ML = 1.0


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
    device: str = ""  # of the models; each worker chooses without one

    @property
    def settings(self) -> str:
        """Say what a case's files depend on beside the plans."""
        return json.dumps([self.hosts, self.host_model, self.name_map, self.annotates, self.tumor_free, self.judge])


class Order(NamedTuple):
    """One image to add."""

    case: str
    image: str
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


@lru_cache(maxsize=1)
def read_place(preprocessed: str, plans_name: str, configuration: str) -> Place:
    """Read the target dataset's plans, once per process."""
    folder = Path(preprocessed)
    plans = json.loads((folder / f"{plans_name}.json").read_text(encoding="utf-8"))
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    section, manager = read_section(plans[SECTION]), PlansManager(plans)
    labels = pool_labels(section, dataset_json, pool.ignore_value(dataset_json))
    settings = manager.get_configuration(configuration)
    at = pool.pool_folder(folder, plans, configuration)
    return Place(at, plans, dataset_json, manager, settings, section, labels)


def is_done(order: Order) -> bool:
    """Tell whether a case is in the pool as it was ordered."""
    job = order.job
    record = pool.read_record(read_place(job.preprocessed, job.plans_name, job.configuration).folder, order.case)
    return record is not None and (record.settings, record.source) == (job.settings, order.image)


def add_case(order: Order) -> CaseReport:
    """Add one CT to the pool; what cannot be used is skipped with the reason."""
    job = order.job
    place = read_place(job.preprocessed, job.plans_name, job.configuration)
    try:
        image = pool_images.read_ct(order.image)
        pool_images.check_looks_like_ct(image)
        content = content_hash(image.array)
        if same := _contents(str(place.folder / CONTENTS)).get(content):
            raise Unusable(pool_images.DUPLICATE, f"{same} holds the same voxels, and it would leak into training")
        volumes, counts = _preprocess(order, place, image)
    except Unusable as error:
        return CaseReport(order.case, "skipped", str(error))
    record = pool.Record(order.case, order.image, job.settings, _cleared(job, place), content, counts)
    pool.write_volumes(place.folder, record, volumes, place.configuration.patch_size)
    return CaseReport(order.case, "done", "", counts)


@lru_cache(maxsize=1)
def _contents(path: str) -> dict[str, str]:
    return read_contents(Path(path))


def _cleared(job: Job, place: Place) -> str:
    if job.judge:
        return load_model(job.judge, job.device).name
    if job.tumor_free:
        return TUMOR_FREE
    if job.host_model:
        model = load_model(job.host_model, job.device)
        if set(model_values(model, place.labels, dict(job.name_map)).values()) & place.labels.lesions:
            return model.name
    return ""


def _preprocess(order: Order, place: Place, image: Case) -> tuple[pool.Volumes, dict[str, float]]:
    masks = _find_hosts(order, place, image)
    intensity = from_plans(place.plans)
    host = _host_voxels(place, image, masks.label)
    pool_images.check_host_hu(image, host, (intensity.low_hu, intensity.high_hu))
    complete = place.labels.organs() <= masks.annotated | {place.labels.named(name) for name in order.job.annotates}
    label = masks.label if complete else np.where(masks.label == 0, place.labels.ignore, masks.label)
    unannotated = int((label != masks.label).sum())
    volumes = _as_nnunet_does(place, image, label.astype(np.int16))
    suspects = np.isin(volumes.label[0], sorted(place.labels.lesions))
    if order.job.judge:
        judge = load_model(order.job.judge, order.job.device)
        suspects |= predict_lesions(judge, volumes.image, place.labels.lesion_names())
    hosts, spacing_mm = sorted(place.labels.hosts), place.configuration.spacing
    holes = find_holes(volumes.label[0], hosts, place.labels.ignore, spacing_mm)
    volumes, counts = without(volumes, suspects | holes, place)
    counts |= counted("suspect voxels", "cases with suspects", int(suspects.sum()))
    counts |= counted("hole voxels", "cases with holes", int(holes.sum()))
    return volumes, counts | counted("unannotated voxels", "cases with unannotated classes", unannotated)


def _as_nnunet_does(place: Place, image: Case, label: np.ndarray) -> pool.Volumes:
    """Preprocess as nnU-Net does for this configuration, in the orientation that its reader gives."""
    if "Reorient" in place.plans.get("image_reader_writer", ""):
        label = pool_images.reoriented(image._replace(array=label), "RAS").array
        image = pool_images.reoriented(image, "RAS")
    geometry = {"spacing": image.spacing_mm[::-1], "origin": image.origin_mm, "direction": image.direction}
    data, seg, properties = place.configuration.preprocessor_class(verbose=False).run_case_npy(
        image.array[None],
        label[None],
        {"spacing": list(image.spacing_mm), "sitk_stuff": geometry},
        place.manager,
        place.configuration,
        place.dataset_json,
    )
    return pool.Volumes(data.astype(np.float32, copy=False), seg.astype(np.int16, copy=False), properties)


def without(volumes: pool.Volumes, marked: np.ndarray, place: Place) -> tuple[pool.Volumes, dict[str, float]]:
    """Take suspects and holes out of a preprocessed case's hosts and loss, and count the voxels.

    Raises:
        Unusable: nothing of the hosts is left.
    """
    hosts = sorted(place.labels.hosts)
    label = take_out(volumes.label[0], marked, place.labels.ignore, place.configuration.spacing)
    if hosts and not np.isin(label, hosts).any():
        raise Unusable(pool_images.NO_HOST, "all of it may be tumor")
    places = keep_places(volumes.properties["class_locations"], label[None])
    left = volumes._replace(label=label[None], properties=volumes.properties | {"class_locations": places})
    changed = int((left.label != volumes.label).sum())
    return left, counted("voxels taken out with their margin", "cases with voxels taken out", changed)


def counted(voxels: str, cases: str, number: int) -> dict[str, float]:
    """Count voxels, and the case where there are any."""
    return {cases: 1.0, voxels: float(number)} if number else {}


def _find_hosts(order: Order, place: Place, image: Case) -> Masks:
    job = order.job
    if job.host_model:
        return predict_masks(load_model(job.host_model, job.device), image, place.labels, dict(job.name_map))
    if job.hosts:
        return read_masks(Path(job.hosts), order.case, image, place.labels, dict(job.name_map))
    return Masks(np.zeros(image.array.shape, dtype=np.int16), frozenset())


def _host_voxels(place: Place, image: Case, label: np.ndarray) -> np.ndarray:
    """Mark all hosts of a raw case, by label or by HU."""
    host = np.isin(label, sorted(place.labels.hosts))
    spacing_mm = (image.spacing_mm[0], image.spacing_mm[1], image.spacing_mm[2])
    for target in place.section.targets:
        if target.host_hu is not None:
            hu, labels = torch.from_numpy(image.array.astype("f4")), torch.from_numpy(label.astype("i4"))
            host |= host_mask(target, hu[None, None], labels[None, None], spacing_mm)[0, 0].numpy()
    volume_ml = float(host.sum()) * float(np.prod(spacing_mm)) / 1000
    if volume_ml < MIN_HOST_ML:
        raise Unusable(pool_images.NO_HOST, f"less than {MIN_HOST_ML:g} ml of it")
    return host
