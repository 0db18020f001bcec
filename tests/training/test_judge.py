"""The judge: shares counted by hand, thresholds by size, and what is not recognized comes back bit for bit."""

import dataclasses

import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from synthesis_examples import HU, PRIOR, counted, make_section, make_segmenter
from torch import nn

from nnunetv2_freetumor.intensity import RAW_CT, Intensity
from nnunetv2_freetumor.plan import SizeClass
from nnunetv2_freetumor.synthesis.gate import Verdict
from nnunetv2_freetumor.synthesis.proposals import Proposal
from nnunetv2_freetumor.synthesis.region import Site
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer
from nnunetv2_freetumor.synthesis.volume import Box
from nnunetv2_freetumor.training.judge import JudgeGate, read_view


def make_gate(segmenter, channels=(2,), spacing=(1.0, 1.0, 1.0), intensity=HU, **settings):
    return JudgeGate(segmenter, make_section(**settings), list(channels), spacing, intensity)


def block(start, stop, diameter_mm=12.0, sample=0, center=None, target=0):
    """Make a lesion that fills a box."""
    center = center or [(a + b - 1) / 2 for a, b in zip(start, stop)]
    size = [b - a for a, b in zip(start, stop)]
    site = Site(sample, target, center, diameter_mm, Box(start, stop))
    return Proposal(site, region=None, look=None, lesion=torch.ones(*size, dtype=torch.bool), fits=torch.tensor(True))


def scene(shape=(16, 16, 16), bright=((4, 8), (4, 8), (4, 7))):
    """Make a dark volume with a bright block: 3 of 4 layers of the lesion at (4..8)^3."""
    image = torch.full((1, 1, *shape), -50.0)
    image[..., slice(*bright[0]), slice(*bright[1]), slice(*bright[2])] = 50.0
    return image


def test_the_recognized_share_is_the_share_of_the_lesions_voxels_called_tumor():
    (verdict,) = make_gate(make_segmenter())(scene(), [block((4, 4, 4), (8, 8, 8))])
    assert float(verdict.recognized) == 0.75 and bool(verdict.accepted) and bool(verdict.stays)


def test_only_the_lesions_own_voxels_are_asked_for():
    lesion = block((4, 4, 4), (8, 8, 8))
    lesion.lesion[:, :, :2] = False  # keeps layers 6 and 7, of which 6 is bright
    assert float(make_gate(make_segmenter())(scene(), [lesion])[0].recognized) == 0.5


def test_a_lesion_larger_than_the_window_is_judged_on_what_the_window_shows():
    image = scene(bright=((0, 16), (0, 16), (0, 8)))
    (verdict,) = make_gate(make_segmenter())(image, [block((0, 0, 0), (16, 16, 16))])
    assert float(verdict.recognized) == 0.5


@pytest.mark.parametrize(
    ("diameter_mm", "needed"), [(9.9, 0.3), (10.0, 0.5), (19.9, 0.5), (20.0, 0.7), (49.0, 0.7), (60.0, 0.7)]
)
def test_the_share_that_is_asked_for_depends_on_the_size(diameter_mm, needed):
    gate = make_gate(make_segmenter(patch=(10, 1, 1)))
    for layers in range(11):
        image = scene((10, 1, 1), bright=((0, layers), (0, 1), (0, 1)))
        (verdict,) = gate(image, [block((0, 0, 0), (10, 1, 1), diameter_mm)])
        assert bool(verdict.accepted) == (layers >= round(10 * needed)), layers


def test_a_size_class_that_is_not_gated_stays_but_is_still_measured():
    gate = make_gate(make_segmenter())
    gate.ungated = frozenset({0})
    small, large = (block((8, 8, 8), (12, 12, 12), diameter_mm) for diameter_mm in (8.0, 15.0))
    first, second = gate(scene(), [small, large])
    assert float(first.recognized) == 0 and not bool(first.accepted) and bool(first.stays)
    assert not bool(second.accepted) and not bool(second.stays)


def test_a_target_without_a_judge_is_not_judged():
    gate = make_gate(make_segmenter(), channels=(2, None))
    judged, untested = gate(scene(), [block((8, 8, 8), (12, 12, 12), target=t) for t in (0, 1)])
    assert not bool(judged.stays) and bool(untested.stays) and bool(untested.recognized.isnan())


def test_lesions_that_share_a_window_are_looked_at_once():
    segmenter = make_segmenter(patch=(16, 16, 16))
    image = torch.cat([scene(), scene()])
    proposals = [block((4, 4, 4), (8, 8, 8)), block((9, 9, 9), (12, 12, 12)), block((4, 4, 4), (8, 8, 8), sample=1)]
    verdicts = make_gate(segmenter)(image, proposals)
    assert [len(shown) for shown in segmenter.network.seen] == [2]
    assert [float(verdict.recognized) for verdict in verdicts] == [0.75, 0.0, 0.75]


