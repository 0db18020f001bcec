"""The second round: let a trained model mark suspects in a pool that is there already."""

from typing import NamedTuple

from nnunetv2_freetumor.cluster.reports import CaseReport
from nnunetv2_freetumor.pool import store
from nnunetv2_freetumor.pool.case import counted, milliliters, without
from nnunetv2_freetumor.pool.images import Unusable
from nnunetv2_freetumor.pool.model import load_model, predict_lesions
from nnunetv2_freetumor.pool.orders import Job, place_of


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
