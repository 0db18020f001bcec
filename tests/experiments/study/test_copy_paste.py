"""Copy-paste in the manner of CarveMix: what is carved, where it is pasted, and what stays untouched."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from nnunetv2_freetumor.experiments.study.copy_paste import CopyPaste, carve_margin_mm, read_bank
from nnunetv2_freetumor.intensity import RAW_CT, Intensity
from nnunetv2_freetumor.plan import Prior, Section, SizeClass, Target
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer

SIZES = (SizeClass(distribution="log_uniform", weight=1.0, min_mm=9.0, max_mm=24.0),)
PRIOR = Prior(name="test", sizes=SIZES, lesions_per_patch=(0.0, 1.0))
WINDOW = Intensity(mean_hu=100.0, sd_hu=40.0, low_hu=-60.0, high_hu=240.0)
ORGAN, TUMOR, CYST = 1, 2, 3
SPACING = (3.0, 2.0, 2.0)
TARGET = Target(
    name="organ tumor",
    host_labels=(ORGAN,),
    tumor_label=TUMOR,
    lesion_labels=(TUMOR, CYST),
    prior=PRIOR,
    source="test",
)
SECTION = Section(
    targets=(TARGET,),
    labels={},
    plans_hash="",
    probability_tumor_free=1.0,
    probability_tumor_bearing=1.0,
    untouched_share=0.0,
)


class Cases(dict):
    """Stand in for nnU-Net's preprocessed dataset."""

    def load_case(self, identifier):
        """Return image and segmentation with a channel axis, then what is not needed."""
        image, label = self[identifier]
        return image[None], label[None], None, {}


def ball(shape, center, radius_mm):
    """Mark a ball."""
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return sum(((a - c) * s) ** 2 for a, c, s in zip(axes, center, SPACING)) <= radius_mm**2


def training_case():
    """Return a case with two tumors of 40 and 55 HU in an organ of 100 HU, the second close to the air of -1000 HU."""
    shape = (24, 40, 40)
    image, label = np.full(shape, -1000.0, dtype=np.float32), np.zeros(shape, dtype=np.int8)
    image[4:20, 4:36, 4:36], label[4:20, 4:36, 4:36] = 100.0, ORGAN
    for center, radius, hu in (((12, 12, 12), 9.0, 40.0), ((12, 28, 33), 6.0, 55.0)):
        tumor = ball(shape, center, radius) & (label == ORGAN)
        image[tumor], label[tumor] = hu, TUMOR
    return image, label


@pytest.fixture
def bank():
    """Return the two tumors of the training case."""
    return read_bank(Cases(a=training_case()), ["a"], SECTION, SPACING)


def paste(phantom, bank, seed=3, section=SECTION, batch=1, intensity=RAW_CT):
    """Paste into copies of a phantom; give the result and what went in."""
    arm = CopyPaste(section, SPACING, intensity, bank)
    image, label = phantom.image.repeat(batch, 1, 1, 1, 1), phantom.label.repeat(batch, 1, 1, 1, 1)
    draw = arm.draw(batch, torch.Generator().manual_seed(seed))
    return arm(image, label, draw), image, label


def counted(result, name):
    """Read one count."""
    return int(result.counts[name])


def test_the_bank_holds_each_connected_tumor_with_its_distances(bank):
    _, label = training_case()
    assert [int((tumor.distance_mm < 0).sum()) for tumor in bank] == [
        int((label[:, :20] == TUMOR).sum()),
        int((label[:, 20:] == TUMOR).sum()),
    ]
    depth = -float(bank[0].distance_mm.min())
    assert 8.0 < depth <= 11.0
    beyond = bank[0].distance_mm[bank[0].distance_mm > 0]
    assert float(beyond.min()) == 2.0 and float(beyond.max()) >= depth
    assert {float(tumor.image[tumor.distance_mm < 0].mean()) for tumor in bank} == {40.0, 55.0}


def test_a_margin_takes_no_air_and_no_other_tumor_along(bank):
    for tumor in bank:
        assert set(tumor.image[tumor.tissue].unique().tolist()) in ({40.0, 100.0}, {55.0, 100.0})


def test_margins_follow_the_mixture_of_the_paper():
    rng = np.random.default_rng(0)
    margins = np.asarray([carve_margin_mm(8.0, *rng.random(2)) for _ in range(4000)])
    assert abs((margins < 0).mean() - 0.5) < 0.03
    assert -4.0 <= margins.min() < -3.9 and 7.8 < margins.max() <= 8.0
    assert abs(margins[margins < 0].mean() + 2.0) < 0.1 and abs(margins[margins > 0].mean() - 4.0) < 0.2


def test_pasted_voxels_carry_the_tumors_own_intensities_and_its_label(organ_phantom, bank):
    result, image, _ = paste(organ_phantom, bank)
    tumor = result.label == TUMOR
    assert counted(result, "planted") == 1 and len(result.lesions) == 2
    assert torch.isclose(result.image[tumor][:, None], torch.tensor([40.0, 55.0]), atol=1e-3).any(1).all()
    margin = (result.image != image) & ~tumor
    assert torch.allclose(result.image[margin], torch.tensor(100.0), atol=1e-3)


