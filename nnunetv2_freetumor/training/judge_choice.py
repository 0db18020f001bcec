"""Choose the judge of a training: the fold's own finished baseline, a model folder that the plans name, or none."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cc3d
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import join, load_pickle
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from nnunetv2_freetumor import intensity
from nnunetv2_freetumor.files.checkpoints import CHECKPOINT
from nnunetv2_freetumor.plan import SIZE_NAMES, Section
from nnunetv2_freetumor.training import device
from nnunetv2_freetumor.training.judge import JudgeGate
from nnunetv2_freetumor.training.segmenter import FrozenSegmenter, load_segmenter, training_command

AUTO, OFF = "auto", "off"


class ModelFold(NamedTuple):
    """One fold of a model folder."""

    folder: Path
    fold: int | str

    def __str__(self) -> str:
        """Return the path of the fold."""
        return str(self.folder / f"fold_{self.fold}")


def resolve_judge(section: Section, trainer: nnUNetTrainer) -> JudgeGate | None:
    """Choose and load the judge, and say in the trainer's log what was chosen and why.

    Raises:
        ValueError: the judge that the plans name cannot be used; see `find_judge` and `load_segmenter`.
    """
    place = find_judge(section.judge, baseline_folder(trainer), trainer.fold)
    if place is None:
        trainer.print_to_log_file(_why_none(section, trainer))
        return None
    segmenter = load_judge(place, trainer)
    channels: list[int | None] = [segmenter.channel(name) for name in tumor_names(section)]
    counts = _shared_counts(section, trainer)
    for index, target in enumerate(section.targets):
        if counts[target.tumor_label] < section.min_judge_tumors:
            channels[index] = None
            trainer.print_to_log_file(_explain_few(section, target.name, counts[target.tumor_label]))
    if all(channel is None for channel in channels):
        return None
    shares = ", ".join(f"{name}: {100 * share:.0f} %" for name, share in zip(SIZE_NAMES, section.min_quality))
    trainer.print_to_log_file(
        f"FreeTumor: judge {place}; a lesion is kept if the judge marks at least this share of it as tumor: {shares}"
    )
    x_mm, y_mm, z_mm = map(float, trainer.configuration_manager.spacing)
    own = intensity.from_plans(trainer.plans_manager.plans)
    return JudgeGate(
        segmenter, section, channels=channels, spacing_mm=(x_mm, y_mm, z_mm), intensity=own, judge=str(place)
    )


def baseline_folder(trainer: nnUNetTrainer) -> Path:
    """Return the model folder of plain nnU-Net with the trainer's plans and configuration."""
    name = f"nnUNetTrainer__{trainer.plans_manager.plans_name}__{trainer.configuration_name}"
    return Path(trainer.output_folder_base).parent / name


def find_judge(judge: str, baseline: Path, fold: int | str) -> ModelFold | None:
    """Find the model that the section's `judge` means; None where there is none to be had or wanted.

    Args:
        judge: `auto` for the finished baseline, `off`, or a model folder (`TRAINER__PLANS__CONFIGURATION`) or one of
            its folds; one without its path lies beside the baseline.
        baseline: the model folder of plain nnU-Net.
        fold: of the training that wants a judge.

    Raises:
        ValueError: it is none of these, or it has seen cases that this fold validates on.
    """
    if judge == OFF or (judge == AUTO and not (baseline / f"fold_{fold}" / CHECKPOINT).is_file()):
        return None
    if judge == AUTO:
        return ModelFold(baseline, fold)
    folder, its_fold = baseline.parent / Path(judge).expanduser(), str(fold)
    if folder.name.startswith("fold_"):
        folder, its_fold = folder.parent, folder.name.removeprefix("fold_")
    if "__" not in folder.name and not folder.is_dir():
        raise ValueError(
            f"'judge' must be auto, off, or a model folder (TRAINER__PLANS__CONFIGURATION) or one of its folds, but it "
            f"is '{judge}', and there is no folder {folder}."
        )
    others = sorted(path.name for path in folder.glob("fold_*"))
    if its_fold != str(fold):
        _check_unseen(folder, its_fold, fold)
    elif others and f"fold_{fold}" not in others:
        _check_unseen(folder, others[-1].removeprefix("fold_"), fold)
    return ModelFold(folder, its_fold)


