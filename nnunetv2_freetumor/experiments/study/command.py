"""Run the comparison that users ask for: the same network on real labels, with and without synthetic tumors."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from nnunetv2_freetumor.experiments.study import data, figure, protocol, thresholding
from nnunetv2_freetumor.experiments.study import results as study_results
from nnunetv2_freetumor.experiments.study import trials as study_runs
from nnunetv2_freetumor.experiments.study.design import (
    ABLATIONS,
    ALL_ARMS,
    ARMS,
    BASELINE,
    TEXTURE,
    THRESHOLD,
    Budget,
    Run,
    Setting,
    plans_name,
)
from nnunetv2_freetumor.experiments.study.place import Wish, make_test_cases, prepare
from nnunetv2_freetumor.experiments.study.results import Readings, Row
from nnunetv2_freetumor.experiments.study.trials import Place, Trial, trial_name
from nnunetv2_freetumor.files.cases import check_writable, write_json, write_text
from nnunetv2_freetumor.training.device import choose_device

RESULTS, TABLE, FIGURE = "results{}.json", "table{}.md", "study{}.png"
SHORT = Budget(epochs=60, iterations=25, recipe="short")
LONG = Budget(epochs=100, iterations=250, recipe="nnunet")
LABEL_FREE = "label-free"


def study_command(
    output: str | Path,
    dataset: str | None = None,
    configuration: str = "3d_fullres",
    plans_name: str = "nnUNetPlans",
    labeled: Sequence[int] = (4, 8, 16),
    label_free_cases: int = 6,
    seeds: int = 3,
    epochs: int | None = None,
    iterations: int | None = None,
    arms: Sequence[str] | None = None,
    ablation: bool = False,
    hours: float | None = None,
    jobs: int = 1,
    device: str | None = None,
) -> None:
    """Train every arm in every few-label setting with every seed, score the test cases, write table and figure.

    A study that was stopped goes on when the same command is given again; what is finished is not run again.

    Args:
        output: folder of the study.
        dataset: a prepared dataset whose raw folder has imagesTs and labelsTs; by default a cohort of CT phantoms.
        labeled: numbers of labeled training cases, a setting each.
        label_free_cases: training cases of the label-free setting, none with a real tumor; 0 leaves it out.
        seeds: how often everything is repeated, with other cases, network weights and draws.
        epochs, iterations: of each training; 60 x 25 for phantoms, 100 x 250 for a dataset.
        arms: which arms to run; by default all but the ablation's.
        ablation: run the texture arm with one factor changed at a time, in the smallest setting.
        hours: start no training that would likely end later.
        jobs: trainings at a time.
        device: cpu or cuda.

    Raises:
        ValueError: a setting, file or command is wrong; the text says which, and the way out.
    """
    chosen_arms = _choose_arms(arms, ablation)
    _check_numbers(labeled, label_free_cases, seeds, jobs, hours)
    budget, settings = _budget(dataset is None, epochs, iterations), _settings(labeled, label_free_cases)
    chosen, wish = choose_device(device).type, Wish(dataset, configuration, plans_name)
    root = check_writable(output).resolve()
    prepared = prepare(root, wish, budget, chosen, jobs)
    chosen_arms = data.servable(prepared.plans, chosen_arms, asked=arms is not None)
    runs = protocol.freeze(prepared, budget, settings, seeds)
    make_test_cases(prepared, wish)
    trials = list_trials(chosen_arms, settings[:1] if ablation else settings, runs, seeds)
    _check_judges(prepared.place, trials)
    report = partial(_report, prepared.place, trials, "_ablation" if ablation else "", _baseline(ablation))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        left = study_runs.run_trials(prepared.place, trials, partial(_run, runs), pool, jobs, hours, report)
    print(_closing(root, study_results.table(report(), _baseline(ablation)), left))


def _baseline(ablation: bool) -> str:
    return TEXTURE if ablation else BASELINE


def _choose_arms(arms: Sequence[str] | None, ablation: bool) -> list[str]:
    known = [*ALL_ARMS, THRESHOLD]
    default = [TEXTURE, *ABLATIONS] if ablation else [*ARMS, THRESHOLD]
    if unknown := [arm for arm in arms or () if arm not in known]:
        raise ValueError(f"--arms must be some of {', '.join(known)}, but there is {', '.join(unknown)}.")
    return list(arms or default)


def _check_numbers(labeled: Sequence[int], label_free: int, seeds: int, jobs: int, hours: float | None) -> None:
    for option, holds, rule, value in (
        ("--labeled", all(n >= 1 for n in labeled) and len(set(labeled)) == len(labeled), "different numbers", labeled),
        ("--label-free-cases", label_free >= 0, "0 or more", label_free),
        ("--labeled", bool(labeled) or label_free > 0, "given unless there are label-free cases", labeled),
        ("--seeds", 1 <= seeds <= data.SETTING_STRIDE, f"1 to {data.SETTING_STRIDE}", seeds),
        ("--jobs", jobs >= 1, "1 or more", jobs),
        ("--hours", hours is None or hours > 0, "above 0", hours),
    ):
        if not holds:
            raise ValueError(f"{option} must be {rule}, but it is {value}.")


def _budget(phantoms: bool, epochs: int | None, iterations: int | None) -> Budget:
    default = SHORT if phantoms else LONG
    budget = Budget(
        epochs=default.epochs if epochs is None else epochs,
        iterations=default.iterations if iterations is None else iterations,
        recipe=default.recipe,
    )
    if min(budget.epochs, budget.iterations) < 1:
        raise ValueError(
            f"--epochs and --iterations must be 1 or more, but they are {budget.epochs} and {budget.iterations}."
        )
    return budget


def _settings(labeled: Sequence[int], label_free: int) -> list[Setting]:
    settings = [Setting(f"{number} labeled", number) for number in sorted(labeled)]
    free = [Setting(LABEL_FREE, label_free, True)] * (label_free > 0)
    return settings[:1] + free + settings[1:]


def list_trials(arms: Sequence[str], settings: Sequence[Setting], runs: Sequence[Run], seeds: int) -> list[Trial]:
    """List the trials: the smallest setting and the label-free one with all seeds first, then the others."""
    fold = {(run.setting, run.seed): run.fold for run in runs}
    blocks = [settings[:2], settings[2:]] if any(s.label_free for s in settings) else [settings[:1], settings[1:]]
    return [
        Trial(
            arm,
            _trainer(arm),
            plans_name(arm),
            setting.name,
            seed,
            fold[setting.name, seed],
            _after(arm, setting, seed),
        )
        for block in blocks
        for seed in range(seeds)
        for setting in block
        for arm in arms
        if not (setting.label_free and arm in ALL_ARMS and ALL_ARMS[arm].needs_tumors)
    ]


def _after(arm: str, setting: Setting, seed: int) -> str:
    """Name the trial whose network judges this one's tumors."""
    return trial_name(setting.name, BASELINE, seed) if arm in ALL_ARMS and ALL_ARMS[arm].judged else ""


