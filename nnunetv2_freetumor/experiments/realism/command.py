"""Measure how real planted lesions look: a classifier tries to tell them from real ones of the same size and host."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_freetumor.evaluation.inputs import read_patients
from nnunetv2_freetumor.experiments.realism.classifier import (
    Pairs,
    assess,
    auc_of,
    compare_generators,
    forest,
    halves,
    vote,
)
from nnunetv2_freetumor.experiments.realism.contestants import Contestant, make_contestants
from nnunetv2_freetumor.experiments.realism.data import find_cases, make_phantoms, prior_by_name
from nnunetv2_freetumor.experiments.realism.lesions import Lesions
from nnunetv2_freetumor.experiments.realism.page import sheet, write_realism_page
from nnunetv2_freetumor.experiments.realism.pairs import REAL_SOURCE, Pairing, RealCase, collect
from nnunetv2_freetumor.experiments.realism.results import Outcome, PairedLesions, realism_text, write_files
from nnunetv2_freetumor.files.cases import check_writable, replacing
from nnunetv2_freetumor.offline.one_case import make_target
from nnunetv2_freetumor.training.device import choose_device

_PHANTOM_CASES, _PHANTOM_HOST, _PHANTOM_TUMOR = 24, 1, 2
_LEAST_PATIENTS = 8  # with fewer, neither folds nor intervals mean much
_LEAST_PAIRS = 20


def realism_command(
    output: str | Path,
    images: str | None = None,
    labels: str | None = None,
    host: Sequence[int] | None = None,
    tumor: int | None = None,
    prior: str = "liver",
    generators: Sequence[str] = ("texture",),
    cases: int | None = None,
    patients: str | None = None,
    controls: bool = False,
    processes: int = 1,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Compare the generators' lesions with real ones; write tables, sheets and a page, and print the tables.

    Phantoms and measurements of an earlier run in the same folder are kept.

    Args:
        output: folder for everything.
        images: folder with CT images CASE_0000.nii.gz; by default phantoms are made, whose tumors are of a growth
            family that no training data hold.
        labels: folder with their label maps CASE.nii.gz.
        host: labels of the organ with the tumors.
        tumor: label of the tumors.
        prior: a bundled prior, or a plans file with a freetumor section.
        generators: texture, names or files of generators, freetumor_random (untrained), constant.
        cases: how many; by default 24 phantoms, or all images.
        patients: JSON file {case: patient}; by default each case is a patient.
        controls: also compare `constant` with real lesions, and real with real.
        processes: how many phantoms to make at a time.
        seed: random seed; the phantoms have their own.
        device: cpu or cuda.

    Raises:
        ValueError: an input or a setting cannot work.
    """
    asked = _with_controls(generators, controls)
    hosts, tumor_label = _roles(images, labels, host, tumor)
    kind = prior_by_name(prior, tumor_label)
    pairing, contestants = (
        Pairing(make_target(kind, hosts, tumor_label), seed),
        make_contestants(asked, kind.name, seed),
    )
    chosen, folder = choose_device(device), check_writable(output)
    if cases is not None and cases < _LEAST_PATIENTS:
        raise ValueError(f"--cases must be {_LEAST_PATIENTS} or more, but it is {cases}.")
    if processes < 1:
        raise ValueError(f"-np must be 1 or more, but it is {processes}.")
    patient_of = read_patients(patients)
    if images is None or labels is None:
        cases = cases or _PHANTOM_CASES
        images, labels = map(str, make_phantoms(folder, cases, processes))
    files = find_cases(images, labels, patient_of, cases)
    cohort, numbers = gather(files, contestants, pairing=pairing, folder=folder / "pairs", device=chosen.type)
    settings = {
        "images": Path(images).name, "cases": len(files), "prior": kind.name, "host": list(hosts), "tumor": tumor_label,
        "seed": seed, "classifier": "random forest; logistic regression beside it",
    }  # fmt: skip
    outcome = judge(cohort, numbers, controls=controls, seed=seed, settings=settings)
    write_files(outcome, folder)
    print(realism_text(outcome))
    print(_write_page(outcome, folder))


