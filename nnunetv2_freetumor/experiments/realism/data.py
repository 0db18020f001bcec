"""The cases with the real lesions: those of a folder, or phantoms whose tumors are of a held-out growth family."""

import json
from pathlib import Path
from typing import Any

from nnunetv2_freetumor import plan, priors
from nnunetv2_freetumor.experiments.phantom.cohort import write_test_cases
from nnunetv2_freetumor.experiments.phantom.tumors import HELD_OUT_FAMILIES
from nnunetv2_freetumor.experiments.realism.pairs import CaseFiles
from nnunetv2_freetumor.files.cases import check_writable, write_json
from nnunetv2_freetumor.plan import Prior

ENDING = ".nii.gz"
PHANTOMS = "phantoms"  # folder
COHORT_SEED = 97_531  # of no other cohort: nothing was trained, fitted or tested on these patients
COHORT: dict[str, Any] = {
    "lesions": (7, 10),
    "tumor_free_every": 0,
    "crop_mm": 15.0,
    "pixel_mm": (1.3, 1.5),
    "slice_mm": (4.0, 5.0),
    "family": HELD_OUT_FAMILIES[0],
}


def make_phantoms(output: Path, cases: int, processes: int) -> tuple[Path, Path]:
    """Make the phantoms that an earlier run has not made, and give the folders of images and label maps.

    Raises:
        ValueError: the folder holds phantoms that were made otherwise.
    """
    folder = check_writable(output / PHANTOMS)
    note, made = folder / "made_with.json", json.loads(json.dumps({"seed": COHORT_SEED, **COHORT}))
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != made:
        raise ValueError(f"{folder} holds phantoms that were made with other settings. Choose another folder with -o.")
    write_json(made, note)
    write_test_cases(folder, cases, COHORT_SEED, processes=processes, resume=True, **COHORT)
    return folder / "imagesTs", folder / "labelsTs"


def find_cases(
    images: str | Path, labels: str | Path, patients: dict[str, str] | None, cases: int | None
) -> list[CaseFiles]:
    """Find the pairs of an image CASE_0000.nii.gz and a label map CASE.nii.gz; the first `cases` of them.

    Raises:
        ValueError: a folder or an image is missing, or a case has no patient in `patients`.
    """
    for flag, folder in (("-i", images), ("-l", labels)):
        if not Path(folder).is_dir():
            raise ValueError(f"{flag} must be a folder, but there is no folder {folder}.")
    files = sorted(Path(labels).glob(f"*{ENDING}"))[:cases]
    if not files:
        raise ValueError(f"-l {labels} must hold label maps CASE{ENDING}, but it holds none.")
    names = [file.name.removesuffix(ENDING) for file in files]
    for name in names:
        if not (Path(images) / f"{name}_0000{ENDING}").is_file():
            raise ValueError(
                f"-i {images} must hold an image of each label map in -l, but {name}_0000{ENDING} is missing. Add it, "
                "or take its label map away."
            )
        if patients is not None and name not in patients:
            raise ValueError(f"--patients must name a patient for each case, but it lacks {name}.")
    who = patients or {name: name for name in names}
    return [CaseFiles(name, who[name], Path(images) / f"{name}_0000{ENDING}", file) for name, file in zip(names, files)]


def read_prior(name: str, tumor: int) -> Prior:
    """Read a bundled prior, or that of a tumor in a plans file with a freetumor section.

    Raises:
        ValueError: there is none.
    """
    if not name.endswith(".json"):
        return priors.load(name)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--prior {path} must be a plans file, but there is none. Or name a bundled prior, as liver.")
    plans = json.loads(path.read_text(encoding="utf-8"))
    if plan.SECTION not in plans:
        raise ValueError(f"--prior {path} has no freetumor section. Run 'nnUNetv2_freetumor plan' to write one.")
    targets = plan.read_section(plans[plan.SECTION]).targets
    fitting = [target.prior for target in targets if target.tumor_label == tumor]
    if not fitting:
        labels = ", ".join(f"{target.tumor_label} ({target.name})" for target in targets)
        raise ValueError(f"--prior {path} has no target with --tumor {tumor}, only {labels}.")
    return fitting[0]
