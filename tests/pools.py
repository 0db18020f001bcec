"""Fixtures: a tiny dataset with raw and preprocessed cases, and unlabeled CT beside it."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from nnunet_folders import write_volume

from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION, DATASET, PLANS, Layout, write_dataset
from nnunetv2_freetumor.plan import SECTION, plans_hash
from nnunetv2_freetumor.pool.command import add_unlabeled_command

LAYOUT = Layout((32, 56, 56), (4.0, 2.0, 2.0), (16, 32, 32), (4, 4, 8), cases=2)
SHAPE, SPACING_MM = (24, 40, 44), (4.0, 2.0, 2.0)
LIVER = tuple(slice(n // 4, n - n // 4) for n in SHAPE)


def scan(seed):
    """Make a CT: air around a body of 40 HU with a block of liver of 110 HU, and the liver's mask."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[LIVER] = 1
    hu = np.full(SHAPE, -1000.0)
    hu[2:-2, 3:-3, 3:-3] = 40.0
    hu[LIVER] = 110.0
    return (hu + np.random.default_rng(seed).normal(0, 8, SHAPE)).round().astype(np.int16), mask


class Place(NamedTuple):
    """Folders of a test."""

    root: Path
    dataset: Path  # preprocessed
    images: Path
    hosts: Path

    @property
    def pool(self):
        return self.dataset / f"{PLANS}_{CONFIGURATION}_unlabeled"

    def add(self, case, image, mask=None, spacing_mm=SPACING_MM, ending=".nii.gz"):
        """Write an image and its mask."""
        write_volume(image, self.images / f"{case}{ending}", spacing_mm)
        if mask is not None:
            write_volume(mask, self.hosts / f"{case}.nii.gz", spacing_mm)

    def run(self, *, tumor_free=True, hosts=True, **options):
        """Run the command in this process."""
        options = {"images": str(self.images)} | options
        adds = options["images"] is not None
        options["tumor_free"] = tumor_free and adds
        if hosts and adds:
            options["hosts"] = str(self.hosts)
        return add_unlabeled_command(DATASET, workers=1, device="cpu", **options)

    def reasons(self):
        """Read the last report."""
        cases = json.loads((self.pool / "report.json").read_text())["cases"]
        return {case["case"]: case.get("reason", case["state"]) for case in cases}

    def records(self):
        """Read all records."""
        return {path.stem: json.loads(path.read_text()) for path in sorted((self.pool / "records").glob("*.json"))}

    def change_labels(self, labels, **section):
        """Give the dataset other labels."""
        plans_file, json_file = self.dataset / f"{PLANS}.json", self.dataset / "dataset.json"
        plans, dataset_json = json.loads(plans_file.read_text()), json.loads(json_file.read_text())
        dataset_json["labels"] = labels
        plans[SECTION] |= {"labels": labels, "plans_hash": plans_hash(plans)} | section
        plans_file.write_text(json.dumps(plans))
        json_file.write_text(json.dumps(dataset_json))


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    write_dataset(tmp_path / "preprocessed", LAYOUT)
    raw = tmp_path / "raw" / DATASET
    for folder in (raw / "imagesTr", raw / "labelsTr", tmp_path / "images", tmp_path / "hosts"):
        folder.mkdir(parents=True)
    for seed in range(2):
        image, mask = scan(100 + seed)
        write_volume(image, raw / "imagesTr" / f"case_{seed}_0000.nii.gz", SPACING_MM)
        write_volume(mask, raw / "labelsTr" / f"case_{seed}.nii.gz", SPACING_MM)
    return Place(tmp_path, tmp_path / "preprocessed" / DATASET, tmp_path / "images", tmp_path / "hosts")
