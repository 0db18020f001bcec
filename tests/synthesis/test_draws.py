"""All chance is drawn first, sample by sample, and sizes follow their distributions."""

import math

import torch
from scipy.stats import kstest, truncnorm

from nnunetv2_freetumor.plan import Prior, Section, SizeClass, Target
from nnunetv2_freetumor.synthesis.draws import diameter_of, draw, probability

NORMAL = SizeClass(distribution="log_normal", weight=0.5, min_mm=4.0, max_mm=40.0, ln_mm_mean=2.4, ln_mm_sd=0.7)
UNIFORM = SizeClass(distribution="log_uniform", weight=0.5, min_mm=6.0, max_mm=30.0)


def drawn(*sizes, count=600):
    """Draw diameters (ln mm)."""
    prior = Prior(name="test", sizes=sizes)
    rolls = torch.rand(count, 2, generator=torch.Generator().manual_seed(3))
    return [math.log(diameter_of(prior, roll)) for roll in rolls]


def test_log_normal_sizes_are_cut_at_their_bounds_without_piling_up_there():
    low, high = (math.log(4.0) - 2.4) / 0.7, (math.log(40.0) - 2.4) / 0.7
    assert kstest(drawn(NORMAL), truncnorm(low, high, 2.4, 0.7).cdf).pvalue > 0.05


def test_log_uniform_sizes_spread_evenly_over_ln_mm():
    low, high = math.log(6.0), math.log(30.0)
    assert kstest(drawn(UNIFORM), lambda x: (x - low) / (high - low)).pvalue > 0.05


def test_size_classes_are_drawn_by_their_weights():
    never = SizeClass(distribution="log_uniform", weight=0.0, min_mm=90.0, max_mm=99.0)
    always = drawn(never, UNIFORM)
    assert max(always) <= math.log(30.001)


def test_each_sample_of_a_draw_can_be_replayed_alone():
    whole = draw(3, 2, 5, torch.Generator().manual_seed(9))
    one = whole.sample(1)
    assert torch.equal(one.look.noise[0], whole.look.noise[1]) and torch.equal(
        one.shape.control[0], whole.shape.control[1]
    )
    assert one.decision.plant.shape == (1,) and float(one.decision.plant) == float(whole.decision.plant[1])
    assert len(set(whole.decision.plant.tolist())) == 3


def test_at_least_the_untouched_share_of_tumor_free_patches_stays_untouched():
    target = Target(
        name="t",
        host_labels=(1,),
        tumor_label=2,
        lesion_labels=(2,),
        prior=Prior(name="p", sizes=(UNIFORM,)),
        source="",
    )
    section = Section(targets=(target,), labels={}, plans_hash="", probability_tumor_free=0.9, untouched_share=0.3)
    assert probability(section, tumor_free=True) == 0.7
    assert probability(section, tumor_free=False) == 0.25
