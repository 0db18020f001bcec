"""Keep nnU-Net's pseudo Dice meaningful where a label exists in dataset.json but in no case.

Stock nnU-Net reports NaN for such a label until one false positive makes it 0, so that `checkpoint_best` prefers
networks that never predict it; and one epoch in which every label is NaN freezes the moving average for good.
"""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import join, load_pickle
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager


class AbsentLabels(NamedTuple):
    """Positions among nnU-Net's foreground labels or regions."""

    columns: list[int]  # of those that no case holds
    tumors: list[int]  # of these, tumors to plant


class LabelFreeMixin(nnUNetTrainer):
    """Measure a label that no case holds by the planted lesions of it that the network recognizes."""

    absent = AbsentLabels([], [])
    recognized_share = math.nan  # of the epoch's planted lesions
    label_manager: Any

    def find_absent_labels(self, tumors: Collection[int]) -> None:
        """Find the labels that no case holds, and explain in the log what stands in for them."""
        columns = absent_columns(self.preprocessed_dataset_folder, self.label_manager)
        self.absent = AbsentLabels(columns, tumor_columns(self.label_manager, columns, tumors))
        if columns:
            self.print_to_log_file(notice(self.label_manager, *self.absent))

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Keep absent labels out of the pseudo Dice, or put the recognized share there; its average stays a number."""
        outputs = leave_out(val_outputs, *self.absent, recognized_share=self.recognized_share)
        with np.errstate(invalid="ignore"):  # 0 / 0 is meant: nnU-Net leaves NaN out of the mean
            super().on_validation_epoch_end(outputs)
        mend_moving_average(self.logger.local_logger.my_fantastic_logging)


def absent_columns(preprocessed_folder: str, label_manager: LabelManager) -> list[int]:
    """List the positions, among nnU-Net's foreground labels or regions, of those that no preprocessed case holds."""
    columns = dict(enumerate(_foreground(label_manager)))
    for case in infer_dataset_class(preprocessed_folder).get_identifiers(preprocessed_folder):
        if not columns:
            break
        locations = load_pickle(join(preprocessed_folder, f"{case}.pkl"))["class_locations"]
        columns = {column: label for column, label in columns.items() if len(locations.get(label, ())) == 0}
    return list(columns)


def notice(label_manager: LabelManager, columns: list[int], tumors: list[int]) -> str:
    """Explain what validation during training cannot measure, and what stands in for it."""
    planted, others = _names(label_manager, tumors), _names(label_manager, sorted({*columns} - {*tumors}))
    text = (
        f"FreeTumor: no case of this dataset holds {_names(label_manager, columns)}: validation cannot measure them. "
        "Ignore the Dice that the final validation prints for them, and measure them on annotated cases."
    )
    if planted:
        text += (
            f" The pseudo Dice of {planted} is the share of planted lesions that the network recognizes, so "
            "checkpoint_best is chosen by it too."
        )
    return text + (f" {others}: not in the pseudo Dice." if others else "")


def tumor_columns(label_manager: LabelManager, columns: list[int], tumors: Collection[int]) -> list[int]:
    """List the columns that are tumors to plant."""
    foreground = [value if isinstance(value, list | tuple) else (value,) for value in _foreground(label_manager)]
    return [column for column in columns if set(foreground[column]) & set(tumors)]


def leave_out(
    val_outputs: list[dict[str, Any]], columns: list[int], tumors: list[int], recognized_share: float
) -> list[dict[str, Any]]:
    """Empty the counts of absent labels, so that their pseudo Dice is NaN and stays out of the mean.

    A tumor that only planted lesions show gets the share of them that was recognized as its pseudo Dice: with tp = s
    and fp = fn = 1 - s the Dice 2 tp / (2 tp + fp + fn) is s. Without it the best checkpoint would be the one with the
    best organ.
    """
    kept = np.ones(len(val_outputs[0]["tp_hard"]), dtype=bool)
    kept[columns] = False
    names = ("tp_hard", "fp_hard", "fn_hard")
    outputs = [output | {name: np.where(kept, output[name], 0.0) for name in names} for output in val_outputs]
    if not math.isnan(recognized_share):
        for name, count in zip(names, (recognized_share, 1 - recognized_share, 1 - recognized_share)):
            outputs[0][name][tumors] = count
    return outputs


def mend_moving_average(log: dict[str, list]) -> None:
    """Carry nnU-Net's moving average over an epoch in which no label could be measured, starting from 0."""
    average = log["ema_fg_dice"]
    if math.isnan(average[-1]):
        average[-1] = average[-2] if len(average) > 1 else 0.0


def _foreground(label_manager: LabelManager) -> list[Any]:
    return label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels


def _names(label_manager: LabelManager, columns: list[int]) -> str:
    foreground = _foreground(label_manager)
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in label_manager.label_dict.items()}
    return ", ".join(f"'{name}'" for name, value in values.items() if value in [foreground[c] for c in columns])
