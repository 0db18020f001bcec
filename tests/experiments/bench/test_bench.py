"""The benchmark measures plain nnU-Net and FreeTumor in one run and ends with lines for machines."""

import json
import os

import pytest

from nnunetv2_freetumor.experiments.bench import command
from nnunetv2_freetumor.experiments.bench.data import Layout

TINY = command.Setup(Layout((32, 56, 56), (4.0, 2.0, 2.0), (16, 32, 32), (4, 4, 8), cases=2), 1, 2, 2, 1)
NAMES = [
    "iteration_ratio_texture",
    "synthesis_ms_per_lesion",
    "augmentation_ms",
    "extra_memory_mib",
    "startup_hook_ms",
    "help_s",
]


@pytest.mark.slow
def test_the_benchmark_ends_with_its_lines_and_leaves_the_environment_as_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(command.SETUPS, "cpu", TINY)
    before = dict(os.environ)
    command.bench_command(str(tmp_path), "cpu")
    lines = capsys.readouterr().out.splitlines()[-len(NAMES) :]
    assert [line.split("=")[0] for line in lines] == [f"bench: {name}" for name in NAMES]
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [float(line.split("=")[1]) for line in lines] == pytest.approx(
        [written[name] for name in NAMES], nan_ok=True
    )
    assert dict(os.environ) == before


def test_an_unknown_device_is_refused(tmp_path):
    with pytest.raises(ValueError, match="-device must be one of cpu, cuda for the benchmark, but it is 'tpu'"):
        command.bench_command(str(tmp_path), "tpu")
