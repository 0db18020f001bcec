"""Derive the `freetumor` section from a dataset, write it into the plans, and check what cannot work.

`nnUNetv2_freetumor plan` and the trainer derive the same section: roles from label names, numbers from the training
cases' real tumors or, where there are too few, from a bundled prior.
"""

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.files.cases import write_json
from nnunetv2_freetumor.plan import SECTION, Section, Target, plans_hash, read_section, to_json
from nnunetv2_freetumor.planning import clip_window, fingerprint, report, roles
from nnunetv2_freetumor.planning.measured_prior import with_measurements


def plan_command(dataset: str, plans_name: str = "nnUNetPlans", widen: bool = False) -> None:
    """Derive the section, write it into the plans file and print what was chosen.

    Raises:
        ValueError: no dataset, no plans, unsupported data, ambiguous labels, bad voxels, or a clip window that hides
            tumors although the data are already preprocessed; the text says what to do.
    """
    folder, plans, dataset_json = load_plans(dataset, plans_name)
    _check_any_configuration(plans, dataset_json)
    section = derive_section(plans, dataset_json)
    problem = clip_window.window_problem(section, plans)
    done = clip_window.preprocessed_configurations(plans, folder)
    if problem and done and not widen:
        commands = clip_window.repair_commands(plans, done)
        raise ValueError(
            f"{problem} The data are already preprocessed, so widen the window and preprocess again:\n{commands}"
        )
    former = plans.get(SECTION)
    if problem:
        plans = clip_window.widen(plans, section)
        section = dataclasses.replace(section, plans_hash=plans_hash(plans))
    plans[SECTION] = to_json(section)
    write_json(plans, folder / f"{plans_name}.json")
    print(report.describe(section, plans))
    if problem:
        print(_explain_widening(problem, plans, folder, done))
    written = f"{'Wrote' if former is None else 'Replaced'} the freetumor section of {folder / f'{plans_name}.json'}."
    print(written, *report.lost_settings(former, section), sep="\n")


def section_for_training(plans: dict[str, Any], dataset_json: dict[str, Any]) -> Section:
    """Read the plans' section, or derive the one that `plan` would write.

    Raises:
        ValueError: as `plan_command`; also a section made for other labels or plans, and preprocessed data that are
            older than the widened clip window.
    """
    folder = _environment_folder("nnUNet_preprocessed") / plans["dataset_name"]
    if SECTION in plans:
        section = read_section(plans[SECTION])
        check_origin(section, plans, dataset_json)
    else:
        section = derive_section(plans, dataset_json)
    if not section.fingerprint:
        print("Warning: the freetumor section holds no fingerprint, so the clip window cannot be checked.", flush=True)
    done = clip_window.preprocessed_configurations(plans, folder)
    if problem := clip_window.window_problem(section, plans):
        commands = clip_window.repair_commands(plans, done)
        raise ValueError(f"{problem} Widen the window and preprocess again:\n{commands}")
    if stale := clip_window.stale_data(plans, folder):
        raise ValueError(stale)
    return section


def derive_section(plans: dict[str, Any], dataset_json: dict[str, Any]) -> Section:
    """Derive the section from label names and the raw training cases; measurements are kept beside the plans."""
    raw = raw_folder(plans)
    if not raw.is_dir():
        raise ValueError(
            f"{raw} does not exist, and real tumors are measured on the raw CT. Run "
            f"'nnUNetv2_freetumor plan -d {plans['dataset_name']} -p {plans['plans_name']}' where the raw data are, "
            "and copy the plans file."
        )
    found = roles.resolve(dataset_json, plans["dataset_name"], plans.get(roles.ROLES))
    targets = tuple(_target(role) for role in found)
    cache = _environment_folder("nnUNet_preprocessed") / plans["dataset_name"] / fingerprint.FINGERPRINT_FILE
    measured = fingerprint.measure_dataset(raw, copy.deepcopy(dataset_json), targets, cache)
    label_free = fingerprint.is_label_free(measured, dataset_json["labels"], targets)
    return Section(
        targets=tuple(with_measurements(t, measured["targets"][t.name], measured["cases"]) for t in targets),
        labels=dataset_json["labels"],
        plans_hash=plans_hash(plans),
        fingerprint=measured,
        probability_tumor_free=1.0 if label_free else Section.probability_tumor_free,  # `untouched_share` limits it
    )


def _target(role: roles.Role) -> Target:
    return Target(
        name=role.name,
        tumor_label=role.tumor_label,
        lesion_labels=role.lesion_labels,
        prior=priors.load(role.prior_name),
        source=f"prior {role.prior_name}",
        host_labels=role.host_labels,
        host_hu=role.host_hu,
    )


