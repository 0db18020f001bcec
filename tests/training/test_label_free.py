"""Labels that no case holds stay out of nnU-Net's pseudo Dice and its moving average."""

import math
import warnings

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_freetumor.training import label_free

LABELS = LabelManager({"background": 0, "liver": 1, "tumor": 2}, None)
REGIONS = LabelManager({"background": 0, "kidney": [1, 2], "tumor": 2, "ignore": 3}, [1, 2])
SOME = np.zeros((3, 4), dtype=int)


@pytest.fixture
def folder(tmp_path):
    def _folder(*locations):
        for index, found in enumerate(locations):
            (tmp_path / f"case_{index}.b2nd").touch()
            (tmp_path / f"case_{index}_seg.b2nd").touch()
            write_pickle({"class_locations": found}, str(tmp_path / f"case_{index}.pkl"))
        return str(tmp_path)

    return _folder


def _output(tp, fp=(1, 1), fn=(1, 1)):
    return {"loss": np.zeros(()), "tp_hard": np.array(tp), "fp_hard": np.array(fp), "fn_hard": np.array(fn)}


def test_a_label_without_voxels_in_any_case_is_absent(folder):
    assert label_free.absent_columns(folder({1: SOME, 2: []}, {1: SOME, 2: []}), LABELS) == [1]


def test_a_label_that_one_case_holds_is_not_absent(folder):
    assert label_free.absent_columns(folder({1: SOME, 2: []}, {1: SOME, 2: SOME}), LABELS) == []


def test_a_region_is_there_when_one_of_its_labels_is(folder):
    assert label_free.absent_columns(folder({(1, 2): SOME, 2: [], (-1, 0, 1, 2): SOME}), REGIONS) == [1]


def test_counts_of_absent_labels_are_emptied_and_all_others_kept():
    given = [_output((5, 3)), _output((7, 0))]
    kept = label_free.leave_out(given, [1], tumors=[], recognized_share=0.5)
    assert [o["tp_hard"].tolist() for o in kept] == [[5, 0], [7, 0]]
    assert kept[0]["fp_hard"].tolist() == kept[0]["fn_hard"].tolist() == [1, 0]
    assert given[0]["tp_hard"].tolist() == [5, 3] and kept[0]["loss"] is given[0]["loss"]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_pseudo_dice_of_a_tumor_that_is_only_planted_is_the_recognized_share(share):
    kept = label_free.leave_out([_output((5, 3)), _output((7, 9))], [1], tumors=[1], recognized_share=share)
    tp, fp, fn = (sum(o[name][1] for o in kept) for name in ("tp_hard", "fp_hard", "fn_hard"))
    assert 2 * tp / (2 * tp + fp + fn) == pytest.approx(share)
    assert [o["tp_hard"][0] for o in kept] == [5, 7]


def test_without_any_planted_lesion_the_tumor_stays_out_of_the_mean():
    (kept,) = label_free.leave_out([_output((5, 3))], [1], tumors=[1], recognized_share=math.nan)
    assert (kept["tp_hard"][1], kept["fp_hard"][1], kept["fn_hard"][1]) == (0, 0, 0)


def test_only_columns_of_tumors_to_plant_are_replaced():
    assert label_free.tumor_columns(LABELS, [0, 1], {2}) == [1]
    assert label_free.tumor_columns(REGIONS, [1], {2}) == [1] and label_free.tumor_columns(REGIONS, [1], {7}) == []


def test_the_notice_names_the_labels_and_says_what_stands_in_for_them():
    text = label_free.notice(LABELS, [1], [1])
    assert "no case of this dataset holds 'tumor': validation cannot measure them" in text
    assert "The pseudo Dice of 'tumor' is the share of planted lesions that the network recognizes" in text
    assert label_free.notice(LABELS, [0, 1], [1]).endswith("'liver': not in the pseudo Dice.")


def test_the_moving_average_survives_epochs_that_measure_nothing(tmp_path):
    logger = MetaLogger(str(tmp_path), False)
    averages = []
    for epoch, value in enumerate((math.nan, 0.5, math.nan, 0.5)):
        logger.log("mean_fg_dice", value, epoch)
        label_free.mend_moving_average(logger.local_logger.my_fantastic_logging)
        averages.append(logger.get_value("ema_fg_dice", step=-1))
    assert averages == pytest.approx([0, 0.05, 0.05, 0.095])


def test_stock_nnunets_moving_average_would_freeze(tmp_path):
    logger = MetaLogger(str(tmp_path), False)
    assert isinstance(logger.local_logger, LocalLogger)
    for epoch, value in enumerate((math.nan, 0.5)):
        logger.log("mean_fg_dice", value, epoch)
    assert math.isnan(logger.get_value("ema_fg_dice", step=-1))


def test_emptied_counts_give_nan_in_nnunets_formula_without_a_warning():
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("error")
        tp, fp, fn = (np.zeros(1, dtype=np.float32)[0] for _ in range(3))
        assert math.isnan(2 * tp / (2 * tp + fp + fn))
