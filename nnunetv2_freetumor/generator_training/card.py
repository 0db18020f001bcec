"""What the adversarial stage may learn from, and the card that records it."""

import dataclasses
import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from batchgenerators.utilities.file_and_folder_operations import load_pickle

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.generator_training.recipes import Frame, Recipe
from nnunetv2_freetumor.generators.cards import Card
from nnunetv2_freetumor.plan import Section, Target

PHANTOMS_IN_PLANS, PHANTOMS_IN_DATASET = "freetumor_phantoms", "phantoms"


class Training(NamedTuple):
    """One fold's training of a generator."""

    dataset: str
    plans: str
    configuration: str
    fold: str
    cases: tuple[str, ...]  # the fold's training cases
    phantoms: bool  # no patients
    unlabeled: int  # cases of the pool


def learnable_targets(section: Section, preprocessed: str | Path, cases: Iterable[str], fold: int | str) -> Section:
    """Keep the targets of which the training cases hold real tumors.

    Raises:
        ValueError: there is none, so nothing to learn from.
    """
    present: set[int] = set()
    for case in cases:
        locations = load_pickle(str(Path(preprocessed) / f"{case}.pkl"))["class_locations"]
        present |= {label for key, places in locations.items() if len(places) for label in _labels(key)}
    kept = tuple(target for target in section.targets if target.tumor_label in present)
    if not kept:
        names = ", ".join(f"'{target.name}'" for target in section.targets)
        raise ValueError(
            f"No training case of fold {fold} contains a real tumor ({names}), but a generator learns from real ones. "
            "Train it on a dataset with labeled tumors and install it ('nnUNetv2_freetumor generator install FILE'), "
            "or leave 'generator' at auto or texture, which need no trained generator."
        )
    return dataclasses.replace(section, targets=kept)


def is_phantom_data(plans: dict[str, Any], dataset_json: dict[str, Any]) -> bool:
    """Check whether plans or dataset.json say that the cases are phantoms, not patients."""
    return bool(plans.get(PHANTOMS_IN_PLANS) or dataset_json.get(PHANTOMS_IN_DATASET))


def host_names(targets: Sequence[Target]) -> tuple[str, ...]:
    """List the names of the targets' priors, each once, in their order."""
    return tuple(dict.fromkeys(target.prior.name for target in targets))


def recipe_text(section: Section) -> str:
    """Describe the section's recipe and its changes."""
    changes = f", changed: {json.dumps(section.recipe_changes, sort_keys=True)}" if section.recipe_changes else ""
    return f"{section.recipe}{changes}"


def make_card(section: Section, recipe: Recipe, frame: Frame, training: Training, judge: str) -> Card:
    """Write down what a generator was trained on, and the judge that it learned from."""
    hosts = host_names(section.targets)
    kind = "phantoms" if training.phantoms else "cases"
    organs = f", and the organs of {training.unlabeled} unlabeled cases" if training.unlabeled else ""
    return Card(
        name=f"{training.dataset}_fold_{training.fold}_{recipe.kind}",
        kind=recipe.kind,
        hosts=hosts,
        window_hu=frame.window_hu,
        spacing_mm=frame.spacing_mm,
        side_voxels=frame.side_voxels,
        sign=frame.sign,
        activation=frame.activation,
        recipe=recipe_text(section),
        training_data=f"{len(training.cases)} training {kind} of {training.dataset}, fold {training.fold}{organs}",
        dataset=training.dataset,
        plans=training.plans,
        configuration=training.configuration,
        fold=training.fold,
        training_cases=training.cases,
        real_tumors=() if training.phantoms else hosts,
        judge=judge,
        purpose=f"synthetic tumors ({', '.join(hosts)}) in nnU-Net's training batches",
        not_seen="scanners, contrast phases and patients other than the training data's",
        license="as the training data",
        date=datetime.date.today().isoformat(),
        version=__version__,
    )


def _labels(key: Any) -> set[int]:
    """Return the labels of a key of nnU-Net's class locations; a region of several says nothing about each."""
    values = tuple(key) if isinstance(key, list | tuple) else (key,)
    return {int(values[0])} if len(values) == 1 else set()
