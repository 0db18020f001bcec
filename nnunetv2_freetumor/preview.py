"""Show what training will plant: before/after/mask pictures from the preprocessed training cases."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunetv2_freetumor import intensity, planning
from nnunetv2_freetumor.cases import check_writable
from nnunetv2_freetumor.clip_window import preprocess_command
from nnunetv2_freetumor.figures import Picture, lesion_sheet, pictures_of
from nnunetv2_freetumor.plan import Section
from nnunetv2_freetumor.planted import Place
from nnunetv2_freetumor.synthesis import Synthesizer

PATCHES_PER_LESION = 12  # to try


class _Patch(NamedTuple):
    case: str
    image: np.ndarray  # (x y z) z-scores, nnU-Net's axis order
    label: np.ndarray
    direction: tuple[float, ...] | None  # SimpleITK's, where nnU-Net read the case with it


def preview_command(
    dataset: str,
    output: str | Path,
    plans_name: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    count: int = 6,
    seed: int = 0,
) -> None:
    """Draw a sheet of lesions as training would plant them and print its path.

    Raises:
        ValueError: no dataset, not preprocessed, an output folder that cannot be written to, or a section that cannot
            work; the text says what to do.
    """
    folder = check_writable(output)
    preprocessed, plans, dataset_json = planning.load_plans(dataset, plans_name)
    settings = _configuration(plans, configuration)
    planning.check_configuration(settings, configuration, dataset_json)
    section = planning.section_for_training(plans, dataset_json)
    data = _data_folder(preprocessed, settings, plans, configuration)
    pictures = _pictures(data, settings.patch_size, _always(section), plans, settings.spacing, count, seed)
    if not pictures:
        raise ValueError(
            f"No lesion found a place in any patch of {data}: see 'sizes' and the hosts in the plans file."
        )
    path = folder / f"preview_{plans['dataset_name']}_{configuration}.png"
    lesion_sheet(pictures, path, f"{plans['dataset_name']}, {configuration}, {section.generator}, seed {seed}")
    print(f"Drew {len(pictures)} of {count} lesion(s).")
    print(path)


def _configuration(plans: dict[str, Any], name: str) -> ConfigurationManager:
    if name not in plans["configurations"]:
        choices = ", ".join(plans["configurations"])
        raise ValueError(f"{plans['plans_name']}.json has no configuration '{name}'; choose one of {choices} with -c.")
    return PlansManager(plans).get_configuration(name)


def _data_folder(preprocessed: Path, settings: ConfigurationManager, plans: dict[str, Any], name: str) -> Path:
    data = preprocessed / settings.data_identifier
    if data.is_dir() and any(data.iterdir()):
        return data
    raise ValueError(f"{data} holds no preprocessed cases. Make them with\n{preprocess_command(plans, [name])}")


def _always(section: Section) -> Section:
    return dataclasses.replace(
        section, probability_tumor_free=1.0, probability_tumor_bearing=1.0, untouched_share=0.0
    )  # fmt: skip


def _pictures(
    data: Path,
    patch_size: list[int],
    section: Section,
    plans: dict[str, Any],
    spacing: list[float],
    count: int,
    seed: int,
) -> list[Picture]:
    """Go through the cases in turn, one patch each, until there are enough lesions."""
    spacing_mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    window = intensity.from_plans(plans)
    synthesizer = Synthesizer(section, spacing_mm, window)
    rng, chance = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    cases = infer_dataset_class(str(data))(str(data))
    order = chance.permutation(cases.identifiers)
    pictures: list[Picture] = []
    with tqdm(total=count, desc="planting", unit="lesion", disable=None) as progress:
        for attempt in range(PATCHES_PER_LESION * count):
            patch = _patch(cases, str(order[attempt % len(order)]), patch_size, section, chance)
            found = _plant(patch, synthesizer, rng, plans["transpose_forward"])[: count - len(pictures)]
            pictures += found
            progress.update(len(found))
            if len(pictures) == count:
                break
    return pictures


def _patch(cases: Any, case: str, patch_size: list[int], section: Section, chance: np.random.Generator) -> _Patch:
    """Cut a patch around a random host voxel, or anywhere where no host has a label."""
    image, label, _, properties = cases.load_case(case)
    hosts = {value for target in section.targets for value in target.host_labels}
    known = [
        places
        for key, places in properties["class_locations"].items()
        if len(places) and hosts & set(np.atleast_1d(key))
    ]
    shape = image.shape[1:]
    center = chance.choice(known[chance.integers(len(known))])[1:] if known else chance.integers(shape)
    starts = [int(np.clip(c - p // 2, 0, max(n - p, 0))) for c, p, n in zip(center, patch_size, shape)]
    box = (0, *(slice(start, start + size) for start, size in zip(starts, patch_size)))
    direction = properties.get("sitk_stuff", {}).get("direction")
    return _Patch(case, np.asarray(image[box], dtype=np.float32), np.asarray(label[box]), direction)


def _plant(
    patch: _Patch, synthesizer: Synthesizer, rng: torch.Generator, transpose_forward: list[int]
) -> list[Picture]:
    image = torch.from_numpy(patch.image)[None, None]
    label = torch.from_numpy(patch.label.astype(np.int16))[None, None]
    after, label_after, lesions, _ = synthesizer(image, label, synthesizer.draw(1, rng))
    hu = [synthesizer.intensity.to_hu(volume)[0, 0].numpy() for volume in (image, after)]
    labels = [volume[0, 0].numpy() for volume in (label, label_after)]
    targets = synthesizer.section.targets
    places = [
        Place(lesion.center, lesion.diameter_mm, f"{patch.case}, {targets[lesion.target].name}")
        for lesion in lesions
        if lesion.change.kept
    ]
    pictures = pictures_of(*hu, *labels, places=places, spacing_mm=synthesizer.spacing_mm)
    if patch.direction is None:
        return pictures
    return [picture.upright(patch.direction, transpose_forward) for picture in pictures]
