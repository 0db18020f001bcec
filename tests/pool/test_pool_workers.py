"""The pool is the same whoever works on it, and however often somebody dies."""

import functools
import importlib.util

import numpy as np
import pytest
from cluster_work import dask_cluster, running, wait_for
from pools import scan

from nnunetv2_freetumor import cli
from nnunetv2_freetumor.experiments.bench.data import DATASET
from nnunetv2_freetumor.pool import command as unlabeled
from nnunetv2_freetumor.pool import store
from nnunetv2_freetumor.pool.case import is_added
from nnunetv2_freetumor.pool.command import add_unlabeled_command

pytest_plugins = ["cluster_work", "pools"]
pytestmark = pytest.mark.usefixtures("time_limit")
needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="the extra [cluster] is missing"
)
MAIN = "import sys; from nnunetv2_freetumor.cli import main; sys.exit(main(sys.argv[1:]))"
KILLED_AND_HELD = """
import os, signal, time
from pathlib import Path
from nnunetv2_freetumor.pool import store as pool

killed, go = Path({root!r}, "killed"), Path({root!r}, "go")
save_case = vars(pool).setdefault("save_case", pool.nnUNetDatasetBlosc2.save_case)  # dask loads this file twice


def save(image, label, properties, path, *sizes):
    save_case(image, label, properties, path, *sizes)
    if path.endswith("case03") and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    while path.endswith("case15") and not go.exists():
        time.sleep(0.02)


pool.nnUNetDatasetBlosc2.save_case = save
"""


def add_all(place, **options):
    """Fill the pool, and read all of it."""
    assert add_unlabeled_command(
        DATASET, images=str(place.images), hosts=str(place.hosts), tumor_free=True, device="cpu", **options
    ) == 0  # fmt: skip
    return {case: store.read_volumes(place.pool, case) for case in place.records()}


def assert_same(one, other):
    assert list(one) == list(other)
    for case in one:
        for array, again in zip(one[case][:2], other[case][:2]):
            assert array.dtype == again.dtype and np.array_equal(array, again)
        np.testing.assert_equal(one[case].properties, other[case].properties)


def move_away(place):
    place.pool.rename(place.root / "pool of one process")


@pytest.mark.slow
@pytest.mark.parametrize("with_dask", [pytest.param(True, marks=needs_dask), False])
def test_one_and_two_workers_give_the_same_arrays_and_properties(place, with_dask, request):
    """The files are not the same bytes, and never are.

    nnU-Net compresses each chunk with four threads, which append its blocks in the order in which they are done: two
    writes of one array in one process give files of one size with the blocks in another order.
    """
    for seed in range(4):
        place.add(f"case{seed}", *scan(seed))
    alone, records = add_all(place, workers=1), place.records()
    move_away(place)
    if not with_dask:
        request.getfixturevalue("without_dask")
    assert_same(alone, add_all(place, workers=2))
    assert place.records() == records


def let_go(gate, context, order):
    """Check whether a case is done, and let go of case15 only after it has been checked."""
    found = is_added(context, order)
    if order.case == "case15":
        gate.touch()
    return found


@pytest.mark.slow
@needs_dask
def test_a_killed_worker_and_a_killed_client_leave_every_case_there_exactly_once(place, monkeypatch):
    """By the command itself, on a scheduler and two workers that are processes of their own.

    The first worker that has half-written case03 dies there, and case15 is held, so that no kill can come too late.
    """
    for seed in range(16):
        place.add(f"case{seed:02d}", *scan(seed))
    alone = add_all(place, workers=1)
    move_away(place)
    file, preload, records = place.root / "scheduler.json", place.root / "preload.py", place.pool / "records"
    preload.write_text(KILLED_AND_HELD.format(root=str(place.root)))
    command = ["add-unlabeled", "-d", DATASET, "-i", place.images, "--hosts", place.hosts, "--tumor-free"]
    with dask_cluster(file, workers=2, options=["--preload", str(preload)]):
        with running("-c", MAIN, *map(str, command), "-device", "cpu", "--scheduler", str(file)) as client:
            wait_for(lambda: (records / "case03.json").exists() and len([*records.glob("*.json")]) >= 5, client)
            client.kill()
        made = {path: path.stat().st_mtime_ns for path in records.glob("*.json")}
        assert 5 <= len(made) < 16 and (place.root / "killed").exists()
        assert [*place.pool.glob(store.UNFINISHED)]  # of the killed worker
        monkeypatch.setattr(unlabeled, "is_added", functools.partial(let_go, place.root / "go"))
        assert_same(alone, add_all(place, scheduler=str(file)))
    endings = ("{}.b2nd", "{}_seg.b2nd", "{}.pkl", "records/{}.json")
    expected = {ending.format(case) for case in alone for ending in endings}
    files = {path.relative_to(place.pool).as_posix() for path in place.pool.rglob("*") if path.is_file()}
    assert files == expected | {"stamp.json", "report.json", "labeled_contents.json"}
    assert made.items() <= {path: path.stat().st_mtime_ns for path in records.glob("*.json")}.items()


@pytest.mark.parametrize("command", ["add-unlabeled -d 1 -i x", "synthesize-dataset -d 1 -o Dataset901_X"])
def test_a_scheduler_without_the_extra_is_an_error_of_both_commands(command, without_dask, capsys):
    assert cli.main([*command.split(), "--scheduler", "tcp://localhost:8786"]) == 2
    assert "--scheduler needs dask, which is not installed here. Install it with pip install" in capsys.readouterr().err
