"""The tumor fingerprint of a dataset: measure the training cases, summarize, and keep the result beside the plans."""

import hashlib
import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_freetumor.files.cases import check_finite, write_json
from nnunetv2_freetumor.files.synthetic_names import is_synthetic
from nnunetv2_freetumor.plan import Target, to_json
from nnunetv2_freetumor.planning.measurement import CaseMeasurement, Host, Tumor, measure_case
from nnunetv2_freetumor.planning.roles import read_labels

FINGERPRINT_FILE = "freetumor_fingerprint.json"
_VERSION = 2  # of the measurement: part of the stamp, so that a change measures anew


class CaseFiles(NamedTuple):
    """The files of one training case and the reader class for them."""

    case: str
    images: tuple[str, ...]
    label: str
    reader: type


class Notes(NamedTuple):
    """What one case adds: its measurements and, where there is one, a warning."""

    measurement: CaseMeasurement
    warning: str | None


def measure_dataset(
    raw_folder: Path,
    dataset_json: dict[str, Any],
    targets: tuple[Target, ...],
    cache: Path,
    num_processes: int | None = None,
) -> dict[str, Any]:
    """Measure all training cases, or read what was measured before on the same files.

    Returns the fingerprint of `summarize_tumors`, JSON types only.

    Raises:
        ValueError: a file is missing or unreadable, image and label differ in size or spacing, a voxel is NaN or
            infinite, or a target's host occurs in no case; the text names the file or label.
    """
    cases = _list_cases(raw_folder, dataset_json)
    stamp = _stamp(cases, targets)
    if cache.is_file() and (known := json.loads(cache.read_text(encoding="utf-8")))["stamp"] == stamp:
        return known["fingerprint"]
    notes = _measure_all(cases, targets, num_processes or default_num_processes)
    for warning in filter(None, (note.warning for note in notes)):
        print(f"Warning: {warning}", flush=True)
    measured = {files.case: note.measurement for files, note in zip(cases, notes)}
    fingerprint = summarize_tumors(measured, dataset_json["labels"], targets)
    write_json({"stamp": stamp, "fingerprint": fingerprint}, cache)
    return fingerprint


def summarize_tumors(
    measured: dict[str, CaseMeasurement], labels: dict[str, Any], targets: tuple[Target, ...]
) -> dict[str, Any]:
    """Summarize the cases: labels that occur nowhere, and each target's host and tumors.

    Planted tumors are not measured as if they were real: synthetic cases count for their labels only, and for their
    hosts where there are no other cases.
    """
    occurring = {value for case in measured.values() for value in case.labels}
    absent = [label.name for label in read_labels(labels) if not label.values & occurring]
    real = [case for name, case in measured.items() if not is_synthetic(name)]
    cases = real or [case._replace(tumors=dict.fromkeys(case.tumors, [])) for case in measured.values()]
    by_target = {target.name: _summarize_target(cases, labels, target) for target in targets}
    return {"cases": len(cases), "absent_labels": absent, "targets": by_target}


def is_label_free(fingerprint: dict[str, Any], labels: dict[str, Any], targets: tuple[Target, ...]) -> bool:
    """Check whether no training case holds the tumor of any target, so that planted ones are all there is to learn."""
    tumors = {target.tumor_label for target in targets}
    return all(label.name in fingerprint["absent_labels"] for label in read_labels(labels) if label.values & tumors)


def _summarize_target(cases: list[CaseMeasurement], labels: dict[str, Any], target: Target) -> dict[str, Any]:
    hosts = [case.hosts[target.name] for case in cases if target.name in case.hosts]
    if not hosts:
        raise ValueError(_host_is_absent(labels, target, len(cases)))
    per_case = [len(case.tumors[target.name]) for case in cases]
    tumors = [tumor for case in cases for tumor in case.tumors[target.name]]
    return {
        "cases_with_host": len(hosts),
        "cases_with_tumor": sum(count > 0 for count in per_case),
        "tumors": len(tumors),
        "tumors_per_case": _describe(per_case),
        "host": {name: _describe(getattr(host, name) for host in hosts) for name in Host._fields},
        "ln_diameter": _describe(np.log([tumor.diameter_mm for tumor in tumors])),
        **{name: _describe(getattr(tumor, name) for tumor in tumors) for name in Tumor._fields},
    }


def _host_is_absent(labels: dict[str, Any], target: Target, count: int) -> str:
    if target.host_hu is not None:
        return (
            f"No connected tissue of {target.host_hu[0]:g} to {target.host_hu[1]:g} HU inside the body was found in "
            f"any of the {count} training cases, so there is no host for '{target.name}'. Check that the images are CT "
            "in HU, or add a label for the organ."
        )
    names = ", ".join(f"'{label.name}'" for label in read_labels(labels) if label.values & set(target.host_labels))
    return (
        f"The host of '{target.name}', {names} (label {', '.join(map(str, target.host_labels))}), occurs in none of "
        f"the {count} training cases. Correct labelsTr or the names in dataset.json; synthesis needs the organ's label."
    )


