"""Scores of single cases, counted and measured by hand."""

import math

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_freetumor.evaluation.case_scores import dice, score_case, size_classes
from nnunetv2_freetumor.evaluation.scores import THRESHOLDS, Pair, Rule, size_names
from nnunetv2_freetumor.evaluation.surfaces import find_surface, mean_surface_distance, normalized_surface_dice

HOST, TUMOR, CYST, IGNORE = 1, 2, 3, 9
LIVER = Pair("liver tumor", (TUMOR,), (HOST,))
SPACING_MM = (5.0, 1.0, 2.0)
RULE = Rule()


def organ(*tumors, shape=(8, 20, 20)):
    """Return a label map full of host, with tumors on slices (z, y, x)."""
    labels = np.full(shape, HOST, dtype=np.int16)
    for tumor in tumors:
        labels[tumor] = TUMOR
    return labels


def box(z, y, x):
    return slice(*z), slice(*y), slice(*x)


def score(reference, prediction, rule=RULE, pair=LIVER, **more):
    return score_case("case_1", "patient_1", pair, reference, prediction, SPACING_MM, rule, **more)


SMALL, LARGE, ELSEWHERE = box((1, 2), (2, 4), (2, 4)), box((3, 6), (8, 16), (8, 16)), box((7, 8), (0, 2), (18, 20))


def test_a_lesion_has_the_diameter_of_the_sphere_of_equal_volume_at_anisotropic_spacing():
    lesions = score(organ(SMALL, LARGE), organ()).lesions
    assert [lesion.volume_ml for lesion in lesions] == [4 * 10 / 1000, 192 * 10 / 1000]
    assert [lesion.diameter_mm for lesion in lesions] == pytest.approx(
        [(6 * 40 / math.pi) ** (1 / 3), (6 * 1920 / math.pi) ** (1 / 3)]
    )
    assert [lesion.number for lesion in lesions] == [1, 2]


def test_a_missed_lesion_has_no_overlap_and_no_distance():
    (lesion,) = score(organ(SMALL), organ()).lesions
    assert not lesion.found and lesion.iou == lesion.dice == lesion.covered == 0
    assert math.isnan(lesion.surface_distance_mm)


def test_a_found_lesion_has_the_overlap_of_the_prediction_assigned_to_it():
    scored = score(organ(LARGE), organ(box((3, 6), (8, 12), (8, 16)), box((5, 6), (14, 16), (8, 16))))
    (lesion,) = scored.lesions
    assert lesion.found and lesion.iou == 96 / 192 and lesion.dice == 2 * 96 / (192 + 96)
    assert lesion.covered == (96 + 16) / 192
    assert [prediction.kind for prediction in scored.predictions] == ["true positive", "touching"]
    assert scored.dice == 2 * 112 / (192 + 112)


def test_centers_are_voxels_of_the_lesion_in_the_whole_volume():
    reference = organ(box((2, 5), (10, 13), (4, 7)))
    horseshoe = organ(box((6, 7), (2, 9), (2, 4)), box((6, 7), (2, 9), (7, 9)), box((6, 7), (2, 4), (2, 9)))
    scored = score(reference, horseshoe)
    assert scored.lesions[0].center == (3, 11, 5)
    assert horseshoe[scored.predictions[0].center] == TUMOR


def test_the_middle_of_a_lesion_is_measured_in_mm():
    # a bridge: its center of mass lies at (1.33, 6, 5), 3.3 mm from the arch and 2.6 mm from the end of either leg
    reference = organ(box((1, 2), (2, 5), (5, 6)), box((2, 3), (5, 8), (5, 6)), box((1, 2), (8, 11), (5, 6)))
    assert score(reference, organ()).lesions[0].center == (1, 4, 5)


def test_a_shifted_lesion_lies_at_the_shift_times_the_spacing():
    slab, shifted = box((0, 8), (0, 20), (4, 5)), box((0, 8), (0, 20), (6, 7))
    scored = score(organ(slab), organ(slab, shifted, box((0, 8), (0, 20), (5, 6))))
    # surface of the thick slab: its faces at 0 and 4 mm, and the rim of the middle at 2 mm; of the thin one: all of it
    rim = 8 * 20 - 6 * 18
    total_mm = 160 * 4.0 + rim * 2.0
    assert scored.lesions[0].surface_distance_mm == pytest.approx(total_mm / (160 + 160 + 160 + rim))


