"""Cases are worked on wherever there is room: every one exactly once, whoever dies, and with the same result."""

import importlib.util
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from cluster_work import (
    Order,
    dask_cluster,
    dask_scheduler,
    dask_workers,
    is_done,
    make_orders,
    running,
    starts,
    wait_for,
    work,
)

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.cluster import local, on_dask
from nnunetv2_freetumor.cluster import run as cluster
from nnunetv2_freetumor.cluster.local import DIED, TRIES, attempt
from nnunetv2_freetumor.cluster.reports import CaseReport, exit_code, summary_lines
from nnunetv2_freetumor.cluster.run import run_cases

pytest_plugins = ["cluster_work"]
pytestmark = pytest.mark.usefixtures("time_limit")
needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="the extra [cluster] is missing"
)
CLIENT = """
import sys
from cluster_work import is_done, make_orders, work
from nnunetv2_freetumor.cluster.run import run_cases
run_cases(work, make_orders(sys.argv[1], 12, c5="held"), is_done, scheduler=sys.argv[2])
"""


LOCAL_CLIENT = """
import sys
sys.modules["distributed"] = None
from cluster_work import is_done, make_orders, work
from nnunetv2_freetumor.cluster.run import run_cases
if __name__ == "__main__":
    run_cases(work, make_orders(sys.argv[1], 2, c0="held", c1="held"), is_done, workers=2)
"""


def states(reports):
    return {report.case: (report.state, report.reason) for report in reports}


def results(folder):
    return {path.name: path.read_text() for path in Path(folder).glob("c*.txt")}


def test_a_bad_case_never_stops_the_others(tmp_path):
    reports = run_cases(work, make_orders(tmp_path, 4, c1="user", c2="bug"), is_done, workers=1)
    assert states(reports) == {
        "c0": ("done", ""),
        "c1": ("failed", "c1 cannot be read"),
        "c2": ("failed", "KeyError: 'key'"),
        "c3": ("done", ""),
    }
    assert exit_code(reports) == 1
    assert reports[0].counts["voxels"] == 3 and reports[0].counts["seconds"] >= 0


def test_what_is_done_is_not_done_again(tmp_path):
    told = []
    run_cases(work, make_orders(tmp_path, 2), is_done, workers=1)
    reports = run_cases(work, make_orders(tmp_path, 3), is_done, workers=1, on_done=told.append)
    assert [case for case, _ in starts(tmp_path)] == ["c0", "c1", "c2"]
    assert [report.reason for report in reports] == ["by an earlier run"] * 2 + [""]
    assert told == reports[2:] and exit_code(reports) == 0


def test_a_case_that_is_ordered_again_while_it_is_worked_on_is_done_once(tmp_path):
    """As dask orders it, where a worker dies after the case and before its report is read."""
    (order,) = make_orders(tmp_path, 1)
    reports = run_cases(work, [order, order], is_done, workers=1)
    assert len(starts(tmp_path)) == 1
    assert [(report.state, report.reason) for report in reports] == [("done", "")] * 2
    assert [report.counts.get("voxels") for report in reports] == [3.0, None]


def test_reports_are_summed_up():
    reports = [
        CaseReport("a", "done", counts={"voxels": 2, "peak_mib": 5}),
        CaseReport("b", "done", counts={"voxels": 3, "peak_mib": 4}),
        CaseReport("c", "done", "by an earlier run"),
        *(CaseReport(case, "skipped", f"no mask {case}.nii.gz") for case in ("d1", "d2", "d3", "d4")),
        CaseReport("e", "failed", "broken"),
        *(CaseReport(f"synthetic_{n}_00", "failed", f"/x/{n}_0000.nii.gz is empty") for n in ("x_1", "empty")),
    ]
    assert summary_lines(reports) == [
        "10 case(s): 3 done (1 by an earlier run), 4 skipped, 3 failed.",
        "  voxels: 5",
        "  peak_mib: 5",
        "  skipped: 4 x no mask CASE.nii.gz (d1, d2, d3 ...)",
        "  failed: 1 x broken (e)",
        "  failed: 2 x /x/CASE_0000.nii.gz is empty (synthetic_x_1_00, synthetic_empty_00)",
    ]


def test_another_version_on_a_worker_is_said():
    report = attempt(work, "9.9", Order("c0", ""))
    assert report.state == "failed" and "but the command is version 9.9: install the same one" in report.reason


