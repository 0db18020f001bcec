"""Preprocess a raw case as nnU-Net does, in the orientation that its reader gives."""

from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from nnunetv2_freetumor.files.cases import Case, from_image, to_image
from nnunetv2_freetumor.pool.store import Volumes
from nnunetv2_freetumor.pool.target import DatasetPlans


class Preprocessed(NamedTuple):
    """A case after nnU-Net's preprocessing, and how much of it is out of host and loss."""

    volumes: Volumes
    taken_out: int  # voxels of lesions and holes, with their margin
    unannotated: int  # voxels of islands, and of background that is not annotated


def preprocess(dataset: DatasetPlans, image: Case, label: np.ndarray) -> Preprocessed:
    """Preprocess a raw case as nnU-Net does for the configuration, in the orientation that its reader gives.

    Args:
        dataset: plans and configuration.
        image: the CT.
        label: (z y x), see `Excluded`.
    """
    label = in_readers_orientation(image._replace(array=label), dataset.plans).array
    image = in_readers_orientation(image, dataset.plans)
    geometry = {"spacing": image.spacing_mm[::-1], "origin": image.origin_mm, "direction": image.direction}
    data, seg, properties = dataset.configuration.preprocessor_class(verbose=False).run_case_npy(
        image.array[None],
        label[None],
        {"spacing": list(image.spacing_mm), "sitk_stuff": geometry},
        dataset.manager,
        dataset.configuration,
        dataset.dataset_json,
    )
    volumes = Volumes(data.astype(np.float32, copy=False), seg.astype(np.int16, copy=False), properties)
    ignore = dataset.labels.ignore
    taken_out, unannotated = volumes.label == ignore + 1, volumes.label == ignore
    volumes.label[taken_out] = ignore
    return Preprocessed(volumes, int(taken_out.sum()), int(unannotated.sum()))


def in_readers_orientation(case: Case, plans: dict[str, Any]) -> Case:
    """Return a volume in the orientation that the plans' nnU-Net reader gives."""
    return reoriented(case, "RAS") if "Reorient" in plans.get("image_reader_writer", "") else case


def orientation_of(case: Case) -> str:
    """Return a volume's orientation, such as LPS."""
    return sitk.DICOMOrientImageFilter().GetOrientationFromDirectionCosines(case.direction)


def reoriented(case: Case, orientation: str) -> Case:
    """Return a volume with its axes permuted and flipped to an orientation such as RAS."""
    return from_image(sitk.DICOMOrient(to_image(case), orientation), case.path)