def test_surface_dice_of_two_shifted_slabs_depends_on_the_spacing_across_them():
    first, second = np.zeros((6, 10, 10), bool), np.zeros((6, 10, 10), bool)
    first[1:3], second[2:4] = True, True  # faces at slices 1, 2 and 2, 3
    for spacing_mm, expected in (((5.0, 1.0, 1.0), 0.5), ((2.0, 1.0, 1.0), 1.0)):
        assert normalized_surface_dice(first, second, spacing_mm, 2.0) == expected
    assert normalized_surface_dice(first, second, (0.1, 30.0, 30.0), 0.1) == 1.0  # 0.1 mm apart, to the last digit


def test_the_border_of_the_volume_is_a_surface():
    mask = np.ones((3, 4, 5), dtype=bool)
    assert (mask & ~find_surface(mask)).sum() == 1 * 2 * 3
    scored = score(np.full((3, 4, 5), TUMOR, np.int16), np.full((3, 4, 5), TUMOR, np.int16))
    assert scored.surface_dice == 1.0 and scored.lesions[0].surface_distance_mm == 0.0


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.9)])
def test_surfaces_and_distances_equal_those_of_erosion_and_distance_transform(spacing_mm):
    rng = np.random.default_rng(3)
    first, second = ndimage.gaussian_filter(rng.random((2, 12, 24, 24)), (0, 1, 2, 2)) > 0.52
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (first, second)]
    assert all((find_surface(mask) == border).all() for mask, border in zip((first, second), borders))
    to_first, to_second = (ndimage.distance_transform_edt(~border, spacing_mm) for border in borders)
    distances_mm = np.concatenate([to_second[borders[0]], to_first[borders[1]]])
    points_mm = [np.argwhere(border) * np.array(spacing_mm) for border in borders]
    assert mean_surface_distance(*points_mm) == pytest.approx(distances_mm.mean())
    assert normalized_surface_dice(first, second, spacing_mm, 2.0) == (distances_mm <= 2.0 + 1e-9).mean()


@pytest.mark.parametrize(
    "reference, prediction, overlap",
    [(organ(), organ(), math.nan), (organ(SMALL), organ(), 0.0), (organ(), organ(SMALL), 0.0)],
    ids=["both empty", "empty prediction", "empty reference"],
)
def test_overlaps_of_empty_masks(reference, prediction, overlap):
    scored = score(reference, prediction)
    assert scored.dice == pytest.approx(overlap, nan_ok=True)
    assert scored.surface_dice == pytest.approx(overlap, nan_ok=True)
    assert scored.host_dice == 1.0
    assert len(scored.lesions) == (reference == TUMOR).any() and len(scored.predictions) == (prediction == TUMOR).any()


def test_host_dice_is_of_the_organ_with_its_tumors_and_other_labels_are_nothing():
    reference, prediction = organ(SMALL), organ()
    reference[0], prediction[0] = CYST, 0
    assert score(reference, prediction).host_dice == 1.0
    assert math.isnan(score(reference, prediction, pair=Pair("tumor", (TUMOR,), ())).host_dice)


def test_several_labels_are_one_tumor():
    reference, prediction = organ(SMALL, LARGE), organ(SMALL, LARGE)
    reference[SMALL] = CYST
    scored = score(reference, prediction, pair=Pair("tumor or cyst", (TUMOR, CYST), (HOST,)))
    assert [lesion.found for lesion in scored.lesions] == [True, True] and scored.dice == 1.0


def test_the_ignore_label_hides_predictions_and_probabilities():
    reference, prediction = organ(SMALL), organ(SMALL, ELSEWHERE)
    probability = (prediction == TUMOR) * np.float32(0.3)
    probability[ELSEWHERE] = 0.9
    assert len(score(reference, prediction, probability=probability).predictions) == 2
    reference[ELSEWHERE] = IGNORE
    scored = score(reference, prediction, probability=probability, ignore=IGNORE)
    assert [found.kind for found in scored.predictions] == ["true positive"]
    assert scored.dice == 1.0 and scored.probability == pytest.approx(0.3)
    assert scored.sweep is not None and scored.sweep.false_positives.sum() == 0


def test_small_components_are_no_lesions():
    probability = (organ(SMALL, ELSEWHERE) == TUMOR).astype(np.float32)
    scored = score(organ(SMALL, LARGE), organ(SMALL, ELSEWHERE), Rule(min_voxels=5), probability=probability)
    assert scored.sweep is not None and scored.sweep.found.sum() == scored.sweep.false_positives.sum() == 0
    assert [lesion.found for lesion in scored.lesions] == [False] and scored.predictions == ()
    assert scored.dice == 2 * 4 / (4 + 192 + 4 + 4)  # of the masks as they are


