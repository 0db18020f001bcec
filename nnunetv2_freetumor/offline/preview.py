"""Preview what training will plant: before/after/mask pictures of preprocessed training cases."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunetv2_freetumor import intensity
from nnunetv2_freetumor.files.cases import check_writable
from nnunetv2_freetumor.generators import choice as generator_choice
from nnunetv2_freetumor.generators.choice import Choice
from nnunetv2_freetumor.pages.sheets import FIELD_OF_VIEW_BOUNDS_MM, Picture, lesion_sheet, pictures_of, upright
from nnunetv2_freetumor.plan import Section, always_planting
from nnunetv2_freetumor.planning import section as planning
from nnunetv2_freetumor.planning.clip_window import preprocess_command
from nnunetv2_freetumor.synthesis.planted import Aim, BeforeAfter
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer

_PATCHES_PER_LESION = 12  # to try


class _Patch(NamedTuple):
    case: str
    image: np.ndarray  # (x y z) z-scores, nnU-Net's axis order: the patch and its surroundings
    label: np.ndarray
    inner: tuple[slice, ...]  # the patch itself
    direction: tuple[float, ...] | None  # SimpleITK's, if nnU-Net read the case with it


def preview_command(
    dataset: str,
    output: str | Path,
    plans_name: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    count: int = 6,
    seed: int = 0,
) -> None:
    """Plot a sheet of lesions as training would plant them and print its path.

    Raises:
        ValueError: there is no such dataset, it is not preprocessed, the output folder cannot be written to, or the
            section cannot work.
    """
    folder = check_writable(output)
    preprocessed, plans, dataset_json = planning.load_plans(dataset, plans_name)
    if configuration not in plans["configurations"]:
        choices = ", ".join(plans["configurations"])
        raise ValueError(f"{plans_name}.json has no configuration '{configuration}'; choose one of {choices} with -c.")
    planning.check_configuration(plans, configuration, dataset_json)
    settings = PlansManager(plans).get_configuration(configuration)
    data = preprocessed / settings.data_identifier
    if not (data.is_dir() and any(data.iterdir())):
        command = preprocess_command(plans, [configuration])
        raise ValueError(f"{data} holds no preprocessed cases. Run\n{command}")
    section = always_planting(planning.section_for_training(plans, dataset_json))
    chosen = generator_choice.choose_generators(
        section, plans, configuration=configuration, fold=None, validation_cases=[]
    )
    print(*generator_choice.choice_lines(chosen), sep="\n")
    pictures = _pictures(
        data, settings, synthesizer=_synthesizer(settings, section, plans, chosen), plans=plans, count=count, seed=seed
    )
    if not pictures:
        raise ValueError(
            f"There was no room for any lesion in the cases of {data}. Check that their hosts are labeled and large."
        )
    path = folder / f"preview_{plans['dataset_name']}_{configuration}.png"
    names = " and ".join(dict.fromkeys(choice.generator for choice in chosen))
    lesion_sheet(pictures, path, f"{plans['dataset_name']}, {configuration}, {names}, seed {seed}")
    print(f"Planted {len(pictures)} of {count} lesion(s).")
    print(path)


def _synthesizer(
    settings: ConfigurationManager, section: Section, plans: dict[str, Any], choices: list[Choice]
) -> Synthesizer:
    spacing_mm = (float(settings.spacing[0]), float(settings.spacing[1]), float(settings.spacing[2]))
    slice_axis = plans["transpose_forward"].index(0)
    generators = generator_choice.build_generators(choices, section, slice_axis, torch.device("cpu"))
    return Synthesizer(section, spacing_mm, intensity.from_plans(plans), generators)


def _pictures(
    data: Path,
    settings: ConfigurationManager,
    synthesizer: Synthesizer,
    plans: dict[str, Any],
    count: int,
    seed: int,
) -> list[Picture]:
    """Go through the cases in turn, one patch each, until there are enough lesions."""
    rng, chance = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    cases = infer_dataset_class(str(data))(str(data))
    order = chance.permutation(cases.identifiers)
    pictures: list[Picture] = []
    with tqdm(total=count, desc="planting", unit="lesion", disable=None) as progress:
        for attempt in range(_PATCHES_PER_LESION * count):
            patch = _patch(
                cases, str(order[attempt % len(order)]), settings=settings, section=synthesizer.section, chance=chance
            )
            found = _plant(patch, synthesizer, rng, plans["transpose_forward"])[: count - len(pictures)]
            pictures += found
            progress.update(len(found))
            if len(pictures) == count:
                break
    return pictures


def _patch(cases: Any, case: str, settings: ConfigurationManager, section: Section, chance: Any) -> _Patch:
    """Cut a patch around a random host voxel, or anywhere if no host has a label."""
    image, label, _, properties = cases.load_case(case)
    hosts = {value for target in section.targets for value in target.host_labels}
    found = [at for key, at in properties["class_locations"].items() if len(at) and hosts & set(np.atleast_1d(key))]
    shape = np.array(image.shape[1:])
    center = chance.choice(found[chance.integers(len(found))])[1:] if found else chance.integers(shape)
    start = np.clip(center - np.array(settings.patch_size) // 2, 0, np.maximum(shape - settings.patch_size, 0))
    stop = np.minimum(start + settings.patch_size, shape)
    margin = np.ceil(FIELD_OF_VIEW_BOUNDS_MM[1] / 2 / np.array(settings.spacing)).astype(int)
    outer_start = np.maximum(start - margin, 0)
    outer = (0, *map(slice, outer_start, np.minimum(stop + margin, shape)))
    inner = tuple(map(slice, start - outer_start, stop - outer_start))
    direction = properties.get("sitk_stuff", {}).get("direction")
    return _Patch(
        case,
        np.asarray(image[outer], np.float32),
        label=np.asarray(label[outer], np.int16),
        inner=inner,
        direction=direction,
    )


def _plant(
    patch: _Patch, synthesizer: Synthesizer, rng: torch.Generator, transpose_forward: list[int]
) -> list[Picture]:
    image, label = (torch.from_numpy(array[patch.inner].copy())[None, None] for array in (patch.image, patch.label))
    image, label, lesions, _ = synthesizer(image, label, synthesizer.draw(1, rng))
    after, label_after = patch.image.copy(), patch.label.copy()
    after[patch.inner], label_after[patch.inner] = image[0, 0].numpy(), label[0, 0].numpy()
    before_hu, after_hu = (synthesizer.intensity.to_hu(torch.from_numpy(z)).numpy() for z in (patch.image, after))
    aims = [
        Aim(
            center=[at + part.start for at, part in zip(lesion.site.center, patch.inner)],
            diameter_mm=lesion.site.diameter_mm,
            name=f"{patch.case}, {synthesizer.section.targets[lesion.site.target].name}",
        )
        for lesion in lesions
        if lesion.change.kept
    ]
    change = BeforeAfter(before_hu, after_hu, patch.label, label_after)
    pictures = pictures_of(change, aims, synthesizer.spacing_mm)
    if patch.direction is None:
        return pictures
    return [picture.turned(upright(patch.direction, transpose_forward)) for picture in pictures]
