"""A section that always plants, lesions in a plain organ, and a fake judge, for tests of several rooms."""

import torch
from torch import nn

from nnunetv2_freetumor.intensity import Intensity
from nnunetv2_freetumor.plan import Prior, Section, SizeClass, Target
from nnunetv2_freetumor.synthesis.region import Chances, Look, Region
from nnunetv2_freetumor.synthesis.volume import Box, offsets_mm
from nnunetv2_freetumor.training.segmenter import FrozenSegmenter

SIZES = (SizeClass(distribution="log_uniform", weight=1.0, min_mm=9.0, max_mm=24.0),)


PRIOR = Prior(name="test", sizes=SIZES, lesions_per_patch=(0.0, 1.0))


ORGAN, TUMOR, CYST = 1, 2, 3


def make_section(prior=PRIOR, **settings):
    """Build a section for organ 1 and tumor 2 that plants whenever it can."""
    target = Target(
        name="organ", host_labels=(ORGAN,), tumor_label=TUMOR, lesion_labels=(TUMOR, CYST), prior=prior, source="test"
    )
    always = {"probability_tumor_free": 1.0, "probability_tumor_bearing": 1.0, "untouched_share": 0.0}
    return Section(targets=(target,), labels={}, plans_hash="", **{**always, **settings})


def counted(result, name):
    """Read one count."""
    return int(result.counts[name])


SIZE = 48


def make_region(hu=110.0, noise_hu=10.0, radius_mm=10.0, spacing_mm=1.0, host=None):
    """Give a noisy organ with a spherical lesion in its middle."""
    rng = torch.Generator().manual_seed(7)
    volume = hu + noise_hu * torch.randn(SIZE, SIZE, SIZE, generator=rng)
    spacing = (spacing_mm,) * 3
    box, center = Box((0, 0, 0), (SIZE,) * 3), [SIZE / 2 - 0.5] * 3
    offsets = offsets_mm(box, center, spacing, (1, 1, 1), torch.device("cpu"))
    host = torch.ones(SIZE, SIZE, SIZE, dtype=torch.bool) if host is None else host
    return Region(volume, host, host, offsets.norm(dim=-1) - radius_mm, (1, 1, 1), offsets, spacing)


def make_look(diameter_mm=20.0, contrast=0.0, **chances):
    """Return a look whose chances are all 0.99 (no variant), except for the named ones."""
    none = dict.fromkeys(Chances._fields, 0.99)
    noise = torch.randn(2, 24, 24, 24, generator=torch.Generator().manual_seed(1))
    return Look(diameter_mm, Chances(**(none | chances)), contrast, noise)


HU = Intensity(mean_hu=0.0, sd_hu=1.0, low_hu=-1024.0, high_hu=3071.0)


LABELS = {"background": 0, "organ": 1, "tumor": 2}


class Threshold(nn.Module):
    """Call tumor what lies above zero in its own z-scores, and remember what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return torch.cat([torch.zeros_like(x), torch.full_like(x, -1.0), x.sign()], dim=1)


def make_segmenter(patch=(8, 8, 8), spacing=(1.0, 1.0, 1.0), intensity=HU, network=None, **changes):
    """Build a fake judge."""
    return FrozenSegmenter(
        name="fake", network=network or Threshold(), intensity=intensity, spacing_mm=spacing, patch_size=patch,
        **{"labels": LABELS, **changes},
    )  # fmt: skip
