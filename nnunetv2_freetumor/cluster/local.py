"""Work on cases one after the other in this process, or in processes of this machine, without dask."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.cluster.processes import HasCase, spawned
from nnunetv2_freetumor.cluster.reports import PEAK, CaseReport

_STATUS = Path("/proc/self/status")
TRIES_PER_CASE = 3  # of a case whose process dies
_ONE_AT_A_TIME = threading.Lock()  # in a dask worker with several threads: PyTorch's number of threads is the process's
DIED = "every worker process that worked on this case died, perhaps for lack of memory"


class Numbered(NamedTuple):
    """A report and the place of its order among all orders."""

    place: int
    report: CaseReport


Work = Callable[[Any], CaseReport]
Missing = Sequence[tuple[int, Any]]  # orders and their places


def attempt(function: Work, version: str, order: HasCase) -> CaseReport:
    """Call a function for one order; whatever goes wrong becomes a report, so that no case stops the others."""
    try:
        if version != __version__:
            raise ValueError(
                f"this worker has nnunetv2_freetumor {__version__}, but the command has version {version}: install the "
                "same version everywhere"
            )
        with _ONE_AT_A_TIME:
            start = time.monotonic()
            report = function(order)
        return report._replace(counts=report.counts | {"seconds": time.monotonic() - start, **_memory()})
    except (ValueError, OSError) as error:  # the text is meant for people
        return CaseReport(order.case, "failed", str(error))
    except Exception as error:  # one bad file never stops the others
        return CaseReport(order.case, "failed", f"{type(error).__name__}: {error}")


def _memory() -> dict[str, float]:
    """Return the peak memory of this process, on Linux."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return {f"{PEAK}mib": round(int(line.split()[1]) / 1024) for line in lines if line.startswith("VmHWM")}


def in_this_process(function: Work, missing: Missing) -> Iterator[Numbered]:
    """Work in this process, one case after the other."""
    for index, order in missing:
        yield Numbered(index, attempt(function, __version__, order))


def in_processes(workers: int, function: Work, missing: Missing) -> Iterator[Numbered]:
    """Work in processes of this machine, each led by a thread: a process that dies takes only its own case with it."""
    todo, results = deque(missing), SimpleQueue[Numbered]()
    threads = [threading.Thread(target=_lead, args=(function, todo, results), daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for _ in missing:
            yield results.get()
    finally:
        todo.clear()
        for thread in threads:
            thread.join()


def _lead(function: Work, todo: deque, results: SimpleQueue) -> None:
    executor = spawned(1)
    while todo:
        try:
            index, order = todo.popleft()
        except IndexError:  # another thread was faster
            break
        report = CaseReport(order.case, "failed", DIED)
        for _ in range(TRIES_PER_CASE):
            try:
                report = executor.submit(attempt, function, __version__, order).result()
                break
            except BrokenProcessPool:
                executor.shutdown()
                executor = spawned(1)
            except Exception as error:  # an order or a report that cannot be pickled
                report = CaseReport(order.case, "failed", f"{type(error).__name__}: {error}")
                break
        results.put(Numbered(index, report))
    executor.shutdown()
