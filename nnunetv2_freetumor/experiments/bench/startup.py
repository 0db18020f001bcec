"""Measure what every Python start and `--help` cost."""

import re
import statistics
import subprocess
import sys
import time

ROUNDS = 9
HOOK = "import nnunetv2_freetumor.startup as startup; startup.extend()"
HELP = "from nnunetv2_freetumor.cli import main; main(['--help'])"


def hook_ms() -> float:
    """Time what the start-up hook imports, as Python itself reports it; the median of several starts."""
    return statistics.median(_hook_once() for _ in range(ROUNDS))


def help_s() -> float:
    """Time `nnUNetv2_freetumor --help` as a whole process; the median of several runs."""
    return statistics.median(_help_once() for _ in range(ROUNDS))


def _hook_once() -> float:
    command = [sys.executable, "-X", "importtime", "-c", HOOK]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    rows = re.findall(r"import time: +(\d+) \| +\d+ \|\s+nnunetv2_freetumor(?:\.startup)?$", report, flags=re.MULTILINE)
    return sum(map(int, rows)) / 1000


def _help_once() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", HELP], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
