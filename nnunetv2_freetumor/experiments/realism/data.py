"""The cases with the real lesions: those of a folder, or phantoms whose tumors are of a held-out growth family."""

import json
from pathlib import Path
from typing import Any

from nnunetv2_freetumor import plan, priors
from nnunetv2_freetumor.experiments.phantom.cohort import write_test_cases
from nnunetv2_freetumor.experiments.phantom.tumors import HELD_OUT_FAMILIES
from nnunetv2_freetumor.experiments.realism.pairs import RealCase
from nnunetv2_freetumor.files.cases import check_writable, write_json
from nnunetv2_freetumor.plan import Prior

_ENDING = ".nii.gz"
_FOLDER = "phantoms"
_COHORT_SEED = 97_531  # of no other cohort: nothing else was trained, fitted or tested on these patients
_COHORT: dict[str, Any] = {
    "lesions": (7, 10),
    "tumor_free_every": 0,
    "crop_mm": 15.0,
    "pixel_mm": (1.3, 1.5),
    "slice_mm": (4.0, 5.0),
    "family": HELD_OUT_FAMILIES[0],
}


def make_phantoms(output: Path, cases: int, processes: int) -> tuple[Path, Path]:
    """Make the phantoms that are still missing, and return the folders of images and label maps.

    Raises:
        ValueError: the folder holds phantoms made with other settings.
    """
    folder = check_writable(output / _FOLDER)
    note, made = folder / "made_with.json", json.loads(json.dumps({"seed": _COHORT_SEED, **_COHORT}))
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != made:
        raise ValueError(f"{folder} holds phantoms that were made with other settings. Choose another folder with -o.")
    write_json(made, note)
    write_test_cases(folder, cases, _COHORT_SEED, processes=processes, resume=True, **_COHORT)
    return folder / "imagesTs", folder / "labelsTs"


def find_cases(
    images: str | Path, labels: str | Path, patients: dict[str, str] | None, cases: int | None
) -> list[RealCase]:
    """Return the first `cases` pairs of an image CASE_0000.nii.gz and a label map CASE.nii.gz.

    Raises:
        ValueError: a folder or an image is missing, or a case has no patient in `patients`.
    """
    for flag, folder in (("-i", images), ("-l", labels)):
        if not Path(folder).is_dir():
            raise ValueError(f"{flag} must be a folder, but there is no folder {folder}.")
    files = sorted(Path(labels).glob(f"*{_ENDING}"))[:cases]
    if not files:
        raise ValueError(f"-l {labels} must hold label maps CASE{_ENDING}, but it holds none.")
    names = [file.name.removesuffix(_ENDING) for file in files]
    for name in names:
        if not (Path(images) / f"{name}_0000{_ENDING}").is_file():
            raise ValueError(
                f"-i {images} must hold an image for each label map in -l, but {name}_0000{_ENDING} is missing. Add "
                "it, or remove its label map."
            )
        if patients is not None and name not in patients:
            raise ValueError(f"--patients must name a patient for each case, but it lacks {name}.")
    who = patients or {name: name for name in names}
    return [RealCase(name, who[name], Path(images) / f"{name}_0000{_ENDING}", file) for name, file in zip(names, files)]


def prior_by_name(name: str, tumor: int) -> Prior:
    """Load a bundled prior, or that of a tumor in a plans file with a freetumor section.

    Raises:
        ValueError: there is none.
    """
    if not name.endswith(".json"):
        return priors.load(name)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--prior must be a plans file or a bundled prior such as liver, but there is no file {path}.")
    plans = json.loads(path.read_text(encoding="utf-8"))
    if plan.SECTION not in plans:
        raise ValueError(f"--prior {path} has no freetumor section. Run 'nnUNetv2_freetumor plan' to write one.")
    targets = plan.read_section(plans[plan.SECTION]).targets
    fitting = [target.prior for target in targets if target.tumor_label == tumor]
    if not fitting:
        labels = ", ".join(f"{target.tumor_label} ({target.name})" for target in targets)
        raise ValueError(f"--prior {path} has no target with --tumor {tumor}, only {labels}.")
    return fitting[0]
