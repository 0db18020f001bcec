"""The sources of synthetic cases: a dataset's training cases, or folders of images and host masks."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.cluster.reports import CaseReport
from nnunetv2_freetumor.files.cases import ENDINGS, case_name
from nnunetv2_freetumor.files.synthetic_names import is_synthetic
from nnunetv2_freetumor.offline import one_case
from nnunetv2_freetumor.offline.case import Source
from nnunetv2_freetumor.plan import SECTION, Section, Target, always_planting, read_section
from nnunetv2_freetumor.planning import section as planning
from nnunetv2_freetumor.planning.section import check_origin
from nnunetv2_freetumor.training.synthetic_splits import Splits, read_splits

_RAW = "nnUNet_raw"


class Listed(NamedTuple):
    """Training cases and their file ending."""

    cases: list[Source]
    ending: str


class Sources(NamedTuple):
    """The cases to plant into, and what the new dataset takes from them."""

    cases: list[Source]
    section: Section
    dataset_json: dict[str, Any]  # of the new dataset, without its number of cases
    dataset: str = ""  # the source's name, if it is an nnU-Net dataset
    splits: Splits | None = None  # of that dataset
    labels: tuple[int, ...] = ()  # the values that masks may hold; empty: any
    unusable: tuple[CaseReport, ...] = ()

    @property
    def real(self) -> list[Source]:
        """Return the real labeled cases, which are copied to the new dataset."""
        return self.cases if self.dataset else []


def from_dataset(dataset: str, plans_name: str) -> Sources:
    """Take a dataset's training cases, with targets, hosts and priors from the plans' section.

    Raises:
        ValueError: no such dataset, no cases, no matching section, more than one channel, or synthetic cases.
    """
    folder, plans, dataset_json = planning.load_plans(dataset, plans_name)
    channels = dataset_json.get("channel_names") or dataset_json["modality"]
    if len(channels) > 1:
        raise ValueError(
            f"{folder.name} has {len(channels)} input channels, but tumors can be planted into CT only (one channel)."
        )
    cases = list_training_cases(folder.name).cases
    if not cases:
        raise ValueError(f"{folder.name} has no training cases in nnUNet_raw to plant tumors into.")
    if SECTION in plans:
        section = read_section(plans[SECTION])
        check_origin(section, plans, dataset_json)
    else:
        section = planning.derive_section(plans, dataset_json)
    if known := [source.case for source in cases if is_synthetic(source.case)]:
        raise ValueError(
            f"{folder.name} holds synthetic cases ({known[0]} ...), whose planted tumors would count as real. Give the "
            "dataset that they were made from."
        )
    kept = {key: value for key, value in dataset_json.items() if key not in ("dataset", "name", "numTraining")}
    return Sources(cases, section, dataset_json=kept, dataset=folder.name, splits=read_splits(folder))


def list_training_cases(dataset_name: str) -> Listed:
    """List a dataset's raw training cases by name.

    Raises:
        ValueError: the raw dataset is missing.
    """
    root = os.environ.get(_RAW)
    folder = Path(root or "").resolve() / dataset_name
    if not root or not (folder / "dataset.json").is_file():
        raise ValueError(
            f"The raw data of {dataset_name} cannot be found: nnUNet_raw is {root}. Set it to the folder that holds "
            f"{dataset_name}/dataset.json."
        )
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    ending = dataset_json["file_ending"]
    listed = get_filenames_of_train_images_and_targets(str(folder), dataset_json)
    return Listed([Source(case, files["images"][0], files["label"]) for case, files in sorted(listed.items())], ending)


def from_folders(images: str, hosts: str, prior: str | None, host: Sequence[int], tumor: int | None) -> Sources:
    """Take a folder of images, a folder of host masks, and a bundled prior.

    Raises:
        ValueError: a setting, a folder or the images are missing, or nnU-Net would not accept the labels.
    """
    if prior is None or tumor is None:
        raise ValueError("-i and -l also need --prior and --tumor, for example --prior liver --host 1 --tumor 2.")
    target = one_case.make_target(priors.load(prior), tuple(host), tumor)
    if sorted((*host, tumor)) != list(range(1, len(host) + 2)):
        raise ValueError(
            f"nnU-Net needs labels 1, 2, 3 ... without gaps, but --host {list(host)} and --tumor {tumor} leave a gap. "
            f"The next label after the hosts is {max(host, default=0) + 1}."
        )
    found, without_mask = list_pairs(images, hosts)
    if not found:
        raise ValueError(
            f"No image in {images} has a mask of the same name in {hosts} (CASE_0000.nii.gz or CASE.nii.gz, and "
            "CASE.nii.gz)."
        )
    reason = f"no mask CASE.nii.gz in {hosts}"
    unusable = tuple(CaseReport(case, "skipped", reason.replace("CASE", case)) for case in without_mask)
    dataset_json = {"channel_names": {"0": "CT"}, "labels": _label_names(target), "file_ending": ".nii.gz"}
    section = Section(targets=(target,), labels={}, plans_hash="")
    return Sources(found, section, dataset_json, labels=(0, *host, tumor), unusable=unusable)


def list_pairs(images: str, masks: str) -> tuple[list[Source], list[str]]:
    """List the images that have a mask of the same name, and the names of those that have none.

    Raises:
        ValueError: a folder is missing or holds no image, or two images have the same name.
    """
    found = {}
    for folder in (images, masks):
        if not Path(folder).is_dir():
            raise ValueError(
                f"There is no folder {folder}. -i and -l must be folders of images and of their host masks."
            )
        listed: dict[str, str] = {}
        for path in sorted(Path(folder).resolve().iterdir()):
            name = case_name(path)
            if path.name.lower().endswith(ENDINGS) and listed.setdefault(name, str(path)) != str(path):
                raise ValueError(f"{path} and {listed[name]} are both case {name}. Remove one of them.")
        found[folder] = listed
    if not found[images]:
        raise ValueError(f"{images} holds no image ({', '.join(ENDINGS)}).")
    pairs = [Source(case, path, found[masks][case]) for case, path in found[images].items() if case in found[masks]]
    return pairs, [case for case in found[images] if case not in found[masks]]


def _label_names(target: Target) -> dict[str, int]:
    """Return label names from which `nnUNetv2_freetumor plan` finds the roles again."""
    organ = {"covid19": "lung"}.get(target.prior.name, target.prior.name)
    one = len(target.host_labels) == 1
    names = {organ if one else f"{organ}_part_{label}": label for label in target.host_labels}
    tumor = "covid19_lesion" if target.prior.name == "covid19" else f"{organ}_tumor"
    return {"background": 0, **names, tumor: target.tumor_label}


def case_section(section: Section, seed: int) -> Section:
    """Turn a section for training into one for a synthetic case: each draw plants one lesion, from this seed."""
    alone = dataclasses.replace(section, seed=seed, fingerprint={}, generator="auto", judge="off")
    return always_planting(alone, lesions=1)  # the chosen generators are recorded next to the section