def _describe(values: Iterable[Any]) -> dict[str, Any] | None:
    """Describe the numbers that could be measured."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not known.size:
        return None
    p05, p50, p95 = np.percentile(known, (5, 50, 95))
    spread = known.std(ddof=1) if known.size > 1 else 0.0
    numbers = {"mean": known.mean(), "sd": spread, "p05": p05, "p50": p50, "p95": p95}
    return {"n": int(known.size), **{name: round(float(number), 4) for name, number in numbers.items()}}


def _list_cases(raw_folder: Path, dataset_json: dict[str, Any]) -> list[CaseFiles]:
    listed = get_filenames_of_train_images_and_targets(str(raw_folder), dataset_json)
    if not listed:
        raise ValueError(f"{raw_folder / 'imagesTr'} holds no training case with ending {dataset_json['file_ending']}.")
    for case in listed.values():
        for file in (*case["images"], case["label"]):
            if not os.path.isfile(file):
                raise ValueError(
                    f"The training case's file {file} is missing. Add it, or remove its case from {raw_folder}."
                )
    first = next(iter(listed.values()))["images"][0]
    reader = determine_reader_writer_from_dataset_json(dataset_json, first, verbose=False)
    return [CaseFiles(str(name), tuple(case["images"]), case["label"], reader) for name, case in listed.items()]


def _stamp(cases: list[CaseFiles], targets: tuple[Target, ...]) -> str:
    """Hash the files' names, sizes and times, and what is looked for in them."""
    files = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for c in cases for file in (*c.images, c.label)]
    sought = [{**to_json(target), "prior": None, "source": None} for target in targets]
    return hashlib.sha256(json.dumps([_VERSION, files, sought], sort_keys=True).encode()).hexdigest()


def _measure_all(cases: list[CaseFiles], targets: tuple[Target, ...], num_processes: int) -> list[Notes]:
    from nnunetv2_freetumor.cluster.processes import map_cases, several_processes  # most trainings have measurements

    with several_processes(min(num_processes, len(cases))) as executor:
        work = partial(_measure_files, targets=targets)
        return map_cases(
            work,
            cases,
            executor=executor,
            title="Measuring real tumors",
            advice="Set nnUNet_def_n_proc to fewer processes.",
        )


def _measure_files(case: CaseFiles, targets: tuple[Target, ...]) -> Notes:
    reader = case.reader()
    image, image_properties = _read(reader.read_images, case.images, case.images[0])
    label, label_properties = _read(reader.read_seg, case.label, case.label)
    _check_grid(case, image, label=label, image_mm=image_properties["spacing"], label_mm=label_properties["spacing"])
    check_finite(image, Path(case.images[0]))
    z_mm, y_mm, x_mm = map(float, image_properties["spacing"])
    return Notes(
        measure_case(image[0], np.round(label[0]).astype(np.int16), (z_mm, y_mm, x_mm), targets),
        _compare_places(case, image_properties, label_properties),
    )


def _read(read: Any, files: Any, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        return read(files)
    except RuntimeError as error:
        raise ValueError(f"{name} cannot be read as a medical image: {str(error).strip().splitlines()[-1]}") from error


def _check_grid(case: CaseFiles, image: np.ndarray, label: np.ndarray, image_mm: Any, label_mm: Any) -> None:
    for what, one, other in (("voxels", image.shape[1:], label.shape[1:]), ("a spacing in mm of", image_mm, label_mm)):
        if not np.allclose(one, other, rtol=1e-3):
            raise ValueError(
                f"Image {case.images[0]} and label {case.label} must have the same geometry, but the image has {what} "
                f"{_show(one)} and the label {_show(other)}. Take the label that was drawn on this image, or resample "
                "it onto the image's grid with nearest neighbor interpolation."
            )


def _compare_places(case: CaseFiles, image: dict[str, Any], label: dict[str, Any]) -> str | None:
    """Compare origin and direction, which nnU-Net reports but does not use."""
    for reader in ("sitk_stuff", "nibabel_stuff"):
        for name, value in image.get(reader, {}).items():
            if not np.allclose(value, label[reader][name], atol=1e-2):
                note = "they are compared voxel by voxel, as nnU-Net does"
                return f"{case.images[0]} and {case.label} differ in {name}; {note}."
    return None


def _show(values: Iterable[Any]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
