"""Add one CT to the unlabeled pool: read, check, find its hosts, preprocess, take out what may be tumor, write."""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_freetumor import pool, pool_images
from nnunetv2_freetumor.case_reports import CaseReport
from nnunetv2_freetumor.cases import Case
from nnunetv2_freetumor.contents import FileStates, content_hash, read_contents, state_of
from nnunetv2_freetumor.hosts import host_mask
from nnunetv2_freetumor.intensity import from_plans
from nnunetv2_freetumor.plan import SECTION, Section, read_section
from nnunetv2_freetumor.pool_hosts import Masks, model_values, predict_masks, read_masks
from nnunetv2_freetumor.pool_images import Unusable
from nnunetv2_freetumor.pool_labels import PoolLabels, pool_labels
from nnunetv2_freetumor.pool_segmenter import load_model, predict_lesions
from nnunetv2_freetumor.suspects import find_holes, find_islands, keep_places, take_out

TUMOR_FREE = "tumor-free"  # the user's word
CONTENTS = "labeled_contents.json"
MIN_HOST_ML = 1.0
TAKEN_OUT = "voxels taken out with their margin", "cases with voxels taken out"


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
    host_model_looks: bool = False  # the host model has learned what a tumor is
    alone: bool = False  # there is only one image
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


def read_place(preprocessed: str, plans_name: str, configuration: str) -> Place:
    """Read the target dataset's plans, again only where they have changed: a cluster's workers outlive a run."""
    plans_file, dataset_file = (Path(preprocessed) / f"{name}.json" for name in (plans_name, "dataset"))
    return _read_place(plans_file, dataset_file, configuration, state_of(plans_file, dataset_file))


@lru_cache(maxsize=1)
def _read_place(plans_file: Path, dataset_file: Path, configuration: str, _state: FileStates) -> Place:
    folder = plans_file.parent
    plans, dataset_json = (json.loads(file.read_text(encoding="utf-8")) for file in (plans_file, dataset_file))
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
        if same := _contents(place.folder / CONTENTS, state_of(place.folder / CONTENTS)).get(content):
            raise Unusable(pool_images.DUPLICATE, f"{same} holds the same voxels, and it would leak into training")
        _check_name(order, place.folder, content)
        masks = _find_hosts(order, place, image)
        volumes, counts = _preprocess(job, place, image, masks)
    except Unusable as error:
        return CaseReport(order.case, "skipped", str(error))
    record = pool.Record(order.case, order.image, job.settings, _cleared(job, place), content, counts)
    pool.write_volumes(place.folder, record, volumes, place.configuration.patch_size)
    traffic = {"bytes_in": pool_images.bytes_of(order.image) + masks.bytes_in}
    written = [path.stat().st_size for path in pool.files_of(place.folder, order.case)]
    traffic |= {"bytes_out": sum(written), "files_out": len(written)}
    return CaseReport(order.case, "done", "", counts | traffic)


@lru_cache(maxsize=1)
def _contents(path: Path, _state: FileStates) -> dict[str, str]:
    return read_contents(path)


def _cleared(job: Job, place: Place) -> str:
    if job.judge:
        return load_model(job.judge, job.device).name
    if job.tumor_free:
        return TUMOR_FREE
    if job.host_model_looks and model_lesions(job, place.labels):
        return load_model(job.host_model, job.device).name
    return ""


def model_lesions(job: Job, known: PoolLabels) -> frozenset[int]:
    """Tell which of the dataset's lesions the host model has a label for."""
    model = load_model(job.host_model, job.device)
    return known.lesions & set(model_values(model, known, dict(job.name_map)).values())


def _check_name(order: Order, folder: Path, content: str) -> None:
    """Keep a scan from taking the place of another one of the same name."""
    there = pool.read_record(folder, order.case)
    if there is not None and there.source != order.image and there.content != content:
        raise Unusable(pool_images.NAME_TAKEN, f"{there.source} is another scan of that name; rename one of the files")


