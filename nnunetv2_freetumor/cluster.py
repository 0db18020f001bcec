"""Map a function over many cases: in this process, in processes of this machine, or on a cluster through dask.

What a case gives depends on its order alone, never on who works on it or beside whom. Cases that are there already are
not ordered again, so a run that was killed at any point goes on where it was when it is started again.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.case_reports import EARLIER, CaseReport
from nnunetv2_freetumor.local_cases import (
    DIED,
    HasCase,
    Missing,
    Numbered,
    Work,
    attempt,
    in_processes,
    in_this_process,
)

IN_FLIGHT_PER_WORKER = 2  # one to work on, one to wait: the scheduler's memory does not grow with the pool
CONNECT_SECONDS = 30
READ_SECONDS = 60  # a report that died with its worker is not waited for
LOST = (
    "The connection to the dask scheduler was lost. Start the scheduler and the same command again: it goes on with "
    "the cases that are missing."
)
INSTALL = "pip install 'nnunetv2_freetumor[cluster]'"

Order = TypeVar("Order", bound=HasCase)


class _Finished(NamedTuple):
    """An order that came to an end on a cluster."""

    place: int
    order: Any
    future: Any


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
        done: tells, in this process, whether an order's case is complete already.
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
            for index, report in _crew(scheduler, workers, len(missing))(function, missing):
                reports[index] = report
                progress.update()
                if on_done is not None:
                    on_done(report)
    return [reports[i] for i in range(len(orders))]


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
    if _dask() is None:
        raise ValueError(
            f"--scheduler needs dask, which is not installed here. Install the extra: {INSTALL}. Without --scheduler "
            "the command runs on this machine."
        )
    if not Path(scheduler).is_file() and ":" not in scheduler:
        raise ValueError(
            f"--scheduler must be a scheduler file that is there, or an address such as tcp://host:8786, but it is "
            f"'{scheduler}'. 'dask scheduler --scheduler-file FILE' writes one."
        )


def _dask() -> Any:
    """Import dask.distributed, where it is installed."""
    try:
        import distributed
    except ImportError:
        return None
    return distributed


def _crew(scheduler: str | None, workers: int | None, cases: int) -> Callable[..., Iterator[Numbered]]:
    """Choose who works."""
    if scheduler is not None:
        return functools.partial(_on_cluster, scheduler)
    workers = min(workers or _cpu_cores(), cases)
    if workers == 1:
        return in_this_process
    return functools.partial(in_processes if _dask() is None else _on_this_machine, workers)


def _cpu_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_this_machine(workers: int, function: Work, missing: Missing) -> Iterator[Numbered]:
    """Use dask's local cluster, of separate processes with one thread each."""
    dask = _dask()
    # no memory limit: dask's own is an even share of the machine, and it kills whoever needs more for a moment
    options = {"threads_per_worker": 1, "processes": True, "memory_limit": 0, "dashboard_address": None}
    with dask.LocalCluster(n_workers=workers, **options) as cluster, dask.Client(cluster) as client:
        yield from _through(client, function, missing)


def _on_cluster(scheduler: str, function: Work, missing: Missing) -> Iterator[Numbered]:
    """Use a cluster that runs already, found by its scheduler file or its address."""
    place = {"scheduler_file" if Path(scheduler).is_file() else "address": scheduler}
    try:
        client = _dask().Client(**place, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No dask scheduler answers at --scheduler {scheduler} ({error}). Start one with 'dask scheduler', and "
            "workers with 'dask worker ADDRESS'."
        ) from error
    with client:
        try:
            yield from _through(client, function, missing)
        except OSError as error:
            raise ValueError(LOST) from error


def _through(client: Any, function: Work, missing: Missing) -> Iterator[Numbered]:
    """Let a cluster work; a case whose worker was killed goes to another one, a few times.

    dask counts a worker's death against all cases that it was given, also those that only waited there. So a case that
    is counted out is tried again in the end, with no other one beside it.
    """
    suspects = []
    for finished in _finished(client, function, missing):
        report = _report(finished)
        if report is None:
            suspects.append((finished.place, finished.order))
        else:
            yield Numbered(finished.place, report)
    for suspect in suspects:
        for place, order, future in _finished(client, function, [suspect]):
            failed = CaseReport(order.case, "failed", DIED)
            yield Numbered(place, _report(_Finished(place, order, future)) or failed)


def _finished(client: Any, function: Work, missing: Missing) -> Iterator[_Finished]:
    """Keep a few cases for each worker in flight."""
    waiting, futures = iter(missing), _dask().as_completed()
    flight: dict[str, tuple[int, Any]] = {}
    while True:
        room = IN_FLIGHT_PER_WORKER * max(1, len(client.nthreads())) - len(flight)
        for place, order in itertools.islice(waiting, max(0, room)):
            future = client.submit(attempt, function, __version__, order, pure=False)
            flight[future.key] = place, order
            futures.add(future)
        if not flight:
            return
        future = next(futures)
        yield _Finished(*flight.pop(future.key), future)


def _report(finished: _Finished) -> CaseReport | None:
    """Read a report; none where the worker died, before the case was done or before its report was read."""
    try:
        return finished.future.result(timeout=READ_SECONDS)
    except (_dask().KilledWorker, _dask().TimeoutError):
        return None
    except _dask().CancelledError as error:
        raise ValueError(LOST) from error
    except Exception as error:  # an order or a report that cannot be pickled, a package that is missing on the worker
        return CaseReport(finished.order.case, "failed", f"{type(error).__name__}: {error}")
