"""Mark suspects in cases that are in the pool already: what `--mark-suspects` does to each."""

from typing import NamedTuple

from nnunetv2_freetumor.cluster.reports import CaseReport
from nnunetv2_freetumor.pool import store
from nnunetv2_freetumor.pool.context import JobContext
from nnunetv2_freetumor.pool.counts import SUSPECTS, TAKEN_OUT, counted
from nnunetv2_freetumor.pool.images import Unusable
from nnunetv2_freetumor.pool.suspects import find_suspects, without


class MarkOrder(NamedTuple):
    """One case of the pool, for the job's judge to look at."""

    case: str


def is_marked(context: JobContext, order: MarkOrder) -> bool:
    """Check whether this model has looked at a case already."""
    record = store.find_record(context.dataset.pool, order.case)
    return record is not None and record.cleared in context.job.models


def mark_case(context: JobContext, order: MarkOrder) -> CaseReport:
    """Take what the judge calls a lesion out of a case's hosts and loss; what was taken out before stays out."""
    dataset, judge = context.dataset, context.judge
    record = store.find_record(dataset.pool, order.case)
    assert record is not None and judge is not None, "orders are made from the records, for a judge"
    volumes = store.read_volumes(dataset.pool, order.case)
    suspects = find_suspects(context, volumes)
    suspects &= volumes.label[0] != dataset.labels.ignore  # taken out already
    try:
        judged = without(dataset, volumes, suspects)
    except Unusable as error:
        store.write_record(dataset.pool, record._replace(cleared=""))  # whoever has cleared it before
        return CaseReport(order.case, "skipped", str(error))
    counts = counted((TAKEN_OUT, judged.taken_out), (SUSPECTS, judged.suspects_ml))
    names = [*record.counts, *(name for name in counts if name not in record.counts)]
    both = {name: record.counts.get(name, 0.0) + counts.get(name, 0.0) for name in names}
    both |= {name: 1.0 for name in names if name.startswith("cases with")}
    record = record._replace(cleared=judge.name, counts=both)
    store.write_label(dataset.pool, record, judged.volumes, dataset.configuration.patch_size)
    return CaseReport(order.case, "done", "", counts)
