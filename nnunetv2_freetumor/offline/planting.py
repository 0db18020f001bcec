"""Plant lesions into one raw CT volume, one after the other; every voxel that no lesion changes stays."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask, pad_bbox
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from nnunetv2_freetumor.files.cases import Case
from nnunetv2_freetumor.intensity import RAW_CT
from nnunetv2_freetumor.plan import Section, Target
from nnunetv2_freetumor.synthesis.hosts import host_mask
from nnunetv2_freetumor.synthesis.planted import Aim, BeforeAfter, Planted, measure_planted
from nnunetv2_freetumor.synthesis.proposals import CONTEXT_MM
from nnunetv2_freetumor.synthesis.region import Generator
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer
from nnunetv2_freetumor.synthesis.volume import Spacing

CANDIDATES_PER_LESION = 256  # host voxels to try in one draw
TRIES_PER_LESION = 12  # until one finds a place
_PLAUSIBLE_HOST_HU = (-1000.0, 400.0)


class Planting(NamedTuple):
    """A case with its lesions; `shortfall` explains why there are fewer than asked for."""

    image: Case
    label: Case
    lesions: list[Planted]
    shortfall: str = ""


class _Seen(NamedTuple):
    """A target whose host is in view, with its generator."""

    target: Target
    generator: Generator
    host: np.ndarray


class _Volume(NamedTuple):
    hu: Float[Tensor, "1 1 z y x"]
    label: Int[Tensor, "1 1 z y x"]


def plant(
    image: Case, label: Case, section: Section, lesions: int, device: torch.device, *generators: Generator
) -> Planting:
    """Plant up to `lesions` lesions of the section's targets; each keeps away from the ones before.

    `generators` render them, one for each target. Targets are chosen at random among those whose host is in view.

    Raises:
        ValueError: the label map's type cannot hold a tumor's label, no host is in view, or the image is not in HU.
    """
    spacing_mm = (image.spacing_mm[0], image.spacing_mm[1], image.spacing_mm[2])
    assert len(generators) == len(section.targets), "one generator for each target"
    found = _in_view(image, label, section=section, generators=generators, device=device)
    if small := [reason for seen in found if (reason := _too_small(seen, spacing_mm))]:
        found = [seen for seen in found if not _too_small(seen, spacing_mm)]
        if not found:
            return Planting(image, label, [], small[0])
    context_mm = max(max(CONTEXT_MM + t.prior.exophytic_mm, g.window_mm / 2) for t, g, _ in found)
    margin = [math.ceil(context_mm / step) for step in spacing_mm]
    shown = np.logical_or.reduce([seen.host for seen in found])
    box = bounding_box_to_slice(pad_bbox(get_bbox_from_mask(shown), margin, shown.shape))
    targets, labels = _with_labeled_hosts(found, label.array[box].astype(np.int32), box)
    section = dataclasses.replace(section, targets=targets)
    before = _Volume(_tensor(image.array[box].astype(np.float32), device), _tensor(labels, device))
    synthesizer = Synthesizer(section, spacing_mm, RAW_CT, [seen.generator for seen in found])
    after, aims = _plant_one_by_one(before, synthesizer, lesions)
    planted = image.with_array(image.array.copy()), label.with_array(label.array.copy())
    _write_changes(planted[0].array[box], before.hu, after.hu)
    _write_changes(planted[1].array[box], before.label, after.label)
    change = BeforeAfter(image.array[box], planted[0].array[box], label.array[box], planted[1].array[box])
    measured = [_moved(lesion, box) for lesion in measure_planted(change, aims, spacing_mm)]
    reason = "" if len(measured) == lesions else "There is no room for more lesions: ask for fewer or smaller ones."
    return Planting(*planted, measured, reason)


def real_tumor_note(label: Case, tumor: int) -> str:
    """Note that a label map uses the tumor's label already, perhaps for another organ; empty if it does not."""
    voxels = int(np.count_nonzero(label.array == tumor))
    if not voxels:
        return ""
    return (
        f"Label {tumor} already marks {voxels} voxels; they count as real tumor and stay untouched. If it means "
        "something else in the label map, choose another --tumor."
    )


def _in_view(
    image: Case, label: Case, section: Section, generators: Sequence[Generator], device: torch.device
) -> list[_Seen]:
    """Return the targets whose host is in view."""
    spacing_mm = (image.spacing_mm[0], image.spacing_mm[1], image.spacing_mm[2])
    found, errors = [], []
    for target, generator in zip(section.targets, generators):
        _check_type(label, target.tumor_label)
        try:
            host = find_host(image, label, target=target, spacing_mm=spacing_mm, device=device)
        except ValueError as error:
            errors.append(error)
            continue
        _check_hu(image, label, host)
        found.append(_Seen(target, generator, host))
    if not found:
        raise errors[0]
    return found


