"""Cases in several processes: the same results, errors that name the case, and no forks."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import pytest

from nnunetv2_freetumor.cluster.processes import map_cases, several_processes, spawned
from nnunetv2_freetumor.experiments import steps


class Counted(NamedTuple):
    """A case with a number."""

    case: str
    number: int


def halve(counted: Counted) -> float:
    """Divide 12 by a case's number, or die."""
    if counted.number < 0:
        os._exit(1)
    if counted.number == 99:
        raise ValueError("/data/ninety_nine.nii.gz cannot be read")
    if counted.number == 98:
        raise ValueError("no voxels")
    return 12 / counted.number


def run(numbers, processes=1, names="case_{}"):
    cases = [Counted(names.format(number), number) for number in numbers]
    with several_processes(processes) as executor:
        return map_cases(halve, cases, executor, "halving", "Lower -np.")


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_cases(processes, capsys):
    assert run([4, 1, 3, 2], processes) == [3, 12, 4, 6]
    assert "halving: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_names_its_case_once(processes):
    with pytest.raises(ValueError, match=r"^case_98: no voxels$"):
        run([1, 98], processes)
    with pytest.raises(ValueError, match=r"^case_0: ZeroDivisionError: division by zero$"):
        run([1, 0], processes)
    with pytest.raises(ValueError, match=r"^/data/ninety_nine.nii.gz cannot be read$"):
        run([1, 99], processes, names="ninety_nine")


def test_a_process_that_dies_ends_the_run_with_the_case_and_what_to_do():
    with pytest.raises(ValueError, match=r"halving: a process died, likely .* memory, at case_-1.*\. Lower -np\.$"):
        run([-1, -1], 2)


def test_processes_are_spawned_and_one_process_is_this_one():
    with spawned(1) as executor:
        assert executor.submit(os.getpid).result() != os.getpid()
        assert executor._mp_context.get_start_method() == "spawn"
        with pytest.raises(BrokenProcessPool):
            executor.submit(os._exit, 1).result()
    with several_processes(1) as executor:
        assert executor is None


_TRAIN = """
import sys
from nnunetv2_freetumor.cluster.processes import spawned
from nnunetv2_freetumor.experiments.steps import end_running
from test_processes import train
if __name__ == "__main__":
    with spawned(1, before_end=end_running) as executor:
        executor.submit(train, sys.argv[1])
        executor.submit(train, sys.argv[1] + "_next")
"""


def train(note):
    """Run a command that says when it starts, and that it was stopped, as a trial does."""
    code = "import sys, time; open(sys.argv[1], 'w').write('started'); time.sleep(60)"
    code = f"try:\n    {code}\nexcept KeyboardInterrupt:\n    open(sys.argv[1], 'w').write('stopped')"
    with open(f"{note}.log", "w") as log, steps.started([sys.executable, "-c", code, note], log, os.environ) as process:
        process.wait()


def wait_for(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_a_command_ends_with_the_process_that_wanted_it_even_if_that_is_killed(tmp_path):
    script, note = tmp_path / "study.py", tmp_path / "note"
    script.write_text(_TRAIN)
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    parent = subprocess.Popen([sys.executable, script, note], env=os.environ | {"PYTHONPATH": paths})
    assert wait_for(lambda: note.is_file() and note.read_text() == "started")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_for(lambda: note.read_text() == "stopped", seconds=20)
    time.sleep(0.5)
    assert not note.with_name("note_next").exists()
