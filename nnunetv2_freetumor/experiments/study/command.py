"""Run the comparison that users ask for: the same network on real labels, with and without synthetic tumors."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunetv2_freetumor.cluster.processes import spawned
from nnunetv2_freetumor.experiments.steps import end_running
from nnunetv2_freetumor.experiments.study import data, figure, protocol, thresholding
from nnunetv2_freetumor.experiments.study import results as study_results
from nnunetv2_freetumor.experiments.study import trials as study_trials
from nnunetv2_freetumor.experiments.study.design import (
    ABLATIONS,
    ALL_ARMS,
    ARMS,
    BASELINE,
    TEXTURE_ARM,
    THRESHOLD_ARM,
    Budget,
    FoldCases,
    Setting,
    plans_name,
)
from nnunetv2_freetumor.experiments.study.preparation import DatasetChoice, make_test_cases, prepare_study
from nnunetv2_freetumor.experiments.study.results import ArmResult, ArmScores
from nnunetv2_freetumor.experiments.study.trials import StudyContext, Trial, trial_name
from nnunetv2_freetumor.files.cases import check_writable, write_json, write_text
from nnunetv2_freetumor.training.device import choose_device

_RESULTS, _TABLE, _FIGURE = "results{}.json", "table{}.md", "study{}.png"
_SHORT = Budget(epochs=60, iterations=25, recipe="short")
_LONG = Budget(epochs=100, iterations=250, recipe="nnunet")
_LABEL_FREE = "label-free"


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

    A stopped study continues when the same command is given again; finished trials are kept.

    Args:
        output: folder of the study.
        dataset: a prepared dataset whose raw folder has imagesTs and labelsTs; by default a cohort of CT phantoms.
        labeled: numbers of labeled training cases, each a setting.
        label_free_cases: tumor-free training cases of the label-free setting; 0 leaves it out.
        seeds: repetitions of everything, with other cases, network weights and draws.
        epochs, iterations: of each training; 60 x 25 for phantoms, 100 x 250 for a dataset.
        arms: which arms to run; by default all but the ablation's.
        ablation: run the texture arm with one factor changed at a time, in the smallest setting.
        hours: start no training that would likely end later.
        jobs: trainings at a time.
        device: cpu or cuda.

    Raises:
        ValueError: a setting or file is wrong, or a command failed.
    """
    chosen_arms = _choose_arms(arms, ablation)
    _check_numbers(labeled, label_free_cases, seeds=seeds, jobs=jobs, hours=hours)
    budget, settings = _budget(dataset is None, epochs, iterations), _settings(labeled, label_free_cases)
    chosen, choice = choose_device(device).type, DatasetChoice(dataset, configuration, plans_name)
    root = check_writable(output).resolve()
    prepared = prepare_study(root, choice, budget=budget, device=chosen, jobs=jobs)
    chosen_arms = data.servable(prepared.plans, chosen_arms, asked=arms is not None)
    folds = protocol.freeze(prepared, budget, settings, seeds)
    make_test_cases(prepared, choice)
    trials = list_trials(chosen_arms, settings[:1] if ablation else settings, folds, seeds)
    _check_judges(prepared.context, trials)
    report = partial(_report, prepared.context, trials, "_ablation" if ablation else "", _baseline(ablation))
    with spawned(jobs, before_end=end_running) as executor:
        left = study_trials.run_trials(
            prepared.context,
            trials,
            run=partial(_run, folds),
            executor=executor,
            jobs=jobs,
            hours=hours,
            after_each=report,
        )
    print(_closing(root, study_results.markdown_table(report(), _baseline(ablation)), left))


def _baseline(ablation: bool) -> str:
    return TEXTURE_ARM if ablation else BASELINE


