"""The one file that nnU-Net searches: the trainers, each imported when nnU-Net asks for it by name."""

import importlib
from types import ModuleType
from typing import Any

MODULES = {  # by the beginning of a trainer's name, the longer ones first
    "nnUNetTrainerFreeTumorGenerator": "nnunetv2_freetumor.generator_training.trainer",
    "nnUNetTrainerFreeTumor_demo": "nnunetv2_freetumor.experiments.demo.trainer",
    "nnUNetTrainerFreeTumor_study": "nnunetv2_freetumor.experiments.study.trainers",
    "nnUNetTrainerFreeTumor": "nnunetv2_freetumor.trainer",
}


def _import(module: str) -> ModuleType:
    """Import a module so that `hasattr` does not take a failure of the import for a trainer that is not there."""
    try:
        return importlib.import_module(module)
    except AttributeError as error:
        raise ImportError(f"{module} cannot be imported: {error}") from error


def __getattr__(name: str) -> Any:
    """Import a trainer; nnU-Net asks with `hasattr`."""
    for beginning, module in MODULES.items():
        if name.startswith(beginning):
            return getattr(_import(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
