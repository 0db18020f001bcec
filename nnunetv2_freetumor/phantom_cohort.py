"""Write CT phantoms as an nnU-Net raw dataset."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from nnunetv2_freetumor.cases import Case, check_writable, write_case, write_json
from nnunetv2_freetumor.phantom import Phantom, make_phantom
from nnunetv2_freetumor.phantom_anatomy import ORGANS

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
TUMOR_FREE_EVERY = 4  # one case in four has no tumor


class Order(NamedTuple):
    """One case to be made."""

    folder: Path
    name: str
    part: str  # Tr or Ts
    seed: tuple[int, int]
    lesions: int
    options: dict[str, Any]  # for make_phantom


def write_cohort(
    folder: str | Path,
    cases: int,
    seed: int = 0,
    *,
    test_cases: int = 0,
    host: str = "liver",
    processes: int = 1,
    **options: Any,
) -> None:
    """Write a raw dataset of phantoms with labels 0 background, 1 host organ, 2 tumor, some cases without tumor.

    Args:
        folder: the dataset's folder, whose name nnU-Net wants to be DatasetXXX_NAME.
        cases: number of training cases.
        seed: what all voxels follow from.
        test_cases: number of further cases in imagesTs and labelsTs.
        host: the organ with tumors, as in `make_phantom`.
        processes: how many cases to make at a time.
        options: further arguments of `make_phantom`, such as phase, family, pixel_mm.
    """
    root = Path(folder)
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        check_writable(root / name)
    orders = list(_orders(root, cases, test_cases, seed, {**options, "host": host}))
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            _follow(pool.map(_fill, orders), len(orders))
    else:
        _follow(map(_fill, orders), len(orders))
    labels = {"background": 0, host: 1, "tumor": 2}
    write_json(
        {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"},
        root / "dataset.json",
    )


def _orders(root: Path, cases: int, test_cases: int, seed: int, options: dict[str, Any]) -> Iterator[Order]:
    for number in range(cases + test_cases):
        part, place = ("Tr", number) if number < cases else ("Ts", number - cases)
        rng = np.random.default_rng((seed, number, 1))
        lesions = 0 if place % TUMOR_FREE_EVERY == TUMOR_FREE_EVERY - 1 else int(rng.integers(1, 5))
        yield Order(root, f"phantom_{number:03d}", part, (seed, number), lesions, options)


def _follow(done: Any, total: int) -> None:
    for _ in tqdm(done, total=total, desc="making CT phantoms", unit="case"):
        pass


def _fill(order: Order) -> None:
    phantom = make_phantom(list(order.seed), lesions=order.lesions, **order.options)
    image, label = (_as_case(phantom, array) for array in (phantom.image, label_of(phantom, order.options["host"])))
    write_case(image, order.folder / f"images{order.part}" / f"{order.name}_0000.nii.gz")
    write_case(label, order.folder / f"labels{order.part}" / f"{order.name}.nii.gz")


def label_of(phantom: Phantom, host: str) -> np.ndarray:
    """Give the label map of a cohort: 0 background, 1 host, 2 tumor."""
    label = (phantom.organ == ORGANS[host]).astype(np.uint8)
    label[phantom.tumor > 0] = 2
    return label


def _as_case(phantom: Phantom, array: np.ndarray) -> Case:
    origin = phantom.origin_mm[::-1]
    return Case(array, phantom.spacing_mm, origin, IDENTITY, Path())
