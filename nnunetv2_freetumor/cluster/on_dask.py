"""Work on cases through dask.distributed: in processes of this machine, or on a running cluster.

The scheduler holds only a few orders per worker at a time, so that its memory does not grow with the number of orders.
"""

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from tqdm import tqdm

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.cluster.local import DIED, Missing, Numbered, Work, attempt
from nnunetv2_freetumor.cluster.reports import CaseReport

IN_FLIGHT_PER_WORKER = 2  # one to work on, one to wait
CONNECT_SECONDS = 10
READ_SECONDS = 15  # a report that died with its worker is not waited for
LOOK_SECONDS = 2  # between two counts of the workers
ANSWER_SECONDS = 10  # to one count
SILENT_SECONDS = 300  # a scheduler, or a whole machine, may stand still for a while and go on
_POLL_SECONDS = 0.02
RETURN_SECONDS = 120  # for processes of this machine to be replaced; a cluster's workers may wait in a queue for days
LOST = (
    "The connection to the dask scheduler was lost. Start the scheduler and the same command again to resume with the "
    "missing cases."
)
ALONE = (
    "No worker is connected to the dask scheduler; {cases} case(s) are waiting. Start workers with 'dask worker "
    "{address} --nthreads 1', or press Ctrl-C: the same command resumes later with the missing cases."
)
NOT_REPLACED = (
    "The worker processes of this machine died and could not be replaced, perhaps for lack of memory. Run the same "
    "command with fewer --workers to resume with the missing cases."
)
THREADS = (
    "A dask worker with {threads} threads still works on one case at a time. Start one worker process per core "
    "instead: 'dask worker ADDRESS --nthreads 1 --nworkers -1'."
)


def dask() -> Any:
    """Return the module dask.distributed, or None if it is not installed."""
    try:
        import distributed
    except ImportError:
        return None
    return distributed


def scheduler_address(scheduler: str) -> str:
    """Return a scheduler's address, read from its file if a file is given.

    Raises:
        ValueError: neither a file that holds an address nor an address.
    """
    path = Path(scheduler)
    if not path.is_file() and ":" not in scheduler:
        raise ValueError(
            f"--scheduler must be an existing scheduler file or an address such as tcp://host:8786, but it is "
            f"'{scheduler}'. 'dask scheduler --scheduler-file FILE' writes a scheduler file."
        )
    if not path.is_file():
        return scheduler
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["address"])
    except (ValueError, KeyError, TypeError, OSError) as error:  # a text that is no JSON is a ValueError
        raise ValueError(
            f"--scheduler {scheduler} is not a scheduler file: it contains no JSON with an 'address' ({error}). "
            "'dask scheduler --scheduler-file FILE' writes one."
        ) from error


def on_this_machine(workers: int, function: Work, missing: Missing) -> Iterator[Numbered]:
    """Work in dask's local cluster: separate processes of this machine with one thread each."""
    # no memory limit: dask's own is an even share of the machine, and it kills whoever needs more for a moment
    options = {"threads_per_worker": 1, "processes": True, "memory_limit": 0, "dashboard_address": "127.0.0.1:0"}
    with dask().LocalCluster(n_workers=workers, **options) as cluster, dask().Client(cluster) as client:
        yield from _through(client, function, missing)


def on_cluster(scheduler: str, function: Work, missing: Missing) -> Iterator[Numbered]:
    """Work on a running cluster, found by its scheduler file or its address."""
    with _connect(scheduler_address(scheduler), scheduler) as client:
        yield from _through(client, function, missing)


def _connect(address: str, scheduler: str) -> Any:
    """Connect in a thread: dask waits forever if something that is not a scheduler listens at the address."""
    answers: SimpleQueue[Any] = SimpleQueue()

    def _try() -> None:
        try:
            answers.put(dask().Client(address, timeout=CONNECT_SECONDS))
        except Exception as error:  # whatever error dask raises on an answer that is not a scheduler's
            answers.put(error)

    threading.Thread(target=_try, daemon=True).start()
    try:
        answer = answers.get(timeout=2 * CONNECT_SECONDS)
    except Empty:
        answer = TimeoutError("something listens there, but it does not answer like a scheduler")
    if isinstance(answer, Exception):
        raise ValueError(
            f"No dask scheduler answers at --scheduler {scheduler} ({answer}). Start one with 'dask scheduler', and "
            "workers with 'dask worker ADDRESS --nthreads 1'."
        ) from answer
    return answer


