"""The command `add-unlabeled`: fill a dataset's pool of unlabeled CT, and mark suspects in it."""

import copy
import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.utils import (
    get_filenames_of_train_images_and_targets,
    get_identifiers_from_splitted_dataset_folder,
)

from nnunetv2_freetumor.cluster.reports import EARLIER, CaseReport, exit_code, summary_lines, write_reports
from nnunetv2_freetumor.cluster.run import check_cluster, run_cases
from nnunetv2_freetumor.files.hashes import labeled_contents
from nnunetv2_freetumor.plan import SECTION, read_section
from nnunetv2_freetumor.planning import section
from nnunetv2_freetumor.planning.section import check_origin
from nnunetv2_freetumor.pool import options, store
from nnunetv2_freetumor.pool.case import MarkOrder, add_case, is_marked, mark_case
from nnunetv2_freetumor.pool.images import duplicate_of, find_images
from nnunetv2_freetumor.pool.model import load_model
from nnunetv2_freetumor.pool.orders import Job, Order, Place, is_done, labeled, place_of
from nnunetv2_freetumor.training.device import choose_device

REPORT = "report.json"
Run = Callable[..., list[CaseReport]]


def add_unlabeled_command(
    dataset: str,
    images: str | None = None,
    hosts: str | None = None,
    host_model: str | None = None,
    configuration: str = "3d_fullres",
    plans_name: str = "nnUNetPlans",
    name_map: str | None = None,
    annotates: Sequence[str] = (),
    tumor_free: bool = False,
    judge: str | None = None,
    mark_suspects: str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    device: str | None = None,
) -> int:
    """Add CT without labels to a dataset's pool, or let a model mark suspects there; 0 where every case is done.

    Raises:
        ValueError: options that do not go together, no section in the plans, a pool made for other plans, or a model
            that does not fit; the text says what to do.
    """
    options.check_asked(
        images,
        mark_suspects,
        {
            "--hosts": hosts,
            "--host-model": host_model,
            "--name-map": name_map,
            "--annotates": annotates,
            "--tumor-free": tumor_free,
            "--judge": judge,
        },
    )
    check_cluster(scheduler, workers)
    workers = _workers(workers, device, scheduler, bool(host_model or judge or mark_suspects))
    folder = _check_plans(dataset, plans_name, configuration)
    job = Job(
        preprocessed=str(folder),
        plans_name=plans_name,
        configuration=configuration,
        hosts=_absolute(hosts),
        host_model=_absolute(host_model),
        name_map=tuple(sorted(options.read_name_map(name_map).items())),
        annotates=tuple(annotates),
        tumor_free=tumor_free,
        judge=_absolute(judge or mark_suspects),
        device=device or "",
    )
    place = place_of(job)
    options.check_job(job, place, adds=images is not None)
    job = job._replace(models=tuple(load_model(path, "cpu").name for path in (job.host_model, job.judge) if path))
    if job.host_model:
        job = job._replace(host_model_looks=options.host_model_looks(job, place))
    run = functools.partial(run_cases, scheduler=scheduler, workers=workers, title="unlabeled cases")
    reports = _add(images, job, place, run) if images is not None else _mark(job, place, run)
    write_reports(reports, place.folder / REPORT)
    print("\n".join([*summary_lines(reports), *_doubts(job, reports), *_what_now(place, job, dataset)]))
    print(f"Every case: {place.folder / REPORT}")
    return exit_code(reports)


def _workers(asked: int | None, device: str | None, scheduler: str | None, models: bool) -> int | None:
    """Check the device, and choose one process for a GPU; None: one for each CPU core."""
    if scheduler is not None and device in (None, "cpu", "cuda"):
        return asked  # a cluster's workers may have what is missing here
    on = choose_device(device)
    return 1 if asked is None and models and on.type == "cuda" else asked


def _add(images: str, job: Job, place: Place, run: Run) -> list[CaseReport]:
    found = find_images(Path(images).absolute())
    known = _labeled_images(place)
    stamped = (place.folder / store.STAMP).is_file()
    if stamped:
        _check_stamp(place, job)
    (place.folder / store.RECORDS).mkdir(parents=True, exist_ok=True)
    _sweep(place.folder)
    labeled_contents(known, place.folder / store.CONTENTS)
    if not stamped:  # last: it makes the folder a pool, and training wants the labeled images' hashes in one
        store.write_stamp(place.folder, place.plans, job.configuration, place.dataset_json)
    return run(add_case, [Order(*image, job) for image in found], is_done)


