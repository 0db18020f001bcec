"""The adversarial stage on a batch: each target's lesions meet real ones of their own kind, in training and after."""

import dataclasses

import pytest
import torch
from synthesis_examples import PRIOR, make_section
from test_adversarial import FRAME, RECIPE
from test_judge_term import make_judge

from nnunetv2_freetumor.generator_training.adversaries import PatchHinge
from nnunetv2_freetumor.generator_training.stage import GeneratorStage
from nnunetv2_freetumor.generator_training.step import AdversarialStep, Networks, make_optimizer
from nnunetv2_freetumor.generator_training.windows import Cutter
from nnunetv2_freetumor.generators.networks import LiteNet
from nnunetv2_freetumor.intensity import RAW_CT
from nnunetv2_freetumor.plan import SizeClass

CONTRAST_HU = (-60.0, 60.0)  # of the real lesions of either target
SMALL = dataclasses.replace(PRIOR, sizes=(SizeClass(distribution="log_uniform", weight=1.0, min_mm=8.0, max_mm=10.0),))


@pytest.fixture
def two_organs(organ_phantom):
    """Give an image and a label map of two organs, 1 and 4, with a real lesion in each, 2 darker and 5 brighter."""
    image, label = organ_phantom.image.clone(), organ_phantom.label.clone()
    label[..., 27:][label[..., 27:] == 1] = 4
    for tumor, contrast, last in ((2, CONTRAST_HU[0], slice(18, 23)), (5, CONTRAST_HU[1], slice(32, 37))):
        image[..., 18:22, 26:31, last] += contrast
        label[..., 18:22, 26:31, last] = tumor
    return image, label


class Remembering(PatchHinge):
    """An adversary that remembers the windows whose realism it was asked for."""

    def __init__(self, window_hu):
        super().__init__(window_hu)
        self.looked = []

    def scores(self, critic, windows):
        self.looked.append(windows)
        return super().scores(critic, windows)


class Step(AdversarialStep):
    """A step that learns nothing and remembers what it was shown."""

    def __init__(self):
        recipe = dataclasses.replace(RECIPE, lesions_per_step=2)
        adversary = Remembering(FRAME.window_hu)
        networks = Networks(LiteNet(), adversary.network(), recipe, targets=2)
        super().__init__(networks, make_optimizer(networks, recipe), recipe, FRAME, adversary)
        self.met, self.judges = [], []

    def __call__(self, synthetic, real, judge=None):
        self.met.append((synthetic, real))
        self.judges.append(judge)
        return {}


def make_stage(spacing_mm, judge=None):
    left = make_section(prior=SMALL).targets[0]
    right = dataclasses.replace(left, name="right", host_labels=(4,), tumor_label=5, lesion_labels=(5,))
    section = dataclasses.replace(make_section(), targets=(left, right))
    return GeneratorStage(section, Cutter(RECIPE, FRAME, spacing_mm, 0), RAW_CT, Step(), judge, batch_size=1)


def contrast_of(windows):
    """Measure the mean contrast of all lesions."""
    return float(((windows.hu - windows.host_hu) * windows.mask).sum() / windows.mask.sum())


def test_each_target_learns_from_its_own_real_lesions_and_is_looked_at_beside_them(two_organs, organ_phantom):
    stage, rng = make_stage(organ_phantom.spacing_mm), torch.Generator().manual_seed(0)
    for _ in range(8):
        stage.train(*two_organs, rng, judged=True)
        stage.look(*two_organs, rng)
    for synthetic, real in stage.step.met:
        assert {placed.proposal.site.target for placed in synthetic.lesions} == {synthetic.target}
        assert contrast_of(real) == pytest.approx(CONTRAST_HU[synthetic.target], abs=25)
        assert len(real.hu) == len(synthetic.lesions)
    assert {synthetic.target for synthetic, _ in stage.step.met} == {0, 1}
    looked = stage.step.adversary.looked
    drawn, real = looked[::2], looked[1::2]
    assert all(len(one.hu) == len(other.hu) for one, other in zip(drawn, real, strict=True))
    assert {round(contrast_of(one) / 60) for one in real} == {-1, 1}
    assert set(stage._previewed) == {0, 1}, "previews show every target"


def test_lesions_may_change_the_organ_and_their_own_surroundings_only(two_organs, organ_phantom):
    stage, rng = make_stage(organ_phantom.spacing_mm), torch.Generator().manual_seed(0)
    for _ in range(4):
        stage.train(*two_organs, rng, judged=True)
    for synthetic, _ in stage.step.met:
        allowed, inputs = synthetic.support, synthetic.inputs
        assert float(allowed[synthetic.windows.mask > 0].mean()) > 0.9
        assert not allowed[inputs.host == 0].any() and (allowed[inputs.distance > 5.0] < 0.5).all()


def test_parts_of_a_real_lesion_that_touch_at_a_corner_are_one_lesion(organ_phantom):
    label, section = organ_phantom.label.clone(), make_section()
    label[label == 2] = 1
    label[..., 18:21, 26:29, 18:21] = label[..., 21:24, 29:32, 21:24] = 2
    host = label[:, 0:1] == 1
    cutter, rng = Cutter(RECIPE, FRAME, organ_phantom.spacing_mm, 0), torch.Generator().manual_seed(0)
    (windows,) = cutter.real(organ_phantom.image, label, [host], section.targets, rng)
    assert len(windows) == 1


def test_the_judge_has_no_say_before_its_time(two_organs, organ_phantom, monkeypatch):
    judge = make_judge(channels=(2, 2))
    monkeypatch.setattr(judge, "loss", lambda image, lesions, contrast_hu: contrast_hu.mean())
    stage, rng = make_stage(organ_phantom.spacing_mm, judge), torch.Generator().manual_seed(0)
    for judged in (False, True):
        stage.train(*two_organs, rng, judged)
    early, late = stage.step.judges
    assert early is None and float(late(torch.full((2, 1, 4, 4, 4), 3.0))) == 3.0
