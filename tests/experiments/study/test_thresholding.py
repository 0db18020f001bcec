"""The baseline without learning: what deviates from the organ is found, inside the organ only."""

import numpy as np
import pytest

from nnunetv2_freetumor.experiments.study.thresholding import LabeledCase, Thresholding, threshold_case, tune

SPACING = (4.0, 1.5, 1.5)
SHAPE = (20, 60, 60)


def ball(center, radius_mm):
    """Mark a ball."""
    axes = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    return sum(((a - c) * s) ** 2 for a, c, s in zip(axes, center, SPACING)) <= radius_mm**2


def organ_case(tumors, noise_hu=12.0, seed=0):
    """Return an organ of 110 HU in fat, with tumors as (center, radius in mm, contrast in HU)."""
    host = np.zeros(SHAPE, dtype=bool)
    host[3:17, 8:52, 8:52] = True
    hu = np.where(host, 110.0, -90.0)
    tumor = np.zeros(SHAPE, dtype=bool)
    for center, radius, contrast in tumors:
        part = ball(center, radius) & host
        hu[part] += contrast
        tumor |= part
    image = np.round(hu + np.random.default_rng(seed).normal(0, noise_hu, SHAPE)).astype(np.int16)
    return LabeledCase(image, host, tumor, SPACING)


DARK, BRIGHT, SMALL = ((10, 20, 20), 11.0, -45.0), ((10, 38, 38), 11.0, 50.0), ((10, 20, 40), 6.0, -60.0)


def found(case, **settings):
    """Threshold a case."""
    return threshold_case(case.image_hu, case.host, case.spacing_mm, Thresholding(**settings))


def test_dark_and_bright_tumors_are_found_and_healthy_organ_is_not():
    case = organ_case([DARK, BRIGHT])
    prediction = found(case).prediction
    dark, bright = ball(*DARK[:2]), ball(*BRIGHT[:2])
    for tumor in (dark, bright):
        near = ball(*((DARK if tumor is dark else BRIGHT)[0], 15.0))
        assert (prediction & tumor).sum() / ((prediction & near) | tumor).sum() > 0.5
    assert not (prediction & ~ball(DARK[0], 15.0) & ~ball(BRIGHT[0], 15.0)).any()


def test_an_organ_without_tumors_stays_empty():
    assert not found(organ_case([])).prediction.any()


def test_nothing_is_found_outside_the_organ_and_its_border_is_no_tumor():
    case = organ_case([DARK])
    result = found(case)
    assert not result.probability[~case.host].any()
    away = case.host & ~ball(DARK[0], 16.0)
    assert result.probability[away].max() < 0.5


def test_a_tumor_at_the_surface_is_found_up_to_the_surface():
    case = organ_case([((10, 12, 30), 10.0, -45.0)])
    prediction = found(case).prediction
    assert (prediction & case.tumor).sum() > 0.5 * case.tumor.sum()
    assert prediction[:, 8:10].any()


def test_the_prediction_is_the_probability_cut_at_one_half_and_the_probability_rises_with_the_contrast():
    weak, strong = (found(organ_case([((10, 20, 20), 10.0, hu)])) for hu in (-12.0, -45.0))
    for result in (weak, strong):
        assert result.probability.dtype == np.float32
        assert result.probability.min() >= 0.0 and result.probability.max() <= 1.0
        assert np.array_equal(result.prediction, result.probability >= 0.5)
    assert strong.probability[10, 20, 20] > weak.probability[10, 20, 20]


def test_a_thin_bright_vessel_is_no_tumor():
    case = organ_case([])
    case.image_hu[10, 30:32, 8:52] += 90
    assert not found(case).prediction.any()
    assert found(case, vessel_mm=0.0, smooth_mm=1.0).prediction.any()


def test_what_is_smaller_than_the_minimum_size_is_removed_at_every_threshold():
    case = organ_case([DARK, SMALL])
    small = ball(SMALL[0], 6.0)
    kept, removed = (found(case, min_diameter_mm=size).probability for size in (4.0, 16.0))
    assert kept[small].max() > 0.5 > 0.2 > removed[small].max()
    assert removed[ball(*DARK[:2])].max() > 0.9


def test_tuning_moves_the_cut_to_where_lesions_are_found_and_vessels_are_not():
    cases = [organ_case([((10, 20, 20), 10.0, -22.0)], noise_hu=20.0, seed=seed) for seed in range(2)]
    bad = Thresholding(cut=20.0)
    tuned = tune(cases, bad)
    assert tuned.cut < 20.0 and tuned.smooth_mm == bad.smooth_mm
    for case in cases:
        result = threshold_case(case.image_hu, case.host, case.spacing_mm, tuned)
        assert (result.prediction & case.tumor).any()
        assert not (result.prediction & case.host & ~ball((10, 20, 20), 16.0)).any()


def test_without_a_labeled_tumor_the_settings_stay():
    settings = Thresholding(cut=4.25)
    assert tune([organ_case([])], settings) is settings
    assert tune([], settings) is settings


def test_a_case_without_the_organ_gives_nothing():
    case = organ_case([])
    result = threshold_case(case.image_hu, np.zeros_like(case.host), SPACING)
    assert not result.probability.any() and not result.prediction.any()


@pytest.mark.parametrize("hu", [0, 110])
def test_an_organ_of_one_value_has_no_deviation(hu):
    host = organ_case([]).host
    assert not threshold_case(np.full(SHAPE, hu, dtype=np.int16), host, SPACING).prediction.any()
