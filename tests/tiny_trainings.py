"""Fixtures: a tiny preprocessed dataset, and nnU-Net trainers on it whose loaders run inside this process."""

import json

import pytest
import torch

from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION, DATASET, PLANS, Layout, write_dataset
from nnunetv2_freetumor.plan import SECTION

LAYOUT = Layout((32, 56, 56), (4.0, 2.0, 2.0), (16, 32, 32), (4, 4, 8), cases=2)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preprocessed")
    write_dataset(folder, LAYOUT)
    return folder


@pytest.fixture
def make_trainer(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tiny_dataset))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # the loaders run inside this process

    def _make(trainer_class, batch_size=2, **section):
        plans = json.loads((tiny_dataset / DATASET / f"{PLANS}.json").read_text()) | {"continue_training": False}
        plans["configurations"][CONFIGURATION]["batch_size"] = batch_size
        plans[SECTION] |= section
        dataset_json = json.loads((tiny_dataset / DATASET / "dataset.json").read_text())
        made = trainer_class(plans, CONFIGURATION, 0, dataset_json, torch.device("cpu"))
        made.num_iterations_per_epoch, made.num_val_iterations_per_epoch = 2, 1
        made.save_every = 1
        made.perform_actual_validation = None  # not part of run_training
        return made

    return _make