@pytest.mark.parametrize(
    ("center", "start"), [([1.0, 8.0, 15.0], (0, 4, 8)), ([3.5, 3.4, 3.6], (0, 0, 0)), ([8.0, 8.0, 9.4], (4, 4, 5))]
)
def test_the_window_lies_around_the_lesion_and_inside_the_patch(center, start):
    segmenter = make_segmenter()
    image = torch.randn(1, 1, 16, 16, 16)
    make_gate(segmenter)(image, [block((4, 4, 4), (8, 8, 8), center=center)])
    x, y, z = (slice(first, first + 8) for first in start)
    assert torch.equal(segmenter.network.seen[0][:1], image[..., x, y, z])


def test_a_patch_smaller_than_the_window_is_padded_with_the_mean():
    segmenter = make_segmenter(patch=(8, 8, 12))
    image = scene((6, 5, 16), bright=((2, 4), (1, 3), (4, 7)))
    (verdict,) = make_gate(segmenter)(image, [block((2, 1, 4), (4, 3, 8))])
    shown = segmenter.network.seen[0][0, 0]
    assert shown.shape == (8, 8, 12) and torch.equal(shown[1:7, 2:7, :12], image[0, 0, :, :, :12])
    shown[1:7, 2:7] = 0
    assert not shown.any() and float(verdict.recognized) == 0.75


def test_the_judge_sees_its_own_z_scores_clipped_as_its_own_preprocessing_clips():
    own = Intensity(mean_hu=100.0, sd_hu=20.0, low_hu=0.0, high_hu=200.0)
    segmenter = make_segmenter(patch=(16, 16, 16), intensity=own)
    ours = Intensity(mean_hu=50.0, sd_hu=10.0, low_hu=-500.0, high_hu=500.0)
    image = torch.linspace(-40, 40, 16**3).reshape(1, 1, 16, 16, 16)  # z-scores: -350 to 450 HU
    make_gate(segmenter, intensity=ours)(image, [block((4, 4, 4), (8, 8, 8))])
    shown = segmenter.network.seen[0][:1]
    torch.testing.assert_close(shown, ((image * 10 + 50).clamp(0, 200) - 100) / 20)
    assert float(shown.min()) == -5 and float(shown.max()) == 5


@pytest.mark.parametrize("judge_spacing", [(2.0, 2.0, 2.0), (0.5, 0.5, 0.5), (3.0, 1.0, 0.7)])
def test_at_another_spacing_a_lesion_keeps_its_share(judge_spacing):
    patch = tuple(round(24 / step) for step in judge_spacing)
    image = scene((24, 24, 24), bright=((6, 18), (6, 18), (6, 15)))
    gate = make_gate(make_segmenter(patch=patch, spacing=judge_spacing))
    (verdict,) = gate(image, [block((6, 6, 6), (18, 18, 18))])
    assert abs(float(verdict.recognized) - 0.75) <= 0.09
    (other,) = gate(image, [block((0, 0, 0), (5, 5, 5))])
    assert float(other.recognized) == 0


def test_resampling_to_the_same_spacing_is_cropping():
    image = torch.randn(1, 1, 9, 8, 7)
    for start in ((0, 0, 0), (2, -3, 4), (-2, 5, -1)):
        same = read_view(image, start, (1.0, 1.0, 1.0), (6, 7, 5))
        torch.testing.assert_close(same, crop_and_pad_nd(image, [[a, a + n] for a, n in zip(start, (6, 7, 5))]))


def test_a_judge_whose_axes_are_transposed_sees_them_in_its_own_order():
    order = (2, 0, 1)
    image = torch.randn(1, 1, 6, 7, 8)  # axes: raw 0, 1, 2
    own = make_segmenter(patch=(8, 6, 7), spacing=(3.0, 1.0, 2.0), transpose_forward=order)
    turned = own.along((0, 1, 2))
    assert turned.patch_size == (6, 7, 8) and turned.spacing_mm == (1.0, 2.0, 3.0)
    logits = turned.logits(image)
    assert torch.equal(own.network.seen[0][:1], image.permute(0, 1, 4, 2, 3))
    assert torch.equal(logits[:, 2:], image.sign())
    again = turned.along((1, 2, 0))
    assert again.patch_size == (7, 8, 6)
    assert torch.equal(again.logits(image.permute(0, 1, 3, 4, 2))[:, 2:], image.sign().permute(0, 1, 3, 4, 2))
    assert again.along(order).order == (0, 1, 2)


def test_labels_are_found_by_name_and_regions_by_their_order():
    renamed = make_segmenter(labels={"background": 0, "tumor": 1, "organ": 2, "ignore": 3})
    assert (renamed.channel("tumor"), renamed.channel("organ")) == (1, 2)
    regions = {"background": 0, "organ": [1, 2, 3], "tumor": 2, "cyst": [3], "ignore": 4}
    by_region = make_segmenter(labels=regions, has_regions=True)
    assert [by_region.channel(name) for name in ("organ", "tumor", "cyst")] == [0, 1, 2]
    logits = torch.tensor([3.0, 0.1, -1.0]).reshape(1, 3, 1, 1, 1)
    assert [bool(by_region.recognized(logits, channel)) for channel in range(3)] == [True, True, False]
    assert [bool(renamed.recognized(logits, channel)) for channel in range(3)] == [True, False, False]


