"""A study's protocol: everything that could be tuned, frozen before a test case exists."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_freetumor import plan
from nnunetv2_freetumor.experiments.study import data, results, trials
from nnunetv2_freetumor.experiments.study.design import Budget, FoldCases, Setting
from nnunetv2_freetumor.experiments.study.preparation import Prepared
from nnunetv2_freetumor.files.cases import write_json

PROTOCOL = "protocol.json"


def freeze(prepared: Prepared, budget: Budget, settings: Sequence[Setting], seeds: int) -> tuple[FoldCases, ...]:
    """Write everything that could be tuned, before any test case exists or is read; refuse any change to it.

    Raises:
        ValueError: the folder holds a study of another protocol.
    """
    context, section = prepared.context, plan.read_section(prepared.plans[plan.SECTION])
    tumors = sorted({target.tumor_label for target in section.targets})
    labeled = data.read_training_cases(prepared.folder / "gt_segmentations", context.test.labels.file_ending, tumors)
    folds = data.choose_cases(labeled, settings, seeds)
    made = data.arm_plans(prepared.plans, budget, folds)
    protocol = {
        "dataset": context.dataset,
        "configuration": context.configuration,
        "test": prepared.test,
        "budget": plan.to_json(budget),
        "settings": [setting._asdict() for setting in settings],
        "seeds": seeds,
        "rule": json.loads(json.dumps(trials.RULE._asdict())),
        "false_positives_per_scan": results.MATCHED,
        "runs": [plan.to_json(fold) for fold in folds],
        "sections": {name: plans[plan.SECTION] for name, plans in made.items()},
    }
    keep(context.root / PROTOCOL, protocol)
    data.write_arm_plans(prepared.folder, made)
    return folds


def keep(path: Path, protocol: dict[str, Any]) -> None:
    """Write a protocol if there is none yet, and refuse one that differs from what was frozen.

    Raises:
        ValueError: something that was frozen has changed.
    """
    if not path.is_file():
        return write_json(protocol, path)
    frozen = json.loads(path.read_text(encoding="utf-8"))
    frozen["sections"] = {arm: plan.without_retired(section) for arm, section in frozen.get("sections", {}).items()}
    if changed := [key for key in protocol if not _agrees(frozen.get(key), protocol[key])]:
        raise ValueError(
            f"{path} was frozen with another {', '.join(changed)}, and a study whose protocol changes after its test "
            "cases were seen proves nothing. Use the same options and version, or another folder with -o."
        )


def _agrees(frozen: Any, now: Any) -> bool:
    """Return whether everything frozen is still the same; arms and settings may have been added later."""
    if isinstance(frozen, dict) and isinstance(now, dict):
        return all(key in now and _agrees(value, now[key]) for key, value in frozen.items())
    return frozen == now
