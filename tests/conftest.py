"""Shared fixtures; every annotated shape in the package is checked while the tests run."""

import os
import random
from typing import NamedTuple

from jaxtyping import install_import_hook

# an int where a float is asked for passes here as it passes mypy
install_import_hook("nnunetv2_freetumor", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

pytest.register_assert_rewrite("cluster_work", "pools", "synthetic_sets")  # fixtures of several files


class OrganPhantom(NamedTuple):
    """A body with one liver-like organ: tensors (1, 1, x, y, z), image in HU."""

    image: torch.Tensor  # float32
    label: torch.Tensor  # int16: 0 background, 1 organ
    spacing_mm: tuple[float, float, float]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state: nnU-Net's loaders draw from these (another one: TEST_SEED)."""
    seed = int(os.environ.get("TEST_SEED", "20240"))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _ellipsoid(shape, spacing_mm, center, half_axes_mm):
    """Mark the voxels of an ellipsoid whose center is given as a share of the volume's extent."""
    distance = torch.zeros(shape)
    for axis, (size, step, share, half) in enumerate(zip(shape, spacing_mm, center, half_axes_mm)):
        offset_mm = (torch.arange(size) + 0.5 - share * size) * step
        distance = distance + (offset_mm / half).square().reshape([-1 if i == axis else 1 for i in range(3)])
    return distance <= 1


@pytest.fixture
def rng() -> torch.Generator:
    """Give a generator that starts at the same state in every test."""
    return torch.Generator().manual_seed(20_240)


@pytest.fixture
def organ_phantom(rng: torch.Generator) -> OrganPhantom:
    """Give air, a soft-tissue body and a liver-like organ with noise, at an anisotropic spacing."""
    shape, spacing_mm = (40, 56, 64), (3.0, 2.0, 2.0)
    body = _ellipsoid(shape, spacing_mm, (0.5, 0.5, 0.5), (300.0, 52.0, 60.0))
    organ = _ellipsoid(shape, spacing_mm, (0.5, 0.48, 0.42), (50.0, 36.0, 40.0))
    image = torch.full(shape, -1000.0)
    image[body], image[organ] = 40.0, 110.0
    image = (image + 12.0 * torch.randn(shape, generator=rng)).clamp(-1024, 3071)
    return OrganPhantom(image[None, None], organ.to(torch.int16)[None, None], spacing_mm)
