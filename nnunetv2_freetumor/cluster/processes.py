"""Run a function for many cases in several processes of this machine; the first error ends the run.

Processes are spawned, never forked: a fork copies locks that other threads hold, PyTorch's among them.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar, runtime_checkable

from tqdm import tqdm

_SHOWN_CASES = 3  # of those that a process may have died of


@runtime_checkable
class HasCase(Protocol):
    """Anything that names its case."""

    @property
    def case(self) -> str:
        """Return the name of the case."""


_Case = TypeVar("_Case", bound=HasCase)
_Result = TypeVar("_Result")


def spawned(processes: int, before_end: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """Return an executor of spawned processes, which end with this process even if it is killed.

    Args:
        processes: how many.
        before_end: importable by name; each process calls it if this one was killed, to end what it has started itself.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=_end_with_parent, initargs=(before_end,))


@contextlib.contextmanager
def several_processes(number: int) -> Iterator[Executor | None]:
    """Yield an executor for `map_cases`; None if one process is enough, which is this one."""
    if number <= 1:
        yield None
        return
    with spawned(number) as executor:
        yield executor


def map_cases(
    function: Callable[[_Case], _Result],
    cases: Sequence[_Case],
    executor: Executor | None,
    title: str,
    advice: str = "Use fewer processes.",
) -> list[_Result]:
    """Call a function for every case behind a progress bar, and return the results in the order of the cases.

    Args:
        function: importable by name if there is an executor.
        cases: can be pickled if there is an executor.
        executor: from `several_processes`.
        title: of the progress bar.
        advice: what to do about a process that ran out of memory.

    Raises:
        ValueError: a case failed or its process died; the text names the case. No further case is begun.
    """
    if executor is None:
        return [_call(function, case) for case in tqdm(cases, desc=title, unit="case")]
    futures = [executor.submit(_call, function, case) for case in cases]
    try:
        for future in tqdm(as_completed(futures), total=len(futures), desc=title, unit="case"):
            future.result()
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        left = [case.case for case, future in zip(cases, futures) if not _succeeded(future)]
        named = ", ".join(left[:_SHOWN_CASES]) + (" ..." if len(left) > _SHOWN_CASES else "")
        raise ValueError(f"{title}: a process died, likely for lack of memory, at {named}. {advice}") from error
    finally:
        for future in futures:
            future.cancel()


def _call(function: Callable[[_Case], _Result], case: _Case) -> _Result:
    try:
        return function(case)
    except Exception as error:
        if isinstance(error, ValueError | OSError) and case.case in str(error):
            raise
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{case.case}: {text}") from error


def _succeeded(future: "Future[Any]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _end_with_parent(before_end: Callable[[], None] | None) -> None:
    """Let a process end with the one that started it, even if that was killed."""
    threading.Thread(target=_wait_for_parent, args=(before_end,), daemon=True).start()


def _wait_for_parent(before_end: Callable[[], None] | None) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was started by another one"
    parent.join()
    try:
        if before_end is not None:
            before_end()
    finally:
        os._exit(1)
