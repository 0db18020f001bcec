"""Small cases for tests of the cluster: some fail, some kill their worker, each start is written down.

And clusters as users run them: a scheduler and workers, each a process of its own.
"""

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from nnunetv2_freetumor.cluster.reports import CaseReport
from nnunetv2_freetumor.files.cases import write_text

TESTS = Path(__file__).parent
TIME_LIMIT_S = 1200  # a test that stalls fails, and shows where; a busy machine may take minutes to import PyTorch
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS / "pool", TESTS.parent)))}


@pytest.fixture
def time_limit():
    """Let no test of a cluster stall; not autouse, which would reach every test that is collected after this file."""

    def _stalled(*_):
        faulthandler.dump_traceback(sys.__stderr__)
        raise AssertionError(f"the test was not through after {TIME_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, _stalled)
    signal.alarm(TIME_LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def without_dask(monkeypatch):
    """Do as if the extra was not installed."""
    monkeypatch.setitem(sys.modules, "distributed", None)


def wait_for(condition, program=None):
    """Wait until something is so, as long as the test may take, while a program runs that should make it so."""
    while not condition():
        ended = program is not None and program.poll() is not None
        assert not ended or condition(), f"it ended with {program.returncode} before: {program.args}"
        time.sleep(0.02)


@contextlib.contextmanager
def running(*words):
    """Run a program until the end of the block, and not longer, with all processes that it has started.

    What it has said is shown where the block fails.
    """
    command, environment = [sys.executable, *words], os.environ | ENVIRONMENT
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stderr=said, start_new_session=True)
        try:
            yield process
        except BaseException:
            print(command, os.pread(said.fileno(), 1 << 20, 0).decode(), sep="\n", file=sys.stderr)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a dask worker may wait for its scheduler before it listens
            process.wait()


@contextlib.contextmanager
def dask_scheduler(file):
    """Run a scheduler that can be found by its file; it ends by itself where a killed test run leaves it."""
    words = ["-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    with running(*words, "--idle-timeout", str(TIME_LIMIT_S), "--scheduler-file", str(file)) as scheduler:
        wait_for(lambda: _holds_json(file), scheduler)
        yield scheduler


def _holds_json(file):
    try:
        return bool(json.loads(file.read_text()))
    except (OSError, ValueError):  # not there, or not all of it
        return False


def dask_workers(file, count=1, threads=1, options=()):
    """Run workers, each with a nanny that starts it again when it dies."""
    return running("-m", "dask", "worker", "--nthreads", str(threads), "--nworkers", str(count), "--no-dashboard",
                   "--scheduler-file", str(file), "--local-directory", str(Path(file).parent),
                   "--death-timeout", str(TIME_LIMIT_S), *options)  # fmt: skip


@contextlib.contextmanager
def dask_cluster(file, workers, options=()):
    """Run a scheduler and workers as a user does on a cluster."""
    with dask_scheduler(file) as scheduler, dask_workers(file, workers, options=options):
        yield scheduler


class Order(NamedTuple):
    """One small case."""

    case: str
    folder: str
    what: str = "work"
    seconds: float = 0.0

    @property
    def file(self):
        """Name its result."""
        return Path(self.folder) / f"{self.case}.txt"


def is_done(order):
    """Tell whether a case is there."""
    return order.file.is_file()


def starts(folder):
    """Read which process started which case, in order."""
    log = Path(folder) / "starts.log"
    return [line.split() for line in log.read_text().splitlines()] if log.is_file() else []


def work(order):
    """Do what the order says and write its file."""
    folder = Path(order.folder)
    with (folder / "starts.log").open("a") as log:
        log.write(f"{order.case} {os.getpid()}\n")
    killed_before = folder / f"{order.case}.killed"
    if order.what == "dies" or (order.what == "dies once" and not killed_before.exists()):
        killed_before.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if order.what == "user":
        raise ValueError(f"{order.case} cannot be read")
    if order.what == "bug":
        return {}["key"]
    if order.what == "held":
        wait_for((folder / "go").exists)
    time.sleep(order.seconds)
    write_text(f"result of {order.case}\n", order.file)
    return CaseReport(order.case, "done", counts={"voxels": 3.0})


def preparations(folder):
    """Read which processes have prepared something, in order."""
    log = Path(folder) / "prepared.log"
    return [int(line) for line in log.read_text().splitlines()] if log.is_file() else []


def count_preparations(folder):
    """Prepare a number: how often something was prepared there."""
    with (Path(folder) / "prepared.log").open("a") as log:
        log.write(f"{os.getpid()}\n")
    return len(preparations(folder))


def is_done_prepared(number, order):
    """Tell whether a case is there."""
    assert number > 0
    return is_done(order)


def work_prepared(number, order):
    """Do what the order says and report what was prepared for it."""
    report = work(order)
    return report._replace(counts={"prepared": number})


def make_orders(folder, count=6, seconds=0.0, **what):
    """Order cases c0, c1 ...; `what` is by name."""
    return [Order(f"c{i}", str(folder), what.get(f"c{i}", "work"), seconds) for i in range(count)]
