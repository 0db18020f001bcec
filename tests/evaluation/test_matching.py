"""Which predictions are assigned to which lesions, counted by hand."""

import numpy as np
import pytest

from nnunetv2_freetumor.evaluation.matching import MISSED, find_components, match

MIN_IOU = 0.1


def row(*parts, length=60):
    """Return a mask (1, 1, length) that is True on the half-open intervals."""
    mask = np.zeros((1, 1, length), dtype=bool)
    for start, stop in parts:
        mask[..., start:stop] = True
    return mask


def match_masks(reference, prediction, min_iou=MIN_IOU, min_voxels=1):
    return match(find_components(reference, min_voxels), find_components(prediction, min_voxels), min_iou)


def test_one_prediction_on_one_lesion_is_found_with_its_overlap():
    matching = match_masks(row((10, 20)), row((12, 24)))
    assert matching.partners.tolist() == [0]
    assert matching.shared_voxels.tolist() == [8] and matching.covered_voxels.tolist() == [8]
    assert matching.iou.tolist() == [8 / 14]
    assert matching.kinds == ("true positive",)


@pytest.mark.parametrize(
    "reference, prediction, lesions, kinds",
    [((), (), 0, ()), (((5, 9),), (), 1, ()), ((), ((5, 9),), 0, ("false positive",))],
    ids=["both empty", "empty prediction", "empty reference"],
)
def test_empty_masks_are_counted_like_any_other(reference, prediction, lesions, kinds):
    matching = match_masks(row(*reference), row(*prediction))
    assert matching.partners.tolist() == [MISSED] * lesions and matching.kinds == kinds


def test_one_prediction_over_two_lesions_finds_the_one_it_overlaps_more():
    matching = match_masks(row((0, 6), (8, 18)), row((0, 18)))
    assert matching.partners.tolist() == [MISSED, 0]
    assert matching.iou.tolist() == [0, 10 / 18] and matching.covered_voxels.tolist() == [6, 10]


def test_of_two_predictions_in_one_lesion_one_counts_and_the_other_is_no_false_positive():
    matching = match_masks(row((0, 20)), row((0, 6), (8, 18)))
    assert matching.partners.tolist() == [1] and matching.iou.tolist() == [0.5]
    assert matching.covered_voxels.tolist() == [16]
    assert matching.kinds == ("touching", "true positive")


def test_lesions_that_touch_at_a_corner_are_one_lesion():
    reference = np.zeros((3, 3, 3), dtype=bool)
    reference[0, 0, 0] = reference[1, 1, 1] = reference[2, 2, 2] = True
    matching = match_masks(reference, reference)
    assert matching.partners.tolist() == [0] and matching.kinds == ("true positive",)


def test_two_touching_lesions_are_one_that_a_prediction_of_either_half_finds():
    reference = row((0, 10)) | row((10, 20))
    matching = match_masks(reference, row((0, 10)))
    assert matching.partners.tolist() == [0] and matching.iou.tolist() == [0.5]


def test_a_prediction_that_swallows_the_organ_finds_nothing_and_is_a_false_positive():
    matching = match_masks(row((3, 6), (25, 26)), row((0, 41)))
    assert matching.partners.tolist() == [MISSED, MISSED] and matching.kinds == ("false positive",)
    assert matching.covered_voxels.tolist() == [3, 1]


def test_a_prediction_of_which_a_tenth_lies_on_tumors_is_no_false_positive():
    assert match_masks(row((3, 5), (30, 32)), row((0, 40))).kinds == ("touching",)
    assert match_masks(row((3, 5), (30, 32)), row((0, 41))).kinds == ("false positive",)


def test_the_smallest_overlap_that_counts_is_included():
    assert match_masks(row((0, 10)), row((9, 10))).partners.tolist() == [0]
    assert match_masks(row((0, 11)), row((10, 11))).partners.tolist() == [MISSED]


def test_a_prediction_beside_a_lesion_is_a_false_positive_and_one_that_grazes_it_with_a_tenth_is_not():
    assert match_masks(row((0, 10)), row((10, 30))).kinds == ("false positive",)
    assert match_masks(row((0, 10)), row((9, 19))).kinds == ("touching",)


def test_more_pairs_count_before_more_overlap():
    # the first prediction overlaps both lesions, the second only the second lesion, and less than the first one does
    reference, prediction = row((0, 4), (5, 25)), row((2, 22), (23, 25))
    matching = match_masks(reference, prediction, min_iou=0.05)
    assert matching.partners.tolist() == [0, 1]
    assert matching.iou.tolist() == [2 / 22, 2 / 20]


def test_small_components_are_left_out_on_both_sides_but_a_prediction_on_one_is_no_false_positive():
    reference, prediction = row((0, 2), (10, 20)), row((0, 4), (12, 18), (30, 32))
    matching = match_masks(reference, prediction, min_voxels=3)
    assert matching.partners.tolist() == [1] and matching.iou.tolist() == [0.6]
    assert matching.kinds == ("touching", "true positive")


def test_swapping_reference_and_prediction_finds_the_same_pairs():
    rng = np.random.default_rng(1)
    for _ in range(20):
        first, second = rng.random((2, 8, 12, 12)) > 0.9
        forth, back = match_masks(first, second, 0.2), match_masks(second, first, 0.2)
        assert (forth.partners >= 0).sum() == (back.partners >= 0).sum() == forth.kinds.count("true positive")
        assert sorted(forth.iou[forth.iou > 0]) == sorted(back.iou[back.iou > 0])
