"""Settle what plants and what judges when a training starts, and keep to it when the training is resumed.

The choice lies beside the fold's checkpoints as `freetumor_chosen.json`: a baseline that was finished, or a generator
that was installed in the meantime, does not change a training that has begun.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_freetumor.files.cases import write_json
from nnunetv2_freetumor.generators.choice import Choice, choose_generators, describe
from nnunetv2_freetumor.plan import Section
from nnunetv2_freetumor.training.judge_choice import OFF, baseline_folder, find_judge

FILE = "freetumor_chosen.json"


class Chosen(NamedTuple):
    """The section with its judge settled, and each target's generator."""

    section: Section
    generators: list[Choice]


def settle(section: Section, trainer: nnUNetTrainer) -> Chosen:
    """Choose generators and judge, or take what a resumed training started with; the log says which.

    Raises:
        ValueError: what the plans name cannot be used; see `choose_generators` and `find_judge`.
    """
    record = Path(trainer.output_folder) / FILE
    if trainer.current_epoch and record.is_file():
        chosen = _read(section, json.loads(record.read_text(encoding="utf-8")))
        trainer.print_to_log_file(f"FreeTumor: generators and judge as this training started with ({FILE})")
    else:
        validation = [] if section.generator == "texture" else trainer.do_split()[1]
        plans = trainer.plans_manager.plans
        generators = choose_generators(section, plans, trainer.configuration_name, trainer.fold, validation)
        chosen = Chosen(section, generators)
        if trainer.local_rank == 0:
            write_json(_to_json(chosen, trainer), record)
    trainer.print_to_log_file("\n".join(describe(chosen.generators)))
    return chosen


def _to_json(chosen: Chosen, trainer: nnUNetTrainer) -> dict[str, Any]:
    place = find_judge(chosen.section.judge, baseline_folder(trainer), trainer.fold)
    return {
        "generators": [c._replace(path=c.path and str(c.path))._asdict() for c in chosen.generators],  # type: ignore[arg-type]
        "judge": OFF if place is None else str(place.folder / f"fold_{place.fold}"),
    }


def _read(section: Section, data: dict[str, Any]) -> Chosen:
    generators = [Choice(**item | {"path": item["path"] and Path(item["path"])}) for item in data["generators"]]
    return Chosen(dataclasses.replace(section, judge=data["judge"]), generators)
