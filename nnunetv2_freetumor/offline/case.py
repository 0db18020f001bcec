"""Make one synthetic case: read, plant, and write image, label and, last of all, provenance."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nnunetv2_freetumor.cluster.reports import CaseReport
from nnunetv2_freetumor.files import cases
from nnunetv2_freetumor.files.cases import SLICE_AXIS, Case
from nnunetv2_freetumor.files.hashes import file_hash
from nnunetv2_freetumor.generators.choice import Choice, build_generators
from nnunetv2_freetumor.offline.planting import plant, real_tumor_note
from nnunetv2_freetumor.offline.provenance import GeneratorFile, PlantingSettings, exact_hash, record

PROVENANCE = "provenance"  # folder of the new dataset


class Source(NamedTuple):
    """A real case to plant into."""

    case: str
    image: str
    label: str


class Destination(NamedTuple):
    """Where a synthetic case is written."""

    folder: str  # of the new dataset
    ending: str


class SyntheticOrder(NamedTuple):
    """One synthetic case to be made."""

    case: str
    source: Source
    dataset: str  # of the source; empty if it is from folders
    destination: Destination
    settings: PlantingSettings
    labels: tuple[int, ...] = ()  # the label values that may occur; empty: any
    expected: tuple[tuple[str, str], ...] = ()  # content hashes of inputs and results, for a case that is recreated


class SyntheticFiles(NamedTuple):
    """The files of a synthetic case."""

    image: Path
    label: Path
    provenance: Path


class _Inputs(NamedTuple):
    image: Case
    label: Case
    names_and_hashes: dict[str, Any]


def synthetic_files(order: SyntheticOrder) -> SyntheticFiles:
    """Return the paths of a case's three files."""
    folder, ending = Path(order.destination.folder), order.destination.ending
    return SyntheticFiles(
        folder / "imagesTr" / f"{order.case}_0000{ending}",
        folder / "labelsTr" / f"{order.case}{ending}",
        folder / PROVENANCE / f"{order.case}.json",
    )


def is_made(order: SyntheticOrder) -> bool:
    """Return whether a case is complete."""
    return all(path.is_file() for path in synthetic_files(order))


def make_case(order: SyntheticOrder) -> CaseReport:
    """Make one case; one whose input is unusable is skipped, and nothing of it is written."""
    with one_thread():
        try:
            inputs = _read(order)
            generators = _generators(order.settings)
            device = torch.device(order.settings.device)
            planting = plant(*inputs[:2], order.settings.section, order.settings.lesions, device, *generators)
        except ValueError as error:
            return CaseReport(order.case, "skipped", str(error))
    if not planting.lesions:
        reason = planting.shortfall or "there is no room for any lesion"
        return CaseReport(order.case, "skipped", f"{order.source.image}: {reason}")
    source = {"case": order.source.case, "dataset": order.dataset, **inputs.names_and_hashes}
    written = record(
        order.case,
        source,
        settings=order.settings,
        planted=planting.lesions,
        image=planting.image,
        label=planting.label,
    )
    _check_expected(order, written["result"], "result")
    files = synthetic_files(order)
    cases.write_case(planting.image, files.image)
    cases.write_case(planting.label, files.label)
    cases.write_json(written, files.provenance)
    notes = [real_tumor_note(inputs.label, t.tumor_label) for t in order.settings.section.targets if order.labels]
    text = " ".join(filter(None, [*notes, planting.shortfall]))
    return CaseReport(order.case, "done", text, _counts(order, files, len(planting.lesions)))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread, so that sums are added up in the same order wherever a case is made."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read(order: SyntheticOrder) -> _Inputs:
    image, label = cases.read_case(order.source.image), cases.read_label(order.source.label)
    cases.check_same_geometry(image, label)
    known = {
        part: {"name": case.path.name, "sha256": exact_hash(case)}
        for part, case in (("image", image), ("label", label))
    }
    _check_expected(order, {part: item["sha256"] for part, item in known.items()}, "input")
    if order.labels and (others := sorted(set(np.unique(label.array).tolist()) - set(order.labels))):
        named = ", ".join(f"{value:g}" for value in others)
        raise ValueError(
            f"{label.path} holds the labels {named}, which are neither background nor --host nor --tumor. Set them to "
            "0 in the masks, or list the ones that are healthy host tissue in --host."
        )
    return _Inputs(image, label, known)


def _generators(settings: PlantingSettings) -> list[Any]:
    """Load the generators and refuse files that have changed since they were chosen."""
    for generator in settings.generators:
        if generator.path is not None and file_hash(generator.path) != generator.sha256:
            raise OSError(f"The generator file {generator.path} has changed since this run began. Start the run again.")
    choices = [
        Choice(target.name, generator.name, generator.path and Path(generator.path), "")  # type: ignore[arg-type]
        for target, generator in zip(settings.section.targets, settings.generators)
    ]
    return build_generators(choices, settings.section, SLICE_AXIS, torch.device(settings.device))


def _check_expected(order: SyntheticOrder, hashes: dict[str, str], kind: str) -> None:
    """Refuse voxels that do not match the hashes of a provenance file."""
    expected = dict(order.expected)
    for part, sha256 in hashes.items():
        if expected.get(f"{kind} {part}", sha256) != sha256:
            where = {"image": order.source.image, "label": order.source.label}[part]
            text = (
                f"{where} does not hold the voxels that {order.case} was made from"
                if kind == "input"
                else f"the {part} of {order.case} does not match its provenance: PyTorch, the device or the kind of "
                "CPU differ (the provenance file names them)"
            )
            raise ValueError(text[0].upper() + text[1:] + ".")


def _counts(order: SyntheticOrder, files: SyntheticFiles, lesions: int) -> dict[str, float]:
    """Count what was read and written."""
    read = sum(Path(path).stat().st_size for path in order.source[1:])
    return {
        "lesions": lesions,
        "lesions asked for": order.settings.lesions,
        "bytes_in": read,
        "bytes_out": sum(path.stat().st_size for path in files),
        "files_out": len(files),
    }


def generator_file(choice: Choice) -> GeneratorFile:
    """Return a chosen generator's name, path and hash."""
    if choice.path is None:
        return GeneratorFile(choice.generator)
    return GeneratorFile(choice.generator, str(choice.path.resolve()), file_hash(choice.path))
