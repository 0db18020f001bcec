"""Choose the generator of each target, give the reason, and load it.

`auto` takes the first of these that supports the target's host: the one trained for this dataset, plans, configuration
and fold; the newest installed one whose training data include real tumors of this host; `texture`. One trained on
phantoms runs by name only.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nnunetv2_freetumor.files.checkpoints import CHECKPOINT
from nnunetv2_freetumor.generators.cards import Card
from nnunetv2_freetumor.generators.grid import array_order
from nnunetv2_freetumor.generators.learned import LearnedGenerator
from nnunetv2_freetumor.generators.weights import available, find_generator, load_generator, read_card
from nnunetv2_freetumor.plan import Section, Target
from nnunetv2_freetumor.synthesis.region import Generator
from nnunetv2_freetumor.synthesis.texture import TextureGenerator

GENERATOR_TRAINER = "nnUNetTrainerFreeTumorGenerator"
GENERATOR_FILE = "generator.safetensors"  # in the fold's folder
ASKED_FOR = "requested by name"
COPYING_SECONDS = 60.0  # a copied folder's files may be this much out of order
_RESULTS = "nnUNet_results"
_LENGTHS = re.compile(rf"{GENERATOR_TRAINER}(_\d+epochs?)?")

Fold = int | str | None


class Choice(NamedTuple):
    """Which generator renders a target's lesions. Field names are a file format: freetumor_chosen.json."""

    target: str
    generator: str  # its name
    path: Path | None  # none: it has no weights
    reason: str


class _Found(NamedTuple):
    path: Path
    card: Card
    reason: str


def choose_generators(
    section: Section, plans: dict[str, Any], configuration: str, fold: Fold, validation_cases: Sequence[str]
) -> list[Choice]:
    """Choose a generator for each target.

    Args:
        section: its `generator` is auto, texture, the name of an installed or bundled one, or a path.
        plans: nnU-Net's plans; empty where there is no dataset.
        configuration: of the plans.
        fold: number or "all"; without one, `auto` takes the newest of any fold, and no case counts as validation.
        validation_cases: of a numbered fold; a generator trained on one of them is refused.

    Raises:
        ValueError: a named generator cannot be read or does not support a host, or one was trained on validation cases.
    """
    found = [_choose(section, target, plans, configuration, fold=fold) for target in section.targets]
    for one in found:
        if isinstance(fold, int) and isinstance(one, _Found):
            _check_fold(one, plans, configuration, fold=fold, validation_cases=validation_cases)
    return [
        Choice(target.name, one.card.name, one.path, one.reason)
        if isinstance(one, _Found)
        else Choice(target.name, "texture", None, one)
        for target, one in zip(section.targets, found)
    ]


def build_generators(
    choices: Sequence[Choice], section: Section, slice_axis: int, device: torch.device
) -> list[Generator]:
    """Load what was chosen, each file once; `slice_axis` is the arrays' axis along the patient's z."""
    loaded = {path: load_generator(path, device) for path in {choice.path for choice in choices} if path is not None}
    built: list[Generator] = []
    for choice, target in zip(choices, section.targets):
        if choice.path is None:
            built.append(TextureGenerator())
            continue
        network, card = loaded[choice.path]
        channel = card.hosts.index(target.prior.name)
        built.append(LearnedGenerator(network, card, array_order(card.spacing_mm, slice_axis), channel))
    return built


def choice_lines(choices: Iterable[Choice]) -> list[str]:
    """Describe each target's choice and the reason for it, in one line each."""
    return [
        f"FreeTumor: {target}: generator {name}{'' if path is None else f' ({path})'}, {reason}"
        for target, name, path, reason in choices
    ]


def _choose(section: Section, target: Target, plans: dict[str, Any], configuration: str, fold: Fold) -> _Found | str:
    """Choose a target's generator; where that is `texture`, return the reason instead."""
    if section.generator == "texture":
        return ASKED_FOR
    if section.generator != "auto":
        return _named(section.generator, target)
    files = _own_files(plans, fold)
    ended = [file for file in files if _has_ended(file)]
    own = _own(ended, plans, configuration, fold) if ended else None
    if own is not None and target.prior.name in own.card.hosts:
        return own
    passed = "" if ended or not files else f"; skipped {files[0]}, whose training has not finished"
    found = _installed(target.prior.name)
    if found is not None:
        return found._replace(reason=found.reason + passed)
    return _why_texture(target.prior.name, own, fold) + passed


