"""Settle the section, what plants and what judges when a training starts, and keep to it when it is resumed.

The choice lies beside the fold's checkpoints as `freetumor_chosen.json`: a baseline that was finished, or a generator
that was installed in the meantime, does not change a training that has begun.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from nnunetv2_freetumor import plan
from nnunetv2_freetumor.files.cases import write_json
from nnunetv2_freetumor.generators.choice import Choice, choice_lines, choose_generators
from nnunetv2_freetumor.plan import Section
from nnunetv2_freetumor.planning import clip_window
from nnunetv2_freetumor.planning.section import check_configuration, section_for_training
from nnunetv2_freetumor.training.judge import JudgeGate
from nnunetv2_freetumor.training.judge_choice import OFF, resolve_judge

CHOSEN_FILE = "freetumor_chosen.json"


class Chosen(NamedTuple):
    """What plants and what judges in a training."""

    generators: list[Choice]  # by target
    gate: JudgeGate | None


def settle(section: Section, trainer: nnUNetTrainer) -> Chosen:
    """Choose generators and judge, or take what a resumed training started with; the log says which.

    Raises:
        ValueError: what the plans name cannot be used; see `choose_generators` and `find_judge`.
    """
    record = Path(trainer.output_folder) / CHOSEN_FILE
    if trainer.current_epoch and record.is_file():
        trainer.print_to_log_file(
            f"FreeTumor: generators and judge as chosen when this training started ({CHOSEN_FILE})"
        )
        data = json.loads(record.read_text(encoding="utf-8"))
        generators = [Choice(**item | {"path": item["path"] and Path(item["path"])}) for item in data["generators"]]
        gate = resolve_judge(dataclasses.replace(section, judge=data["judge"]), trainer)
    else:
        validation = [] if section.generator == "texture" else trainer.do_split()[1]
        plans = trainer.plans_manager.plans
        generators = choose_generators(
            section, plans, configuration=trainer.configuration_name, fold=trainer.fold, validation_cases=validation
        )
        gate = resolve_judge(section, trainer)
        if trainer.local_rank == 0:
            write_json(_to_json(generators, gate), record)
    trainer.print_to_log_file("\n".join(choice_lines(generators)))
    return Chosen(generators, gate)


def _to_json(generators: list[Choice], gate: JudgeGate | None) -> dict[str, Any]:
    return {
        "generators": [c._replace(path=c.path and str(c.path))._asdict() for c in generators],  # type: ignore[arg-type]
        "judge": OFF if gate is None else gate.judge,
    }


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
    check_configuration(plans, configuration, dataset_json)
    if configuration not in clip_window.preprocessed_configurations(plans, Path(preprocessed)):
        raise ValueError(
            f"{preprocessed} holds no preprocessed cases of configuration '{configuration}'. Preprocess them first:\n"
            f"{clip_window.preprocess_command(plans, [configuration])}"
        )
    shared: list[Any] = [plan.to_json(section_for_training(plans, dataset_json)) if rank == 0 else None]
    if several_processes:
        dist.broadcast_object_list(shared)
    plans[plan.SECTION] = shared[0]
    return plan.read_section(shared[0])
