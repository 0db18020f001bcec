"""Fixtures: a dataset, and folders of images and masks, to make synthetic cases from."""

from pathlib import Path

import pytest
from nnunet_folders import Folders, organ_case, write_volume

from nnunetv2_freetumor.offline.dataset import synthesize_dataset
from nnunetv2_freetumor.planning import fingerprint

NAME = "Dataset901_Planted"
FOLDER_SETTINGS = {"prior": "liver", "host": [1], "tumor": 2, "lesions": 1, "workers": 1}


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Return the test folders of its own."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setattr(fingerprint, "default_num_processes", 1)


@pytest.fixture
def dataset(tmp_path, environment):
    """Five cases with an organ and two real tumors each."""
    return Folders(tmp_path).add_organs(5).plan()


@pytest.fixture
def folders(tmp_path):
    """Two images and their liver masks."""
    for seed, case in enumerate(("a", "b")):
        image, label = organ_case(seed, tumors=0)
        for kind, array, ending in (("images", image, "_0000"), ("masks", label, "")):
            (tmp_path / kind).mkdir(exist_ok=True)
            write_volume(array, tmp_path / kind / f"{case}{ending}.nii.gz")
    return {"images": str(tmp_path / "images"), "hosts": str(tmp_path / "masks")}


def make(tmp_path, name=NAME, **settings):
    folder = tmp_path / "raw" / name
    code = synthesize_dataset(str(folder), **settings)
    return folder, code


def contents(folder):
    """Read all files of a dataset but the report, which holds times."""
    files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "report.json"}
