"""Run commands one after the other, each with a progress bar, a log file, and a note once it is finished.

Also what demo, study and the bundled generator share: nnU-Net's folders and a small configuration.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import Popen
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from nnunetv2_freetumor import startup
from nnunetv2_freetumor.files.cases import check_writable, write_json

_OWN_PROGRAM = "nnUNetv2_freetumor"
_OWN_START = "import sys; from nnunetv2_freetumor.cli import main; sys.exit(main())"
_POLL_SECONDS = 0.5
_LAST_LINES = 25  # of a failed step's log, to be shown
_RUNNING: list[Popen] = []  # commands of this process
_STARTING = threading.Lock()

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
PLANS, COARSE_CONFIGURATION = "nnUNetPlans", "3d_coarse"
COARSE_FEATURES = [16, 32, 64, 64]  # of the small network, by stage
COARSE = {"spacing": [4.0, 2.5, 2.5], "patch_size": [24, 56, 56], "batch_size": 2, "batch_dice": True}  # z, y, x


class Step(NamedTuple):
    """One step: a command line as a user would type it, or a function of this process and a description of it."""

    name: str
    title: str
    command: str
    function: Callable[[], None] | None = None
    mark: str = ""  # pattern in the log whose number, or else its count, is the progress
    total: int = 0


class Runner:
    """Run steps in order; a step that an earlier run finished, with all steps before it, is skipped."""

    def __init__(self, root: Path, environment: Mapping[str, str], number_of_steps: int) -> None:
        self.root = root  # where commands run, so that their paths are relative
        self.folder = check_writable(root / "steps")
        self.environment = dict(environment)
        self.number_of_steps = number_of_steps
        self.seconds: dict[str, float] = {}
        self._fresh = False

    def run(self, step: Step) -> None:
        """Run a step or skip it.

        Raises:
            ValueError: the command failed; the text has the end of its log.
        """
        note = self.folder / f"{step.name}.json"
        heading = f"[{len(self.seconds) + 1}/{self.number_of_steps}] {step.title}"
        saved = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        if saved.get("command") == step.command and not self._fresh:
            print(f"{heading}: done in an earlier run")
            self.seconds[step.name] = saved["seconds"]
            return
        self._fresh = True
        note.unlink(missing_ok=True)
        print(f"{heading}\n    {step.command}", flush=True)
        start = time.monotonic()
        if step.function:
            step.function()
        else:
            log = self.folder / f"{step.name}.log"
            call(
                step.command.split(),
                log,
                environment=self.environment,
                cwd=self.root,
                follow=lambda process: _follow(process, step, log),
            )
        self.seconds[step.name] = time.monotonic() - start
        write_json({"command": step.command, "seconds": self.seconds[step.name]}, note)


def call(
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    cwd: Path | None = None,
    follow: Callable[[Popen], object] = Popen.wait,
) -> None:
    """Run a command to its end, with a log file for everything that it prints.

    Args:
        words: the command and its arguments.
        log: written anew.
        environment: of the command.
        cwd: where it runs.
        follow: waits until it has ended.

    Raises:
        ValueError: the command is not installed, see `program`; or it failed, and the text has the end of its log.
    """
    with (
        log.open("w", encoding="utf-8") as stream,
        started(words, stdout=stream, environment=environment, cwd=cwd) as process,
    ):
        follow(process)
    if process.returncode:
        raise ValueError(
            f"'{' '.join(words)}' ended with code {process.returncode}. The end of {log}:\n{last_lines(log)}"
        )


@contextlib.contextmanager
def started(
    words: Sequence[str], stdout: IO[str], environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator[Popen]:
    """Yield a running command, which ends with the block at the latest; errors go to its output.

    Raises:
        ValueError: the command is not installed; see `program`.
    """
    command = [*program(words[0]), *words[1:]]
    with _STARTING:
        process = Popen(command, stdout=stdout, stderr=subprocess.STDOUT, env=environment, cwd=cwd)
        _RUNNING.append(process)
    try:
        yield process
    finally:
        _RUNNING.remove(process)
        end_process(process)


def end_running() -> None:
    """Stop the commands that this process has started, and start no other: the process that wanted them is gone."""
    _STARTING.acquire()  # for good
    for process in [*_RUNNING]:
        end_process(process)


def program(name: str) -> list[str]:
    """Find a command next to the running Python, or on the path.

    Raises:
        ValueError: nnU-Net's command is not installed.
    """
    if name == _OWN_PROGRAM:
        return [sys.executable, "-c", _OWN_START]
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ValueError(f"The command {name} is not installed next to {sys.executable}. Run 'pip install nnunetv2'.")
    return [found]


def last_lines(log: Path) -> str:
    """Return the end of a log, to be shown with an error."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])


def progress(log: str, mark: str) -> int:
    """Return a command's progress: the last number that the pattern captured, or how often it occurred."""
    found = re.findall(mark, log) if mark else []
    return int(found[-1]) if found and found[-1].isdigit() else len(found)


def _follow(process: Popen, step: Step, log: Path) -> None:
    """Update a progress bar while a command runs; without a terminal, print it only when it has moved."""
    watched = sys.stderr.isatty()
    bar_format = None if step.total else "{desc} {elapsed}"
    with tqdm(total=step.total or None, desc=f"    {step.name}", bar_format=bar_format) as bar:
        while process.poll() is None:
            now = min(progress(log.read_text(encoding="utf-8", errors="replace"), step.mark), step.total)
            moved, bar.n = now > bar.n, now
            if watched or moved:
                bar.refresh()
            time.sleep(_POLL_SECONDS)
        bar.n = step.total if process.returncode == 0 else bar.n


def end_process(process: Popen) -> None:
    """Stop a running command as Ctrl-C would, so that it ends its own children."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment(root: Path) -> dict[str, str]:
    """Return an environment with folders of its own and settings for two cores, without torch.compile."""
    startup.extend()
    settings = {
        "nnUNet_def_n_proc": "2",
        "nnUNet_n_proc_DA": "2",
        "nnUNet_compile": "f",  # pays off only in long trainings
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads leave the core to the loader processes
        "PYTHONUNBUFFERED": "1",
    }
    return {
        **os.environ,
        **{name: str(check_writable(root / name)) for name in (RAW, PREPROCESSED, RESULTS)},
        **settings,
    }


def add_coarse_configuration(
    plans_file: Path, features: Sequence[int], name: str = COARSE_CONFIGURATION, **changes: Any
) -> None:
    """Add a configuration with large voxels and a small network, which trains on two cores in minutes."""
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    stages = len(features)
    architecture = json.loads(json.dumps(plans["configurations"]["3d_fullres"]["architecture"]))
    architecture["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(features),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }
    plans["configurations"][name] = {
        "inherits_from": "3d_fullres",
        "data_identifier": f"{PLANS}_{name}",
        "architecture": architecture,
        **COARSE,
        **changes,
    }
    write_json(plans, plans_file)