def _preprocess(job: Job, place: Place, image: Case, masks: Masks) -> tuple[pool.Volumes, dict[str, float]]:
    intensity = from_plans(place.plans)
    host = _host_voxels(place, image, masks.label)
    pool_images.check_host_hu(image, host, (intensity.low_hu, intensity.high_hu))
    known, spacing_mm = place.labels, image.spacing_mm
    complete = known.organs() <= masks.annotated | {known.named(name) for name in job.annotates}
    label = masks.label if complete else np.where(masks.label == 0, known.ignore, masks.label)
    islands = find_islands(masks.label, sorted(known.hosts) if job.host_model else [])
    label = np.where(islands, np.int16(known.ignore), label)
    # before resampling, which could swallow what is small, but not what has its margin around it
    drawn = np.isin(masks.label, sorted(known.lesions))
    holes = find_holes(masks.label, sorted(known.hosts), known.ignore, spacing_mm)
    volumes = _as_nnunet_does(place, image, take_out(label, drawn | holes, known.ignore + 1, spacing_mm))
    taken, unannotated = volumes.label == known.ignore + 1, volumes.label == known.ignore
    volumes.label[taken] = known.ignore
    suspects = _judged(job, place, volumes)
    volumes, counts = without(volumes, suspects, place)
    counts = counted(*TAKEN_OUT, counts.get(TAKEN_OUT[0], 0.0) + float(taken.sum()))
    suspects_ml = milliliters(suspects, place.configuration.spacing) + milliliters(drawn, spacing_mm)
    counts |= counted("ml of suspects", "cases with suspects", suspects_ml)
    counts |= counted("ml of holes", "cases with holes", milliliters(holes, spacing_mm))
    counts |= counted("ml of islands", "cases with islands", milliliters(islands, spacing_mm))
    lost = 0.0 if complete else float(unannotated.sum())
    return volumes, counts | counted("voxels of unannotated classes", "cases with unannotated classes", lost)


def _judged(job: Job, place: Place, volumes: pool.Volumes) -> np.ndarray:
    if not job.judge:
        return np.zeros(volumes.label.shape[1:], dtype=bool)
    return predict_lesions(load_model(job.judge, job.device), volumes.image, place.labels.lesion_names())


def milliliters(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Measure a mask."""
    return round(float(mask.sum()) * math.prod(spacing_mm) / 1000, 3)


def _as_nnunet_does(place: Place, image: Case, label: np.ndarray) -> pool.Volumes:
    """Preprocess as nnU-Net does for this configuration, in the orientation that its reader gives."""
    label = pool_images.in_readers_orientation(image._replace(array=label), place.plans).array
    image = pool_images.in_readers_orientation(image, place.plans)
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
    return left, counted(*TAKEN_OUT, changed)


def counted(amount: str, cases: str, number: float) -> dict[str, float]:
    """Count voxels or volume, and the case where there are any."""
    return {cases: 1.0, amount: float(number)} if number else {}


def _find_hosts(order: Order, place: Place, image: Case) -> Masks:
    job = order.job
    if job.host_model:
        return predict_masks(load_model(job.host_model, job.device), image, place.labels, dict(job.name_map))
    if job.hosts:
        return read_masks(Path(job.hosts), order.case, image, place.labels, dict(job.name_map), job.alone)
    return Masks(np.zeros(image.array.shape, dtype=np.int16), frozenset())


def _host_voxels(place: Place, image: Case, label: np.ndarray) -> np.ndarray:
    """Mark all hosts of a raw case, by label or by HU."""
    host = np.isin(label, sorted(place.labels.hosts))
    spacing_mm = (image.spacing_mm[0], image.spacing_mm[1], image.spacing_mm[2])
    for target in place.section.targets:
        if target.host_hu is not None:
            hu, labels = torch.from_numpy(image.array.astype("f4")), torch.from_numpy(label.astype("i4"))
            host |= host_mask(target, hu[None, None], labels[None, None], spacing_mm)[0, 0].numpy()
    if milliliters(host, spacing_mm) < MIN_HOST_ML:
        raise Unusable(pool_images.NO_HOST, f"less than {MIN_HOST_ML:g} ml of it")
    return host
