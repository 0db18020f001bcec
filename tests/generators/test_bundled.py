"""The generator that comes with the package: its card is honest, and its lesions stay where they belong."""

import dataclasses

import pytest
import torch

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.generators import weights
from nnunetv2_freetumor.generators.choice import build_generators, choose_generators
from nnunetv2_freetumor.intensity import RAW_CT
from nnunetv2_freetumor.plan import Section, SizeClass, Target
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer

SPACING_MM = (3.0, 1.5, 1.5)


def section(generator):
    """Plant one lesion of 15-25 mm into a liver."""
    prior = priors.load("liver")
    size = SizeClass(distribution="log_uniform", weight=1.0, min_mm=15.0, max_mm=25.0)
    prior = dataclasses.replace(prior, sizes=(size,), lesions_per_patch=(1.0,))
    target = Target(name="liver", tumor_label=2, lesion_labels=(2,), prior=prior, source="", host_labels=(1,))
    return Section(
        targets=(target,),
        labels={},
        plans_hash="",
        generator=generator,
        probability_tumor_free=1.0,
        untouched_share=0.0,
        min_visibility=0.0,
    )


def plant(generator, rng_seed=3):
    """Plant into a noisy organ in fat."""
    rng = torch.Generator().manual_seed(rng_seed)
    label = torch.zeros(1, 1, 28, 56, 56, dtype=torch.int32)
    label[..., 2:26, 4:52, 4:52] = 1
    hu = torch.where(label == 1, 110.0, -100.0) + 10 * torch.randn(label.shape, generator=rng)
    chosen = section(generator)
    generators = build_generators(choose_generators(chosen, {}, "", None, []), chosen, 0, torch.device("cpu"))
    synthesizer = Synthesizer(chosen, SPACING_MM, RAW_CT, generators)
    return hu, label, synthesizer(hu, label, synthesizer.draw(1, rng, 256))


def test_its_card_says_that_it_has_seen_no_real_tumor_and_it_is_never_picked_by_itself():
    card = weights.read_card(weights.find_generator("lite"))
    assert card.real_tumors == () and card.training_cases == () and card.hosts == ("liver",)
    assert "No real tumor" in card.not_seen and "CC BY" in card.training_data and card.license == "Apache-2.0"
    (choice,) = choose_generators(section("auto"), {}, "", None, [])
    assert choice.generator == "texture"


def test_it_changes_the_organ_only_and_differs_from_texture_by_at_most_40_hu():
    hu, label, planted = plant("lite")
    _, _, plain = plant("texture")
    assert (planted.label == 2).any() and torch.equal(planted.label, plain.label)
    assert torch.equal(planted.image[label == 0], hu[label == 0])
    difference = (planted.image - plain.image).abs()
    assert 0.5 < float(difference.max()) <= 40.0


def test_its_lesions_have_more_contrast_at_their_outline_than_those_of_texture():
    contrasts = {}
    for name in ("texture", "lite"):
        hu, _, planted = plant(name)
        inside = planted.label == 2
        wide = torch.nn.functional.max_pool3d(inside.float(), (1, 3, 3), stride=1, padding=(0, 1, 1)) > 0
        contrasts[name] = float((planted.image - hu)[wide & ~inside].mean())
    assert contrasts["lite"] < contrasts["texture"] - 1.0


def test_an_organ_that_it_does_not_serve_is_refused():
    kidney = dataclasses.replace(section("lite").targets[0], name="kidney", prior=priors.load("kidney"))
    with pytest.raises(ValueError, match="supports the hosts liver, but the target 'kidney'"):
        choose_generators(dataclasses.replace(section("lite"), targets=(kidney,)), {}, "", None, [])
