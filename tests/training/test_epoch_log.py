"""What an epoch planted reaches nnU-Net's log and logger."""

import math

import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunetv2_freetumor.synthesis.planter import COUNTS
from nnunetv2_freetumor.training import epoch_log

COUNTED = dict.fromkeys(epoch_log.LOGGED, 0.0) | {
    "samples": 500.0, "eligible": 400.0, "planted": 150.0, "no_room": 20.0, "too_faint": 15.0, "tumor_free": 300.0,
    "untouched_tumor_free": 190.0, "<10 mm": 70.0, "10-20 mm": 90.0, "lesion_voxels": 1000.0, "saturated_voxels": 10.0,
}  # fmt: skip


@pytest.fixture
def logger(tmp_path):
    return MetaLogger(str(tmp_path), False)


def test_counts_are_summed_over_batches_by_name():
    counts = epoch_log.EpochCounts()
    for value in (1.0, 2.0):
        counts.add(dict.fromkeys(COUNTS, torch.tensor(value, dtype=torch.float64)))
    assert counts.read() == dict.fromkeys(COUNTS, 3.0)


def test_seed_rank_and_epoch_each_change_the_draws():
    seeds = {
        epoch_log.epoch_generator(seed, rank, epoch).initial_seed()
        for seed in range(4)
        for rank in range(4)
        for epoch in range(50)
    }
    assert len(seeds) == 4 * 4 * 50
    again = epoch_log.epoch_generator(3, 1, 7)
    assert torch.equal(torch.rand(3, generator=again), torch.rand(3, generator=epoch_log.epoch_generator(3, 1, 7)))


def test_the_logger_takes_counts_after_registering(logger):
    with pytest.raises(AssertionError):
        logger.log("freetumor/planted", 1.0, 0)
    epoch_log.register(logger, 0)
    logger.log("freetumor/planted", 1.0, 0)
    assert epoch_log.history(logger)["planted"] == [1.0]


def test_epochs_from_before_are_padded_with_nan_and_known_ones_kept(logger):
    epoch_log.register(logger, 0)
    logger.log("freetumor/planted", 1.0, 0)
    epoch_log.register(logger, 3)
    planted = epoch_log.history(logger)["planted"]
    assert planted[0] == 1.0 and len(planted) == 3 and all(map(math.isnan, planted[1:]))
    logger.log("freetumor/planted", 5.0, 3)
    assert epoch_log.history(logger)["planted"][3] == 5.0


def test_other_names_are_registered_and_read_under_a_key_of_their_own(logger):
    epoch_log.register(logger, 1, "other/", ("a", "b"))
    logger.log("other/b", 2.0, 1)
    history = epoch_log.history(logger, "other/", ("a", "b"))
    assert list(history) == ["a", "b"] and math.isnan(history["a"][0]) and history["b"][1] == 2.0
    with pytest.raises(AssertionError):
        logger.log("freetumor/planted", 1.0, 0)


def test_the_log_lines_carry_the_counts_and_the_sizes():
    first, second, third = epoch_log.epoch_lines(COUNTED)
    assert first == (
        "FreeTumor: of 500 samples 400 eligible, 150 planted, 20 without room, 15 with a lesion too faint; of 300 "
        "tumor-free host patches 190 untouched"
    )
    assert second == (
        "FreeTumor: lesions <10 mm: 70, 10-20 mm: 90, 20-50 mm: 0, >=50 mm: 0; 1.0 % of their voxels saturated"
    )
    assert third == epoch_log.NONE_WATCHED


def test_a_normal_epoch_warns_of_nothing():
    assert epoch_log.warnings(COUNTED, "") == []


def test_few_eligible_samples_warn():
    (text,) = epoch_log.warnings(COUNTED | {"eligible": 99.0}, "")
    assert "only 20 % of the samples are eligible" in text and "oversample_foreground_percent" in text


def test_saturated_lesions_warn_with_the_commands_that_widen():
    (text,) = epoch_log.warnings(COUNTED | {"saturated_voxels": 51.0}, "  nnUNetv2_freetumor plan -d 3 --widen-window")
    assert "5 % of the lesion voxels are saturated" in text
    assert text.endswith("restart this training:\n  nnUNetv2_freetumor plan -d 3 --widen-window")


def test_an_epoch_without_lesions_has_no_saturated_share():
    assert epoch_log.warnings(COUNTED | {"lesion_voxels": 0.0, "saturated_voxels": 0.0}, "") == []


def test_accepted_shares_by_size_have_a_line_where_a_judge_was_at_work():
    judged = {"judged <10 mm": 40.0, "accepted <10 mm": 10.0, "judged 20-50 mm": 8.0, "accepted 20-50 mm": 6.0}
    line = epoch_log.epoch_lines(COUNTED | judged | {"rejected": 25.0})[3]
    assert line == (
        "FreeTumor: judge accepted <10 mm: 10 of 40 (25 %), 20-50 mm: 6 of 8 (75 %); 25 samples unchanged because "
        "all their lesions were rejected"
    )
