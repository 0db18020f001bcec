"""Pair every real lesion with planted ones: the same case, the same host, the same diameter, one at a time.

Each planted lesion goes into the case as it was, away from the real ones. Where it goes and how it is shaped is drawn
from the seed, the case's name and the lesion's number, so every generator draws the same lesions, and one that is added
later finds its partners.
"""

import dataclasses
import json
import math
import zlib
from collections.abc import Iterator, Sequence
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
    Lesions,
    Scene,
    Site,
    describe,
    diameter_mm,
    read_lesions,
    save_lesions,
    stack,
)
from nnunetv2_freetumor.files import cases
from nnunetv2_freetumor.intensity import RAW_CT
from nnunetv2_freetumor.offline.planting import CANDIDATES, TRIES, find_host
from nnunetv2_freetumor.plan import Prior, Section, SizeClass, Target
from nnunetv2_freetumor.planning.measurement import MIN_DIAMETER_MM, MIN_TUMOR_VOXELS
from nnunetv2_freetumor.synthesis.region import Generator
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer

REAL = "real"
MEASUREMENT = 1  # to be raised when planting or measuring changes, so that nothing older is read
SIZE_TOLERANCE = 0.15  # of the planted lesion's ln(diameter): the host may cut it, and flat ones grow to be drawn
_MARGIN_MM = 50.0  # around the host; the same for all generators, or their draws would find other places


class CaseFiles(NamedTuple):
    """One case's files."""

    name: str
    patient: str
    image: Path
    label: Path


class Setup(NamedTuple):
    """What the pairs follow from, the cases and generators aside."""

    target: Target
    seed: int

    def section(self, diameter_mm: float) -> Section:
        """Make the section that plants one lesion of a diameter."""
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


def make_target(prior: Prior, hosts: Sequence[int], tumor: int) -> Target:
    """Say what is planted into which labels.

    Raises:
        ValueError: the labels cannot be host and tumor.
    """
    if not hosts:
        raise ValueError("--host is missing: give the labels of the organ that the tumors lie in, as --host 1.")
    if tumor <= 0 or tumor in hosts:
        raise ValueError(f"--tumor must be a label above 0 and none of --host {list(hosts)}, but it is {tumor}.")
    source = f"bundled prior '{prior.name}'"
    return Target(
        name=prior.name,
        tumor_label=tumor,
        lesion_labels=(tumor,),
        prior=prior,
        source=source,
        host_labels=tuple(hosts),
    )


def collect(files: CaseFiles, contestant: Contestant | None, setup: Setup, folder: Path, device: str) -> Lesions:
    """Measure a case's real lesions, or those that a generator draws; what an earlier run measured is read instead.

    Raises:
        ValueError: the case's files cannot be read, do not match, or have no host.
    """
    source, identity = (contestant.name, contestant.identity) if contestant else (REAL, "")
    path = folder / files.name / f"{source.replace('/', '_')}.npz"
    key = _key(files, source, identity, setup)
    saved = read_lesions(path, key)
    if saved is not None:
        return saved
    scene = _load(files, setup.target, device)
    real = list(_real_sites(scene, setup.target))
    if contestant is None:
        rows = [describe(site, scene) for site in real]
    else:
        generator = contestant.build(torch.device(device))
        sizes = [diameter_mm(site.lesion, scene) for site in real]
        rows = [_planted_row(scene, setup, generator, size, number, device) for number, size in enumerate(sizes)]
    lesions = stack(rows)
    save_lesions(lesions, key, path)
    return lesions


def _key(files: CaseFiles, source: str, identity: str, setup: Setup) -> str:
    """Write down all that a case's measurement follows from."""
    sizes = [path.stat().st_size if path.is_file() else 0 for path in (files.image, files.label)]
    target = plan.to_json(setup.target)
    return json.dumps(
        [MEASUREMENT, __version__, source, identity, setup.seed, target, sizes, FEATURES, TILE], sort_keys=True
    )


def _load(files: CaseFiles, target: Target, device: str) -> Scene:
    image, label = cases.read_case(files.image), cases.read_label(files.label)
    cases.check_same_geometry(image, label)
    spacing_mm = (image.spacing_mm[0], image.spacing_mm[1], image.spacing_mm[2])
    host = find_host(image, label, target, spacing_mm, torch.device(device))
    margin = [math.ceil(_MARGIN_MM / step) for step in spacing_mm]
    inside = host | (label.array == target.tumor_label)
    box = bounding_box_to_slice(pad_bbox(get_bbox_from_mask(inside), margin, host.shape))
    hu, labels = np.rint(image.array[box]).astype(np.float32), label.array[box].astype(np.int32)
    return Scene(files.name, hu, labels, spacing_mm, image.direction)


def _real_sites(scene: Scene, target: Target) -> Iterator[Site]:
    """Find the connected tumors that are large enough to be measured."""
    host = np.isin(scene.label, target.host_labels)
    components = cc3d.connected_components(scene.label == target.tumor_label, connectivity=26)
    for number, voxels in enumerate(cc3d.statistics(components)["voxel_counts"]):
        lesion = components == number
        if number and voxels >= MIN_TUMOR_VOXELS and diameter_mm(lesion, scene) >= MIN_DIAMETER_MM:
            yield Site(scene.hu, lesion, host)


def _planted_row(
    scene: Scene, setup: Setup, generator: Generator, size_mm: float, number: int, device: str
) -> dict[str, Any] | None:
    """Plant one lesion and describe it; None where it finds no place in all tries."""
    synthesizer = Synthesizer(setup.section(size_mm), scene.spacing_mm, RAW_CT, generators=[generator])
    rng = torch.Generator().manual_seed(_chance(setup.seed, scene.name, number))
    hu, label = (torch.from_numpy(array)[None, None].to(device) for array in (scene.hu, scene.label))
    for _ in range(TRIES):
        draw = synthesizer.draw(1, rng, CANDIDATES)
        after = synthesizer(hu, label, draw)
        if not any(bool(lesion.change.kept) for lesion in after.lesions):
            continue
        labels = after.label[0, 0].cpu().numpy()
        lesion = _largest(labels != scene.label)
        if lesion.sum() >= MIN_TUMOR_VOXELS and abs(math.log(diameter_mm(lesion, scene) / size_mm)) <= SIZE_TOLERANCE:
            host = np.isin(labels, setup.target.host_labels)
            row = describe(Site(np.rint(after.image[0, 0].cpu().numpy()), lesion, host), scene)
            if row is not None:
                return row
    return None


def _chance(seed: int, name: str, number: int) -> int:
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode()), number]).generate_state(1)[0])


def _largest(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    return np.asarray(cc3d.largest_k(mask, k=1, connectivity=26)) > 0
