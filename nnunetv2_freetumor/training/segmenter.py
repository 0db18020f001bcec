"""A frozen segmenter: its network, the images that it was trained on, and which of its outputs means which label.

A trained nnU-Net model is loaded without executing anything that its checkpoint holds.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_freetumor.files.checkpoints import CHECKPOINT, read_checkpoint
from nnunetv2_freetumor.generators.cpu_doubling import call_in_pairs
from nnunetv2_freetumor.intensity import Intensity, from_plans
from nnunetv2_freetumor.synthesis.volume import Spacing

Axes = tuple[int, int, int]


_PARTS = ("network_weights", "trainer_name", "init_args")


@dataclass(frozen=True, kw_only=True)
class FrozenSegmenter:
    """A trained network in its own plans' terms; nothing here changes a weight."""

    name: str  # for people: model folder and fold
    network: nn.Module
    intensity: Intensity  # of its z-scores
    spacing_mm: Spacing  # of the arrays given to it, in their axis order
    patch_size: Axes  # voxels, likewise
    labels: dict[str, Any]  # of its dataset.json
    dataset: str = ""  # that it was trained on
    has_regions: bool = False
    transpose_forward: Axes = (0, 1, 2)  # the axis of a raw volume behind each axis of the arrays given to it
    order: Axes = (0, 1, 2)  # the axis of those arrays behind each axis of the network's input

    def along(self, transpose_forward: Sequence[int]) -> "FrozenSegmenter":
        """Take arrays whose axes are those of other plans from now on."""
        raw = [self.transpose_forward[axis] for axis in self.order]  # the raw axis behind each of the network's
        own = [raw.index(axis) for axis in transpose_forward]  # the network's axis behind each of the new arrays'
        before = [self.order[axis] for axis in own]  # and the axis of the arrays until now
        x, y, z = before
        a, b, c = (own.index(axis) for axis in range(3))
        return dataclasses.replace(
            self,
            spacing_mm=(self.spacing_mm[x], self.spacing_mm[y], self.spacing_mm[z]),
            patch_size=(self.patch_size[x], self.patch_size[y], self.patch_size[z]),
            transpose_forward=(transpose_forward[0], transpose_forward[1], transpose_forward[2]),
            order=(a, b, c),
        )

    def channel(self, label: str) -> int:
        """Find the output that means a label.

        Raises:
            ValueError: the segmenter knows no such label; the text names those that it knows.
        """
        regions = [name for name, value in self.labels.items() if name != "ignore" and value not in (0, [0])]
        if label in regions:
            value = self.labels[label]
            return regions.index(label) if self.has_regions else value if isinstance(value, int) else value[0]
        raise ValueError(
            f"The judge {self.name} knows the labels {', '.join(map(repr, regions))}, but none is called '{label}', as "
            "this dataset's dataset.json calls the tumor. Labels are matched by name: choose a judge trained on this "
            'dataset, or set "judge": "off" in the plans\' freetumor section.'
        )

    def logits(self, z: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b c x y z"]:
        """Run the network on windows in the segmenter's own z-scores, spacing and patch size."""
        outputs = call_in_pairs(self.network, z.permute(0, 1, *(2 + axis for axis in self.order)))
        back = (2 + self.order.index(axis) for axis in range(3))
        return (outputs[0] if isinstance(outputs, list | tuple) else outputs).permute(0, 1, *back)

    def recognized(self, logits: Float[Tensor, "b c x y z"], channel: int) -> Bool[Tensor, "b x y z"]:
        """Mark the voxels called a label, or a region, as nnU-Net decides it: the largest output, or above one half."""
        return logits[:, channel] > 0 if self.has_regions else logits.argmax(1) == channel

    def probability(self, logits: Float[Tensor, "b c x y z"], channel: int) -> Float[Tensor, "b x y z"]:
        """Compute the probability of a label or region."""
        return logits[:, channel].sigmoid() if self.has_regions else torch.softmax(logits, 1)[:, channel]


def load_segmenter(model_folder: str | Path, fold: int | str, device: torch.device) -> FrozenSegmenter:
    """Load one fold of a model folder (`TRAINER__PLANS__CONFIGURATION`) of a dataset with one CT channel.

    Raises:
        ValueError: there is no such finished model, its checkpoint holds more than weights, or it is no 3d model of CT;
            the text names the folder and the way out.
    """
    folder = Path(model_folder)
    path = folder / f"fold_{fold}" / CHECKPOINT
    if not path.is_file():
        raise ValueError(_explain_missing(folder, fold))
    plans, dataset_json = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
    checkpoint = _read_model(path)
    manager = PlansManager(plans)
    configuration = manager.get_configuration(checkpoint["init_args"]["configuration"])
    _check_kind(folder, manager, configuration, dataset_json)
    network = _build_network(path, checkpoint, manager=manager, configuration=configuration, dataset_json=dataset_json)
    spacing_mm, patch, axes = configuration.spacing, configuration.patch_size, manager.transpose_forward
    return FrozenSegmenter(
        name=f"{folder.name}/fold_{fold}",
        network=network.to(device).eval().requires_grad_(False),
        intensity=from_plans(plans),
        spacing_mm=(float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])),
        patch_size=(int(patch[0]), int(patch[1]), int(patch[2])),
        labels=dataset_json["labels"],
        dataset=manager.dataset_name,
        has_regions=manager.get_label_manager(dataset_json).has_regions,
        transpose_forward=(axes[0], axes[1], axes[2]),
    )


