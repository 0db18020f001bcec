"""Map a function over many cases: in this process, in processes of this machine, or on a cluster through dask.

What a case gives depends on its order alone, never on who works on it or beside whom. Cases that are there already are
not ordered again, so a run that was killed at any point goes on where it was when it is started again.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from nnunetv2_freetumor.cluster.local import Numbered, in_processes, in_this_process
from nnunetv2_freetumor.cluster.on_dask import dask, on_cluster, on_this_machine, scheduler_address
from nnunetv2_freetumor.cluster.processes import HasCase
from nnunetv2_freetumor.cluster.reports import EARLIER, CaseReport

INSTALL = "pip install 'nnunetv2_freetumor[cluster]'"

Order = TypeVar("Order", bound=HasCase)


def run_cases(
    function: Callable[[Order], CaseReport],
    orders: Sequence[Order],
    done: Callable[[Order], bool],
    scheduler: str | None = None,
    workers: int | None = None,
    on_done: Callable[[CaseReport], None] | None = None,
    title: str = "cases",
) -> list[CaseReport]:
    """Call a function for every order that is not done yet, and give a report for each order, in their order.

    Args:
        function: importable by name; it writes its case atomically and gives a small report. An error that it raises
            becomes the report of a failed case.
        orders: small, and can be pickled.
        done: tells, here and once more where the case is worked on, whether an order's case is complete already;
            importable by name.
        scheduler: address or scheduler file of a dask cluster that runs already.
        workers: processes of this machine; by default one for each CPU core. One means: in this process.
        on_done: called in this process with every new report, as it comes in.
        title: of the progress bar.

    Raises:
        ValueError: both `scheduler` and `workers`, a scheduler that cannot be reached or was lost, or no dask for it.
    """
    check_cluster(scheduler, workers)
    reports = {i: CaseReport(order.case, "done", EARLIER) for i, order in enumerate(orders) if done(order)}
    missing = [(i, order) for i, order in enumerate(orders) if i not in reports]
    if missing:
        with tqdm(total=len(orders), initial=len(reports), desc=title, unit="case") as progress:
            work = functools.partial(_unless_done, function, done)
            for index, report in _crew(scheduler, workers, len(missing))(work, missing):
                reports[index] = report
                progress.update()
                if on_done is not None:
                    on_done(report)
    return [reports[i] for i in range(len(orders))]


def _unless_done(function: Callable[[Order], CaseReport], done: Callable[[Order], bool], order: Order) -> CaseReport:
    """Look where the work is done, too: a cluster orders again what was done by a worker whose report died with it."""
    return CaseReport(order.case, "done") if done(order) else function(order)


def check_cluster(scheduler: str | None, workers: int | None) -> None:
    """Refuse settings that cannot work, before anything else is done.

    Raises:
        ValueError: as `run_cases`, short of connecting.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1 process, but it is {workers}.")
    if scheduler is None:
        return
    if workers is not None:
        raise ValueError(
            "--workers counts processes of this machine, and --scheduler has workers of its own: give one."
        )
    if dask() is None:
        raise ValueError(
            f"--scheduler needs dask, which is not installed here. Install the extra: {INSTALL}. Without --scheduler "
            "the command runs on this machine."
        )
    scheduler_address(scheduler)


def _crew(scheduler: str | None, workers: int | None, cases: int) -> Callable[..., Iterator[Numbered]]:
    """Choose who works."""
    if scheduler is not None:
        return functools.partial(on_cluster, scheduler)
    workers = min(workers or _cpu_cores(), cases)
    if workers == 1:
        return in_this_process
    return functools.partial(in_processes if dask() is None else on_this_machine, workers)


def _cpu_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
