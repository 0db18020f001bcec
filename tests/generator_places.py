"""Fixtures: a generator file, and folders of their own for bundled and installed generators."""

from pathlib import Path

import pytest
from generator_examples import INSTALLED, lite_card, trained_lite

from nnunetv2_freetumor.generators import install, weights
from nnunetv2_freetumor.generators.weights import save_generator


@pytest.fixture
def lite_file(tmp_path) -> Path:
    """Give a lite generator's file."""
    save_generator(trained_lite(), lite_card(), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


@pytest.fixture
def generator_folders(tmp_path, monkeypatch) -> Path:
    """Give empty folders for installed and for bundled generators."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    for module in (weights, install):
        monkeypatch.setattr(module, "bundled_folder", lambda: tmp_path / "bundled")
    for folder in (INSTALLED, "bundled"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path
