"""Find the `freetumor` section when training starts: from the plans, or derived from the dataset."""

from pathlib import Path
from typing import Any

from torch import distributed as dist

from nnunetv2_freetumor import plan
from nnunetv2_freetumor.planning import clip_window, section


def resolve_section(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    preprocessed: str,
    rank: int = 0,
    several_processes: bool = False,
) -> plan.Section:
    """Refuse what cannot work, read or derive the section, and leave it in the plans.

    Rank 0 measures, which may take a while, and gives the result to all processes.
    """
    section.check_configuration(plans, configuration, dataset_json)
    if configuration not in clip_window.preprocessed_configurations(plans, Path(preprocessed)):
        raise ValueError(
            f"{preprocessed} holds no preprocessed cases of configuration '{configuration}'. Preprocess them first:\n"
            f"{clip_window.preprocess_command(plans, [configuration])}"
        )
    shared: list[Any] = [plan.to_json(section.section_for_training(plans, dataset_json)) if rank == 0 else None]
    if several_processes:
        dist.broadcast_object_list(shared)
    plans[plan.SECTION] = shared[0]
    return plan.read_section(shared[0])