def _too_small(seen: _Seen, spacing_mm: Spacing) -> str:
    """Return a message if a host is smaller than the smallest lesion, else an empty text."""
    host_mm3 = float(seen.host.sum()) * math.prod(spacing_mm)
    smallest_mm = min(size.min_mm for size in seen.target.prior.sizes if size.weight > 0)
    if host_mm3 >= math.pi / 6 * smallest_mm**3:
        return ""
    return f"The host ({host_mm3:.0f} mm3) is smaller than the smallest lesion (diameter {smallest_mm:.1f} mm)."


def _plant_one_by_one(before: _Volume, synthesizer: Synthesizer, lesions: int) -> tuple[_Volume, list[Aim]]:
    """Plant one lesion at a time, with several tries each; stop at the first one that finds no place."""
    rng = torch.Generator().manual_seed(synthesizer.section.seed)
    volume, aims, targets = before, [], synthesizer.section.targets
    for _ in tqdm(range(lesions), desc="planting", unit="lesion", disable=None):
        for _ in range(TRIES_PER_LESION):
            hu, label, drawn, _ = synthesizer(*volume, synthesizer.draw(1, rng, CANDIDATES_PER_LESION))
            if kept := [lesion for lesion in drawn if lesion.change.kept]:
                break
        else:
            break
        volume = _Volume(hu, label)
        aims += [Aim(lesion.site.center, lesion.site.diameter_mm, targets[lesion.site.target].name) for lesion in kept]
    return volume, aims


def find_host(image: Case, label: Case, target: Target, spacing_mm: Spacing, device: torch.device) -> np.ndarray:
    """Mark a target's host in a case.

    Raises:
        ValueError: the case has none.
    """
    if target.host_hu is None:
        host = np.isin(label.array, target.host_labels)
    else:
        hu, labels = (_tensor(case.array.astype(np.float32), device) for case in (image, label))
        host = host_mask(target, hu, labels.int(), spacing_mm)[0, 0].cpu().numpy()
    if not host.any():
        raise ValueError(
            f"The host is empty: {_what_was_found(image, label, target)}. Give the organ's label with --host, or, for "
            "cases of a dataset, as 'host_labels' in the plans' freetumor section."
        )
    return host


def _what_was_found(image: Case, label: Case, target: Target) -> str:
    if target.host_hu is None:
        wanted, found = (", ".join(f"{v:g}" for v in values) for values in (target.host_labels, np.unique(label.array)))
        return f"{label.path} has no voxel of host {wanted}, only the labels {found}"
    return f"{image.path} shows no lung (unlabeled tissue of {target.host_hu} HU inside the body)"


def _with_labeled_hosts(
    found: Sequence[_Seen], labels: np.ndarray, box: tuple[slice, ...]
) -> tuple[tuple[Target, ...], np.ndarray]:
    """Assign a spare label to hosts without one, so that they are searched for only once."""
    targets = []
    for target, _, host in found:
        if target.host_hu is not None:
            spare = int(max(labels.max(), *(seen.target.tumor_label for seen in found), 0)) + 1
            labels = np.where(host[box], spare, labels)
            target = dataclasses.replace(target, host_labels=(spare,), host_hu=None)
        targets.append(target)
    return tuple(targets), labels


def _check_hu(image: Case, label: Case, host: np.ndarray) -> None:
    median_hu = float(np.median(image.array[host]))
    low, high = _PLAUSIBLE_HOST_HU
    if not low <= median_hu <= high:
        raise ValueError(
            f"{image.path} does not look like CT in HU: the host's median is {median_hu:.0f}, but organs lie between "
            f"{low:.0f} and {high:.0f} HU. Rescale it (often by subtracting 1024), or check --host and {label.path}."
        )


def _write_changes(array: np.ndarray, before: Tensor, after: Tensor) -> None:
    """Write only changed voxels, rounded for integer arrays."""
    changed = (before != after)[0, 0].cpu().numpy()
    values = after[0, 0].cpu().numpy()[changed]
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    array[changed] = values


def _check_type(label: Case, tumor: int) -> None:
    if label.array.dtype.kind in "iu" and tumor > np.iinfo(label.array.dtype).max:
        raise ValueError(
            f"--tumor {tumor} does not fit into {label.path}, whose type is {label.array.dtype}. Use a smaller label."
        )


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)[None, None]


def _moved(lesion: Planted, box: tuple[slice, ...]) -> Planted:
    return lesion._replace(center=tuple(at + part.start for at, part in zip(lesion.center, box)))