def test_a_diameter_on_a_bound_belongs_to_the_larger_class():
    bounds_mm = (10.0, 20.0)
    names = [size_names(bounds_mm)[index] for index in size_classes([3.0, 9.99, 10.0, 20.0, 90.0], bounds_mm)]
    assert names == ["<10 mm", "<10 mm", "10-20 mm", ">=20 mm", ">=20 mm"]


def test_the_sweep_counts_found_lesions_by_size_and_false_positives_at_each_threshold():
    reference = organ(SMALL, LARGE)  # diameters 4.2 and 15.4 mm
    probability = np.full(reference.shape, 0.01, np.float32)
    probability[SMALL], probability[LARGE], probability[ELSEWHERE] = 0.4, 0.9, 0.15
    scored = score(reference, organ(LARGE), probability=probability)
    assert scored.sweep is not None and scored.sweep.found.shape == (len(THRESHOLDS), 4)
    assert scored.sweep.found[:, 0].tolist() == [threshold <= 0.4 for threshold in THRESHOLDS]
    assert scored.sweep.found[:, 1].tolist() == [threshold <= 0.9 for threshold in THRESHOLDS]
    assert scored.sweep.found[:, 2:].sum() == 0
    assert scored.sweep.false_positives.tolist() == [threshold <= 0.15 for threshold in THRESHOLDS]
    assert scored.probability == pytest.approx(0.9) and scored.predictions[0].probability == pytest.approx(0.9)


def test_a_false_positive_is_in_the_organ_when_half_of_its_voxels_lie_on_it_or_on_its_tumors():
    reference = organ(SMALL)
    reference[:, :, 10:] = 0  # the organ fills one half
    inside, across, beyond = (
        box((5, 6), (4, 6), (4, 6)),
        box((5, 6), (14, 16), (9, 12)),
        box((1, 2), (14, 16), (16, 18)),
    )
    prediction = organ()
    probability = np.full(reference.shape, 0.01, np.float32)
    for place, chance in ((SMALL, 0.9), (inside, 0.8), (across, 0.8), (beyond, 0.4)):
        prediction[place], probability[place] = TUMOR, chance
    scored = score(reference, prediction, probability=probability)
    assert [round(lesion.in_host, 2) for lesion in scored.predictions] == [1.0, 0.0, 1.0, 0.33]
    assert [lesion.kind for lesion in scored.predictions] == ["true positive", *["false positive"] * 3]
    assert scored.sweep is not None
    assert scored.sweep.false_positives.tolist() == [(t <= 0.8) * 2 + (t <= 0.4) for t in THRESHOLDS]
    assert scored.sweep.false_positives_in_host.tolist() == [int(t <= 0.8) for t in THRESHOLDS]
    hostless = score(reference, prediction, pair=Pair("tumor", (TUMOR,), ()), probability=probability)
    assert hostless.sweep is not None and np.isnan(hostless.sweep.false_positives_in_host).all()
    assert all(math.isnan(lesion.in_host) for lesion in hostless.predictions)


def test_at_a_low_threshold_lesions_that_grow_together_are_found_once():
    reference = organ(box((1, 2), (2, 4), (2, 4)), box((1, 2), (2, 4), (6, 8)))
    probability = np.zeros(reference.shape, np.float32)
    probability[1, 2:4, 2:8] = 0.3
    probability[reference == TUMOR] = 0.8
    sweep = score(reference, organ(), probability=probability).sweep
    assert sweep is not None
    assert sweep.found[:, 0].tolist() == [1 if t <= 0.3 else 2 if t <= 0.8 else 0 for t in THRESHOLDS]
    assert sweep.false_positives.sum() == 0


def test_a_probability_below_all_thresholds_is_still_the_case_s_highest():
    probability = np.zeros((8, 20, 20), np.float32)
    probability[4, 4, 4] = 0.02
    scored = score(organ(), organ(), probability=probability)
    assert scored.probability == pytest.approx(0.02)
    assert scored.sweep is not None and scored.sweep.false_positives.sum() == 0


def test_without_probabilities_there_is_no_sweep():
    scored = score(organ(SMALL), organ(SMALL))
    assert scored.sweep is None and math.isnan(scored.probability) and math.isnan(scored.predictions[0].probability)


def test_dice_of_hand_counted_masks():
    first, second = np.zeros((1, 1, 10), bool), np.zeros((1, 1, 10), bool)
    first[..., :4], second[..., 2:8] = True, True
    assert dice(first, second) == 2 * 2 / (4 + 6)
