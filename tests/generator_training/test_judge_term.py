"""The judge in the adversarial stage: gradients reach the contrast, and patches seen together are seen as alone."""

import pytest
import torch
from synthesis_examples import make_section, make_segmenter
from test_adversarial import FRAME, RECIPE
from torch import nn

from nnunetv2_freetumor.generator_training.judge import TrainingJudge
from nnunetv2_freetumor.generator_training.windows import Cutter
from nnunetv2_freetumor.intensity import RAW_CT
from nnunetv2_freetumor.plan import always_planting
from nnunetv2_freetumor.synthesis.draws import CANDIDATES, draw
from nnunetv2_freetumor.synthesis.proposals import Proposer
from nnunetv2_freetumor.synthesis.region import support


@pytest.fixture
def placed(organ_phantom):
    """Give a batch of two patches with lesions in both, and a contrast for each lesion."""
    image, label = (torch.cat([part, part.flip(3)]) for part in (organ_phantom.image, organ_phantom.label))
    section = always_planting(make_section(), 3)
    rng = torch.Generator().manual_seed(2)
    chance = draw(2, 3, CANDIDATES, rng)
    proposals = Proposer(section, organ_phantom.spacing_mm, [0.0])(image, label, chance)
    lesions = Cutter(RECIPE, FRAME, organ_phantom.spacing_mm, 0).synthetic(proposals.lesions, section.targets, rng)
    assert len(lesions.lesions) > 4 and {one.proposal.site.sample for one in lesions.lesions} == {0, 1}
    contrast = -40 * lesions.support + torch.randn(lesions.support.shape, generator=rng)
    return image, lesions.lesions, contrast


def make_judge(patch=(16, 24, 24), spacing=(3.0, 2.0, 2.0), channels=(2,)):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.LeakyReLU(), nn.Conv3d(8, 3, 3, padding=1)
    )
    segmenter = make_segmenter(patch, spacing, network=network.eval().requires_grad_(False))
    return TrainingJudge(segmenter, make_section(), list(channels), (3.0, 2.0, 2.0), RAW_CT)


# inside the patch, beyond its edges, and at another spacing
WINDOWS = [((16, 24, 24), (3.0, 2.0, 2.0)), ((48, 24, 72), (3.0, 2.0, 2.0)), ((24, 20, 20), (2.0, 2.5, 2.5))]


@pytest.mark.parametrize(("patch", "spacing"), WINDOWS, ids=["inside", "padded", "resampled"])
def test_lesions_seen_together_are_judged_as_one_by_one(placed, patch, spacing, monkeypatch):
    image, lesions, contrast = placed
    judge, sizes = make_judge(patch, spacing), []
    see = judge.segmenter.network.forward
    monkeypatch.setattr(judge.segmenter.network, "forward", lambda z: see(sizes.append(len(z)) or z))
    together, shares = judge.loss(image, lesions, contrast), judge.shares(image, lesions, contrast)
    assert sizes[0] == max(sizes) == 4 and len(sizes) == 4
    alone = [judge.loss(image, [one], contrast[i : i + 1]) for i, one in enumerate(lesions)]
    assert float(together) == pytest.approx(float(torch.stack(alone).mean()), abs=1e-5)
    single = [judge.shares(image, [one], contrast[i : i + 1])[0] for i, one in enumerate(lesions)]
    assert shares == pytest.approx(single, abs=1e-5) and len({round(share, 3) for share in shares}) > 2


@pytest.mark.parametrize(("patch", "spacing"), WINDOWS, ids=["inside", "padded", "resampled"])
def test_a_gradient_reaches_every_lesion_s_contrast(placed, patch, spacing):
    image, lesions, contrast = placed
    contrast.requires_grad_()
    make_judge(patch, spacing).loss(image, lesions, contrast).backward()
    assert bool((contrast.grad.flatten(1).abs().sum(1) > 0).all())


def test_a_lesion_is_written_where_it_may_change_its_patch_and_nowhere_else(placed):
    image, lesions, contrast = placed
    for one, drawn in zip(lesions, contrast):
        planted, before = make_judge().plant(image, one, torch.full_like(drawn, -40.0)), image[one.proposal.site.sample]
        allowed = torch.zeros_like(before[0], dtype=torch.bool)
        allowed[one.proposal.site.box.slices()] = support(one.proposal.region)
        assert torch.equal(planted[0, 0][~allowed], before[0][~allowed])
        inside = torch.zeros_like(allowed)
        inside[one.proposal.site.box.slices()] = one.proposal.lesion
        assert float((planted[0, 0] - before[0])[inside].median()) == pytest.approx(-40, abs=0.1)


def test_a_target_without_a_judge_costs_nothing(placed):
    image, lesions, contrast = placed
    assert float(make_judge(channels=(None,)).loss(image, lesions, contrast)) == 0
    assert all(share != share for share in make_judge(channels=(None,)).shares(image, lesions, contrast))
