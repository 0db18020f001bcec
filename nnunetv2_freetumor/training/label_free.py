"""Keep nnU-Net's pseudo Dice meaningful where a label exists in dataset.json but in no case.

Stock nnU-Net reports NaN for such a label until one false positive makes it 0, so that `checkpoint_best` prefers
networks that never predict it; and one epoch in which every label is NaN freezes the moving average for good.
"""

import math
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import join, load_pickle
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager


def absent_columns(preprocessed_folder: str, label_manager: LabelManager) -> list[int]:
    """List the positions, among nnU-Net's foreground labels or regions, of those that no preprocessed case holds."""
    columns = dict(enumerate(_foreground(label_manager)))
    for case in infer_dataset_class(preprocessed_folder).get_identifiers(preprocessed_folder):
        if not columns:
            break
        locations = load_pickle(join(preprocessed_folder, f"{case}.pkl"))["class_locations"]
        columns = {column: label for column, label in columns.items() if len(locations.get(label, ())) == 0}
    return list(columns)


def notice(label_manager: LabelManager, columns: list[int]) -> str:
    """Explain what validation during training cannot measure."""
    foreground = _foreground(label_manager)
    absent = [foreground[column] for column in columns]
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in label_manager.label_dict.items()}
    names = ", ".join(f"'{name}'" for name, value in values.items() if value in absent)
    text = (
        f"FreeTumor: no case of this dataset holds {names}: validation cannot measure tumors there. They are "
        "excluded from the pseudo Dice; ignore the Dice that the final validation prints for them, and measure them on "
        "annotated cases."
    )
    nothing_left = " No other label is left to choose checkpoint_best by: use checkpoint_final."
    return text + nothing_left if len(columns) == len(foreground) else text


def leave_out(val_outputs: list[dict[str, Any]], columns: list[int]) -> list[dict[str, Any]]:
    """Empty the counts of absent labels, so that their pseudo Dice is NaN and stays out of the mean."""
    kept = np.ones(len(val_outputs[0]["tp_hard"]), dtype=bool)
    kept[columns] = False
    emptied = ("tp_hard", "fp_hard", "fn_hard")
    return [output | {name: np.where(kept, output[name], 0) for name in emptied} for output in val_outputs]


def mend_moving_average(log: dict[str, list]) -> None:
    """Carry nnU-Net's moving average over an epoch in which no label could be measured, starting from 0."""
    average = log["ema_fg_dice"]
    if math.isnan(average[-1]):
        average[-1] = average[-2] if len(average) > 1 else 0.0


def _foreground(label_manager: LabelManager) -> list[Any]:
    return label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
