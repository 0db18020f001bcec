"""The adversarial losses on numbers counted by hand, and the signs of their gradients."""

import math

import pytest
import torch

from nnunetv2_freetumor.generator_training import losses
from nnunetv2_freetumor.generator_training.losses import REAL_CLASS, SYNTHETIC_CLASS


def logits_of(probability: dict[int, float], shape=(1, 3, 2, 2, 2)) -> torch.Tensor:
    """Make logits whose softmax gives these probabilities everywhere; the rest goes to the background."""
    values = torch.tensor([1 - sum(probability.values()), probability.get(1, 0.0), probability.get(2, 0.0)])
    return values.clamp_min(1e-12).log()[None, :, None, None, None].expand(shape).clone()


def test_hinge_losses_count_what_lies_on_the_wrong_side_of_the_margin():
    real, synthetic, all_alike = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0]), torch.ones(2)
    critic_loss = losses.hinge_critic(real, all_alike, synthetic, all_alike)
    assert critic_loss == pytest.approx((0 + 0.5) / 2 + (0 + 1.0) / 2)
    assert losses.hinge_generator(synthetic, all_alike) == pytest.approx(1.5)


def test_hinge_losses_average_by_weight():
    real, synthetic, weight = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0]), torch.tensor([0.25, 0.75])
    assert losses.hinge_critic(real, weight, synthetic, weight) == pytest.approx(0.75 * 0.5 + 0.75 * 1.0)
    assert losses.hinge_generator(synthetic, weight) == pytest.approx(0.25 * 3.0)


def test_the_voxel_critic_is_the_mean_miss_over_both_kinds_of_tumor():
    mask = torch.zeros(1, 1, 2, 2, 2)
    mask[..., 0] = 1
    loss = losses.voxel_critic(logits_of({SYNTHETIC_CLASS: 0.8}), mask, logits_of({REAL_CLASS: 0.4}), mask)
    assert loss == pytest.approx(((1 - 0.8) + (1 - 0.4)) / 2, abs=1e-5)
    assert losses.voxel_generator(logits_of({REAL_CLASS: 0.3}), mask) == pytest.approx(0.7, abs=1e-5)


def test_voxel_losses_ask_for_the_lesions_voxels_only():
    mask = torch.zeros(1, 1, 2, 2, 2)
    mask[0, 0, 0, 0, 0] = 1
    logits = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    losses.voxel_generator(logits, mask).backward()
    assert logits.grad[0, REAL_CLASS, 0, 0, 0] < 0 < logits.grad[0, SYNTHETIC_CLASS, 0, 0, 0]
    assert torch.count_nonzero(logits.grad[..., 1]) == 0


def test_unrecognized_is_one_minus_the_mean_probability_on_the_lesion():
    lesion = torch.tensor([[[[True, True, False]]]])
    probability = torch.tensor([[[[0.9, 0.5, 0.0]]]])
    assert losses.unrecognized(probability, lesion) == pytest.approx(0.3)


def test_r1_is_half_the_squared_gradient_of_a_patch():
    inputs = torch.ones(2, 1, 2, 2, 2, requires_grad=True)
    logits = 3 * inputs  # eight patches, each with a gradient of 3
    assert losses.r1_penalty(logits, inputs) == pytest.approx(0.5 * 9)


def test_shells_average_voxels_by_their_distance():
    distance = torch.tensor([-0.5, -0.2, 0.5, -7.0, math.inf]).reshape(1, 1, 1, 1, 5)
    relative = torch.tensor([-30.0, -10.0, 4.0, 99.0, 99.0]).reshape(1, 1, 1, 1, 5)
    means, seen = losses.shell_means(relative, distance)
    inner = losses.SHELL_EDGES_MM.index(-1.0)
    assert means[inner] == -20.0 and means[inner + 1] == 4.0
    assert seen.tolist() == [index in (inner, inner + 1) for index in range(len(losses.SHELL_EDGES_MM) - 1)]


def test_bands_tell_fine_from_coarse():
    x = torch.arange(16)
    fine = (10.0 * (-1.0) ** x).expand(1, 1, 16, 16, 16)
    coarse = (10.0 * torch.sin(2 * math.pi * x / 16)).expand(1, 1, 16, 16, 16)
    mask = torch.ones(1, 1, 16, 16, 16)
    of_fine, of_coarse = losses.band_energies(fine, mask), losses.band_energies(coarse, mask)
    assert of_fine[0] == pytest.approx(math.log1p(100), abs=1e-4) and of_fine[1:].abs().max() < 1e-4
    assert of_coarse[0] < of_coarse[1:].min()


def test_a_mean_residual_of_ten_hu_counts_one_whatever_its_sign():
    residual = torch.full((1, 1, 2, 2, 2), -10.0)
    mask = torch.ones_like(residual)
    assert losses.residual_mean(residual, mask) == pytest.approx(1.0)
    balanced = residual.clone()
    balanced[..., 0] = 10.0
    assert losses.residual_mean(balanced, mask) == 0
