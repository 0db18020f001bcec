"""The adversarial step: one optimizer for both networks, the moving average, divergence, and a toy that it learns."""

import copy
import dataclasses
import math

import pytest
import torch

from nnunetv2_freetumor.generator_training import losses
from nnunetv2_freetumor.generator_training.adversaries import ADVERSARIES
from nnunetv2_freetumor.generator_training.divergence import Divergence, message
from nnunetv2_freetumor.generator_training.log import realism
from nnunetv2_freetumor.generator_training.recipes import ABDOMEN_WINDOW_HU, RECIPES, Frame
from nnunetv2_freetumor.generator_training.step import (
    TERMS,
    AdversarialStep,
    Networks,
    Schedule,
    make_optimizer,
    measure_moments,
    render,
)
from nnunetv2_freetumor.generator_training.windows import Replay, Synthetic, Windows
from nnunetv2_freetumor.generators.learned import FreetumorInputs, LiteInputs
from nnunetv2_freetumor.generators.networks import LiteNet

SIDE, HOST_HU, TEXTURE_HU = 16, 110.0, -30.0
FRAME = Frame(ABDOMEN_WINDOW_HU, (1.5, 1.5, 1.5), (SIDE, SIDE, SIDE), -1, "tanh")
RECIPE = dataclasses.replace(RECIPES["lite"], generator_rate=2e-3, critic_rate=2e-3, judge_weight=0.0)


def windows(count, contrast_hu, rng):
    axis = (torch.arange(SIDE) - (SIDE - 1) / 2) * 1.5
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    distance = (grid.square().sum(0).sqrt() - 7.0).expand(count, 1, SIDE, SIDE, SIDE)
    mask = (distance < 0).float()
    hu = HOST_HU + contrast_hu * mask + 5.0 * torch.randn(mask.shape, generator=rng)
    return Windows(hu, mask, distance, torch.full((count, 1, 1, 1, 1), HOST_HU))


def lesions(count, rng):
    plain = windows(count, 0.0, rng)
    base = TEXTURE_HU * plain.mask
    noise = torch.randn(base.shape, generator=rng)
    image, distance = (plain.hu + base + 175) / 425, (plain.distance_mm / 10).clamp(-1, 1)
    inputs = torch.cat([image, base / 40, distance, base * 0 + 1, noise], 1)
    near = (plain.distance_mm < 3).float()
    seen = LiteInputs(inputs, torch.zeros(count, 8), plain.hu, base, near, torch.ones_like(base), plain.distance_mm)
    return Synthetic(seen, plain, near, torch.zeros(count, dtype=torch.long), [])


def make_step(recipe=RECIPE, adversary="hinge"):
    torch.manual_seed(1)
    kind = ADVERSARIES[adversary](FRAME.window_hu)
    networks = Networks(LiteNet(), kind.network(), recipe)
    return AdversarialStep(networks, make_optimizer(networks, recipe), recipe, FRAME, kind)


@pytest.mark.slow
@pytest.mark.parametrize("real_hu", [-50.0, -10.0])
def test_the_residual_moves_towards_the_real_contrast(real_hu, rng):
    step = make_step(RECIPES["lite"])  # at faster rates both networks swing
    for _ in range(50):
        terms = step(lesions(4, rng), windows(4, real_hu, rng))
    fresh = lesions(4, rng)
    residual = render(step.networks.generator, fresh, FRAME).residual_hu.detach()
    mean = float((residual * fresh.windows.mask).sum() / fresh.windows.mask.sum())
    assert tuple(terms) == TERMS
    assert mean * math.copysign(1, real_hu - TEXTURE_HU) > 4.0


@pytest.mark.slow
def test_the_critic_alone_moves_the_residual_too(rng):
    step = make_step(dataclasses.replace(RECIPE, moment_weight=0.0, band_weight=0.0, residual_weight=0.0))
    for _ in range(50):
        step(lesions(4, rng), windows(4, -50.0, rng))
    fresh = lesions(4, rng)
    assert (render(step.networks.generator, fresh, FRAME).residual_hu * fresh.windows.mask).sum() < 0


def test_the_profile_across_the_surface_does_not_depend_on_how_bold_a_lesion_is(rng):
    quiet = [windows(2, contrast, rng) for contrast in (-20.0, -60.0, 40.0)]
    (profile, contrast), *others = [(m[: losses.SHELLS], m[losses.SHELLS]) for m, _ in map(measure_moments, quiet)]
    assert contrast == pytest.approx(-20, abs=1) and others[0][1] == pytest.approx(-60, abs=1)
    for other, _ in others:
        assert torch.allclose(profile, other, atol=2.0)
    faint, known = measure_moments(windows(2, 0.0, rng))
    assert faint.isfinite().all() and not known[: losses.SHELLS].any() and known[losses.SHELLS :].all()


