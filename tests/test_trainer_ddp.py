"""Several processes: rank 0 derives the section, and the epoch's counts are summed over all."""

import json

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from nnunetv2_freetumor import epoch_log, trainer
from nnunetv2_freetumor.bench_data import CONFIGURATION, DATASET, PLANS, Layout, write_dataset
from nnunetv2_freetumor.plan import SECTION
from nnunetv2_freetumor.synthesis import COUNTS

LAYOUT = Layout((16, 24, 24), (4.0, 2.0, 2.0), (16, 16, 16), (4, 4, 8), cases=2)


def _run_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    plans = json.loads((folder / DATASET / f"{PLANS}.json").read_text()) | {"continue_training": False}
    if rank:
        del plans[SECTION]
    dataset_json = json.loads((folder / DATASET / "dataset.json").read_text())
    made = trainer.nnUNetTrainerFreeTumor(plans, CONFIGURATION, 0, dataset_json, torch.device("cpu"))
    made._resolve_section()
    counts = epoch_log.EpochCounts()
    counts.add(torch.full((len(COUNTS),), 1.0 + rank, dtype=torch.float64))
    (folder / f"rank_{rank}.json").write_text(json.dumps([made.my_init_kwargs["plans"][SECTION], counts.read()]))
    dist.destroy_process_group()


@pytest.mark.slow
def test_all_processes_use_the_section_of_rank_0_and_sum_their_counts(tmp_path, monkeypatch):
    write_dataset(tmp_path, LAYOUT)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    multiprocessing.spawn(_run_rank, args=(tmp_path,), nprocs=2)
    (section, counts), other = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert [section, counts] == other
    assert counts == dict.fromkeys(COUNTS, 3.0)
    assert section == json.loads((tmp_path / DATASET / f"{PLANS}.json").read_text())[SECTION]
