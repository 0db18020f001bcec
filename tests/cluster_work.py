"""Small cases for tests of the cluster: some fail, some kill their worker, each start is written down."""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from nnunetv2_freetumor.case_reports import CaseReport
from nnunetv2_freetumor.cases import write_text


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
    return [line.split() for line in (Path(folder) / "starts.log").read_text().splitlines()]


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
    time.sleep(order.seconds)
    write_text(f"result of {order.case}\n", order.file)
    return CaseReport(order.case, "done", counts={"voxels": 3.0})


def make_orders(folder, count=6, seconds=0.0, **what):
    """Order cases c0, c1 ...; `what` is by name."""
    return [Order(f"c{i}", str(folder), what.get(f"c{i}", "work"), seconds) for i in range(count)]
