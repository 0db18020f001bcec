"""The dataset that a pool belongs to: its plans, its section and its labels."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_freetumor.plan import SECTION, Section, read_section
from nnunetv2_freetumor.pool import store
from nnunetv2_freetumor.pool.labels import PoolLabels, pool_labels


class PlansChoice(NamedTuple):
    """The plans and the configuration that pool cases are preprocessed with."""

    preprocessed: str  # the dataset's folder, absolute
    plans_name: str
    configuration: str


class DatasetPlans(NamedTuple):
    """A dataset's plans, and what they mean to its pool."""

    pool: Path  # the pool's folder
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    manager: PlansManager
    configuration: ConfigurationManager
    section: Section
    labels: PoolLabels


def read_dataset(choice: PlansChoice) -> DatasetPlans:
    """Read the plans, the section and the labels of the dataset that the pool belongs to."""
    folder = Path(choice.preprocessed)
    plans, dataset_json = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in (choice.plans_name, "dataset")
    )
    section, manager = read_section(plans[SECTION]), PlansManager(plans)
    labels = pool_labels(section, dataset_json, store.ignore_value(dataset_json))
    configuration = manager.get_configuration(choice.configuration)
    pool = store.pool_folder(folder, plans, choice.configuration)
    return DatasetPlans(
        pool,
        plans,
        dataset_json=dataset_json,
        manager=manager,
        configuration=configuration,
        section=section,
        labels=labels,
    )
