"""Evaluate predicted tumors lesion by lesion: `nnUNetv2_freetumor evaluate`.

Read the folders, score the cases in several processes, summarize over patients, and write table, JSON, CSV and page.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2_freetumor.cluster.processes import map_cases, several_processes
from nnunetv2_freetumor.evaluation.comparison import compare_models, gap
from nnunetv2_freetumor.evaluation.files import write_csv, write_evaluation
from nnunetv2_freetumor.evaluation.inputs import Cohort, Labels, open_cohort, read_patients, read_scored_labels
from nnunetv2_freetumor.evaluation.page import write_evaluation_page
from nnunetv2_freetumor.evaluation.pictures import check_images
from nnunetv2_freetumor.evaluation.results import EXTERNAL, OTHER, OURS, Evaluation, PairResult, evaluation_text
from nnunetv2_freetumor.evaluation.scores import CaseScore, Rule
from nnunetv2_freetumor.evaluation.summary import summarize_pair
from nnunetv2_freetumor.evaluation.volumes import check_files, score_files
from nnunetv2_freetumor.files.cases import check_writable
from nnunetv2_freetumor.plan import DIAMETER_BOUNDS_MM

_FOLDER, _JSON, _CSV, _PAGE = "freetumor_evaluation", "evaluation.json", "lesions.csv", "evaluation.html"
_PROCESSES, _PROCESSES_VARIABLE = 8, "nnUNet_def_n_proc"


def evaluate_command(
    references: str | Path,
    predictions: str | Path,
    dataset_json: str | Path,
    plans_file: str | Path | None = None,
    other: str | Path | None = None,
    external: Sequence[str | Path] | None = None,
    output: str | Path | None = None,
    images: str | Path | None = None,
    patients: str | Path | None = None,
    bounds_mm: Sequence[float] = DIAMETER_BOUNDS_MM,
    tolerance_mm: float = 2.0,
    min_iou: float = 0.1,
    min_voxels: int = 1,
    processes: int | None = None,
    chill: bool = False,
    seed: int = 0,
) -> str:
    """Score predictions lesion by lesion, write JSON, CSV and page, print the table, and return what was printed.

    Args:
        other: another model's predictions of the same cases, to compare with.
        external: references and predictions of a second cohort, to measure the gap to it.
        output: by default a folder `freetumor_evaluation` inside `predictions`.
        images: nnU-Net's folder with CASE_0000 images, for the pictures.
        patients: JSON file {case: patient}; by default each case is a patient.
        processes: by default nnUNet_def_n_proc, or 8 if that is not set; never more than there are cores.
        chill: score only cases that have a prediction, like nnU-Net's flag of that name.

    Raises:
        ValueError: a file or option is wrong; no case has been scored then.
    """
    rule = _check_rule(Rule(min_iou, tuple(map(float, bounds_mm)), tolerance_mm, min_voxels))
    labels = read_scored_labels(dataset_json, plans_file)
    people = read_patients(patients)
    cohorts = {OURS: open_cohort(references, predictions, labels, chill=chill, patients=people)}
    if other is not None:
        cohorts[OTHER] = _open_other(references, other, labels=labels, ours=cohorts[OURS], chill=chill)
    if external is not None:
        cohorts[EXTERNAL] = open_cohort(*_two(external), labels, chill=chill, patients=people)
    if images is not None:
        check_images(Path(images), cohorts[OURS], labels)
    folder = check_writable(Path(predictions) / _FOLDER if output is None else output)
    scores = _score(cohorts, labels, rule, _count_processes(processes))
    folders = {"references": references, OURS: predictions, OTHER: other, EXTERNAL: external}
    evaluation = Evaluation(
        rule=rule,
        seed=seed,
        folders={name: _as_text(value) for name, value in folders.items() if value is not None},
        notes=_notes(cohorts, labels),
        pairs=tuple(
            _summarize(index, labels, scores=scores, rule=rule, seed=seed) for index in range(len(labels.pairs))
        ),
    )
    write_evaluation(evaluation, folder / _JSON)
    write_csv(evaluation, folder / _CSV)
    write_evaluation_page(evaluation, cohorts[OURS], None if images is None else Path(images), folder / _PAGE)
    text = f"{evaluation_text(evaluation)}\n\nWrote {_JSON}, {_CSV} and {_PAGE} to\n{folder}"
    print(text)
    return text


def _check_rule(rule: Rule) -> Rule:
    rising = all(low < high for low, high in zip(rule.bounds_mm, rule.bounds_mm[1:]))
    for option, holds, text, value in (
        ("--bounds-mm", rule.bounds_mm and rising and rule.bounds_mm[0] > 0, "rising and above 0", rule.bounds_mm),
        ("--tolerance-mm", rule.tolerance_mm > 0, "above 0", rule.tolerance_mm),
        ("--min-iou", 0 < rule.min_iou <= 1, "above 0 and at most 1", rule.min_iou),
        ("--min-voxels", rule.min_voxels >= 1, "1 or more", rule.min_voxels),
    ):
        if not holds:
            given = " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"
            raise ValueError(f"{option} must be {text}, but it is {given or 'empty'}.")
    return rule


def _count_processes(processes: int | None) -> int:
    if processes is not None and processes < 1:
        raise ValueError(f"-np must be 1 or more, but it is {processes}.")
    return min(processes or int(os.environ.get(_PROCESSES_VARIABLE, _PROCESSES)), os.cpu_count() or 1)


def _two(external: Sequence[str | Path]) -> tuple[str | Path, str | Path]:
    if len(external) != 2:
        raise ValueError(
            f"-external needs two folders, LABELS PREDICTIONS, but {len(external)} were given: {external}."
        )
    return external[0], external[1]


def _open_other(references: str | Path, other: str | Path, labels: Labels, ours: Cohort, chill: bool) -> Cohort:
    """Open the other model's predictions of our cases."""
    people = {files.case: files.patient for files in ours.files}
    return open_cohort(references, other, labels, chill=chill, patients=people, only=ours.names)