def test_nothing_outside_the_host_and_nothing_of_real_lesions_changes(organ_phantom, bank):
    phantom = organ_phantom._replace(label=organ_phantom.label.clone())
    phantom.label[..., 18:22, 24:30, 24:30] = TUMOR
    phantom.label[..., 10:14, 20:26, 20:26] = CYST
    phantom.label[..., 26:28, :, :] = 4
    phantom.label[..., 0:3, :, :] = -1
    pasted = 0
    for seed in range(6):
        result, image, label = paste(phantom, bank, seed)
        other = label != ORGAN
        assert torch.equal(result.image[other], image[other]) and torch.equal(result.label[other], label[other])
        pasted += counted(result, "planted")
    assert pasted >= 3


def test_pasted_tumors_keep_their_distance_from_real_lesions(organ_phantom, bank):
    phantom = organ_phantom._replace(label=organ_phantom.label.clone())
    phantom.label[..., 18:22, 24:30, 24:30] = TUMOR
    steps = torch.tensor(SPACING)
    for seed in range(6):
        result, _, label = paste(phantom, bank, seed)
        new = ((result.label == TUMOR) & (label != TUMOR)).nonzero()[:, 2:] * steps
        real = (label == TUMOR).nonzero()[:, 2:] * steps
        assert not len(new) or torch.cdist(new.float(), real.float()).min() > SECTION.clearance_mm


def test_the_same_draw_gives_the_same_tumors_and_a_batch_equals_its_singles(organ_phantom, bank):
    arm = CopyPaste(SECTION, SPACING, RAW_CT, bank)
    draw = arm.draw(3, torch.Generator().manual_seed(1))
    image, label = (part.repeat(3, 1, 1, 1, 1) for part in (organ_phantom.image, organ_phantom.label))
    batch, again = arm(image, label, draw), arm(image, label, draw)
    assert torch.equal(batch.image, again.image) and torch.equal(batch.label, again.label)
    for index in range(3):
        single = arm(organ_phantom.image, organ_phantom.label, draw.sample(index))
        assert torch.equal(single.image[0], batch.image[index]) and torch.equal(single.label[0], batch.label[index])
    assert not torch.equal(batch.image[0], batch.image[1])


def test_the_same_patches_are_chosen_as_for_synthesis(organ_phantom, bank):
    section = dataclasses.replace(SECTION, probability_tumor_free=0.5, untouched_share=0.3)
    arm, other = CopyPaste(section, SPACING, RAW_CT, bank), Synthesizer(section, SPACING, RAW_CT)
    image, label = (part.repeat(8, 1, 1, 1, 1) for part in (organ_phantom.image, organ_phantom.label))
    draw = arm.draw(8, torch.Generator().manual_seed(2))
    touched = [{lesion.site.sample for lesion in method(image, label, draw).lesions} for method in (arm, other)]
    assert touched[0] == touched[1] and 0 < len(touched[0]) < 8


def test_lesions_and_counts_report_what_was_pasted(organ_phantom, bank):
    result, _, _ = paste(organ_phantom, bank, batch=4)
    voxels = sum(int(lesion.change.voxels) for lesion in result.lesions)
    assert voxels == int((result.label == TUMOR).sum()) == counted(result, "lesion_voxels")
    assert (counted(result, "samples"), counted(result, "host"), counted(result, "tumor_free")) == (4, 4, 4)
    sizes = sum(counted(result, name) for name in ("<10 mm", "10-20 mm", "20-50 mm", ">=50 mm"))
    assert sizes == len(result.lesions)
    first = result.lesions[0]
    assert first.site.diameter_mm == pytest.approx((6 / math.pi * int(first.change.voxels) * 12.0) ** (1 / 3))
    assert float(first.change.contrast_hu) < -20


def test_z_scores_are_copied_as_they_are(organ_phantom):
    image, label = training_case()
    cases = Cases(a=(WINDOW.to_z(torch.from_numpy(image)).numpy(), label))
    phantom = organ_phantom._replace(image=WINDOW.to_z(organ_phantom.image))
    result, _, _ = paste(phantom, read_bank(cases, ["a"], SECTION, SPACING), intensity=WINDOW)
    found = result.image[result.label == TUMOR]
    expected = WINDOW.to_z(torch.tensor([40.0, 55.0]))
    assert torch.isclose(found[:, None], expected, atol=1e-5).any(1).all()


def test_a_tumor_larger_than_the_host_finds_no_room(organ_phantom, bank):
    phantom = organ_phantom._replace(label=torch.where(torch.rand(organ_phantom.label.shape) < 0.5, ORGAN, 0).short())
    result, image, label = paste(phantom, bank)
    assert counted(result, "planted") == 0
    assert torch.equal(result.image, image) and torch.equal(result.label, label)


def test_a_patch_without_host_stays_as_it_is(organ_phantom, bank):
    phantom = organ_phantom._replace(label=torch.zeros_like(organ_phantom.label))
    result, image, _ = paste(phantom, bank)
    assert torch.equal(result.image, image) and counted(result, "eligible") == 0 and result.lesions == []


def test_an_empty_bank_is_refused():
    image, label = training_case()
    label[label == TUMOR] = ORGAN
    bank = read_bank(Cases(a=(image, label)), ["a"], SECTION, SPACING)
    with pytest.raises(
        ValueError, match="at least one real tumor in the fold's training cases .* none for organ tumor"
    ):
        CopyPaste(SECTION, SPACING, RAW_CT, bank)