def check_configuration(plans: dict[str, Any], name: str, dataset_json: dict[str, Any]) -> None:
    """Refuse configurations and data that synthesis does not work for.

    Raises:
        ValueError: 2d, a cascade stage, several channels, or no CT normalization; the text says what to use instead.
    """
    configuration = PlansManager(plans).get_configuration(name)
    channels = dataset_json.get("channel_names") or dataset_json["modality"]
    schemes = configuration.normalization_schemes
    if len(channels) > 1:
        problem = f"the dataset has {len(channels)} input channels ({', '.join(channels.values())}): use one CT channel"
    elif schemes[0] != "CTNormalization":
        problem = (
            f"'{name}' normalizes by {schemes[0]}, and tumors are planted in HU: for CT images name the channel 'CT' "
            "in dataset.json and plan again; other modalities are not supported"
        )
    elif len(configuration.patch_size) == 2:
        problem = f"configuration '{name}' is 2d, and tumors are planted in 3d: train '3d_fullres' or '3d_lowres'"
    elif configuration.previous_stage_name is not None:
        problem = f"configuration '{name}' is a stage of a cascade: train '3d_fullres' or '3d_lowres'"
    else:
        return
    raise ValueError(f"FreeTumor cannot train here: {problem}. nnU-Net's own trainers work as before.")


def dataset_problems(dataset: str, plans_name: str = "nnUNetPlans") -> list[str]:
    """List what would stop training with this dataset, without measuring anything."""
    folder, plans, dataset_json = load_plans(dataset, plans_name)
    problems = []
    try:
        _check_any_configuration(plans, dataset_json)
        if SECTION in plans:
            section = read_section(plans[SECTION])
            check_origin(section, plans, dataset_json)
            if problem := clip_window.window_problem(section, plans):
                done = clip_window.preprocessed_configurations(plans, folder)
                problems.append(
                    f"{problem}\n{clip_window.repair_commands(plans, done or list(plans['configurations']))}"
                )
        else:
            roles.resolve(dataset_json, plans["dataset_name"], plans.get(roles.ROLES))
            problems.append(
                f"{plans_name}.json has no freetumor section, so the clip window was not checked. Run "
                f"'nnUNetv2_freetumor plan -d {dataset} -p {plans_name}'; otherwise training derives it when it starts."
            )
    except ValueError as error:
        problems.append(str(error))
    problems.extend(filter(None, [clip_window.stale_data(plans, folder)]))
    return problems + [_shared(other, plans) for other in clip_window.plans_with_other_window(plans, folder)]


def _explain_widening(problem: str, plans: dict[str, Any], folder: Path, done: list[str]) -> str:
    lines = [
        problem,
        f"Widened it to {clip_window.clipped_at(plans)}; nnU-Net's own values are kept under '{clip_window.ORIGINAL}'.",
    ]
    if done:
        lines.append(f"Preprocess again:\n{clip_window.preprocess_command(plans, done)}")
    return "\n".join(lines + [_shared(other, plans) for other in clip_window.plans_with_other_window(plans, folder)])


def _shared(other: str, plans: dict[str, Any]) -> str:
    return (
        f"{other}.json uses the same preprocessed data as {plans['plans_name']}.json with another clip window; only "
        "the plans that preprocessed last fit the data. Run 'nnUNetv2_freetumor plan' with --widen-window for both, or "
        "train with one of them only."
    )


def _check_any_configuration(plans: dict[str, Any], dataset_json: dict[str, Any]) -> None:
    """Refuse plans without any configuration that synthesis works for."""
    errors = []
    for name in plans["configurations"]:
        try:
            return check_configuration(plans, name, dataset_json)
        except ValueError as error:
            errors.append(error)
    raise errors[-1]


def load_plans(dataset: str, plans_name: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Find a dataset by number or name and read its plans and dataset.json."""
    root = _environment_folder("nnUNet_preprocessed")
    try:
        dataset_name = maybe_convert_to_dataset_name(dataset)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    folder = root / dataset_name
    for file in (folder / f"{plans_name}.json", folder / "dataset.json"):
        if not file.is_file():
            known = [path.stem for path in sorted(folder.glob("*Plans*.json"))]
            raise ValueError(
                f"{file} does not exist{'; other plans: ' + ', '.join(known) if known else ''}. Run "
                f"'nnUNetv2_plan_and_preprocess -d {dataset} --no_pp' first, then this command, then "
                f"'nnUNetv2_preprocess -d {dataset} -plans_name {plans_name}'."
            )
    plans, dataset_json = (
        json.loads(file.read_text(encoding="utf-8"))
        for file in (folder / f"{plans_name}.json", folder / "dataset.json")
    )
    return folder, plans, dataset_json


def raw_folder(plans: dict[str, Any]) -> Path:
    """Return the folder of the plans' raw dataset."""
    return _environment_folder("nnUNet_raw") / plans["dataset_name"]


def _environment_folder(name: str) -> Path:
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"{name} is not set, and nnU-Net needs it: export {name}=/your/folder/{name}")
    return Path(value)


def check_origin(section: Section, plans: dict[str, Any], dataset_json: dict[str, Any]) -> None:
    """Refuse a section that was made for other labels or other plans.

    Raises:
        ValueError: names what differs and the command that makes a new section.
    """
    way_out = f"Run 'nnUNetv2_freetumor plan -d {plans['dataset_name']} -p {plans['plans_name']}' to recreate it."
    if section.labels != dataset_json["labels"]:
        raise ValueError(
            f"The plans' freetumor section was made for the labels {section.labels}, but dataset.json has "
            f"{dataset_json['labels']}. {way_out}"
        )
    if section.plans_hash != plans_hash(plans):
        raise ValueError(
            "The plans' freetumor section was made for other plans (spacing, axis order, patch size or intensity "
            f"properties differ). {way_out}"
        )