def test_the_profile_asks_for_a_shape_of_the_edge_never_for_a_bolder_or_fainter_lesion(rng):
    seen, boldness = windows(2, 0.0, rng), torch.ones((), requires_grad=True)
    soft = -30.0 * torch.sigmoid(-(seen.distance_mm + 1.0))
    measured, _ = measure_moments(seen.with_hu(HOST_HU + boldness * soft))
    (gradient,) = torch.autograd.grad(measured[: losses.SHELLS].square().sum(), boldness, retain_graph=True)
    assert abs(float(gradient)) < 1e-2
    assert torch.autograd.grad(measured[losses.SHELLS], boldness)[0] < -10


def test_patches_far_from_the_lesion_do_not_count_for_the_patch_critic(rng):
    kind = ADVERSARIES["hinge"](FRAME.window_hu)
    critic, seen = kind.network(), windows(2, -50.0, rng)
    seen = seen._replace(distance_mm=torch.where(torch.arange(SIDE) < SIDE // 2, seen.distance_mm, torch.inf))
    gradients = []
    critic.register_forward_hook(lambda module, inputs, logits: logits.register_hook(gradients.append) and None)
    kind.generator_loss(critic, seen).backward()
    (gradient,) = gradients
    half = gradient.shape[-1] // 2
    assert torch.count_nonzero(gradient[..., half:]) == 0 and torch.count_nonzero(gradient[..., :half]) > 0
    assert float(gradient.sum()) == pytest.approx(-1)


def test_each_target_is_compared_with_its_own_real_lesions(rng):
    recipe = RECIPE
    kind = ADVERSARIES["hinge"](FRAME.window_hu)
    networks = Networks(LiteNet(), kind.network(), recipe, targets=2)
    step = AdversarialStep(networks, make_optimizer(networks, recipe), recipe, FRAME, kind)
    step(lesions(2, rng)._replace(target=1), windows(2, -80.0, rng))
    assert networks.real_moments[0].isnan().all() and networks.real_moments[1, losses.SHELLS] < -70
    drawn = networks.synthetic_moments.clone()
    assert drawn[0].isnan().all() and drawn[1, losses.SHELLS] == pytest.approx(TEXTURE_HU, abs=5)
    step(lesions(2, rng), windows(2, -20.0, rng))
    assert networks.real_moments[0, losses.SHELLS] > -30 and networks.real_moments[1, losses.SHELLS] < -70
    assert torch.equal(networks.synthetic_moments[1].nan_to_num(), drawn[1].nan_to_num())


def test_the_voxel_critic_trains_lite_as_well(rng):
    step = make_step(adversary="voxel")
    terms = step(lesions(1, rng), windows(1, -50.0, rng))
    assert all(bool(value.isfinite()) for value in terms.values())


def test_nothing_changes_outside_the_support(rng):
    step, fresh = make_step(), lesions(2, rng)
    fresh = fresh._replace(support=fresh.support * (torch.arange(SIDE) < SIDE // 2))  # the organ ends in the middle
    step(fresh, windows(2, -50.0, rng))
    drawn = render(step.networks.generator, fresh, FRAME)
    assert torch.count_nonzero(drawn.residual_hu) > 0
    assert torch.count_nonzero(drawn.contrast_hu * (1 - fresh.support)) == 0


def test_the_published_network_changes_nothing_outside_the_support_either(rng):
    fresh = lesions(2, rng)
    hu, ones = fresh.windows.hu, torch.ones_like(fresh.support)
    seen = FreetumorInputs(ones, ones, ones, hu, ones, fresh.windows.distance_mm, 425 * ones[:, :, :1, :1, :1])
    drawn = render(torch.nn.Identity(), fresh._replace(inputs=seen), FRAME)
    assert float((drawn.contrast_hu * fresh.support).min()) == pytest.approx(-425 * math.tanh(1), rel=1e-3)
    for part in drawn:
        assert torch.count_nonzero(part * (1 - fresh.support)) == 0


def test_the_critics_turn_leaves_the_generator_alone(rng):
    step = make_step()
    before = [weight.clone() for weight in step.networks.generator.parameters()]
    step._train_critic(windows(2, TEXTURE_HU, rng), windows(2, -50.0, rng))
    assert all(torch.equal(*pair) for pair in zip(before, step.networks.generator.parameters()))


def test_the_generators_turn_leaves_the_critic_alone_and_trainable(rng):
    step, fresh = make_step(), lesions(2, rng)
    before = [weight.clone() for weight in step.networks.critic.parameters()]
    step._train_generator(fresh, render(step.networks.generator, fresh, FRAME), windows(2, -50.0, rng), None)
    assert all(torch.equal(*pair) for pair in zip(before, step.networks.critic.parameters()))
    assert all(weight.requires_grad for weight in step.networks.critic.parameters())


def test_the_judge_s_loss_reaches_the_generator(rng):
    recipe = dataclasses.replace(
        RECIPE, adversarial_weight=0.0, moment_weight=0.0, band_weight=0.0, residual_weight=0.0
    )
    step, fresh = make_step(dataclasses.replace(recipe, judge_weight=1.0)), lesions(2, rng)
    for _ in range(5):
        step(fresh, windows(2, -50.0, rng), lambda contrast_hu: -contrast_hu.mean())
    assert render(step.networks.generator, fresh, FRAME).residual_hu.sum() > 0


def test_networks_and_optimizer_survive_a_round_trip(rng):
    step = make_step()
    step(lesions(2, rng), windows(2, -50.0, rng))
    other = make_step()
    other.networks.load_state_dict(step.networks.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    fresh, real = lesions(2, rng), windows(2, -50.0, rng)
    other._count = step._count
    one, two = step(fresh, real), other(fresh, real)
    assert {name: float(value) for name, value in one.items()} == pytest.approx(
        {name: float(value) for name, value in two.items()}
    )
    pairs = zip(step.networks.state_dict().values(), other.networks.state_dict().values())
    assert all(torch.allclose(a.nan_to_num(), b.nan_to_num(), atol=1e-5) for a, b in pairs)


def test_the_moving_average_lags_behind_the_generator(rng):
    step = make_step()
    start = step.networks.ema.last.bias.clone()
    for _ in range(3):
        step(lesions(2, rng), windows(2, -50.0, rng))
    moved = (step.networks.generator.last.bias - start).abs()
    assert 0 < (step.networks.final.last.bias - start).abs() < moved
    assert not any(weight.requires_grad for weight in step.networks.final.parameters())
    without = Networks(LiteNet(), LiteNet(), dataclasses.replace(RECIPE, ema_decay=0.0))
    assert without.final is without.generator


def test_the_schedule_keeps_both_rates_apart():
    networks = Networks(LiteNet(), LiteNet(), RECIPES["lite"])
    optimizer = make_optimizer(networks, RECIPES["lite"])
    schedule = Schedule(optimizer, power=1.0, epochs=10)
    schedule.step(5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 2e-4])
    assert [group["betas"] for group in optimizer.param_groups] == [(0.0, 0.99)] * 2


def test_divergence_is_a_loss_that_is_no_number_a_critic_that_won_or_a_residual_at_its_bound():
    recipe = dataclasses.replace(RECIPE, divergence_steps=3)
    assert "no longer a number" in Divergence(recipe).problem(math.nan, 1.0, 0.0)
    for values, text in (((0.0, 0.0, 1.0), "cannot learn from it"), ((0.0, 1.0, 39.9), "bound of 40 HU")):
        watch = Divergence(recipe)
        assert [watch.problem(*values), watch.problem(*values)] == ["", ""]
        assert watch.problem(0.0, 1.0, 1.0) == ""  # a good step between
        assert [watch.problem(*values), watch.problem(*values)] == ["", ""]
        assert text in watch.problem(*values)


def test_the_message_names_epoch_weights_and_a_way_out():
    text = message("why", 7, "generator.safetensors", 6)
    assert "diverged in epoch 7: why. The weights of epoch 6 are in generator.safetensors" in text
    assert "recipe_changes" in text and "No weights were saved" in message("why", 0, "x", None)


def test_realism_is_one_where_the_critic_cannot_tell_and_zero_where_it_always_can():
    assert realism(torch.zeros(3), torch.zeros(3)) == 1.0
    assert realism(torch.tensor([0.0]), torch.tensor([1.0, 2.0])) == 0.0
    assert realism(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])) == 1.0


def test_the_replay_forgets_the_oldest_and_repeats_only_when_it_must(rng):
    replay = Replay(2)
    replay.add([windows(1, hu, rng) for hu in (-10.0, -20.0, -30.0)])
    assert len(replay) == 2
    drawn = replay.draw(2, rng)
    contrast = ((drawn.hu - HOST_HU) * drawn.mask).flatten(1).sum(1) / drawn.mask.flatten(1).sum(1)
    assert sorted(round(float(value) / 10) for value in contrast) == [-3, -2]
    assert len(replay.draw(5, rng).hu) == 5
