"""Tiny nnU-Net folders for tests: raw cases with spheres in a slab of organ, and plans as nnU-Net writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

SHAPE, SPACING_MM = (24, 48, 96), (2.0, 1.5, 1.5)  # z, y, x
HOST_HU, NOISE_HU = 110.0, 8.0
LIVER = {"background": 0, "liver": 1, "tumor": 2}


def write_volume(array: np.ndarray, path: Path, spacing_mm=SPACING_MM, origin_mm=(0.0, 0.0, 0.0)) -> None:
    """Write an array (z, y, x) as a file."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(tuple(spacing_mm[::-1]))
    image.SetOrigin(origin_mm)
    sitk.WriteImage(image, str(path))


def organ_case(seed: int, tumors: int = 2, contrast_hu: float = -50.0) -> tuple[np.ndarray, np.ndarray]:
    """Make an organ (1) between fat, with spheres of 8 mm radius as tumors (2), and a ramp at their edge."""
    z, y, x = np.meshgrid(*[(np.arange(n) + 0.5) * mm for n, mm in zip(SHAPE, SPACING_MM)], indexing="ij")
    hu = np.random.default_rng(seed).normal(0, NOISE_HU, SHAPE)
    organ = (y > 8) & (y < 64)
    hu += np.where(organ, HOST_HU, -90)
    label = organ.astype(np.uint8)
    for center_x in (36.0, 108.0)[:tumors]:
        distance_mm = np.sqrt((z - 24) ** 2 + (y - 36) ** 2 + (x - center_x) ** 2) - 8.0
        hu += contrast_hu / (1 + np.exp((distance_mm + 1.5) / 0.75))
        label[distance_mm < 0] = 2
    return hu.astype(np.float32), label


class Folders:
    """A dataset in nnU-Net's three folders below one root."""

    def __init__(self, root: Path, name: str = "Dataset101_Liver", labels: dict[str, Any] | None = None) -> None:
        self.name = name
        self.raw, self.preprocessed = root / "raw" / name, root / "preprocessed" / name
        self.dataset_json: dict[str, Any] = {
            "labels": labels or LIVER,
            "channel_names": {"0": "CT"},
            "file_ending": ".nii.gz",
            "numTraining": 0,
        }
        for folder in (self.raw / "imagesTr", self.raw / "labelsTr", self.preprocessed):
            folder.mkdir(parents=True)

    @property
    def plans_file(self) -> Path:
        """Name the plans file."""
        return self.preprocessed / "nnUNetPlans.json"

    @property
    def plans(self) -> dict[str, Any]:
        """Read the plans file."""
        return json.loads(self.plans_file.read_text())

    def add(self, case: str, image: np.ndarray, label: np.ndarray, **geometry_of_label: Any) -> Path:
        """Write one raw training case and give its image's path."""
        path = self.raw / "imagesTr" / f"{case}_0000.nii.gz"
        write_volume(image, path)
        label_path = self.raw / "labelsTr" / f"{case}.nii.gz"
        write_volume(label, label_path, **geometry_of_label)
        # listing the files spares nnU-Net the twelve processes with which it looks for them
        self.dataset_json.setdefault("dataset", {})[case] = {"images": [str(path)], "label": str(label_path)}
        return path

    def add_organs(self, cases: int, **tumors: Any) -> "Folders":
        """Write several cases of `organ_case`."""
        for seed in range(cases):
            self.add(f"case_{seed}", *organ_case(seed, **tumors))
        return self

    def plan(self, window_hu=(-20.0, 200.0), name: str = "nnUNetPlans", **changes: Any) -> "Folders":
        """Write dataset.json and plans as `nnUNetv2_plan_experiment` does, without running it."""
        common = {"normalization_schemes": ["CTNormalization"], "architecture": {}, "spacing": list(SPACING_MM)}
        configurations = {
            "2d": {**common, "patch_size": [48, 96], "data_identifier": "nnUNetPlans_2d"},
            "3d_fullres": {**common, "patch_size": [24, 48, 96], "data_identifier": "nnUNetPlans_3d_fullres"},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        }
        low_hu, high_hu = window_hu
        mean_and_window = {"mean": 105.0, "std": 15.0, "percentile_00_5": low_hu, "percentile_99_5": high_hu}
        plans = {
            "dataset_name": self.name,
            "plans_name": name,
            "transpose_forward": [0, 1, 2],
            "configurations": configurations,
            "foreground_intensity_properties_per_channel": {"0": mean_and_window},
            **changes,
        }
        for folder in (self.raw, self.preprocessed):
            (folder / "dataset.json").write_text(json.dumps(self.dataset_json))
        (self.preprocessed / f"{name}.json").write_text(json.dumps(plans))
        return self

    def preprocess(self, configuration: str = "3d_fullres") -> Path:
        """Leave a file where nnU-Net's preprocessing leaves them."""
        folder = self.preprocessed / f"nnUNetPlans_{configuration}"
        folder.mkdir(exist_ok=True)
        (folder / "case_0.pkl").write_bytes(b"")
        return folder