def _choose_arms(arms: Sequence[str] | None, ablation: bool) -> list[str]:
    known = [*ALL_ARMS, THRESHOLD_ARM]
    default = [TEXTURE_ARM, *ABLATIONS] if ablation else [*ARMS, THRESHOLD_ARM]
    if unknown := [arm for arm in arms or () if arm not in known]:
        raise ValueError(f"--arms must be some of {', '.join(known)}, but it contains {', '.join(unknown)}.")
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
    default = _SHORT if phantoms else _LONG
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
    free = [Setting(_LABEL_FREE, label_free, True)] * (label_free > 0)
    return settings[:1] + free + settings[1:]


def list_trials(
    arms: Sequence[str], settings: Sequence[Setting], folds: Sequence[FoldCases], seeds: int
) -> list[Trial]:
    """Return the trials: first the smallest and the label-free setting with all seeds, then the others."""
    numbers = {(fold.setting, fold.seed): fold.fold for fold in folds}
    blocks = [settings[:2], settings[2:]] if any(s.label_free for s in settings) else [settings[:1], settings[1:]]
    return [
        Trial(
            arm=arm,
            trainer=_trainer(arm),
            plans=plans_name(arm),
            setting=setting.name,
            seed=seed,
            fold=numbers[setting.name, seed],
            after=_after(arm, setting, seed),
        )
        for block in blocks
        for seed in range(seeds)
        for setting in block
        for arm in arms
        if not (setting.label_free and arm in ALL_ARMS and ALL_ARMS[arm].needs_tumors)
    ]


def _after(arm: str, setting: Setting, seed: int) -> str:
    """Return the name of the trial whose network judges this one's tumors."""
    return trial_name(setting.name, BASELINE, seed) if arm in ALL_ARMS and ALL_ARMS[arm].judged else ""


def _check_judges(context: StudyContext, trials: Sequence[Trial]) -> None:
    """Refuse judged arms whose judge is neither trained yet nor among the trials."""
    names = {trial.name for trial in trials}
    lacking = [
        t.arm for t in trials if t.after and t.after not in names and not study_trials.is_finished(context, t.after)
    ]
    if lacking:
        raise ValueError(
            f"The arm {lacking[0]} needs the network of the arm {BASELINE} as judge, which has not been trained in all "
            f"of its settings with all seeds. Add {BASELINE} to --arms."
        )


def _trainer(arm: str) -> str:
    return ALL_ARMS[arm].trainer if arm in ALL_ARMS else ""


def _run(folds: Sequence[FoldCases], context: StudyContext, trial: Trial) -> float:
    if trial.trainer:
        return study_trials.run_trial(context, trial)
    return thresholding.run_threshold(context, trial, next(fold for fold in folds if fold.fold == trial.fold))


def _report(context: StudyContext, trials: Sequence[Trial], suffix: str, baseline: str) -> list[ArmResult]:
    """Write the results so far."""
    scores: dict[tuple[str, str], ArmScores] = {}
    for trial in trials:
        if study_trials.is_finished(context, trial.name):
            found = scores.setdefault((trial.setting, trial.arm), ArmScores(_title(trial.arm), {}))
            found.by_seed[trial.seed] = study_trials.load_scores(context, trial)
    order = list(dict.fromkeys((trial.setting, trial.arm) for trial in trials))
    known = {key: scores[key] for key in order if key in scores}
    results = study_results.arm_results(known, study_trials.RULE, baseline)
    taken = {t.name: study_trials.seconds(context, t) for t in trials if study_trials.is_finished(context, t.name)}
    report = {"machine": study_results.machine(context.device), "seconds": taken}
    write_json(report | {"rows": study_results.results_to_json(results)}, context.root / _RESULTS.format(suffix))
    write_text(study_results.markdown_table(results, baseline) + "\n", context.root / _TABLE.format(suffix))
    figure.plot_study(results, context.root / _FIGURE.format(suffix))
    return results


def _title(arm: str) -> str:
    return ALL_ARMS[arm].title if arm in ALL_ARMS else thresholding.ARM_TITLE


def _closing(root: Path, table: str, left: Sequence[Trial]) -> str:
    text = f"{table}\n\nProtocol, results, table and figure:\n{root}"
    if left:
        text += f"\n{len(left)} trainings are left; give the same command again to continue."
    return text
