"""What all cases of a job share: what was asked for, the dataset that the pool belongs to, and the models.

A `Job` is small and travels to the workers. Each process builds a `JobContext` from it once in a run, and passes it to
everything that is done to a case.
"""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_freetumor.files.hashes import read_contents, state_of
from nnunetv2_freetumor.intensity import from_plans
from nnunetv2_freetumor.pool import store
from nnunetv2_freetumor.pool.model import Model, load_model
from nnunetv2_freetumor.pool.target import PlansChoice, read_dataset

TUMOR_FREE = "tumor-free"  # the user's word


class HostSource(NamedTuple):
    """Where the hosts come from: masks, a model, or, with neither, their HU. Paths are absolute."""

    masks: str = ""  # folder
    model: str = ""  # folder
    name_map: tuple[tuple[str, str], ...] = ()  # names or values of masks, and labels of the dataset
    annotates: tuple[str, ...] = ()  # labels that the masks annotate wherever they are in view


class Asked(NamedTuple):
    """What the user asked for; paths are absolute."""

    plans: PlansChoice
    hosts: HostSource = HostSource()
    tumor_free: bool = False
    judge: str = ""  # model folder
    device: str = ""  # of the models; without one, each worker chooses


class Job(NamedTuple):
    """What the user asked for, and what is known about it before the first case."""

    asked: Asked
    models: tuple[str, ...] = ()  # names of host model and judge: one that trained on has another name
    host_model_looks: bool = False  # it has seen tumors in training, and there is no judge and no word of the user


class JobContext:
    """What a process needs for all cases of a job; built once in a run, models are loaded when a case needs them."""

    def __init__(self, job: Job) -> None:
        """Read the dataset's plans and which scans are labeled cases."""
        self.job = job
        self.dataset = read_dataset(job.asked.plans)
        intensity = from_plans(self.dataset.plans)
        self.window_hu = intensity.low_hu, intensity.high_hu  # that preprocessing clips to
        self.labeled = read_contents(self.dataset.pool / store.CONTENTS)  # names by the hashes of their voxels

    @cached_property
    def host_model(self) -> Model | None:
        """Return the model that finds hosts, if one was asked for."""
        asked = self.job.asked
        return load_model(asked.hosts.model, asked.device) if asked.hosts.model else None

    @cached_property
    def judge(self) -> Model | None:
        """Return the model that looks for suspects, if one was asked for."""
        asked = self.job.asked
        if asked.judge == asked.hosts.model:
            return self.host_model
        return load_model(asked.judge, asked.device) if asked.judge else None

    @cached_property
    def cleared_by(self) -> str:
        """Return who checks new cases for tumors: a model's name, the user, or nobody ('')."""
        if self.judge is not None:
            return self.judge.name
        if self.job.asked.tumor_free:
            return TUMOR_FREE
        return self.host_model.name if self.host_model is not None and self.job.host_model_looks else ""

    def settings_of(self, image: str, masks: Iterable[Path]) -> str:
        """Return what a case depends on beside the plans, as JSON: options, models, state of image and masks."""
        asked, hosts = self.job.asked, self.job.asked.hosts
        options: list[Any] = [hosts.masks, hosts.model, hosts.name_map, hosts.annotates]
        options += [asked.tumor_free, asked.judge, self.job.models]
        files = [path for path in (Path(image), *masks) if path.exists()]
        return json.dumps([options, [str(path) for path in files], state_of(*files)])