def test_a_label_that_the_judge_does_not_know_is_refused_with_the_names():
    with pytest.raises(ValueError) as error:
        make_segmenter(labels={"background": 0, "liver": 1, "lesion": 2}).channel("tumor")
    assert "'liver', 'lesion'" in str(error.value) and "'tumor'" in str(error.value)
    assert 'set "judge": "off"' in str(error.value)


class Refusing:
    """A gate that keeps the lesions for which `keeps` holds, without looking."""

    def __init__(self, keeps):
        self.keeps, self.shown = keeps, []

    def __call__(self, image, proposals):
        self.shown.append((image.clone(), proposals))
        kept = [torch.tensor(bool(self.keeps(proposal))) for proposal in proposals]
        return [Verdict(torch.tensor(0.8 if keep else 0.1), keep, keep) for keep in kept]


def plant(phantom, gate, batch=1, seed=3, **settings):
    synthesizer = Synthesizer(make_section(**settings), phantom.spacing_mm, RAW_CT, gate=gate)
    image, label = (part.repeat(batch, 1, 1, 1, 1) for part in (phantom.image, phantom.label))
    draw = synthesizer.draw(batch, torch.Generator().manual_seed(seed))
    return synthesizer(image, label, draw), image, label


def test_a_rejected_sample_returns_bit_for_bit_beside_one_that_stays(organ_phantom):
    gate = Refusing(lambda proposal: proposal.site.sample == 1)
    result, image, label = plant(organ_phantom, gate, batch=2)
    assert torch.equal(result.image[0], image[0]) and torch.equal(result.label[0], label[0])
    assert not torch.equal(result.image[1], image[1]) and (result.label[1] == 2).any()
    alone, *_ = plant(organ_phantom, None, batch=2)
    assert torch.equal(result.image[1], alone.image[1]) and torch.equal(result.label[1], alone.label[1])
    assert torch.equal(gate.shown[0][0], alone.image), "the judge sees what was planted"
    counts = {name: counted(result, name) for name in ("planted", "rejected", "no_room", "too_faint")}
    assert counts == {"planted": 1, "rejected": 1, "no_room": 0, "too_faint": 0}
    assert counted(result, "untouched_tumor_free") == 1


def test_judged_and_accepted_lesions_are_counted_by_size(organ_phantom):
    result, *_ = plant(organ_phantom, Refusing(lambda proposal: proposal.site.diameter_mm < 10), batch=6)
    for name, within in (("<10 mm", lambda d: d < 10), ("10-20 mm", lambda d: 10 <= d < 20)):
        number = sum(within(lesion.site.diameter_mm) for lesion in result.lesions if not lesion.recognized.isnan())
        assert number and counted(result, f"judged {name}") == number
        assert counted(result, f"accepted {name}") == counted(result, name) == (number if name == "<10 mm" else 0)


def test_a_lesion_that_is_not_planted_is_not_judged(organ_phantom):
    small = (SizeClass(distribution="log_uniform", weight=1.0, min_mm=8.0, max_mm=9.0),)
    prior = dataclasses.replace(PRIOR, sizes=small, lesions_per_patch=(1.0,))
    gate = Refusing(lambda proposal: False)
    result, image, _ = plant(organ_phantom, gate, prior=prior, min_visibility=1e6)
    assert torch.equal(result.image, image)
    assert [counted(result, name) for name in ("too_faint", "rejected", "judged <10 mm")] == [1, 0, 0]


def test_without_a_gate_nothing_is_judged(organ_phantom):
    result, *_ = plant(organ_phantom, None)
    assert counted(result, "planted") == 1 and counted(result, "judged <10 mm") == counted(result, "rejected") == 0


def test_a_batch_equals_its_singles_with_a_judge(organ_phantom):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.LeakyReLU(), nn.Conv3d(8, 3, 3, padding=1)
    )
    segmenter = make_segmenter((16, 24, 24), (3.0, 2.0, 2.0), network=network.eval().requires_grad_(False))
    section = make_section(min_quality=(0.34,) * 4)
    gate = JudgeGate(segmenter, section, [2], organ_phantom.spacing_mm, RAW_CT)
    synthesizer = Synthesizer(section, organ_phantom.spacing_mm, RAW_CT, gate=gate)
    image = torch.cat([organ_phantom.image, organ_phantom.image.flip(3), organ_phantom.image + 15])
    label = torch.cat([organ_phantom.label, organ_phantom.label.flip(3), organ_phantom.label])
    draw = synthesizer.draw(3, torch.Generator().manual_seed(5))
    whole = synthesizer(image, label, draw)
    assert len({round(float(lesion.recognized), 3) for lesion in whole.lesions}) > 2
    for i in range(3):
        single = synthesizer(image[i : i + 1], label[i : i + 1], draw.sample(i))
        assert torch.equal(single.image[0], whole.image[i]) and torch.equal(single.label[0], whole.label[i])
        shares = [lesion.recognized for lesion in whole.lesions if lesion.site.sample == i]
        assert [float(lesion.recognized) for lesion in single.lesions] == pytest.approx(
            list(map(float, shares)), abs=5e-3
        )
