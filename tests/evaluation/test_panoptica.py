"""The counts of matching.py against those of panoptica (Kofler et al.), where it is installed.

panoptica pins older NumPy, pandas and cc3d than nnU-Net brings, so it is no dependency: without it these tests skip.
The two agree except where more pairs and more overlap exclude each other: panoptica takes the overlap, and here, as in
the PI-CAI protocol, the number of pairs comes first. That is so in 1 of the first 400 seeds (316), and in none below.
"""

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_freetumor.evaluation.matching import find_components, match

panoptica = pytest.importorskip("panoptica", reason="panoptica is not installed; it would downgrade nnU-Net's packages")

MIN_IOU = 0.1


def blobs(rng, chance):
    """Return two overlapping masks of random blobs; one of them may be empty."""
    field = ndimage.gaussian_filter(rng.standard_normal((3, 20, 32, 32)), (0, 1, 2, 2))
    field /= field.std()
    masks = [field[0] + 0.7 * own > rng.uniform(1.4, 2.4) for own in field[1:]]
    return [mask & (rng.random() > chance) for mask in masks]


def count_with_panoptica(reference, prediction):
    """Return panoptica's one-to-one matches, unmatched predictions and unmatched lesions, and the matches' IoU."""
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.MaxBipartiteMatching(
            matching_metric=panoptica.Metric.IOU, matching_threshold=MIN_IOU
        ),
        instance_metrics=[panoptica.Metric.IOU],
        global_metrics=[],
    )
    result = evaluator.evaluate(prediction.astype(np.uint8), reference.astype(np.uint8))["ungrouped"]
    overlaps = result.get_list_metric(panoptica.Metric.IOU, panoptica.MetricMode.ALL) if result.tp else []
    return result.tp, result.fp, result.fn, sorted(np.round(overlaps, 9).tolist())


@pytest.mark.parametrize("seed", range(50))
def test_matches_misses_and_overlaps_are_panoptica_s(seed):
    reference, prediction = blobs(np.random.default_rng(seed), chance=0.05)
    matching = match(find_components(reference), find_components(prediction), MIN_IOU)
    found = matching.partners >= 0
    counts = (int(found.sum()), len(matching.kinds) - int(found.sum()), int((~found).sum()))
    assert (*counts, sorted(np.round(matching.iou[found], 9).tolist())) == count_with_panoptica(reference, prediction)
    # panoptica calls every unmatched prediction false; here those that touch a lesion are not
    assert matching.kinds.count("false positive") + matching.kinds.count("touching") == counts[1]