def _mark(job: Job, place: Place, run: Run) -> list[CaseReport]:
    if not (place.folder / store.STAMP).is_file():
        raise ValueError(f"{place.folder} holds no pool yet. Add images to it first, with -i.")
    _check_stamp(place, job)
    _sweep(place.folder)
    labeled_contents(_labeled_images(place), place.folder / store.CONTENTS)
    records, names = store.read_records(place.folder), labeled(place.folder)
    leaks = [CaseReport(r.case, "skipped", str(duplicate_of(names[r.content]))) for r in records if r.content in names]
    for leak in leaks:
        store.withdraw(place.folder, leak.case)
    orders = [MarkOrder(record.case, job) for record in records if record.content not in names]
    return [*leaks, *run(mark_case, orders, is_marked)]


def _check_stamp(place: Place, job: Job) -> None:
    store.check_stamp(place.folder, place.plans, job.configuration, place.dataset_json)


def _check_plans(dataset: str, plans_name: str, configuration: str) -> Path:
    folder, plans, dataset_json = section.load_plans(dataset, plans_name)
    if configuration not in plans["configurations"]:
        raise ValueError(
            f"{plans_name}.json has no configuration '{configuration}': {', '.join(plans['configurations'])}"
        )
    section.check_configuration(plans, configuration, dataset_json)
    if SECTION not in plans:
        raise ValueError(
            f"{plans_name}.json has no freetumor section, which says what host and tumor are. Run "
            f"'nnUNetv2_freetumor plan -d {dataset} -p {plans_name}' first."
        )
    check_origin(read_section(plans[SECTION]), plans, dataset_json)
    return folder.absolute()


def _labeled_images(place: Place) -> dict[str, Path]:
    """Name the raw images whose labels nnU-Net has: training cases, and test cases with labels."""
    raw = section.raw_folder(place.plans)
    ending = place.dataset_json["file_ending"]
    if "dataset" in place.dataset_json:
        listed = get_filenames_of_train_images_and_targets(str(raw), copy.deepcopy(place.dataset_json))
        training = {case: Path(files["images"][0]) for case, files in listed.items()}
    else:
        training = _first_channels(raw / "imagesTr", ending)
    if not training:
        raise ValueError(f"{raw} holds no labeled images, and the pool must not hold them too. Put the raw data there.")
    test = _first_channels(raw / "imagesTs", ending)
    labels = {path.name for path in (raw / "labelsTs").glob(f"*{ending}")}
    return training | {f"test {case}": path for case, path in test.items() if f"{case}{ending}" in labels}


def _first_channels(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    cases = get_identifiers_from_splitted_dataset_folder(str(folder), ending)
    return {str(case): folder / f"{case}_0000{ending}" for case in cases}


def _sweep(folder: Path) -> None:
    """Remove what killed runs have left; a worker that still writes there fails and is ordered again."""
    for leftover in [*folder.glob(store.UNFINISHED), *(folder / store.RECORDS).glob(store.UNFINISHED)]:
        shutil.rmtree(leftover, ignore_errors=True)


def _doubts(job: Job, reports: Sequence[CaseReport]) -> list[str]:
    """Warn of a model that has found nothing anywhere: it may know no tumor when it sees one."""
    seen = [report for report in reports if report.state == "done" and report.reason != EARLIER]
    looks = job.host_model if job.host_model_looks else job.judge
    if not looks or not seen or any("cases with suspects" in report.counts for report in seen):
        return []
    return [
        f"WARNING: {looks} has found no tumor in any of these {len(seen)} case(s). Does it find those of your "
        "labeled cases? A model that finds none clears everything, and tumors here would be taught as organ."
    ]


def _what_now(place: Place, job: Job, dataset: str) -> list[str]:
    found: Any = store.open_pool(place.folder, place.plans, job.configuration, place.dataset_json)
    lines = [f"The pool {place.folder} holds {len(found.cases)} case(s) to train on."]
    if found.again:
        lines.append(
            f"{found.again} case(s) hold the same scan as another one under another name; each scan counts once."
        )
    if found.waiting:
        lines.append(
            f"{found.waiting} case(s) wait: unlabeled is not healthy, and nobody has looked for tumors in them. Train "
            f"without them first, then run 'nnUNetv2_freetumor add-unlabeled -d {dataset} -c {job.configuration} -p "
            f"{job.plans_name} --mark-suspects MODEL_FOLDER' and train again; or add them with --judge MODEL_FOLDER, "
            "or with --tumor-free where you know that they are clean."
        )
    return lines


def _absolute(path: str | None) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""
