"""What a process prepares once for all cases of a run, such as loaded models: orders are too small to carry it.

Nothing else stays in a process between two cases. Each run prepares its own, because a cluster's workers outlive a run
and the files may have changed since.
"""

from collections.abc import Callable
from typing import Any

_OF_RUN: dict[str, Any] = {}  # of the two latest runs: two clients may share a cluster's workers
_RUNS = 2


def prepared(run: str, prepare: Callable[[], Any]) -> Any:
    """Return what this process has prepared for a run; prepare it if this is the run's first case here.

    Args:
        run: identifies the run among all others.
        prepare: reads or loads it.
    """
    if run not in _OF_RUN:
        while len(_OF_RUN) >= _RUNS:
            del _OF_RUN[next(iter(_OF_RUN))]
        _OF_RUN[run] = prepare()
    return _OF_RUN[run]


def forget(run: str) -> None:
    """Free the memory of what this process has prepared for a run."""
    _OF_RUN.pop(run, None)
