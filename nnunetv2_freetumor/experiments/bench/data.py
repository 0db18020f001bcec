"""A small preprocessed nnU-Net dataset, generated for the benchmark: livers with a few tumors, in CT-like noise.

It looks as if nnU-Net had preprocessed it, so a trainer can start on it at once.
"""

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.experiments.steps import PLANS
from nnunetv2_freetumor.files.cases import write_json
from nnunetv2_freetumor.intensity import from_plans
from nnunetv2_freetumor.plan import SECTION, Section, Target, plans_hash, to_json

DATASET, CONFIGURATION = "Dataset999_Bench", "3d_fullres"
LABELS = {"background": 0, "liver": 1, "tumor": 2}
LIVER_HU, TUMOR_HU, BODY_HU, AIR_HU, NOISE_HU = 110.0, 60.0, 40.0, -1000.0, 15.0
HU_PROPERTIES = {"mean": 100.0, "median": 103.0, "std": 35.0, "percentile_00_5": -20.0, "percentile_99_5": 200.0}


_ROUNDS = 9
_HOOK = "import nnunetv2_freetumor.startup as startup; startup.extend()"
_HELP = "from nnunetv2_freetumor.cli import main; main(['--help'])"


class Layout(NamedTuple):
    """The sizes of everything."""

    shape: tuple[int, int, int]  # of a case
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    features: tuple[int, ...]  # of the network, by stage
    batch_size: int = 2
    cases: int = 5
    tumors: int = 2  # in every case


def write_dataset(preprocessed: Path, layout: Layout) -> None:
    """Write cases, plans with a freetumor section, dataset.json and a split into nnU-Net's preprocessed folder."""
    folder = preprocessed / DATASET
    cases = folder / f"{PLANS}_{CONFIGURATION}"
    cases.mkdir(parents=True)
    plans = make_plans(layout)
    names = [f"case_{index}" for index in range(layout.cases)]
    for seed, name in enumerate(names):
        _write_case(cases / name, layout, plans, seed)
    write_json(plans, folder / f"{PLANS}.json")
    write_json(dataset_json(layout), folder / "dataset.json")
    write_json({}, folder / "dataset_fingerprint.json")
    write_json([{"train": names[1:], "val": names[:1]}], folder / "splits_final.json")


def dataset_json(layout: Layout) -> dict[str, Any]:
    """Return the dataset.json of the generated dataset."""
    names = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    return names | {"numTraining": layout.cases}


def make_plans(layout: Layout) -> dict[str, Any]:
    """Return plans as nnU-Net would make: a plain U-Net, CT normalization, and a section for the liver."""
    plans = {
        "dataset_name": DATASET,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": list(layout.spacing_mm),
        "original_median_shape_after_transp": list(layout.shape),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: _configuration(layout)},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": HU_PROPERTIES | {"min": -1000.0, "max": 1000.0}},
    }
    target = Target(
        name="liver tumor", tumor_label=2, lesion_labels=(2,), prior=priors.load("liver"), source="bundled prior",
        host_labels=(1,),
    )  # fmt: skip
    section = Section(targets=(target,), labels=LABELS, plans_hash=plans_hash(plans), fingerprint=_fingerprint(target))
    return plans | {SECTION: to_json(section)}


def _fingerprint(target: Target) -> dict[str, Any]:
    host = {"median_hu": {"p05": LIVER_HU, "p50": LIVER_HU, "p95": LIVER_HU}, "sd_hu": {"p50": NOISE_HU}}
    return {"targets": {target.name: {"host": host}}, "absent_labels": []}


def _configuration(layout: Layout) -> dict[str, Any]:
    functions = {
        f"resampling_fn_{kind}{suffix}": value
        for kind, is_label, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1))
        for suffix, value in (
            ("", "resample_data_or_seg_to_shape"),
            ("_kwargs", {"is_seg": is_label, "order": order, "order_z": 0, "force_separate_z": None}),
        )
    }
    return functions | {
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": layout.batch_size,
        "patch_size": list(layout.patch_size),
        "median_image_size_in_voxels": list(layout.shape),
        "spacing": list(layout.spacing_mm),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": _architecture(layout),
        "batch_dice": True,
    }


def _architecture(layout: Layout) -> dict[str, Any]:
    stages = len(layout.features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(layout.features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _write_case(path: Path, layout: Layout, plans: dict[str, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    size_mm = np.array(layout.shape) * layout.spacing_mm
    label = np.zeros(layout.shape, dtype=np.int8)
    label[_ball(layout, size_mm / 2, 0.42 * size_mm)] = 1
    for _ in range(layout.tumors):
        center_mm = size_mm * rng.uniform(0.35, 0.65, 3)
        label[_ball(layout, center_mm, np.full(3, rng.uniform(5, 12))) & (label > 0)] = 2
    hu = np.array([BODY_HU, LIVER_HU, TUMOR_HU])[label] + rng.normal(0, NOISE_HU, layout.shape)
    hu[~_ball(layout, size_mm / 2, 0.6 * size_mm)] = AIR_HU
    intensity = from_plans(plans)
    z = (hu.clip(intensity.low_hu, intensity.high_hu) - intensity.mean_hu) / intensity.sd_hu
    locations = DefaultPreprocessor._sample_foreground_locations(label[None], [1, 2])
    properties = {"class_locations": locations, "spacing": list(layout.spacing_mm)}
    nnUNetDatasetBlosc2.save_case(
        z[None].astype(np.float32),
        label[None],
        properties,
        str(path),
        chunks=(1, *layout.shape),
        blocks=(1, 16, 16, 16),
    )


def _ball(layout: Layout, center_mm: np.ndarray, radii_mm: np.ndarray) -> np.ndarray:
    axes = [(np.arange(n) + 0.5) * step for n, step in zip(layout.shape, layout.spacing_mm)]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, center_mm, radii_mm)) <= 1


def hook_ms() -> float:
    """Time the imports of the start-up hook, as Python itself reports them; the median of several starts."""
    return statistics.median(_hook_once() for _ in range(_ROUNDS))


def help_s() -> float:
    """Time `nnUNetv2_freetumor --help` as a whole process; the median of several runs."""
    return statistics.median(_help_once() for _ in range(_ROUNDS))


def _hook_once() -> float:
    command = [sys.executable, "-X", "importtime", "-c", _HOOK]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    rows = re.findall(r"import time: +(\d+) \| +\d+ \|\s+nnunetv2_freetumor(?:\.startup)?$", report, flags=re.MULTILINE)
    return sum(map(int, rows)) / 1000


def _help_once() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _HELP], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
