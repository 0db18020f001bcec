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
from nnunetv2_freetumor.pool.case import add_case, is_added
from nnunetv2_freetumor.pool.context import Asked, HostSource, Job, JobContext
from nnunetv2_freetumor.pool.images import duplicate_of, find_images
from nnunetv2_freetumor.pool.marking import MarkOrder, is_marked, mark_case
from nnunetv2_freetumor.pool.target import DatasetPlans, PlansChoice, read_dataset
from nnunetv2_freetumor.training.device import choose_device

_REPORT = "report.json"
_RunCases = Callable[..., list[CaseReport]]


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
    """Add CT without labels to a dataset's pool, or let a model mark suspects there; return 0 if every case is done.

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
    choice = PlansChoice(str(folder), plans_name, configuration)
    names = tuple(sorted(options.read_name_map(name_map).items()))
    source = HostSource(_absolute(hosts), _absolute(host_model), names, tuple(annotates))
    asked = Asked(choice, source, tumor_free, judge=_absolute(judge or mark_suspects), device=device or "")
    target = read_dataset(choice)
    job = options.job_for(asked, target, adds=images is not None)
    prepare = functools.partial(JobContext, job)
    run = functools.partial(run_cases, scheduler=scheduler, workers=workers, title="unlabeled cases", prepare=prepare)
    reports = _add(images, target, choice, run) if images is not None else _mark(target, choice, run)
    write_reports(reports, target.pool / _REPORT)
    print("\n".join([*summary_lines(reports), *_doubts(job, reports), *_next_steps(target, choice, dataset)]))
    print(f"All cases: {target.pool / _REPORT}")
    return exit_code(reports)


def _workers(asked: int | None, device: str | None, scheduler: str | None, models: bool) -> int | None:
    """Check the device, and choose one process for a GPU; None: one for each CPU core."""
    if scheduler is not None and device in (None, "cpu", "cuda"):
        return asked  # a cluster's workers may have what is missing here
    on = choose_device(device)
    return 1 if asked is None and models and on.type == "cuda" else asked


def _add(images: str, target: DatasetPlans, choice: PlansChoice, run: _RunCases) -> list[CaseReport]:
    found = find_images(Path(images).absolute())
    known = _labeled_images(target)
    stamped = (target.pool / store.STAMP).is_file()
    if stamped:
        _check_stamp(target, choice)
    (target.pool / store.RECORDS).mkdir(parents=True, exist_ok=True)
    _remove_unfinished(target.pool)
    labeled_contents(known, target.pool / store.CONTENTS)
    if not stamped:  # last: it makes the folder a pool, and training wants the labeled images' hashes in one
        store.write_stamp(target.pool, target.plans, choice.configuration, target.dataset_json)
    return run(add_case, found, is_added)


def _mark(target: DatasetPlans, choice: PlansChoice, run: _RunCases) -> list[CaseReport]:
    if not (target.pool / store.STAMP).is_file():
        raise ValueError(f"There is no pool in {target.pool} yet. Add images first, with -i.")
    _check_stamp(target, choice)
    _remove_unfinished(target.pool)
    names = labeled_contents(_labeled_images(target), target.pool / store.CONTENTS)
    records = store.read_records(target.pool)
    leaks = [CaseReport(r.case, "skipped", str(duplicate_of(names[r.content]))) for r in records if r.content in names]
    for leak in leaks:
        store.withdraw(target.pool, leak.case)
    orders = [MarkOrder(record.case) for record in records if record.content not in names]
    return [*leaks, *run(mark_case, orders, is_marked)]


def _check_stamp(target: DatasetPlans, choice: PlansChoice) -> None:
    store.check_stamp(target.pool, target.plans, choice.configuration, target.dataset_json)


def _check_plans(dataset: str, plans_name: str, configuration: str) -> Path:
    folder, plans, dataset_json = section.load_plans(dataset, plans_name)
    if configuration not in plans["configurations"]:
        raise ValueError(
            f"{plans_name}.json has no configuration '{configuration}'. It has: {', '.join(plans['configurations'])}"
        )
    section.check_configuration(plans, configuration, dataset_json)
    if SECTION not in plans:
        raise ValueError(
            f"{plans_name}.json has no freetumor section, which names host and tumor labels. Run "
            f"'nnUNetv2_freetumor plan -d {dataset} -p {plans_name}' first."
        )
    check_origin(read_section(plans[SECTION]), plans, dataset_json)
    return folder.absolute()


def _labeled_images(target: DatasetPlans) -> dict[str, Path]:
    """Return the raw images, by case, that nnU-Net has labels for: training cases, and test cases with labels."""
    raw = section.raw_folder(target.plans)
    ending = target.dataset_json["file_ending"]
    if "dataset" in target.dataset_json:
        listed = get_filenames_of_train_images_and_targets(str(raw), copy.deepcopy(target.dataset_json))
        training = {case: Path(files["images"][0]) for case, files in listed.items()}
    else:
        training = _first_channels(raw / "imagesTr", ending)
    if not training:
        raise ValueError(
            f"{raw} contains no labeled images, but the pool must be compared with them. Put the raw data there."
        )
    test = _first_channels(raw / "imagesTs", ending)
    labels = {path.name for path in (raw / "labelsTs").glob(f"*{ending}")}
    return training | {f"test {case}": path for case, path in test.items() if f"{case}{ending}" in labels}


def _first_channels(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    cases = get_identifiers_from_splitted_dataset_folder(str(folder), ending)
    return {str(case): folder / f"{case}_0000{ending}" for case in cases}


def _remove_unfinished(folder: Path) -> None:
    """Remove what killed runs have left; a worker that still writes there fails, and its case is ordered again."""
    for leftover in [*folder.glob(store.UNFINISHED), *(folder / store.RECORDS).glob(store.UNFINISHED)]:
        shutil.rmtree(leftover, ignore_errors=True)


def _doubts(job: Job, reports: Sequence[CaseReport]) -> list[str]:
    """Warn about a model that has found nothing in any scan: it may not recognize tumors."""
    seen = [report for report in reports if report.state == "done" and report.reason != EARLIER]
    looks = job.asked.hosts.model if job.host_model_looks else job.asked.judge
    if not looks or not seen or any("cases with suspects" in report.counts for report in seen):
        return []
    return [
        f"WARNING: {looks} found no tumor in any of these {len(seen)} case(s). Check that it finds the tumors of your "
        "labeled cases: what a model misses here is taught as organ."
    ]


def _next_steps(target: DatasetPlans, choice: PlansChoice, dataset: str) -> list[str]:
    found: Any = store.open_pool(target.pool, target.plans, choice.configuration, target.dataset_json)
    lines = [f"The pool {target.pool} now has {len(found.cases)} case(s) to train on."]
    if found.again:
        lines.append(f"{found.again} case(s) are duplicates of other pool cases; duplicate scans count once.")
    if found.waiting:
        lines.append(
            f"{found.waiting} case(s) are held back: they have not been checked for tumors. Train without them first, "
            f"then run 'nnUNetv2_freetumor add-unlabeled -d {dataset} -c {choice.configuration} -p {choice.plans_name} "
            "--mark-suspects MODEL_FOLDER' and train again; or add them with --judge MODEL_FOLDER, or with "
            "--tumor-free if you know that they are tumor-free."
        )
    return lines


def _absolute(path: str | None) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""
