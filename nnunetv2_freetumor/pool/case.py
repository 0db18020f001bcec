"""Add one CT to the pool. `add_case` is the whole way in, one step a line, in the order in which things happen."""

from nnunetv2_freetumor.cluster.reports import CaseReport
from nnunetv2_freetumor.pool import counts, store
from nnunetv2_freetumor.pool.context import JobContext
from nnunetv2_freetumor.pool.images import NAME_TAKEN, ImageFile, Unfit, Unusable, duplicate_of, read_scan
from nnunetv2_freetumor.pool.masks import find_hosts, list_masks
from nnunetv2_freetumor.pool.preprocessing import preprocess
from nnunetv2_freetumor.pool.suspects import exclude, judge_case


def add_case(context: JobContext, file: ImageFile) -> CaseReport:
    """Add one CT to the pool; a CT that cannot be used is skipped, and its report says why."""
    mask_files = list_masks(context, file)
    settings = context.settings_of(file.path, mask_files)  # before reading: a file that changes now is read again later
    earlier = store.find_record(context.dataset.pool, file.case)
    try:
        scan = read_scan(file.path)
        recognize(context, file, scan.content, earlier)
        masks = find_hosts(context, file, mask_files, scan.image)
        excluded = exclude(context, scan.image, masks)
        preprocessed = preprocess(context.dataset, scan.image, excluded.label)
        judged = judge_case(context, preprocessed.volumes)
    except Unusable as error:
        return CaseReport(file.case, "skipped", f"{error}{_earlier_case(context, file, earlier, error)}")
    found = counts.counted(
        (counts.TAKEN_OUT, preprocessed.taken_out + judged.taken_out),
        (counts.SUSPECTS, excluded.drawn_ml + judged.suspects_ml),
        (counts.HOLES, excluded.holes_ml),
        (counts.ISLANDS, excluded.islands_ml),
        (counts.UNANNOTATED, 0 if excluded.complete else preprocessed.unannotated),
    )
    record = store.Record(
        file.case, file.path, settings=settings, cleared=context.cleared_by, content=scan.content, counts=found
    )
    return write(context, record, judged.volumes, scan.bytes_in + masks.bytes_in)


def is_added(context: JobContext, file: ImageFile) -> bool:
    """Check whether the pool holds a case as it was asked for, and no labeled case has the same voxels by now."""
    record = store.find_record(context.dataset.pool, file.case)
    if record is None or record.source != file.path or record.content in context.labeled:
        return False
    return record.settings == context.settings_of(file.path, list_masks(context, file))


def recognize(context: JobContext, file: ImageFile, content: str, earlier: store.Record | None) -> None:
    """Refuse a scan that is also a labeled case, or whose name is taken.

    Args:
        context: with the labeled cases.
        file: the scan's name and path.
        content: hash of its voxels.
        earlier: record of that name in the pool.

    Raises:
        Unusable: it names the labeled case or the other scan.
    """
    if same := context.labeled.get(content):
        raise duplicate_of(same)
    if file.case.endswith("_seg"):
        raise Unusable(NAME_TAKEN, "nnU-Net reserves NAME_seg for label maps; rename the file")
    if earlier is not None and earlier.source != file.path and earlier.content != content:
        raise Unusable(NAME_TAKEN, f"{earlier.source} is a different scan with this name; rename one of the files")


def write(context: JobContext, record: store.Record, volumes: store.Volumes, bytes_in: int) -> CaseReport:
    """Write a case's files and its record, and report on it."""
    dataset = context.dataset
    files = store.write_volumes(dataset.pool, record, volumes, dataset.configuration.patch_size)
    sizes = [path.stat().st_size for path in files]
    traffic = {"bytes_in": bytes_in, "bytes_out": sum(sizes), "files_out": len(sizes)}
    return CaseReport(record.case, "done", "", record.counts | traffic)


def _earlier_case(context: JobContext, file: ImageFile, earlier: store.Record | None, error: Unusable) -> str:
    """Describe what becomes of the case that an earlier run made of this image; remove it if it must not train."""
    if earlier is None or earlier.source != file.path:
        return ""
    if not isinstance(error, Unfit):
        return "; the case from an earlier run was kept"
    store.withdraw(context.dataset.pool, file.case)
    return "; the case from an earlier run was removed"
