"""The adversarial stage: generator, critic and moving average as one module, and the step that trains them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nnunetv2_freetumor.generator_training import losses
from nnunetv2_freetumor.generator_training.adversaries import Adversary
from nnunetv2_freetumor.generator_training.recipes import Frame, Recipe
from nnunetv2_freetumor.generator_training.windows import Synthetic, Windows
from nnunetv2_freetumor.generators.grid import VolumeBatch
from nnunetv2_freetumor.generators.learned import LiteInputs, freetumor_contrast, lite_residual

TERMS = ("generator", "critic", "adversarial", "judge", "moments", "bands", "residual", "r1", "residual_hu")
REAL_DECAY = 0.98  # of the running moments, per step
PROFILE_HU, LEAST_HU = -30.0, 5.0  # contrast that profiles are scaled to, and the least that one is measured from
SYNTHETIC_DECAY = 0.9  # shorter: a mean that lags behind the generator makes it swing

Terms = dict[str, Tensor]
JudgeLoss = Callable[[VolumeBatch], Float[Tensor, ""]]


class Rendered(NamedTuple):
    """What the network rendered, on the training grid."""

    contrast_hu: VolumeBatch
    residual_hu: VolumeBatch  # what it added to `texture`; the contrast itself for the published network


class Networks(nn.Module):
    """Everything that nnU-Net's checkpoint has to hold: both networks, the moving average, the running moments."""

    real_moments: Tensor
    synthetic_moments: Tensor
    steps: Tensor

    def __init__(self, generator: nn.Module, critic: nn.Module, recipe: Recipe, targets: int = 1) -> None:
        """Take both networks, the recipe that tells whether there is a moving average, and the number of targets."""
        super().__init__()
        self.generator, self.critic = generator, critic
        self.ema = copy.deepcopy(generator).requires_grad_(False) if recipe.ema_decay else None
        moments = losses.SHELLS + 1 + losses.BANDS
        self.register_buffer("real_moments", torch.full((targets, moments), torch.nan))
        self.register_buffer("synthetic_moments", torch.full((targets, moments), torch.nan))
        self.register_buffer("steps", torch.zeros(()))

    @property
    def final(self) -> nn.Module:
        """Return the generator that is worth keeping: the moving average where there is one."""
        return self.generator if self.ema is None else self.ema

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Let the moving average follow the generator, faster in the first steps."""
        self.steps += 1
        if self.ema is None:
            return
        weight = 1 - torch.minimum(torch.tensor(decay, device=self.steps.device), self.steps / (self.steps + 9))
        for average, current in zip(self.ema.parameters(), self.generator.parameters()):
            average.lerp_(current, weight)


class Schedule:
    """Lower both learning rates by the same power law; nnU-Net calls `step` once an epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, power: float, epochs: int) -> None:
        """Take the optimizer, whose present rates are those of epoch 0."""
        self.optimizer, self.power, self.epochs = optimizer, power, epochs
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def step(self, epoch: int) -> None:
        """Set the epoch's rates."""
        share = max(1 - epoch / self.epochs, 0.0) ** self.power
        for group, rate in zip(self.optimizer.param_groups, self._rates):
            group["lr"] = rate * share


def make_optimizer(networks: Networks, recipe: Recipe) -> torch.optim.Optimizer:
    """Build one Adam for both networks, so that nnU-Net saves and loads it as its own.

    Each step moves one of them: Adam leaves weights without a gradient alone.
    """
    groups = [
        {"params": list(networks.generator.parameters()), "lr": recipe.generator_rate},
        {"params": list(networks.critic.parameters()), "lr": recipe.critic_rate},
    ]
    return torch.optim.Adam(groups, betas=recipe.betas)


def render(network: nn.Module, synthetic: Synthetic, frame: Frame) -> Rendered:
    """Render lesions on the training grid; nothing changes where it must not."""
    inputs = synthetic.inputs
    if isinstance(inputs, LiteInputs):
        residual = lite_residual(network, inputs) * synthetic.support
        return Rendered(inputs.base_contrast * synthetic.support + residual, residual)
    contrast = freetumor_contrast(network, inputs, frame.sign, frame.activation, channel=synthetic.channel)
    return Rendered(contrast * synthetic.support, contrast * synthetic.support)