def _score(
    cohorts: dict[str, Cohort], labels: Labels, rule: Rule, processes: int
) -> dict[str, list[tuple[CaseScore, ...]]]:
    """Check every case of all cohorts, then score them."""
    files = [item for cohort in cohorts.values() for item in cohort.files]
    with several_processes(min(processes, len(files))) as executor:
        map_cases(partial(check_files, labels=labels), files, executor=executor, title="checking", advice="Lower -np.")
        work = partial(score_files, labels=labels, rule=rule)
        done = iter(map_cases(work, files, executor=executor, title="scoring", advice="Lower -np."))
    return {name: [next(done) for _ in cohort.files] for name, cohort in cohorts.items()}


def _summarize(
    index: int, labels: Labels, scores: dict[str, list[tuple[CaseScore, ...]]], rule: Rule, seed: int
) -> PairResult:
    pair = labels.pairs[index]
    mine = {name: tuple(item[index] for item in items) for name, items in scores.items()}
    return PairResult(
        pair=pair,
        scores=mine,
        summaries={name: summarize_pair(pair.name, items, rule, seed) for name, items in mine.items()},
        comparison=compare_models(mine[OURS], mine[OTHER], rule, seed) if OTHER in mine else {},
        gap=gap(mine[OURS], mine[EXTERNAL], rule, seed) if EXTERNAL in mine else {},
    )


def _notes(cohorts: dict[str, Cohort], labels: Labels) -> tuple[str, ...]:
    notes = [note for cohort in cohorts.values() for note in cohort.notes]
    if any(cohort.has_probabilities for cohort in cohorts.values()):
        notes += [
            f"The probabilities hold no channel that is exactly '{pair.name}', so it has no FROC and no AUROC."
            for pair in labels.pairs
            if labels.channel_of(pair) is None
        ]
    return tuple(notes)


def _as_text(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else " ".join(map(str, value))