@pytest.mark.parametrize(
    "options, text",
    [
        ({"workers": 0}, "--workers must be at least 1 process, but it is 0"),
        ({"workers": 2, "scheduler": "tcp://a:1"}, "--workers counts processes of this machine, and --scheduler has"),
        ({"scheduler": "missing.json"}, "must be a scheduler file that is there, or an address .* 'missing.json'"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, monkeypatch, options, text):
    monkeypatch.setattr(cluster, "dask", lambda: True)
    with pytest.raises(ValueError, match=text):
        run_cases(work, make_orders(tmp_path), is_done, **options)


def test_a_scheduler_without_the_extra_ends_in_an_error_that_names_it(tmp_path, without_dask):
    text = r"--scheduler needs dask.*pip install 'nnunetv2_freetumor\[cluster\]'. Without --scheduler the command runs"
    with pytest.raises(ValueError, match=text):
        run_cases(work, make_orders(tmp_path), is_done, scheduler="tcp://localhost:8786")


def _runs(pid):
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()  # ended, and nobody has asked how
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to see processes in")
def test_processes_end_with_the_command_that_has_started_them_also_where_it_was_killed(tmp_path):
    script = tmp_path / "client.py"
    script.write_text(LOCAL_CLIENT)
    with running(str(script), str(tmp_path)) as client:
        wait_for(lambda: len(starts(tmp_path)) == 2, client)
        workers = [int(pid) for _, pid in starts(tmp_path)]
        assert all(map(_runs, workers))
        client.kill()
        client.wait()
        wait_for(lambda: not any(map(_runs, workers)))


def test_memory_is_told_only_where_the_system_tells_it(tmp_path, monkeypatch):
    status = tmp_path / "status"
    monkeypatch.setattr(local, "STATUS", status)
    for text, told in (("VmHWM:\t2048 kB\n", {"peak_mib": 2}), ("Name:\tpython\n", {}), (None, {})):
        status.unlink(missing_ok=True) if text is None else status.write_text(text)
        counts = attempt(work, __version__, Order("c0", str(tmp_path))).counts
        assert {name: value for name, value in counts.items() if name.startswith("peak")} == told


@needs_dask
@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:9", "foo://127.0.0.1:9", "tcp://127.0.0.1:port", "tcp://nowhere.invalid:8786", "SILENT", "OTHER"],
)
def test_an_address_where_no_scheduler_answers_is_said_in_seconds(tmp_path, monkeypatch, address):
    """Nobody listens there, or somebody who says nothing, or no scheduler."""
    monkeypatch.setattr(on_dask, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        if address in ("SILENT", "OTHER"):
            if address == "OTHER":
                threading.Thread(target=_greet, args=(server,), daemon=True).start()
            address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        on_dask.dask()  # its import may take seconds
        start = time.monotonic()
        with pytest.raises(ValueError, match=f"No dask scheduler answers at --scheduler {address} .*'dask scheduler'"):
            run_cases(work, make_orders(tmp_path), is_done, scheduler=address)
        assert time.monotonic() - start < 60


def _greet(server):
    connection, _ = server.accept()
    connection.sendall(b"SSH-2.0-OpenSSH_9.0\r\n" * 3)


@needs_dask
@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}"])
def test_a_scheduler_file_that_is_none_is_refused(tmp_path, text):
    file = tmp_path / "scheduler.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="scheduler.json is no scheduler file: it holds no JSON with an 'address'"):
        run_cases(work, make_orders(tmp_path), is_done, scheduler=str(file))


class LonelyClient:
    """A client of a local cluster whose processes are all gone."""

    status, cluster = "running", "local"

    def nthreads(self, **_):
        return {}


def test_processes_of_this_machine_that_are_not_replaced_end_the_run(monkeypatch):
    monkeypatch.setattr(on_dask, "LOOK_SECONDS", 0)
    monkeypatch.setattr(on_dask, "RETURN_SECONDS", 0)
    crew = on_dask._Crew(LonelyClient())
    assert crew.look(3) == 0
    with pytest.raises(
        ValueError, match="died and could not be replaced; is there enough memory.*Give fewer --workers"
    ):
        crew.look(3)


class SilentClient:
    """A client whose scheduler does not answer any more."""

    status, cluster = "running", None

    def nthreads(self, **_):
        raise TimeoutError


@needs_dask
def test_a_scheduler_that_never_answers_again_ends_the_run(monkeypatch):
    monkeypatch.setattr(on_dask, "LOOK_SECONDS", 0)
    crew = on_dask._Crew(SilentClient())
    assert crew.look(3) == 0
    monkeypatch.setattr(on_dask, "SILENT_SECONDS", -1)
    with pytest.raises(ValueError, match="connection to the dask scheduler was lost"):
        crew.look(3)


def test_a_process_works_on_one_case_at_a_time_however_many_threads_it_has():
    at_work, seen = [], []

    def _watched(order):
        at_work.append(order)
        seen.append(len(at_work))
        time.sleep(0.05)
        at_work.remove(order)
        return CaseReport(order.case, "done")

    threads = [threading.Thread(target=attempt, args=(_watched, __version__, Order(f"c{i}", ""))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1, 1, 1, 1]


@pytest.mark.slow
@needs_dask
def test_a_cluster_without_workers_says_so_and_waits_for_one(tmp_path, monkeypatch):
    file, told, late = tmp_path / "scheduler.json", [], []

    def tell(text, **_):
        told.append(text)
        if len(told) == 1:
            late.append(dask_workers(file, threads=3))
            late[0].__enter__()

    monkeypatch.setattr(on_dask.tqdm, "write", tell)
    monkeypatch.setattr(on_dask, "LOOK_SECONDS", 0.2)
    with dask_scheduler(file):
        try:
            reports = run_cases(work, make_orders(tmp_path, 5, seconds=0.2), is_done, scheduler=str(file))
        finally:
            late[0].__exit__(None, None, None)
    assert [report.state for report in reports] == ["done"] * 5
    address = json.loads(file.read_text())["address"]
    assert told[0].startswith("No worker is connected to the dask scheduler, so 5 case(s) wait. Start some: 'dask ")
    assert f"worker {address} --nthreads 1'" in told[0] and len(told) == 2
    assert told[1].startswith("A worker process with 3 threads works on one case at a time.")


@pytest.mark.slow
@needs_dask
def test_a_scheduler_that_is_lost_while_a_single_case_waits_ends_the_run(tmp_path, monkeypatch):
    file = tmp_path / "scheduler.json"
    with dask_scheduler(file) as scheduler:
        monkeypatch.setattr(on_dask.tqdm, "write", lambda *_, **__: scheduler.kill())
        with pytest.raises(ValueError, match="connection to the dask scheduler was lost.*goes on with the cases"):
            run_cases(work, make_orders(tmp_path, 1), is_done, scheduler=str(file))


@pytest.mark.slow
@pytest.mark.parametrize("with_dask", [pytest.param(True, marks=needs_dask), False])
def test_processes_that_die_are_replaced_and_their_cases_done(tmp_path, with_dask, request):
    if not with_dask:
        request.getfixturevalue("without_dask")
    orders = make_orders(tmp_path, 8, c1="dies once", c3="dies", c5="user")
    reports = run_cases(work, orders, is_done, workers=2)
    expected = {order.case: ("done", "") for order in orders}
    assert states(reports) == expected | {"c3": ("failed", DIED), "c5": ("failed", "c5 cannot be read")}
    started = [case for case, _ in starts(tmp_path)]
    assert os.getpid() not in {int(pid) for _, pid in starts(tmp_path)}
    assert started.count("c1") >= 2 and started.count("c3") >= TRIES
    assert len(results(tmp_path)) == 6 and not list(tmp_path.glob(".unfinished*"))


@pytest.mark.slow
@needs_dask
def test_a_killed_worker_and_a_killed_client_cost_nothing_but_time(tmp_path):
    """On a cluster of separate processes, found by its scheduler file.

    Case c5 is held in its middle, so that no kill can come too late.
    """
    file = tmp_path / "scheduler.json"

    def its_workers():
        return [int(pid) for case, pid in starts(tmp_path) if case == "c5"]

    def done(order):
        found = is_done(order)
        if order.case == "c11":  # c5 has been looked at
            (tmp_path / "go").touch()
        return found

    with dask_cluster(file, workers=2):
        with running("-c", CLIENT, str(tmp_path), str(file)) as client:
            wait_for(its_workers, client)
            os.kill(its_workers()[0], signal.SIGKILL)
            wait_for(lambda: len(set(its_workers())) == 2 and len(results(tmp_path)) >= 5, client)
            client.kill()
        before = results(tmp_path)
        assert 5 <= len(before) < 12 and "c5.txt" not in before
        reports = run_cases(work, make_orders(tmp_path, 12, c5="held"), done, scheduler=str(file))
    assert [report.state for report in reports] == ["done"] * 12
    earlier = {f"{report.case}.txt" for report in reports if report.reason == "by an earlier run"}
    assert set(before) <= earlier and "c5.txt" not in earlier
    assert results(tmp_path) == {f"c{i}.txt": f"result of c{i}\n" for i in range(12)}


@pytest.mark.slow
@needs_dask
def test_a_scheduler_that_stands_still_for_a_while_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(on_dask, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(on_dask, "LOOK_SECONDS", 0)
    file, timers = tmp_path / "scheduler.json", []

    def pause(_):
        if not timers:
            scheduler.send_signal(signal.SIGSTOP)
            timers.append(threading.Timer(2, scheduler.send_signal, [signal.SIGCONT]))
            timers[0].start()

    with dask_cluster(file, workers=1) as scheduler:
        orders = make_orders(tmp_path, 4, seconds=0.5)
        reports = run_cases(work, orders, is_done, scheduler=str(file), on_done=pause)
        timers[0].join()
    assert [report.state for report in reports] == ["done"] * 4


@pytest.mark.slow
@needs_dask
def test_a_scheduler_that_is_lost_ends_the_run_and_says_how_to_go_on(tmp_path):
    file = tmp_path / "scheduler.json"
    with dask_cluster(file, workers=1) as scheduler:
        killed = []

        def kill(report):
            if not killed:
                killed.append(scheduler.kill())

        with pytest.raises(ValueError, match="connection to the dask scheduler was lost.*goes on with the cases"):
            run_cases(work, make_orders(tmp_path, 6, seconds=0.2), is_done, scheduler=str(file), on_done=kill)
