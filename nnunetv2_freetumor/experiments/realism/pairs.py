"""Pair every real lesion with planted ones: the same case, the same host, the same diameter, one at a time.

Each planted lesion goes into the original case, away from the real ones. Its place and shape are drawn from the seed,
the case's name and the lesion's number, so they are the same for every generator, even for one that is added later.
"""

import dataclasses
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cc3d
import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask, pad_bbox
from jaxtyping import Bool

from nnunetv2_freetumor import __version__, plan
from nnunetv2_freetumor.experiments.realism.contestants import Contestant
from nnunetv2_freetumor.experiments.realism.features import FEATURES
from nnunetv2_freetumor.experiments.realism.lesions import (
    TILE,
    HostCrop,
    Lesions,
    Specimen,
    equivalent_diameter_mm,
    measure_specimen,
    read_lesions,
    save_lesions,
    stack,
)
from nnunetv2_freetumor.files import cases
from nnunetv2_freetumor.intensity import RAW_CT
from nnunetv2_freetumor.offline.planting import CANDIDATES_PER_LESION, TRIES_PER_LESION, find_host
from nnunetv2_freetumor.plan import Section, SizeClass, Target
from nnunetv2_freetumor.planning.measurement import MIN_DIAMETER_MM, MIN_TUMOR_VOXELS
from nnunetv2_freetumor.synthesis.region import Generator
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer

REAL_SOURCE = "real"
_MEASUREMENT = 1  # raise it when planting or measuring changes, so that nothing older is read
_SIZE_TOLERANCE = 0.15  # of the planted lesion's ln(diameter): the host may cut it, and flat ones grow when rendered
_MARGIN_MM = 50.0  # around the host; the same for all generators, or the same draws would give other places


class RealCase(NamedTuple):
    """The files of one case with real lesions."""

    name: str
    patient: str
    image: Path
    label: Path


class Pairing(NamedTuple):
    """What the pairs depend on besides cases and generators."""

    target: Target
    seed: int

    def section(self, diameter_mm: float) -> Section:
        """Return the section that plants one lesion of a diameter."""
        size = SizeClass(
            distribution="log_uniform", weight=1.0, min_mm=diameter_mm * 0.9999, max_mm=diameter_mm * 1.0001
        )
        target = dataclasses.replace(self.target, prior=dataclasses.replace(self.target.prior, sizes=(size,)))
        section = Section(
            targets=(target,),
            labels={},
            plans_hash="",
            generator="texture",
            judge="off",
            seed=self.seed,
            min_visibility=0.0,
        )
        return plan.always_planting(section, lesions=1)


def collect(files: RealCase, contestant: Contestant | None, pairing: Pairing, folder: Path, device: str) -> Lesions:
    """Measure a case's real lesions, or those that a generator renders, or read what an earlier run measured.

    Raises:
        ValueError: the case's files cannot be read, do not match, or have no host.
    """
    source, identity = (contestant.name, contestant.identity) if contestant else (REAL_SOURCE, "")
    path = folder / files.name / f"{source.replace('/', '_')}.npz"
    key = _key(files, source, identity, pairing)
    saved = read_lesions(path, key)
    if saved is not None:
        return saved
    crop = _load(files, pairing.target, device)
    real = list(_real_sites(crop, pairing.target))
    if contestant is None:
        rows = [measure_specimen(specimen, crop) for specimen in real]
    else:
        generator = contestant.build(torch.device(device))
        sizes = [equivalent_diameter_mm(specimen.lesion, crop) for specimen in real]
        rows = [
            _planted_row(crop, pairing, generator=generator, size_mm=size, number=number, device=device)
            for number, size in enumerate(sizes)
        ]
    lesions = stack(rows)
    save_lesions(lesions, key, path)
    return lesions


def _key(files: RealCase, source: str, identity: str, pairing: Pairing) -> str:
    """Return a text of everything that a case's measurement depends on."""
    sizes = [path.stat().st_size if path.is_file() else 0 for path in (files.image, files.label)]
    target = plan.to_json(pairing.target)
    return json.dumps(
        [_MEASUREMENT, __version__, source, identity, pairing.seed, target, sizes, FEATURES, TILE], sort_keys=True
    )


def _load(files: RealCase, target: Target, device: str) -> HostCrop:
    image, label = cases.read_case(files.image), cases.read_label(files.label)
    cases.check_same_geometry(image, label)
    spacing_mm = (image.spacing_mm[0], image.spacing_mm[1], image.spacing_mm[2])
    host = find_host(image, label, target=target, spacing_mm=spacing_mm, device=torch.device(device))
    margin = [math.ceil(_MARGIN_MM / step) for step in spacing_mm]
    inside = host | (label.array == target.tumor_label)
    box = bounding_box_to_slice(pad_bbox(get_bbox_from_mask(inside), margin, host.shape))
    hu, labels = np.rint(image.array[box]).astype(np.float32), label.array[box].astype(np.int32)
    return HostCrop(files.name, hu, label=labels, spacing_mm=spacing_mm, direction=image.direction)


def _real_sites(crop: HostCrop, target: Target) -> Iterator[Specimen]:
    """Yield the connected tumors that are large enough to be measured."""
    host = np.isin(crop.label, target.host_labels)
    components = cc3d.connected_components(crop.label == target.tumor_label, connectivity=26)
    for number, voxels in enumerate(cc3d.statistics(components)["voxel_counts"]):
        lesion = components == number
        if number and voxels >= MIN_TUMOR_VOXELS and equivalent_diameter_mm(lesion, crop) >= MIN_DIAMETER_MM:
            yield Specimen(crop.hu, lesion, host)


def _planted_row(
    crop: HostCrop, pairing: Pairing, generator: Generator, size_mm: float, number: int, device: str
) -> dict[str, Any] | None:
    """Plant one lesion and measure it; None if no try finds a place for it."""
    synthesizer = Synthesizer(pairing.section(size_mm), crop.spacing_mm, RAW_CT, generators=[generator])
    rng = torch.Generator().manual_seed(_chance(pairing.seed, crop.name, number))
    hu, label = (torch.from_numpy(array)[None, None].to(device) for array in (crop.hu, crop.label))
    for _ in range(TRIES_PER_LESION):
        draw = synthesizer.draw(1, rng, CANDIDATES_PER_LESION)
        after = synthesizer(hu, label, draw)
        if not any(bool(lesion.change.kept) for lesion in after.lesions):
            continue
        labels = after.label[0, 0].cpu().numpy()
        lesion = _largest(labels != crop.label)
        if (
            lesion.sum() >= MIN_TUMOR_VOXELS
            and abs(math.log(equivalent_diameter_mm(lesion, crop) / size_mm)) <= _SIZE_TOLERANCE
        ):
            host = np.isin(labels, pairing.target.host_labels)
            row = measure_specimen(Specimen(np.rint(after.image[0, 0].cpu().numpy()), lesion, host), crop)
            if row is not None:
                return row
    return None


def _chance(seed: int, name: str, number: int) -> int:
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode()), number]).generate_state(1)[0])


def _largest(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    return np.asarray(cc3d.largest_k(mask, k=1, connectivity=26)) > 0
