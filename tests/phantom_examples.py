"""A noisy organ to grow tumors in."""

from pathlib import Path

import numpy as np

from nnunetv2_freetumor.files.cases import Case

SHAPE, SPACING_MM = (24, 48, 48), (3.0, 1.5, 1.5)


def scan(host_hu=110.0, seed=0):
    """Return a noisy organ of 54 x 60 x 60 mm in fat, and where it is."""
    rng = np.random.default_rng(seed)
    host = np.zeros(SHAPE, dtype=bool)
    host[3:21, 4:44, 4:44] = True
    hu = np.where(host, host_hu, -100.0) + rng.normal(0, 12, SHAPE)
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return Case(np.round(hu).astype(np.int16), SPACING_MM, (0.0, 0.0, 0.0), direction, Path("ct.nii.gz")), host
