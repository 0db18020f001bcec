"""Hosts are found by label or by HU, on phantoms and on real CT."""

from pathlib import Path

import pytest
import torch

from nnunetv2_freetumor.plan import Prior, SizeClass, Target
from nnunetv2_freetumor.synthesis import hosts

REAL_CT = Path(__file__).parents[3] / "shared/data/ct"
SIZES = (SizeClass(distribution="log_uniform", weight=1.0, min_mm=6.0, max_mm=30.0),)
LUNG = Target(
    name="lung", host_hu=(-950.0, -500.0), tumor_label=1, lesion_labels=(1,), prior=Prior(name="lung", sizes=SIZES),
    source="test",
)  # fmt: skip


def test_lesions_and_padding_are_no_host():
    label = torch.tensor([-1, 0, 1, 2, 3], dtype=torch.int16).reshape(1, 1, 5, 1, 1)
    target = Target(name="organ", host_labels=(1, 3), tumor_label=2, lesion_labels=(2,), prior=LUNG.prior, source="")
    assert hosts.host_mask(target, torch.zeros(label.shape), label, (1.0, 1.0, 1.0)).flatten().tolist() == [
        0,
        0,
        1,
        0,
        1,
    ]


def test_fat_is_unlabeled_and_between_its_bounds():
    hu = torch.full((1, 1, 9, 9, 9), -90.0)
    hu[..., 5:] = 40.0
    label = torch.zeros(hu.shape, dtype=torch.int16)
    label[:, :, 5:] = 1
    fat = hosts.fat_mask(hu, label)
    assert fat[0, 0, 2, 4, 2] and not fat[0, 0, 7, 4, 2] and not fat[0, 0, 2, 4, 8]


def test_a_shell_leaves_out_the_deep_part_and_the_patch_border():
    mask = torch.zeros(1, 1, 20, 20, 20, dtype=torch.bool)
    mask[..., :12] = True
    shell = hosts.shell(mask, 4.0, (1.0, 1.0, 1.0))
    assert shell[0, 0, 10, 10].tolist() == [False] * 8 + [True] * 4 + [False] * 8


@pytest.mark.parametrize(
    ("case", "labels", "value"),
    [
        pytest.param("chest_f", "lung_nodule", 1, marks=pytest.mark.slow),
        pytest.param("chest_a", "lung", 1, marks=pytest.mark.slow),
        ("trunk_b", "organs", 4),
    ],
)
def test_lung_is_found_in_real_ct_without_its_label(case, labels, value):
    if not REAL_CT.is_dir():
        pytest.skip(f"no real CT at {REAL_CT}")
    import SimpleITK as sitk

    image = sitk.ReadImage(str(REAL_CT / f"{case}_ct.nii.gz"))
    hu = torch.from_numpy(sitk.GetArrayFromImage(image)).float()[None, None]
    lung = torch.from_numpy(sitk.GetArrayFromImage(sitk.ReadImage(str(REAL_CT / f"{case}_{labels}.nii.gz")))) == value
    found = hosts.host_mask(LUNG, hu, torch.zeros(hu.shape, dtype=torch.int16), image.GetSpacing()[::-1])[0, 0]
    dice = 2 * (found & lung).sum() / (found.sum() + lung.sum())
    assert dice > 0.85  # measured: .87, .89, .93
