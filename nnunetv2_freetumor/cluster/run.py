"""Apply a function to many cases: in this process, in processes of this machine, or on a cluster through dask.

The result of a case depends on its order alone, never on which worker makes it or on the cases beside it. Cases that
are done already are not ordered again, so a run that was killed at any point resumes when it is started again.
"""

import functools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from nnunetv2_freetumor.cluster.local import Numbered, in_processes, in_this_process
from nnunetv2_freetumor.cluster.on_dask import dask, on_cluster, on_this_machine, scheduler_address
from nnunetv2_freetumor.cluster.prepared import forget, prepared
from nnunetv2_freetumor.cluster.processes import HasCase
from nnunetv2_freetumor.cluster.reports import EARLIER, CaseReport

INSTALL = "pip install 'nnunetv2_freetumor[cluster]'"


@dataclass(frozen=True)
class CaseWork:
    """What a run does for each order; it travels to the workers with the orders, so it is small as they are."""

    run: str  # identifies the run: what a worker has prepared for one run does not serve another
    function: Callable[..., CaseReport]
    done: Callable[..., bool]
    prepare: Callable[[], Any] | None = None

    def is_done(self, order: HasCase) -> bool:
        """Check whether an order's case is complete already."""
        return self.done(*self._prepared(), order)

    def __call__(self, order: HasCase) -> CaseReport:
        """Work on a case unless it is done: a cluster repeats an order whose worker died before its report was read."""
        return CaseReport(order.case, "done") if self.is_done(order) else self.function(*self._prepared(), order)

    def _prepared(self) -> tuple[Any, ...]:
        return () if self.prepare is None else (prepared(self.run, self.prepare),)


def run_cases(
    function: Callable[..., CaseReport],
    orders: Sequence[HasCase],
    done: Callable[..., bool],
    scheduler: str | None = None,
    workers: int | None = None,
    on_done: Callable[[CaseReport], None] | None = None,
    title: str = "cases",
    prepare: Callable[[], Any] | None = None,
) -> list[CaseReport]:
    """Call a function for every order that is not done yet, and return a report for each order, in their order.

    Args:
        function: importable by name; it writes its case atomically and returns a small report. An error that it raises
            becomes the report of a failed case.
        orders: small, and can be pickled.
        done: checks whether an order's case is complete already, here and once more where the case is worked on;
            importable by name.
        scheduler: address or scheduler file of a running dask cluster.
        workers: processes of this machine; one per CPU core by default. One means: in this process.
        on_done: called in this process with every new report, as it comes in.
        title: of the progress bar.
        prepare: called once in each process; `function` and `done` get its result as their first argument, before the
            order. It can be pickled.

    Raises:
        ValueError: both `scheduler` and `workers`, a scheduler that cannot be reached or was lost, or no dask for it.
    """
    check_cluster(scheduler, workers)
    work = CaseWork(uuid.uuid4().hex, function, done, prepare)
    try:
        reports = {i: CaseReport(order.case, "done", EARLIER) for i, order in enumerate(orders) if work.is_done(order)}
        missing = [(i, order) for i, order in enumerate(orders) if i not in reports]
        if missing:
            with tqdm(total=len(orders), initial=len(reports), desc=title, unit="case") as progress:
                for index, report in _executor(scheduler, workers, len(missing))(work, missing):
                    reports[index] = report
                    progress.update()
                    if on_done is not None:
                        on_done(report)
    finally:
        forget(work.run)
    return [reports[i] for i in range(len(orders))]


def check_cluster(scheduler: str | None, workers: int | None) -> None:
    """Refuse options that cannot work, before anything else is done.

    Raises:
        ValueError: as `run_cases`, short of connecting.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1, but it is {workers}.")
    if scheduler is None:
        return
    if workers is not None:
        raise ValueError(
            "--workers starts processes on this machine, and --scheduler uses the cluster's own workers: give only one "
            "of them."
        )
    if dask() is None:
        raise ValueError(
            f"--scheduler needs dask, which is not installed here. Install it with {INSTALL}, or leave --scheduler out "
            "to run on this machine."
        )
    scheduler_address(scheduler)


def _executor(scheduler: str | None, workers: int | None, cases: int) -> Callable[..., Iterator[Numbered]]:
    """Choose the executor."""
    if scheduler is not None:
        return functools.partial(on_cluster, scheduler)
    workers = min(workers or _cpu_cores(), cases)
    if workers == 1:
        return in_this_process
    return functools.partial(in_processes if dask() is None else on_this_machine, workers)


def _cpu_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
