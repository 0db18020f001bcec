"""Detect when adversarial training has gone wrong, so that it stops while good weights are still on disk."""

import math

from nnunetv2_freetumor.generator_training.recipes import Recipe
from nnunetv2_freetumor.generators.networks import MAX_RESIDUAL_HU

WON_BELOW = 1e-3  # a critic whose loss is lower has nothing left to learn
EXPLODED_SHARE = 0.95  # of the largest residual, on average over the lesions


class Divergence:
    """Watch the losses, step by step."""

    def __init__(self, recipe: Recipe) -> None:
        """Take the recipe: how many steps in a row are too many."""
        self._patience, self._bounded = recipe.divergence_steps, recipe.kind == "lite"
        self._won = self._exploded = 0

    @property
    def calm(self) -> bool:
        """Check that nothing has been saturated for long: the present weights are worth keeping."""
        return 4 * max(self._won, self._exploded) < self._patience

    def problem(self, generator_loss: float, critic_loss: float, residual_hu: float) -> str:
        """Check a step's losses and its mean absolute residual; return what is wrong, or an empty text."""
        if not (math.isfinite(generator_loss) and math.isfinite(critic_loss) and math.isfinite(residual_hu)):
            return f"a loss is no longer a number (generator {generator_loss}, critic {critic_loss})"
        self._won = self._won + 1 if critic_loss < WON_BELOW else 0
        exploded = self._bounded and residual_hu > EXPLODED_SHARE * MAX_RESIDUAL_HU
        self._exploded = self._exploded + 1 if exploded else 0
        if self._won >= self._patience:
            return (
                f"the critic's loss stayed below {WON_BELOW} for {self._won} steps: the generator cannot learn from it"
            )
        if self._exploded >= self._patience:
            return f"the residual stayed at its bound of {MAX_RESIDUAL_HU:.0f} HU for {self._exploded} steps"
        return ""


def message(problem: str, epoch: int, weights: str, good_epoch: int | None) -> str:
    """Describe what happened, which weights are left, and what to change."""
    left = "No weights were saved." if good_epoch is None else f"The weights of epoch {good_epoch} are in {weights}."
    return (
        f"FreeTumor generator: training diverged in epoch {epoch}: {problem}. {left} Lower generator_rate or "
        "critic_rate, or raise r1_weight, under 'recipe_changes' in the plans' freetumor section, and start the "
        "training again. 'generator': auto ignores weights of unfinished trainings; to use them, give the path of "
        "their file."
    )