def gather(
    files: Sequence[RealCase], contestants: Sequence[Contestant], pairing: Pairing, folder: Path, device: str
) -> tuple[PairedLesions, np.ndarray]:
    """Measure the real lesions and every generator's partners, and keep the pairs that all generators have.

    Also returns the patients' numbers.

    Raises:
        ValueError: too few patients or pairs.
    """
    _check_patients(len({one.patient for one in files}))
    sources: list[Contestant | None] = [None, *contestants]
    found: dict[str, list[Lesions]] = {source.name if source else REAL_SOURCE: [] for source in sources}
    work = list(itertools.product(sources, files))
    for source, one in tqdm(work, desc="planting and measuring", unit="case", disable=None):
        found[source.name if source else REAL_SOURCE].append(
            collect(one, source, pairing=pairing, folder=folder, device=device)
        )
    joined = {name: _join(parts) for name, parts in found.items()}
    counts = [len(part.features) for part in found[REAL_SOURCE]]
    owner = np.repeat(np.arange(len(files)), counts)
    usable = np.all([np.isfinite(part.features).all(1) for part in joined.values()], axis=0)
    if usable.sum() < _LEAST_PAIRS:
        raise ValueError(
            f"The {len(files)} cases must hold {_LEAST_PAIRS} or more tumors (label {pairing.target.tumor_label}, at "
            f"least 10 voxels and 3 mm) whose host has room for a planted lesion of the same size, but they hold "
            f"{len(owner)} tumors, {int(usable.sum())} of them with room. Check --tumor and --host, or add cases."
        )
    kept = {name: Lesions(*(part[usable] for part in lesions)) for name, lesions in joined.items()}
    who, patient = np.unique([files[index].patient for index in owner[usable]], return_inverse=True)
    _check_patients(len(who))
    real, names = kept.pop(REAL_SOURCE), [files[index].name for index in owner[usable]]
    return PairedLesions(names, len(who), left_out=int((~usable).sum()), real=real, planted=kept), patient


def judge(cohort: PairedLesions, patient: np.ndarray, controls: bool, seed: int, settings: dict[str, Any]) -> Outcome:
    """Classify real lesions against each generator's, and compare the generators."""
    pairs = {name: Pairs(cohort.real.features, part.features, patient) for name, part in cohort.planted.items()}
    found = tuple(assess(name, part, seed) for name, part in tqdm(pairs.items(), desc="classifying", disable=None))
    differences = {
        (one.name, other.name): compare_generators(one.votes, other.votes, patient, seed)
        for one, other in itertools.combinations(found, 2)
    }
    control = None
    if controls:
        same = halves(next(iter(pairs.values())), seed)
        control = auc_of(vote(forest(seed), same), same.patient, seed)
    return Outcome(cohort, found, differences=differences, control=control, settings=settings)


def _with_controls(generators: Sequence[str], controls: bool) -> list[str]:
    more = ["constant"] if controls and "constant" not in generators else []
    return [*generators, *more]


def _roles(
    images: str | None, labels: str | None, host: Sequence[int] | None, tumor: int | None
) -> tuple[tuple[int, ...], int]:
    """Return the labels of the host and the label of the tumor."""
    if (images is None) != (labels is None):
        raise ValueError("-i and -l belong together: give the folders of images and of label maps, or neither.")
    if images is None:
        if host is not None or tumor is not None:
            raise ValueError("--host and --tumor belong to -i and -l. Leave them out for phantoms.")
        return (_PHANTOM_HOST,), _PHANTOM_TUMOR
    if tumor is None:
        raise ValueError("--tumor is missing: give the label of the tumors in -l, such as --tumor 2.")
    if not host:
        raise ValueError("--host is missing: give the labels of the organ that the tumors lie in, such as --host 1.")
    return tuple(host), tumor


def _check_patients(count: int) -> None:
    if count < _LEAST_PATIENTS:
        raise ValueError(
            f"To compare real and planted lesions, tumors of {_LEAST_PATIENTS} or more patients are needed, but there "
            f"are {count}. Add cases to -i and -l."
        )


def _join(parts: Sequence[Lesions]) -> Lesions:
    return Lesions(*(np.concatenate(one) for one in zip(*parts)))


def _write_page(outcome: Outcome, folder: Path) -> Path:
    """Write a sheet for each generator and the page; return the page's path."""
    cohort = outcome.cohort
    sheets = {
        item.name: sheet(item.name, cohort.real, planted=cohort.planted[item.name], votes=item.votes, names=cohort.case)
        for item in outcome.generators
    }
    for name, data in sheets.items():
        with replacing(folder / f"realism_{name}.png") as unfinished:
            unfinished.write_bytes(data)
    return write_realism_page(outcome, sheets, folder / "realism.html")
