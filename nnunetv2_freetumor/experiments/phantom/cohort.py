"""Write CT phantoms as an nnU-Net raw dataset."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask, pad_bbox

from nnunetv2_freetumor.cluster.processes import map_cases, several_processes
from nnunetv2_freetumor.experiments.phantom.anatomy import ORGANS
from nnunetv2_freetumor.experiments.phantom.phantom import Phantom, make_phantom
from nnunetv2_freetumor.files.cases import Case, check_writable, write_case, write_json

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
TEST_SEEDS_FROM = 1_000_000  # so that test cases written later are other patients, even from the training cases' seed


class Mix(NamedTuple):
    """What a cohort is made of."""

    seed: int
    lesions: tuple[int, int]  # the fewest and the most of a tumor-bearing case
    tumor_free_every: int  # one case in so many has no tumor; 0: all cases have tumors
    crop_mm: float | None
    options: dict[str, Any]  # for make_phantom

    def specify(self, folder: Path, case: str, part: str, number: int, index: int) -> "CaseSpec":
        """Specify the cohort's case with this number; its index within its part decides whether it has tumors."""
        few, most = self.lesions
        rng = np.random.default_rng((self.seed, number, 1))
        tumor_free = self.tumor_free_every > 0 and index % self.tumor_free_every == self.tumor_free_every - 1
        lesions = 0 if tumor_free else int(rng.integers(few, most + 1))
        return CaseSpec(
            folder,
            case,
            part=part,
            seed=(self.seed, number),
            lesions=lesions,
            crop_mm=self.crop_mm,
            options=self.options,
        )


class CaseSpec(NamedTuple):
    """One case to be made."""

    folder: Path
    case: str
    part: str  # Tr or Ts
    seed: tuple[int, int]
    lesions: int
    crop_mm: float | None
    options: dict[str, Any]  # for make_phantom


def write_cohort(
    folder: str | Path,
    cases: int,
    seed: int = 0,
    *,
    test_cases: int = 0,
    host: str = "liver",
    processes: int = 1,
    lesions: tuple[int, int] = (1, 4),
    tumor_free_every: int = 4,
    crop_mm: float | None = None,
    **options: Any,
) -> None:
    """Write a raw dataset of phantoms with labels 0 background, 1 host organ, 2 tumor, some cases without tumor.

    Args:
        folder: the dataset's folder; nnU-Net needs it to be named DatasetXXX_NAME.
        cases: number of training cases.
        seed: determines all voxels.
        test_cases: number of further cases in imagesTs and labelsTs.
        host: the organ with tumors, as in `make_phantom`.
        processes: how many cases to make at a time.
        lesions: the fewest and the most tumors of a case that has any.
        tumor_free_every: one case in so many has no tumor; 0 gives tumors to all cases.
        crop_mm: crop each case to its host and tumors plus this margin; None keeps the whole scan.
        options: further arguments of `make_phantom`, such as phase, family, pixel_mm.
    """
    root = Path(folder)
    mix = _check(
        Mix(seed, lesions, tumor_free_every=tumor_free_every, crop_mm=crop_mm, options={**options, "host": host})
    )
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        check_writable(root / name)
    _make(list(_specify_all(root, cases, test_cases, mix)), processes)
    labels = {"background": 0, host: 1, "tumor": 2}
    write_json(
        {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"},
        root / "dataset.json",
    )


def write_test_cases(
    folder: str | Path,
    cases: int,
    seed: int,
    *,
    host: str = "liver",
    processes: int = 1,
    lesions: tuple[int, int] = (1, 4),
    tumor_free_every: int = 4,
    crop_mm: float | None = None,
    resume: bool = False,
    **options: Any,
) -> None:
    """Write phantoms test_000, test_001 ... into imagesTs and labelsTs of a dataset, and leave everything else alone.

    These are other patients than `write_cohort` makes, even from the same seed. The arguments are the same; `resume`
    keeps the cases that are already there.
    """
    root = Path(folder)
    mix = _check(
        Mix(seed, lesions, tumor_free_every=tumor_free_every, crop_mm=crop_mm, options={**options, "host": host})
    )
    for name in ("imagesTs", "labelsTs"):
        check_writable(root / name)
    specs = [
        mix.specify(root, f"test_{index:03d}", part="Ts", number=TEST_SEEDS_FROM + index, index=index)
        for index in range(cases)
    ]
    _make([spec for spec in specs if not (resume and _label_path(spec).is_file())], processes)


def _check(mix: Mix) -> Mix:
    few, most = mix.lesions
    if not 1 <= few <= most:
        raise ValueError(
            f"lesions must be the fewest and the most tumors of a tumor-bearing case, 1 or more, but they are "
            f"{mix.lesions}. For tumor-free cases, set tumor_free_every."
        )
    if mix.tumor_free_every < 0:
        raise ValueError(f"tumor_free_every must be 0 (never) or more, but it is {mix.tumor_free_every}.")
    if mix.crop_mm is not None and mix.crop_mm < 0:
        raise ValueError(f"crop_mm must be None (no cropping) or a margin of 0 or more, but it is {mix.crop_mm}.")
    return mix


def _specify_all(root: Path, cases: int, test_cases: int, mix: Mix) -> Iterator[CaseSpec]:
    for number in range(cases + test_cases):
        part, index = ("Tr", number) if number < cases else ("Ts", number - cases)
        yield mix.specify(root, f"phantom_{number:03d}", part=part, number=number, index=index)


def _make(specs: list[CaseSpec], processes: int) -> None:
    with several_processes(min(processes, len(specs))) as executor:
        map_cases(_fill, specs, executor, "making CT phantoms")


def _fill(spec: CaseSpec) -> None:
    phantom = make_phantom(list(spec.seed), lesions=spec.lesions, **spec.options)
    label = cohort_label(phantom, spec.options["host"])
    box = _box(label, phantom.grid.spacing_mm, spec.crop_mm)
    for array, kind, ending in ((phantom.image, "images", "_0000"), (label, "labels", "")):
        write_case(_as_case(phantom, array, box), spec.folder / f"{kind}{spec.part}" / f"{spec.case}{ending}.nii.gz")


def _label_path(spec: CaseSpec) -> Path:
    """Return the path of the file that is written last."""
    return spec.folder / f"labels{spec.part}" / f"{spec.case}.nii.gz"


def cohort_label(phantom: Phantom, host: str) -> np.ndarray:
    """Return the label map of a cohort: 0 background, 1 host, 2 tumor."""
    label = (phantom.organ == ORGANS[host]).astype(np.uint8)
    label[phantom.tumor > 0] = 2
    return label


def _box(label: np.ndarray, spacing_mm: tuple[float, ...], crop_mm: float | None) -> list[list[int]]:
    """Return the bounds (z, y, x) of what a case keeps: everything, or the labels and a margin."""
    if crop_mm is None:
        return [[0, size] for size in label.shape]
    return pad_bbox(get_bbox_from_mask(label > 0), [math.ceil(crop_mm / step) for step in spacing_mm], label.shape)


def _as_case(phantom: Phantom, array: np.ndarray, box: list[list[int]]) -> Case:
    z, y, x = (at + bounds[0] * step for at, bounds, step in zip(phantom.grid.origin_mm, box, phantom.grid.spacing_mm))
    return Case(
        array[bounding_box_to_slice(box)], phantom.grid.spacing_mm, origin_mm=(x, y, z), direction=IDENTITY, path=Path()
    )
