"""Add one CT to the unlabeled pool: read, check, find its hosts, preprocess, take out what may be tumor, write."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nnunetv2_freetumor.cluster.reports import CaseReport
from nnunetv2_freetumor.files.cases import Case
from nnunetv2_freetumor.files.hashes import content_hash
from nnunetv2_freetumor.intensity import from_plans
from nnunetv2_freetumor.pool import images, store
from nnunetv2_freetumor.pool.images import Unfit, Unusable
from nnunetv2_freetumor.pool.masks import Masks, predict_masks, read_masks
from nnunetv2_freetumor.pool.model import load_model, predict_lesions
from nnunetv2_freetumor.pool.orders import Job, Order, Place, labeled, place_of, settings_of
from nnunetv2_freetumor.pool.suspects import find_holes, find_islands, keep_places, take_out
from nnunetv2_freetumor.synthesis.hosts import host_mask

TUMOR_FREE = "tumor-free"  # the user's word
MIN_HOST_ML = 1.0
TAKEN_OUT = "voxels taken out with their margin", "cases with voxels taken out"


def add_case(order: Order) -> CaseReport:
    """Add one CT to the pool; what cannot be used is skipped with the reason."""
    job, place = order.job, place_of(order.job)
    settings = settings_of(order)  # before reading: files that change now are read again by the next run
    try:
        image = images.read_ct(order.image)
        images.check_looks_like_ct(image)
        content = content_hash(image.array)
        if same := labeled(place.folder).get(content):
            raise images.duplicate_of(same)
        _check_name(order, place.folder, content)
        masks = _find_hosts(order, place, image)
        volumes, counts = _preprocess(job, place, image, masks)
    except Unusable as error:
        return CaseReport(order.case, "skipped", f"{error}{_earlier(order, place.folder, isinstance(error, Unfit))}")
    record = store.Record(order.case, order.image, settings, _cleared(job, place), content, counts)
    store.write_volumes(place.folder, record, volumes, place.configuration.patch_size)
    traffic = {"bytes_in": images.bytes_of(order.image) + masks.bytes_in}
    written = [path.stat().st_size for path in store.files_of(place.folder, order.case)]
    traffic |= {"bytes_out": sum(written), "files_out": len(written)}
    return CaseReport(order.case, "done", "", counts | traffic)


def _earlier(order: Order, folder: Path, unfit: bool) -> str:
    """Say what becomes of what an earlier run made of this image, and take it out where it must not be trained on."""
    there = store.read_record(folder, order.case)
    if there is None or there.source != order.image:
        return ""
    if unfit:
        store.withdraw(folder, order.case)
    return "; what an earlier run made of it was taken out" if unfit else "; what an earlier run made of it stays"


def _cleared(job: Job, place: Place) -> str:
    if job.judge:
        return load_model(job.judge, job.device).name
    if job.tumor_free:
        return TUMOR_FREE
    return load_model(job.host_model, job.device).name if job.host_model_looks else ""


def _check_name(order: Order, folder: Path, content: str) -> None:
    """Keep a scan from taking the place of another one of the same name."""
    if order.case.endswith("_seg"):
        raise Unusable(images.NAME_TAKEN, "nnU-Net calls label maps NAME_seg; rename the file")
    there = store.read_record(folder, order.case)
    if there is not None and there.source != order.image and there.content != content:
        raise Unusable(images.NAME_TAKEN, f"{there.source} is another scan of that name; rename one of the files")


def _preprocess(job: Job, place: Place, image: Case, masks: Masks) -> tuple[store.Volumes, dict[str, float]]:
    intensity = from_plans(place.plans)
    host = _host_voxels(place, image, masks.label)
    images.check_host_hu(image, host, (intensity.low_hu, intensity.high_hu))
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


def _judged(job: Job, place: Place, volumes: store.Volumes) -> np.ndarray:
    if not job.judge:
        return np.zeros(volumes.label.shape[1:], dtype=bool)
    return predict_lesions(load_model(job.judge, job.device), volumes.image, place.labels.lesion_names())


def milliliters(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Measure a mask."""
    return round(float(mask.sum()) * math.prod(spacing_mm) / 1000, 3)


def _as_nnunet_does(place: Place, image: Case, label: np.ndarray) -> store.Volumes:
    """Preprocess as nnU-Net does for this configuration, in the orientation that its reader gives."""
    label = images.in_readers_orientation(image._replace(array=label), place.plans).array
    image = images.in_readers_orientation(image, place.plans)
    geometry = {"spacing": image.spacing_mm[::-1], "origin": image.origin_mm, "direction": image.direction}
    data, seg, properties = place.configuration.preprocessor_class(verbose=False).run_case_npy(
        image.array[None],
        label[None],
        {"spacing": list(image.spacing_mm), "sitk_stuff": geometry},
        place.manager,
        place.configuration,
        place.dataset_json,
    )
    return store.Volumes(data.astype(np.float32, copy=False), seg.astype(np.int16, copy=False), properties)


def without(volumes: store.Volumes, marked: np.ndarray, place: Place) -> tuple[store.Volumes, dict[str, float]]:
    """Take suspects and holes out of a preprocessed case's hosts and loss, and count the voxels.

    Raises:
        Unusable: nothing of the hosts is left.
    """
    hosts = sorted(place.labels.hosts)
    label = take_out(volumes.label[0], marked, place.labels.ignore, place.configuration.spacing)
    if hosts and not np.isin(label, hosts).any():
        raise Unfit(images.NO_HOST, "all of it may be tumor")
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
        return read_masks(Path(job.hosts), order.masks, image, place.labels, dict(job.name_map))
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
        raise Unusable(images.NO_HOST, f"less than {MIN_HOST_ML:g} ml of it")
    return host


class MarkOrder(NamedTuple):
    """One pool case to look at; the job's judge looks."""

    case: str
    job: Job


def is_marked(order: MarkOrder) -> bool:
    """Tell whether this model has looked at a case already."""
    record = store.read_record(place_of(order.job).folder, order.case)
    return record is not None and record.cleared in order.job.models


def mark_case(order: MarkOrder) -> CaseReport:
    """Take what a model calls a lesion out of a pool case; what earlier looks have taken out stays out."""
    job, place = order.job, place_of(order.job)
    model = load_model(job.judge, job.device)
    record = store.read_record(place.folder, order.case)
    assert record is not None, "orders are made from the records"
    volumes = store.read_volumes(place.folder, order.case)
    suspects = predict_lesions(model, volumes.image, place.labels.lesion_names())
    suspects &= volumes.label[0] != place.labels.ignore  # an earlier look may have taken them out
    try:
        volumes, counts = without(volumes, suspects, place)
    except Unusable as error:
        store.write_record(place.folder, record._replace(cleared=""))  # whoever has cleared it before
        return CaseReport(order.case, "skipped", str(error))
    found_ml = milliliters(suspects, place.configuration.spacing)
    counts |= counted("ml of suspects", "cases with suspects", found_ml)
    names = set(record.counts) | set(counts)
    both = {name: record.counts.get(name, 0.0) + counts.get(name, 0.0) for name in names}
    both |= {name: 1.0 for name in names if name.startswith("cases with")}
    record = record._replace(cleared=model.name, counts=both)
    store.write_label(place.folder, record, volumes, place.configuration.patch_size)
    return CaseReport(order.case, "done", "", counts)
