"""Run a trained nnU-Net model over whole volumes: it finds hosts in raw CT, and suspects in preprocessed CT."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_freetumor.files.cases import Case
from nnunetv2_freetumor.files.checkpoints import CHECKPOINT
from nnunetv2_freetumor.pool.preprocessing import in_readers_orientation, orientation_of, reoriented
from nnunetv2_freetumor.pool.store import preprocessing_hash
from nnunetv2_freetumor.pool.training import PoolMixin
from nnunetv2_freetumor.training.device import choose_device
from nnunetv2_freetumor.training.segmenter import FrozenSegmenter, load_segmenter


class Model(NamedTuple):
    """A trained model, ready to predict."""

    name: str  # model folder, fold and the beginning of its weights' hash: a model that trained on is another one
    segmenter: FrozenSegmenter
    predictor: Any
    plans: dict[str, Any]
    configuration: str


def load_model(path: str, device: str) -> Model:
    """Load a model folder, or one of its folds, without executing what its checkpoint holds.

    Without a fold it is `fold_all`, or the first finished one; without a device, CUDA if this process has it.

    Raises:
        ValueError: see `load_segmenter`; or the folder is not called `TRAINER__PLANS__CONFIGURATION`.
    """
    folder, fold = _fold(Path(path))
    if folder.name.count("__") != 2:
        raise ValueError(f"{folder} is not an nnU-Net model folder, TRAINER__PLANS__CONFIGURATION.")
    on = choose_device(device or None)
    configuration = folder.name.split("__")[2]
    segmenter = load_segmenter(folder, fold, on)
    plans, dataset_json = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("plans", "dataset"))
    manager = PlansManager(plans)
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=on.type == "cuda", device=on, allow_tqdm=False
    )
    network = segmenter.network
    settings = manager.get_configuration(configuration)
    predictor.manual_initialization(network, manager, settings, [network.state_dict()], dataset_json, "", None)
    digest = hashlib.sha256((folder / f"fold_{fold}" / CHECKPOINT).read_bytes()).hexdigest()[:8]
    return Model(f"{segmenter.name} {digest}", segmenter, predictor=predictor, plans=plans, configuration=configuration)


def _fold(path: Path) -> tuple[Path, str]:
    if path.name.startswith("fold_"):
        return path.parent, path.name.removeprefix("fold_")
    finished = sorted(file.parent.name.removeprefix("fold_") for file in path.glob(f"fold_*/{CHECKPOINT}"))
    return path, "all" if "all" in finished else finished[0] if finished else "0"


def check_judge(model: Model, plans: dict[str, Any], configuration: str, lesions: list[str]) -> None:
    """Check that a judge fits a pool's preprocessed images and knows the labels of its lesions.

    Raises:
        ValueError: the text says what does not fit, and which model to train instead.
    """
    made_for, seen = preprocessing_hash(plans, configuration), preprocessing_hash(model.plans, model.configuration)
    if made_for != seen:
        raise ValueError(
            f"The model {model.segmenter.name} was trained with other plans or another configuration than the pool's "
            f"({plans['plans_name']}, {configuration}). Train one that fits with\n  nnUNetv2_train "
            f"{plans['dataset_name']} {configuration} 0 -p {plans['plans_name']}"
        )
    for name in lesions:
        model.segmenter.channel(name)


def has_met_lesions(model: Model, dataset: str, absent: Sequence[str], lesions: Sequence[str]) -> bool:
    """Check whether a model has seen one of some lesions in training, in labels or planted by its trainer.

    For a model of another dataset this is taken for granted.

    Args:
        model: any trained model.
        dataset: name of the dataset whose labels no case holds that `absent` names.
        absent: names of labels.
        lesions: names of labels.
    """
    trainer = recursive_find_trainer_class_by_name(model.segmenter.name.split("__")[0])
    return model.segmenter.dataset != dataset or issubclass(trainer, PoolMixin) or not set(lesions) <= set(absent)


def predict_lesions(model: Model, image: np.ndarray, lesions: list[str]) -> np.ndarray:
    """Mark the voxels (x y z) of a preprocessed image (1 x y z) that a model calls one of the lesions' labels."""
    with torch.inference_mode():
        logits = model.predictor.predict_sliding_window_return_logits(torch.from_numpy(image)).float().cpu()[None]
    found = np.zeros(image.shape[1:], dtype=bool)
    for name in lesions:
        found |= model.segmenter.recognized(logits, model.segmenter.channel(name))[0].numpy()
    return found


def predict_labels(model: Model, image: Case) -> np.ndarray:
    """Predict the label map, in the model's own values, of a raw image on its own grid."""
    turned = in_readers_orientation(image, model.plans)
    array = turned.array[None].astype(np.float32)
    label = model.predictor.predict_single_npy_array(array, {"spacing": list(turned.spacing_mm)})
    return reoriented(turned._replace(array=label.astype(np.int16)), orientation_of(image)).array