def _named(name: str, target: Target) -> _Found:
    try:
        path = find_generator(name)
    except ValueError as error:
        raise ValueError(f"{error} The setting 'generator' may also be auto or texture.") from error
    card = read_card(path)
    if target.prior.name not in card.hosts:
        raise ValueError(
            f"The generator '{card.name}' ({path}) supports the hosts {', '.join(card.hosts)}, but the target "
            f"'{target.name}' needs '{target.prior.name}'. Set 'generator' to auto, to texture, or to one that "
            "supports this host ('nnUNetv2_freetumor generator list' shows them)."
        )
    return _Found(path, card, ASKED_FOR)


def _own_files(plans: dict[str, Any], fold: Fold) -> list[Path]:
    """List the generators that were, or are being, trained for this dataset and fold."""
    results = os.environ.get(_RESULTS)
    if not (plans and results):
        return []
    pattern = f"{GENERATOR_TRAINER}*__*__*/fold_{'*' if fold is None else fold}/{GENERATOR_FILE}"
    found = sorted((Path(results) / plans["dataset_name"]).glob(pattern))
    return [path for path in found if _LENGTHS.fullmatch(path.parts[-3].split("__")[0])]


def _has_ended(file: Path) -> bool:
    """Check whether the training that wrote a generator has ended; one that was restarted has an older checkpoint."""
    checkpoint = file.parent / CHECKPOINT
    return checkpoint.is_file() and checkpoint.stat().st_mtime > file.stat().st_mtime - COPYING_SECONDS


def _own(files: Sequence[Path], plans: dict[str, Any], configuration: str, fold: Fold) -> _Found:
    """Choose among a dataset's own generators: of these plans, by the plain class, the newest, in this order."""

    def _preference(file: Path) -> tuple[bool, bool, int]:
        model = file.parts[-3]
        of_these = model.endswith(f"__{plans['plans_name']}__{configuration}")
        return of_these, fold is not None and model.startswith(f"{GENERATOR_TRAINER}__"), file.stat().st_mtime_ns

    path = max(files, key=_preference)
    where = ", ".join([plans["dataset_name"], *path.parts[-3].split("__")[1:]])
    newest = "the newest of all folds, " if fold is None else ""
    fold_name = path.parent.name.replace("_", " ")
    return _Found(
        path, read_card(path), f"{newest}trained for {where}, {fold_name}, by {path.parts[-3].split('__')[0]}"
    )


def _installed(host: str) -> _Found | None:
    """Find the newest generator, by its card's date, that was trained on real tumors of a host and supports it."""
    fitting = [
        (path, card)
        for path, card in available()
        if isinstance(card, Card) and host in card.real_tumors and host in card.hosts
    ]
    if not fitting:
        return None
    path, card = max(fitting, key=lambda found: (found[1].date, found[1].name))
    others = ", ".join(sorted(other.name for _, other in fitting if other is not card))
    passed = f"; also installed, but older: {others}" if others else ""
    return _Found(path, card, f"installed, and trained on real tumors of the host '{host}'{passed}")


def _why_texture(host: str, own: _Found | None, fold: Fold) -> str:
    if own is None:
        first = "no generator was trained for this dataset" + ("" if fold is None else " and fold")
    else:
        first = f"the one trained for this dataset ({own.path}) supports only {', '.join(own.card.hosts)}"
    if not os.environ.get(_RESULTS):
        return f"{first}, and installed ones cannot be found because {_RESULTS} is not set"
    broken = [path.name for path, card in available() if isinstance(card, str)]
    unread = f" (unreadable: {', '.join(broken)})" if broken else ""
    return f"{first}, and no installed one was trained on real tumors of the host '{host}'{unread}"


def _check_fold(
    found: _Found, plans: dict[str, Any], configuration: str, fold: int, validation_cases: Sequence[str]
) -> None:
    """Refuse a generator that has seen a case on which this fold's model will be validated."""
    card = found.card
    seen = sorted(set(card.training_cases) & set(validation_cases)) if card.dataset == plans["dataset_name"] else []
    if not seen:
        return
    named = ", ".join(seen[:3]) + (" ..." if len(seen) > 3 else "")
    train = f"nnUNetv2_train {card.dataset} {configuration} {fold} -tr {GENERATOR_TRAINER} -p {plans['plans_name']}"
    raise ValueError(
        f"The generator '{card.name}' ({found.path}) was trained on {len(seen)} of the {len(validation_cases)} "
        f"validation cases of fold {fold} ({named}), so this fold's scores would be too optimistic. Train a generator "
        f"for this fold with '{train}', set 'generator' to texture in the plans' freetumor section, or train fold all."
    )