def _check_judges(place: Place, trials: Sequence[Trial]) -> None:
    """Refuse judged arms whose judge is neither trained nor to be trained."""
    planned = {trial.name for trial in trials}
    lacking = [
        t.arm for t in trials if t.after and t.after not in planned and not study_runs.is_finished(place, t.after)
    ]
    if lacking:
        raise ValueError(
            f"The arm {lacking[0]} is judged by the network of the arm {BASELINE}, which has not been trained with all "
            f"of its settings and seeds. Add {BASELINE} to --arms."
        )


def _trainer(arm: str) -> str:
    return ALL_ARMS[arm].trainer if arm in ALL_ARMS else ""


def _run(runs: Sequence[Run], place: Place, trial: Trial) -> float:
    if trial.trainer:
        return study_runs.run_trial(place, trial)
    return thresholding.run_threshold(place, trial, next(run for run in runs if run.fold == trial.fold))


def _report(place: Place, trials: Sequence[Trial], suffix: str, baseline: str) -> list[Row]:
    """Write what is known so far."""
    readings: dict[tuple[str, str], Readings] = {}
    for trial in trials:
        if study_runs.is_done(place, trial):
            read = readings.setdefault((trial.setting, trial.arm), Readings(_title(trial.arm), {}))
            read.scores[trial.seed] = study_runs.load_scores(place, trial)
    order = list(dict.fromkeys((trial.setting, trial.arm) for trial in trials))
    known = {key: readings[key] for key in order if key in readings}
    rows = study_results.rows_of(known, study_runs.RULE, baseline)
    taken = {t.name: study_runs.seconds(place, t) for t in trials if study_runs.is_done(place, t)}
    results = {"machine": study_results.machine(place.device), "seconds": taken}
    write_json(results | {"rows": study_results.to_json(rows)}, place.root / RESULTS.format(suffix))
    write_text(study_results.table(rows, baseline) + "\n", place.root / TABLE.format(suffix))
    figure.draw(rows, place.root / FIGURE.format(suffix))
    return rows


def _title(arm: str) -> str:
    return ALL_ARMS[arm].title if arm in ALL_ARMS else thresholding.TITLE


def _closing(root: Path, table: str, left: Sequence[Trial]) -> str:
    text = f"{table}\n\nProtocol, results, table and figure:\n{root}"
    if left:
        text += f"\n{len(left)} trainings are left; give the same command again to go on."
    return text