class AdversarialStep:
    """One step: first the critic learns, then the generator."""

    def __init__(
        self,
        networks: Networks,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        frame: Frame,
        adversary: Adversary,
    ) -> None:
        """Take the networks, their optimizer, and what the recipe asks for."""
        self.networks, self.optimizer, self.adversary = networks, optimizer, adversary
        self.recipe, self.frame = recipe, frame
        self._count = 0

    def __call__(self, synthetic: Synthetic, real: Windows, judge: JudgeLoss | None = None) -> Terms:
        """Train on a batch of lesions to be rendered and of real ones; `judge` turns a contrast into its loss."""
        rendered = render(self.networks.generator, synthetic, self.frame)
        terms = self._train_critic(synthetic.windows.with_hu(_after(synthetic, rendered).detach()), real)
        terms |= self._train_generator(synthetic, rendered, real, judge)
        self.networks.follow(self.recipe.ema_decay)
        self._count += 1
        return {name: terms[name].detach() for name in TERMS}

    def _train_critic(self, synthetic: Windows, real: Windows) -> Terms:
        self.optimizer.zero_grad(set_to_none=True)
        critic = self.networks.critic
        loss = self.adversary.critic_loss(critic, synthetic, real)
        penalty = torch.zeros_like(loss)
        if self.recipe.r1_weight and self._count % self.recipe.r1_every == 0:
            inputs = self.adversary.inputs(real).requires_grad_()
            penalty = losses.r1_penalty(critic(inputs), inputs)
        # a penalty every so many steps counts so many times (Karras et al. 2020)
        (loss + self.recipe.r1_weight * self.recipe.r1_every * penalty).backward()
        self.optimizer.step()
        return {"critic": loss, "r1": penalty}

    def _train_generator(
        self, synthetic: Synthetic, rendered: Rendered, real: Windows, judge: JudgeLoss | None
    ) -> Terms:
        self.optimizer.zero_grad(set_to_none=True)
        after = synthetic.windows.with_hu(_after(synthetic, rendered))
        mask, recipe = after.mask, self.recipe
        with frozen(self.networks.critic) as critic:
            terms = {"adversarial": self.adversary.generator_loss(critic, after)}
            terms["moments"], terms["bands"] = self._moments(after, real, synthetic.target)
            terms["residual"] = losses.residual_mean(rendered.residual_hu, mask)
            terms["judge"] = judge(rendered.contrast_hu) if judge else torch.zeros_like(terms["residual"])
            loss = (
                recipe.adversarial_weight * terms["adversarial"]
                + recipe.judge_weight * terms["judge"]
                + recipe.moment_weight * terms["moments"]
                + recipe.band_weight * terms["bands"]
                + recipe.residual_weight * terms["residual"]
            )
            loss.backward()
        self.optimizer.step()
        return terms | {"generator": loss, "residual_hu": losses.mean_over(rendered.residual_hu.abs(), mask)}

    def _moments(self, synthetic: Windows, real: Windows, target: int) -> tuple[Tensor, Tensor]:
        """Compare running means of both; gradients flow as if the present batch were the whole mean."""
        of_real, of_synthetic = self.networks.real_moments[target], self.networks.synthetic_moments[target]
        fresh, seen = measure_moments(real)
        of_real.copy_(blend(of_real, fresh, seen, REAL_DECAY))
        fresh, seen = measure_moments(synthetic)
        running = blend(of_synthetic, fresh.detach(), seen, SYNTHETIC_DECAY)
        of_synthetic.copy_(running)
        gap = torch.nan_to_num(running - of_real)  # 0 for a shell that one of them never had
        gap = gap + torch.where(seen, fresh - fresh.detach(), 0.0)
        shells = losses.SHELLS + 1
        return (gap[:shells] / losses.MOMENT_HU).square().mean(), gap[shells:].square().mean()


def measure_moments(windows: Windows) -> tuple[Float[Tensor, "m"], Bool[Tensor, "m"]]:
    """Measure the profile across the surface, the mean contrast and the energies by band; tell which could be measured.

    The profile is each shell's HU for a lesion of PROFILE_HU: contrasts differ much more between patients than the
    shape of an edge, which a few lesions would otherwise not show.
    """
    relative = windows.hu - windows.host_hu
    shells, seen = losses.shell_means(relative, windows.distance_mm)
    contrast = losses.mean_over(relative, windows.mask)
    bold = contrast.detach().abs() >= LEAST_HU
    profile = shells * (PROFILE_HU / torch.where(bold, contrast, LEAST_HU))
    bands = losses.band_energies(relative, windows.mask)
    known = torch.ones_like(bands, dtype=torch.bool)
    return torch.cat([profile, contrast[None], bands]), torch.cat([seen & bold, known[:1], known])


def blend(
    running: Float[Tensor, "m"], fresh: Float[Tensor, "m"], seen: Bool[Tensor, "m"], decay: float
) -> Float[Tensor, "m"]:
    """Move running means towards a batch's; the first batch counts whole."""
    moved = torch.where(running.isnan(), fresh, decay * running + (1 - decay) * fresh)
    return torch.where(seen, moved, running).detach()


def _after(synthetic: Synthetic, rendered: Rendered) -> VolumeBatch:
    return synthetic.windows.hu + rendered.contrast_hu


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Let gradients pass through a network without reaching its weights."""
    network.requires_grad_(False)
    try:
        yield network
    finally:
        network.requires_grad_(True)
