"""Several processes: rank 0 derives the section, counts are summed over all, and they train on the pool together."""

import json

import pytest
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunets_module
from pools import scan
from torch import distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_freetumor import trainer
from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION, DATASET, PLANS, Layout, write_dataset
from nnunetv2_freetumor.plan import SECTION
from nnunetv2_freetumor.synthesis.planter import COUNTS
from nnunetv2_freetumor.training import epoch_log

pytest_plugins = ["pools"]
LAYOUT = Layout((16, 24, 24), (4.0, 2.0, 2.0), (16, 16, 16), (4, 4, 8), cases=2)


def _run_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    plans = json.loads((folder / DATASET / f"{PLANS}.json").read_text()) | {"continue_training": False}
    if rank:
        del plans[SECTION]
    dataset_json = json.loads((folder / DATASET / "dataset.json").read_text())
    made = trainer.nnUNetTrainerFreeTumor(plans, CONFIGURATION, 0, dataset_json, torch.device("cpu"))
    made.resolve_section()
    counts = epoch_log.EpochCounts()
    counts.add(dict.fromkeys(COUNTS, torch.tensor(1.0 + rank, dtype=torch.float64)))
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


def _train_rank(rank, root, preprocessed):
    """Train for one epoch on a device that nnU-Net does not think of for several processes."""
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    nnunets_module.DDP = lambda network, device_ids: DistributedDataParallel(network)
    plans, dataset_json = (json.loads((preprocessed / f"{name}.json").read_text()) for name in (PLANS, "dataset"))
    settings = plans | {"continue_training": False}, CONFIGURATION, 0, dataset_json, torch.device("cpu")
    made = trainer.nnUNetTrainerFreeTumor(*settings)
    made.device = torch.device("cpu")
    made.num_epochs, made.num_iterations_per_epoch, made.num_val_iterations_per_epoch = 1, 2, 1
    made.perform_actual_validation = lambda *_: None
    made.run_training()
    weights = sum(float(parameter.detach().double().sum()) for parameter in made.network.parameters())
    drawn = {name.split(":")[0] for name in made.get_tr_and_val_datasets()[0].identifiers}
    (root / f"trained_{rank}.json").write_text(json.dumps([weights, sorted(drawn)]))
    dist.destroy_process_group()


@pytest.mark.slow
def test_several_processes_train_on_the_pool_together(place):
    for seed in range(3):
        place.add(f"u{seed}", *scan(seed))
    assert place.run() == 0
    multiprocessing.spawn(_train_rank, args=(place.root, place.dataset), nprocs=2)
    one, other = (json.loads((place.root / f"trained_{rank}.json").read_text()) for rank in range(2))
    assert one == other and one[1] == ["case_1", "unlabeled"]
    (log,) = place.root.rglob("training_log*.txt")
    assert "FreeTumor: 3 unlabeled cases in addition to 1 labeled ones" in log.read_text()
