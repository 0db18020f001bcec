"""The pool is the same whoever works on it, and however often somebody dies."""

import importlib.util
import os
import signal

import numpy as np
import pytest
from cluster_work import dask_cluster, running, wait_for
from pools import scan

from nnunetv2_freetumor import cli, pool
from nnunetv2_freetumor.bench_data import DATASET
from nnunetv2_freetumor.unlabeled import add_unlabeled_command

pytest_plugins = ["cluster_work", "pools"]
needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="the extra [cluster] is missing"
)
MAIN = "import sys; from nnunetv2_freetumor.cli import main; sys.exit(main(sys.argv[1:]))"


def add_all(place, **options):
    """Fill the pool, and read all of it."""
    assert add_unlabeled_command(
        DATASET, images=str(place.images), hosts=str(place.hosts), tumor_free=True, device="cpu", **options
    ) == 0  # fmt: skip
    return {case: pool.read_volumes(place.pool, case) for case in place.records()}


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


@pytest.mark.slow
@needs_dask
def test_a_killed_worker_and_a_killed_client_leave_every_case_there_exactly_once(place):
    """By the command itself, on a scheduler and two workers that are processes of their own."""
    import distributed

    for seed in range(16):
        place.add(f"case{seed:02d}", *scan(seed))
    alone = add_all(place, workers=1)
    move_away(place)
    file = place.root / "scheduler.json"
    words = [
        "add-unlabeled",
        "-d",
        DATASET,
        "-i",
        place.images,
        "--hosts",
        place.hosts,
        "--tumor-free",
        "-device",
        "cpu",
    ]
    records = place.pool / "records"
    with dask_cluster(file, workers=2):
        with distributed.Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(2, timeout=200)
            victim = min(client.run(os.getpid).values())
        with running("-c", MAIN, *map(str, words), "--scheduler", str(file)) as command:
            wait_for(lambda: len(list(records.glob("*.json"))) >= 2)
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: len(list(records.glob("*.json"))) >= 5)
            command.kill()
        made = {path: path.stat().st_mtime_ns for path in records.glob("*.json")}
        assert 5 <= len(made) < 16
        assert_same(alone, add_all(place, scheduler=str(file)))
    endings = ("{}.b2nd", "{}_seg.b2nd", "{}.pkl", "records/{}.json")
    expected = {ending.format(case) for case in alone for ending in endings}
    files = {path.relative_to(place.pool).as_posix() for path in place.pool.rglob("*") if path.is_file()}
    assert files == expected | {"stamp.json", "report.json", "labeled_contents.json"}
    assert made.items() <= {path: path.stat().st_mtime_ns for path in records.glob("*.json")}.items()


@pytest.mark.parametrize("command", ["add-unlabeled -d 1 -i x", "synthesize-dataset -d 1 -o Dataset901_X"])
def test_a_scheduler_without_the_extra_is_an_error_of_both_commands(command, without_dask, capsys):
    assert cli.main([*command.split(), "--scheduler", "tcp://localhost:8786"]) == 2
    assert (
        "--scheduler needs dask, which is not installed here. Install the extra: pip install" in capsys.readouterr().err
    )