def training_command(folder: Path, fold: int | str) -> str:
    """Return the command that trains one fold of a model folder `.../DATASET/TRAINER__PLANS__CONFIGURATION`."""
    parts = folder.name.split("__")
    if len(parts) != 3:
        return "  nnUNetv2_train DATASET CONFIGURATION FOLD -p PLANS"
    trainer, plans, configuration = parts
    other = "" if trainer == "nnUNetTrainer" else f" -tr {trainer}"
    return f"  nnUNetv2_train {folder.parent.name} {configuration} {fold} -p {plans}{other}"


def _explain_missing(folder: Path, fold: int | str) -> str:
    if not (folder / f"fold_{fold}").is_dir():
        return f"There is no trained model {folder / f'fold_{fold}'}. Train it with\n{training_command(folder, fold)}"
    return (
        f"The model {folder / f'fold_{fold}'} is unfinished: it has no {CHECKPOINT}. Finish it with\n"
        f"{training_command(folder, fold)} --c"
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} is no nnU-Net model folder: it lacks {path.name}, which nnU-Net writes there.")
    return json.loads(path.read_text(encoding="utf-8"))


def _read_model(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    complete = isinstance(checkpoint, dict) and all(part in checkpoint for part in _PARTS)
    if not complete or "configuration" not in checkpoint["init_args"]:
        raise ValueError(
            f"{path} is not an nnU-Net checkpoint: it must contain {', '.join(_PARTS)}. Train the model again."
        )
    return checkpoint


def _check_kind(
    folder: Path, manager: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any]
) -> None:
    channels = determine_num_input_channels(manager, configuration, dataset_json)
    schemes = configuration.normalization_schemes
    if len(configuration.patch_size) != 3 or channels != 1 or schemes != ["CTNormalization"]:
        raise ValueError(
            f"The model {folder} cannot be a judge: that takes a 3d network with one CT channel (CTNormalization), but "
            f"it has {len(configuration.patch_size)} axes, {channels} channel(s) and {', '.join(schemes)}. Choose "
            "another model folder, for example of 3d_fullres."
        )


def _build_network(
    path: Path,
    checkpoint: dict[str, Any],
    manager: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: dict[str, Any],
) -> nn.Module:
    """Build the network as nnU-Net does to predict, through the trainer's own method."""
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    try:
        trainer = recursive_find_trainer_class_by_name(checkpoint["trainer_name"])
        network = trainer.build_network_architecture(manager, configuration, 1, heads, enable_deep_supervision=False)
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError as error:
        raise ValueError(
            f"The network of {path} cannot be built: {str(error).splitlines()[0]} Its trainer "
            f"({checkpoint['trainer_name']}) must be installed here, and plans.json must be that of its training."
        ) from error
    return network
