"""A study's protocol: everything that could be tuned, written down before a test case exists, and kept to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_freetumor import plan
from nnunetv2_freetumor.experiments.study import data, results, trials
from nnunetv2_freetumor.experiments.study.design import Budget, Run, Setting
from nnunetv2_freetumor.experiments.study.place import Prepared
from nnunetv2_freetumor.files.cases import write_json

PROTOCOL = "protocol.json"


def freeze(prepared: Prepared, budget: Budget, settings: Sequence[Setting], seeds: int) -> tuple[Run, ...]:
    """Write down everything that could be tuned, before any test case exists or is read; refuse a change of it.

    Raises:
        ValueError: the folder holds a study of another protocol.
    """
    place, section = prepared.place, plan.read_section(prepared.plans[plan.SECTION])
    tumors = sorted({target.tumor_label for target in section.targets})
    pool = data.read_pool(prepared.folder / "gt_segmentations", place.labels.file_ending, tumors)
    runs = data.plan_runs(pool, settings, seeds)
    made = data.arm_plans(prepared.plans, budget, runs)
    protocol = {
        "dataset": place.dataset,
        "configuration": place.configuration,
        "test": prepared.test,
        "budget": plan.to_json(budget),
        "settings": [setting._asdict() for setting in settings],
        "seeds": seeds,
        "rule": json.loads(json.dumps(trials.RULE._asdict())),
        "false_positives_per_scan": results.MATCHED,
        "runs": [plan.to_json(run) for run in runs],
        "sections": {name: plans[plan.SECTION] for name, plans in made.items()},
    }
    keep(place.root / PROTOCOL, protocol)
    data.write_arm_plans(prepared.folder, made)
    return runs


def keep(path: Path, protocol: dict[str, Any]) -> None:
    """Write a protocol where there is none, and refuse one that differs from what was frozen.

    Raises:
        ValueError: something that was frozen has changed; the text names it.
    """
    if not path.is_file():
        return write_json(protocol, path)
    frozen = json.loads(path.read_text(encoding="utf-8"))
    frozen["sections"] = {arm: plan.without_retired(section) for arm, section in frozen.get("sections", {}).items()}
    if changed := [key for key in protocol if not _agrees(frozen.get(key), protocol[key])]:
        raise ValueError(
            f"{path} was frozen with another {', '.join(changed)}, and a study whose protocol changes after its test "
            "cases were seen proves nothing. Use the same options and version, or another -o folder."
        )


def _agrees(frozen: Any, now: Any) -> bool:
    """Tell whether everything that was frozen is still the same; later arms and settings may have joined it."""
    if isinstance(frozen, dict) and isinstance(now, dict):
        return all(key in now and _agrees(value, now[key]) for key, value in frozen.items())
    return frozen == now