def load_judge(place: ModelFold, trainer: nnUNetTrainer) -> FrozenSegmenter:
    """Load a judge for a training's batches: on their device, with their axes.

    Raises:
        ValueError: it was trained on another dataset, or cannot be loaded; see `load_segmenter`.
    """
    segmenter = load_segmenter(place.folder, place.fold, device.device_for(trainer.device))
    dataset = trainer.plans_manager.dataset_name
    if segmenter.dataset != dataset:
        raise ValueError(
            f"The judge {place.folder} was trained on {segmenter.dataset}, not on {dataset}: "
            "its folds may hold this fold's validation cases. Choose a model trained on the same dataset, or set "
            '"judge": "off" in the plans\' freetumor section.'
        )
    return segmenter.along(trainer.plans_manager.transpose_forward)


def tumor_names(section: Section) -> list[str]:
    """Return the name of each target's tumor in dataset.json."""
    return [
        next(name for name, value in section.labels.items() if value in (target.tumor_label, [target.tumor_label]))
        for target in section.targets
    ]


def _check_unseen(folder: Path, its_fold: str, fold: int | str) -> None:
    if fold != "all":
        raise ValueError(
            f"The judge {folder / f'fold_{its_fold}'} has been trained on cases that fold {fold} validates on, so that "
            "validation would look better than it is. Name a model with the same fold, which you train with\n"
            f'{training_command(folder, fold)}\nor set "judge": "off" in the plans\' freetumor section.'
        )


def _shared_counts(section: Section, trainer: nnUNetTrainer) -> dict[int, int]:
    """Count on rank 0, where reading takes seconds, and give the result to all processes."""
    labels = {target.tumor_label for target in section.targets}
    shared: list[Any] = [None]
    if trainer.local_rank == 0:
        trainer.dataset_class = infer_dataset_class(trainer.preprocessed_dataset_folder)
        shared = [count_tumors(trainer, labels, section.min_judge_tumors)]
    if trainer.is_ddp:
        dist.broadcast_object_list(shared)
    return shared[0]


def count_tumors(trainer: nnUNetTrainer, labels: Iterable[int], enough: int) -> dict[int, int]:
    """Count each label's tumors (26-connected) in the fold's preprocessed training cases, until there are enough."""
    counts = dict.fromkeys(labels, 0)
    folder, cases = trainer.preprocessed_dataset_folder, trainer.do_split()[0] if enough else []
    dataset = trainer.dataset_class(folder, list(cases))
    for case in cases:
        places = load_pickle(join(folder, f"{case}.pkl"))["class_locations"]  # spares reading cases without the label
        for label in [label for label, count in counts.items() if count < enough]:
            if len(places.get(label, places.get((label,), ()))):
                voxels = np.asarray(dataset.load_case(case)[1][0])
                counts[label] += int(cc3d.connected_components(voxels == label, connectivity=26, return_N=True)[1])
    return counts


def _why_none(section: Section, trainer: nnUNetTrainer) -> str:
    if section.judge == OFF:
        return "FreeTumor: no judge, as set in the plans' freetumor section or when this training started"
    folder = baseline_folder(trainer)
    return (
        f"FreeTumor: no judge: {folder / f'fold_{trainer.fold}'} holds no finished baseline. To have one "
        "reject synthetic tumors that it does not recognize, train it first:\n"
        f"{training_command(folder, trainer.fold)}"
    )


def _explain_few(section: Section, name: str, tumors: int) -> str:
    return (
        f"WARNING: FreeTumor: judge off for '{name}': it was trained on only {tumors} tumors, fewer than "
        f"min_judge_tumors ({section.min_judge_tumors}), and would reject what it does not know."
    )
