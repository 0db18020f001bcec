"""Measuring real tumors: phantoms whose size, contrast, edge and noise are known give them back."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.plan import Target
from nnunetv2_freetumor.planning.measurement import WIDTH_10_90, measure_case
from nnunetv2_freetumor.planning.roles import LUNG_HU

CT = Path(__file__).parents[3] / "shared" / "data" / "ct"
SPACINGS = [(1.0, 1.0, 1.0), (2.5, 0.9, 0.9), (0.8, 5.0, 0.8)]
HOST_HU, CONTRAST_HU, NOISE_HU, NOISE_MM, EDGE_MM, DEPTH_MM = 115.0, -50.0, 10.0, 1.0, 0.75, 1.5


def target(host_labels=(1,), host_hu=None, prior="liver"):
    return Target(
        name=prior, tumor_label=2, lesion_labels=(2, 3), prior=priors.load(prior), source="", host_labels=host_labels,
        host_hu=host_hu,
    )  # fmt: skip


def ellipsoid_distance(spacing_mm, size_mm, half_axes_mm):
    """Give, to first order, each voxel's distance to an ellipsoid in the middle of a cube."""
    axes = [(np.arange(round(size_mm / step)) + 0.5) * step - size_mm / 2 for step in spacing_mm]
    scaled = [x / half for x, half in zip(np.meshgrid(*axes, indexing="ij"), half_axes_mm)]
    return (np.linalg.norm(scaled, axis=0) - 1) * np.prod(half_axes_mm) ** (1 / 3)


def phantom(spacing_mm, half_axes_mm, seed=0):
    distance_mm = ellipsoid_distance(spacing_mm, 64, half_axes_mm)
    white = np.random.default_rng(seed).normal(size=distance_mm.shape)
    noise = ndimage.gaussian_filter(white, [NOISE_MM / step for step in spacing_mm])
    hu = HOST_HU + CONTRAST_HU / (1 + np.exp((distance_mm + DEPTH_MM) / EDGE_MM)) + noise * NOISE_HU / noise.std()
    return hu.astype(np.float32), np.where(distance_mm < 0, 2, 1).astype(np.int16)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_a_phantom_gives_back_size_contrast_edge_and_noise(spacing_mm):
    hu, label = phantom(spacing_mm, (10.0, 10.0, 10.0))
    measured = measure_case(hu, label, spacing_mm, (target(),))
    (tumor,) = measured.tumors["liver"]
    assert tumor.diameter_mm == pytest.approx(20, rel=0.03)
    assert tumor.host_hu == pytest.approx(HOST_HU, abs=2)
    assert tumor.contrast_hu == pytest.approx(CONTRAST_HU, abs=4)
    assert tumor.k == pytest.approx(-CONTRAST_HU / (HOST_HU - 20), abs=0.05)
    assert tumor.edge_width_mm == pytest.approx(EDGE_MM * WIDTH_10_90, abs=1.2)
    assert tumor.edge_depth_mm == pytest.approx(DEPTH_MM, abs=0.4)
    assert tumor.fine_inside_hu == pytest.approx(tumor.fine_beside_hu, rel=0.2)
    assert tumor.texture_mm == pytest.approx(NOISE_MM, rel=0.15)
    assert measured.hosts["liver"].median_hu == pytest.approx(HOST_HU, abs=1)
    assert measured.hosts["liver"].sd_hu == pytest.approx(NOISE_HU, rel=0.1)


def test_axis_ratios_of_an_ellipsoid_are_measured_as_logits():
    hu, label = phantom((1.0, 1.0, 1.0), (8.0, 16.0, 12.0))
    (tumor,) = measure_case(hu, label, (1.0, 1.0, 1.0), (target(),)).tumors["liver"]
    assert tumor.elongation_logit == pytest.approx(np.log(0.75 / 0.25), abs=0.1)
    assert tumor.flatness_logit == pytest.approx(np.log((2 / 3) / (1 / 3)), abs=0.1)


def test_specks_and_hosts_that_are_not_there_are_left_out():
    hu, label = phantom((1.0, 1.0, 1.0), (1.2, 1.2, 1.2))
    assert 0 < (label == 2).sum() < 10
    measured = measure_case(hu, np.where(label == 1, 0, label), (1.0, 1.0, 1.0), (target(),))
    assert measured.tumors == {"liver": []}
    assert measured.hosts == {}
    assert measured.labels == [2]


def test_a_tumor_without_host_around_it_has_a_size_but_no_contrast():
    hu, label = phantom((1.0, 1.0, 1.0), (8.0, 8.0, 8.0))
    (tumor,) = measure_case(hu, np.where(label == 1, 3, label), (1.0, 1.0, 1.0), (target(),)).tumors["liver"]
    assert tumor.diameter_mm == pytest.approx(16, rel=0.03)
    assert tumor.contrast_hu is tumor.k is tumor.edge_width_mm is None


def test_small_tumors_give_no_k_because_their_core_is_not_reached():
    hu, label = phantom((1.0, 1.0, 1.0), (5.0, 5.0, 5.0))
    (tumor,) = measure_case(hu, label, (1.0, 1.0, 1.0), (target(),)).tumors["liver"]
    assert tumor.contrast_hu is not None and tumor.k is None


def test_components_touching_at_a_corner_are_one_tumor():
    label = np.ones((30, 30, 30), np.int16)
    label[8:12, 8:12, 8:12] = label[12:16, 12:16, 12:16] = 2
    label[22:26, 22:26, 22:26] = 2
    tumors = measure_case(np.zeros(label.shape, np.float32), label, (1.0, 1.0, 1.0), (target(),)).tumors["liver"]
    assert len(tumors) == 2


@pytest.mark.skipif(not CT.exists(), reason="the shared CT is not there")
@pytest.mark.parametrize("host", [{"host_labels": (1,)}, {"host_labels": (), "host_hu": LUNG_HU}])
def test_a_real_lung_nodule_measures_alike_with_and_without_a_lung_label(host):
    import SimpleITK as sitk

    ct, nodule = (sitk.ReadImage(CT / f"chest_f_{name}.nii.gz") for name in ("ct", "lung_nodule"))
    label = sitk.GetArrayFromImage(nodule).astype(np.int16)
    label = label if host["host_labels"] else np.where(label == 2, 2, 0).astype(np.int16)
    sought = target(**host, prior="lung")
    measured = measure_case(sitk.GetArrayFromImage(ct).astype(np.float32), label, ct.GetSpacing()[::-1], (sought,))
    (tumor,) = measured.tumors["lung"]
    assert tumor.diameter_mm == pytest.approx(15.8, abs=0.1)
    assert tumor.host_hu == pytest.approx(-850, abs=10)
    assert tumor.k == pytest.approx(1.06, abs=0.03)
    assert 1.0 < tumor.edge_width_mm < 3.5
    assert -900 < measured.hosts["lung"].median_hu < -800
