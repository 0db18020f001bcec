"""The whole line on real CT, as a user runs it: plan, preprocess, train and predict by nnU-Net's own commands."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_freetumor.cli import main
from nnunetv2_freetumor.experiments.steps import program

ROOT = Path(__file__).parents[1]
REAL_CT = ROOT.parent / "shared/data/ct"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REAL_CT.is_dir(), reason="no real CT in ../shared/data/ct beside this repository"),
]
LIVER = ("Dataset701_LabelFreeLiver", "liver", {"trunk_b": "organs", "abdomen_c": "organs"})
LUNG = ("Dataset702_Lung", "lung", {"chest_a": "lung", "chest_f": "lung_nodule"})
TRAINER = """
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from nnunetv2_freetumor.trainer import FreeTumorMixin

class nnUNetTrainerFreeTumorRealCT(FreeTumorMixin, nnUNetTrainerNoMirroring):
    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 6, 1
        super().initialize()
"""
COARSE = {
    "inherits_from": "3d_fullres",
    "data_identifier": "nnUNetPlans_3d_coarse",
    "preprocessor_name": "DefaultPreprocessor",
    "spacing": [5.0, 3.0, 3.0],
    "patch_size": [32, 64, 64],
    "batch_size": 2,
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [8, 16, 32],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
}


class Workspace:
    """nnU-Net's folders with one dataset of real CT, and its commands."""

    def __init__(self, root, name, organ, cases):
        self.root, self.name, self.number = root, name, name[7:10]
        self.preprocessed = root / "nnUNet_preprocessed" / name
        self.environment = os.environ | {
            **{key: str(root / key) for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
            "nnUNet_extTrainer": str(root / "trainers"), "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "2",
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2",
        }  # fmt: skip
        (root / "trainers").mkdir()
        (root / "trainers" / "mine.py").write_text(TRAINER)
        self._write(root / "nnUNet_raw" / name, organ, cases)

    def _write(self, raw, organ, cases):
        for folder in ("imagesTr", "labelsTr"):
            (raw / folder).mkdir(parents=True)
        for case, labels in cases.items():
            shutil.copy(REAL_CT / f"{case}_ct.nii.gz", raw / "imagesTr" / f"{case}_0000.nii.gz")
            label = sitk.ReadImage(str(REAL_CT / f"{case}_{labels}.nii.gz"))
            kept = 2 if organ == "lung" else 1  # the lung set has a real nodule
            array = sitk.GetArrayFromImage(label)
            only = sitk.GetImageFromArray(np.where(array <= kept, array, 0).astype(np.uint8))
            only.CopyInformation(label)
            sitk.WriteImage(only, str(raw / "labelsTr" / f"{case}.nii.gz"))
        described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, organ: 1, "tumor": 2}}
        described |= {"numTraining": len(cases), "file_ending": ".nii.gz"}
        (raw / "dataset.json").write_text(json.dumps(described))

    def run(self, command):
        """Run one command line as a user would; return what it printed."""
        words = command.split()
        done = subprocess.run(
            [*program(words[0]), *words[1:]], env=self.environment, cwd=self.root, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def edit_plans(self):
        """Add the coarse configuration that two cores can train."""
        file = self.preprocessed / "nnUNetPlans.json"
        plans = json.loads(file.read_text())
        plans["configurations"]["3d_coarse"] = COARSE
        file.write_text(json.dumps(plans))


@pytest.mark.parametrize("dataset", [LIVER, LUNG], ids=["label-free liver", "lung"])
def test_plan_preprocess_train_predict_on_real_ct(tmp_path, dataset):
    name, organ, cases = dataset
    work = Workspace(tmp_path, name, organ, cases)
    work.run(f"nnUNetv2_plan_and_preprocess -d {work.number} --no_pp -npfp 2 -c 3d_fullres")
    work.edit_plans()
    planned = work.run(f"nnUNetv2_freetumor plan -d {work.number}")
    assert f"Wrote the freetumor section of {work.preprocessed}" in planned
    assert ("labels in no training case: tumor" in planned) == (organ == "liver")
    work.run(f"nnUNetv2_preprocess -d {work.number} -c 3d_coarse -np 2")
    names = list(cases)
    (work.preprocessed / "splits_final.json").write_text(json.dumps([{"train": names[:-1], "val": names[-1:]}]))
    log = work.run(f"nnUNetv2_train {work.number} 3d_coarse 0 -tr nnUNetTrainerFreeTumorRealCT -device cpu")
    assert "FreeTumor: of 12 samples" in log
    assert ("no case of this dataset holds 'tumor'" in log) == (organ == "liver")
    results = tmp_path / "nnUNet_results" / name / "nnUNetTrainerFreeTumorRealCT__nnUNetPlans__3d_coarse"
    assert json.loads((results / "plans.json").read_text())["freetumor"]["targets"][0]["host_labels"] == [1]
    assert (results / "fold_0" / "freetumor_first_batch.png").stat().st_size > 10_000
    images, last = tmp_path / "to_predict", f"{names[-1]}_0000.nii.gz"
    images.mkdir()
    shutil.copy(tmp_path / "nnUNet_raw" / name / "imagesTr" / last, images)
    work.run(
        f"nnUNetv2_predict -d {work.number} -c 3d_coarse -f 0 -tr nnUNetTrainerFreeTumorRealCT -i {images} "
        f"-o {tmp_path / 'predicted'} -device cpu --disable_tta -npp 1 -nps 1"
    )
    assert {path.name for path in (tmp_path / "predicted").glob("*.nii.gz")} == {f"{names[-1]}.nii.gz"}


@pytest.mark.parametrize(
    ("case", "labels", "prior", "host"),
    [
        ("abdomen_c", "organs", "liver", 1),
        ("abdomen_c", "organs", "pancreas", 2),
        ("trunk_b", "organs", "kidney", 3),
        ("chest_f", "lung_nodule", "lung", 1),
        ("chest_f", "lung_nodule", "covid19", 1),
    ],
)
def test_synthesize_changes_the_host_only(tmp_path, case, labels, prior, host):
    image, label = (REAL_CT / f"{case}_{kind}.nii.gz" for kind in ("ct", labels))
    arguments = ["-i", str(image), "-l", str(label), "-o", str(tmp_path), "--prior", prior, "--host", str(host)]
    assert main(["synthesize", *arguments, "--tumor", "9", "-n", "2", "-device", "cpu"]) == 0
    before, after, marked, planted = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in (image, tmp_path / f"{case}_ct_0000.nii.gz", label, tmp_path / f"{case}_ct.nii.gz")
    )
    grows = prior in ("kidney", "pancreas")
    free = (marked == host) | ((marked == 0) & grows)
    assert before.dtype == after.dtype and (before == after)[~free].all() and (marked == planted)[~free].all()
    assert (planted == 9).any()