class _Finished(NamedTuple):
    """An order that came to an end on a cluster."""

    place: int
    order: Any
    future: Any


def _through(client: Any, function: Work, missing: Missing) -> Iterator[Numbered]:
    """Work on a cluster; a case whose worker was killed is tried again on another one, a few times.

    dask counts a worker's death against all cases that it was given, even those that only waited there. So a case that
    dask has given up is tried once more in the end, with no other case beside it.
    """
    crew, given_up = _Crew(client), []
    for finished in _finished(crew, function, missing):
        report = _report(finished)
        if report is None:
            given_up.append((finished.place, finished.order))
        else:
            yield Numbered(finished.place, report)
    for order_again in given_up:
        for place, order, future in _finished(crew, function, [order_again]):
            failed = CaseReport(order.case, "failed", DIED)
            yield Numbered(place, _report(_Finished(place, order, future)) or failed)


class _Crew:
    """The workers of a cluster, counted from time to time."""

    def __init__(self, client: Any) -> None:
        self.client, self._workers, self._seen = client, 0, -float("inf")
        self._heard = time.monotonic()
        self._gone_since: float | None = None
        self._told_threads = False

    def look(self, cases: int) -> int:
        """Count the workers; warn if there are none, or if they have idle threads.

        Raises:
            ValueError: the scheduler was lost, or processes of this machine do not come back.
        """
        if self.client.status != "running":  # dask would reconnect, but all orders would be lost
            raise ValueError(LOST)
        if time.monotonic() - self._seen >= LOOK_SECONDS:
            try:
                threads = self.client.nthreads(callback_timeout=ANSWER_SECONDS).values()
            except (OSError, dask().TimeoutError) as error:  # if it has ended, the status of the client shows it
                self._seen = time.monotonic()
                if self._seen - self._heard > SILENT_SECONDS:
                    raise ValueError(LOST) from error
                return self._workers
            self._workers, self._seen = len(threads), time.monotonic()
            self._heard = self._seen
            self._tell(max(threads, default=1), cases)
        return self._workers

    def _tell(self, threads: int, cases: int) -> None:
        if threads > 1 and not self._told_threads:
            self._told_threads = True
            tqdm.write(THREADS.format(threads=threads), file=sys.stderr)
        if self._workers:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = self._seen
            if self.client.cluster is None:
                tqdm.write(ALONE.format(cases=cases, address=self.client.scheduler.address), file=sys.stderr)
        elif self.client.cluster is not None and self._seen - self._gone_since > RETURN_SECONDS:
            raise ValueError(NOT_REPLACED)


def _finished(crew: _Crew, function: Work, missing: Missing) -> Iterator[_Finished]:
    """Keep a few cases per worker in flight, and yield each as it comes to an end."""
    waiting, futures = iter(missing), dask().as_completed()
    flight: dict[str, tuple[int, Any]] = {}
    left = len(missing)
    while left:
        room = IN_FLIGHT_PER_WORKER * max(1, crew.look(left)) - len(flight)
        for place, order in itertools.islice(waiting, max(0, room)):
            future = crew.client.submit(attempt, function, __version__, order, pure=False)
            flight[future.key] = place, order
            futures.add(future)
        while not futures.has_ready():  # next(futures) would wait forever if no worker is left
            time.sleep(_POLL_SECONDS)
            crew.look(left)
        future = next(futures)
        left -= 1
        yield _Finished(*flight.pop(future.key), future)


def _report(finished: _Finished) -> CaseReport | None:
    """Return a report; None if the worker died before the case was done or before its report was read."""
    try:
        return finished.future.result(timeout=READ_SECONDS)
    except (dask().KilledWorker, dask().TimeoutError):
        return None
    except dask().CancelledError as error:
        raise ValueError(LOST) from error
    except Exception as error:  # an order or a report that cannot be pickled, a package that is missing on the worker
        return CaseReport(finished.order.case, "failed", f"{type(error).__name__}: {error}")
