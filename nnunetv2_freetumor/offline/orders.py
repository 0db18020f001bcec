"""Order synthetic cases: from sources and a request, or again from a provenance file."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.files.synthetic_names import synthetic_name
from nnunetv2_freetumor.generators import choice as generator_choice
from nnunetv2_freetumor.generators.weights import find_generator, read_card
from nnunetv2_freetumor.offline.case import Destination, Source, SyntheticOrder, generator_file
from nnunetv2_freetumor.offline.provenance import GeneratorFile, PlantingSettings, Recorded, case_seed, read_provenance
from nnunetv2_freetumor.offline.sources import Listed, Sources, case_section, list_pairs, list_training_cases
from nnunetv2_freetumor.plan import RETIRED, to_json
from nnunetv2_freetumor.synthesis.draws import lesion_count


class Request(NamedTuple):
    """What the user asks for. Field names are a file format: settings.json."""

    per_case: int
    lesions: int | None  # of each case; None: drawn from the prior
    seed: int
    generator: str
    device: str


class Orders(NamedTuple):
    """The cases to be made, and what they depend on."""

    orders: list[SyntheticOrder]
    settings: dict[str, Any]  # what must stay the same when a run is continued
    choices: list[str]  # the generators, in words
    seen: set[str]  # cases of the source dataset that a generator was trained on


def make_orders(sources: Sources, folder: Path, request: Request) -> Orders:
    """Order each source's synthetic cases.

    Raises:
        ValueError: a number below 1, a bad seed, or a generator that cannot be used.
    """
    for flag, value in (("-n", request.per_case), ("--lesions", request.lesions)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, but it is {value}.")
    section = case_section(sources.section, request.seed)
    asked = dataclasses.replace(section, generator=request.generator)
    choices = generator_choice.choose_generators(asked, {}, configuration="", fold=None, validation_cases=[])
    generators = tuple(map(generator_file, choices))
    retired = {
        name: always for name, (always, _) in RETIRED.items()
    }  # so that a run that began with them can be continued
    text = json.dumps(to_json(section) | retired, sort_keys=True)
    settings = {
        "version": __version__,
        "source": sources.dataset,
        "section": hashlib.sha256(text.encode()).hexdigest()[:16],
        "generators": [[generator.name, generator.sha256] for generator in generators],
        **request._asdict(),
    }
    orders = [
        _order(sources, source, number=number, folder=str(folder), request=request, generators=generators)
        for source in sources.cases
        for number in range(request.per_case)
    ]
    cards = [read_card(path) for path in {choice.path for choice in choices} if path is not None]
    seen = {case for card in cards if card.dataset == sources.dataset for case in card.training_cases}
    return Orders(orders, settings, generator_choice.choice_lines(choices), seen)


def _order(
    sources: Sources, source: Source, number: int, folder: str, request: Request, generators: tuple[GeneratorFile, ...]
) -> SyntheticOrder:
    seed = case_seed(request.seed, source.case, number)
    uniform = torch.rand((), generator=torch.Generator().manual_seed(seed))
    lesions = request.lesions or lesion_count(sources.section.targets[0].prior, uniform)
    settings = PlantingSettings(case_section(sources.section, seed), lesions, generators, request.device)
    name, ending = synthetic_name(source.case, number), sources.dataset_json["file_ending"]
    return SyntheticOrder(
        name,
        source,
        dataset=sources.dataset,
        destination=Destination(folder, ending),
        settings=settings,
        labels=sources.labels,
    )


def order_again(provenance: str, folder: str, images: str | None, hosts: str | None, generator: str) -> SyntheticOrder:
    """Order a case again, with the hashes that inputs and result must have.

    Raises:
        ValueError: the file is not a provenance file of this version, or its inputs or generator are missing.
    """
    recorded = read_provenance(provenance)
    source, ending = _find_source(recorded, images, hosts)
    generators = tuple(_find_generator(known, generator) for known in recorded.settings.generators)
    expected = [(f"input {part}", recorded.source[part]["sha256"]) for part in ("image", "label")]
    expected += [(f"result {part}", recorded.result[part]) for part in ("image", "label")]
    settings = recorded.settings._replace(generators=generators)
    dataset = recorded.source["dataset"]
    destination = Destination(folder, ending)
    return SyntheticOrder(
        recorded.case, source, dataset=dataset, destination=destination, settings=settings, expected=tuple(expected)
    )


def _find_source(recorded: Recorded, images: str | None, hosts: str | None) -> tuple[Source, str]:
    """Find a case's inputs, and the ending of its files."""
    dataset, case = recorded.source["dataset"], recorded.source["case"]
    if dataset:
        listed = list_training_cases(dataset)
    elif images is not None and hosts is not None:
        listed = Listed(list_pairs(images, hosts)[0], ".nii.gz")
    else:
        raise ValueError(f"{recorded.case} was made from folders of images and masks: give both with -i and -l.")
    for source in listed.cases:
        if source.case == case:
            return source, listed.ending
    raise ValueError(
        f"The case {case} that {recorded.case} was made from is not in {dataset or f'{images} and {hosts}'}."
    )


def _find_generator(known: GeneratorFile, name: str) -> GeneratorFile:
    """Find a generator's file: by the name in the provenance, or the one that the user gives."""
    if known.sha256 is None:
        return known
    path = find_generator(known.name if name == "texture" else name)
    found = generator_file(generator_choice.Choice("", known.name, path, ""))
    if found.sha256 != known.sha256:
        raise ValueError(f"{path} is not the generator '{known.name}' of this case. Give its file with --generator.")
    return found
