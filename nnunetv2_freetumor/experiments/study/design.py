"""What the study compares: arms, few-label settings, seeds and budget; all of it frozen before a test case is seen.

A run trains one arm in one setting with one seed. nnU-Net's own parts carry it: each arm has a plans file of its own
(`freetumor_study_ARM.json`), and each pair of setting and seed is one fold of those plans.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.files.strict_json import read_as
from nnunetv2_freetumor.plan import Prior, Section, Shape, SizeClass

KEY = "freetumor_study"  # in the plans, and in front of the plans' names
FIXED_RADII_MM = (4.0, 8.0, 16.0)  # of the ellipsoids; the published code's largest, 32 voxels, exceeds most lesions
FIXED = 0.01  # mm; a size class needs two bounds
ELLIPSOID = Shape(
    elongation_logit=(1.39, 0.5), flatness_logit=(1.39, 0.5), roughness=(0.0, 0.0), lobe_odds=(0.0, 0.0)
)  # axes within about .75..1.25 of each other, as in the published code


class Setting(NamedTuple):
    """What real labels a training gets."""

    name: str
    cases: int  # training cases, one in four without tumor; in a label-free setting all are
    label_free: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: its fold in the plans, and its cases."""

    fold: int
    setting: str
    seed: int
    training: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every training of a study may cost, the same for all arms."""

    epochs: int
    iterations: int  # in each epoch
    recipe: Literal["short", "nnunet"]  # Adam without mirroring for minutes, or nnU-Net's own optimizer and mirroring


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a trainer of the study reads from its plans."""

    method: Literal["real", "synthesis", "copy_paste"]
    budget: Budget
    runs: tuple[Run, ...]
    foreground: float = 0.33  # share of patches that nnU-Net centers on foreground
    generator: Literal["section", "constant"] = "section"  # constant: the same contrast everywhere inside a lesion
    after_intensity: bool = False  # plant behind nnU-Net's intensity transforms instead of in front of them
    judged: bool = False  # by the same run's training on real labels only


class Arm(NamedTuple):
    """One way to train, as a change of the texture arm's section and of the order."""

    title: str
    trainer: str
    method: Literal["real", "synthesis", "copy_paste"]
    needs_tumors: bool = False  # cannot be trained without real tumors
    foreground: float = 0.33
    generator: Literal["section", "constant"] = "section"
    after_intensity: bool = False
    judged: bool = False  # waits for the real arm, whose network judges
    change: Callable[[Section], Section] = lambda section: section


def _with_prior(**changes: Any) -> Callable[[Section], Section]:
    def change(section: Section) -> Section:
        targets = (replace(t, prior=replace(t.prior, **changes)) for t in section.targets)
        return replace(section, targets=tuple(targets))

    return change


def _fixed_sizes() -> tuple[SizeClass, ...]:
    return tuple(
        SizeClass(distribution="log_uniform", weight=1.0, min_mm=2 * radius, max_mm=2 * radius + FIXED)
        for radius in FIXED_RADII_MM
    )


REAL, SYNTHESIS = "nnUNetTrainerFreeTumor_study_real", "nnUNetTrainerFreeTumor_study"
COPY_PASTE = "nnUNetTrainerFreeTumor_study_copy_paste"
TEXTURE = "texture"
BASELINE = "real"  # the arm that the others are compared with, and whose network judges
THRESHOLD = "threshold"  # the arm without learning

ARMS = {
    "real": Arm("real labels only", REAL, "real", needs_tumors=True),
    "real_fg66": Arm("real labels only, foreground oversampling .66", REAL, "real", True, foreground=0.66),
    "copy_paste": Arm("tumor copy-paste (CarveMix)", COPY_PASTE, "copy_paste", True),
    "ellipsoids": Arm(
        "plain ellipsoids, fixed radii, constant contrast",
        SYNTHESIS,
        "synthesis",
        generator="constant",
        change=_with_prior(sizes=_fixed_sizes(), shape=ELLIPSOID),
    ),
    TEXTURE: Arm("FreeTumor, texture generator", SYNTHESIS, "synthesis"),
    "texture_judged": Arm("FreeTumor, texture generator, judge", SYNTHESIS, "synthesis", True, judged=True),
    "lite": Arm("FreeTumor, lite generator", SYNTHESIS, "synthesis", change=lambda s: replace(s, generator="lite")),
    "lite_judged": Arm(
        "FreeTumor, lite generator, judge",
        SYNTHESIS,
        "synthesis",
        True,
        judged=True,
        change=lambda s: replace(s, generator="lite"),
    ),
}
ABLATIONS = {
    "share_low": Arm(
        "half as many planted patches",
        SYNTHESIS,
        "synthesis",
        change=lambda s: replace(s, probability_tumor_free=0.25, probability_tumor_bearing=0.125),
    ),
    "share_high": Arm(
        "planted wherever allowed (70 % / 50 %)",
        SYNTHESIS,
        "synthesis",
        change=lambda s: replace(s, probability_tumor_free=0.7, probability_tumor_bearing=0.5),
    ),
    "free_only": Arm(
        "tumor-free patches only (published rule)",
        SYNTHESIS,
        "synthesis",
        change=lambda s: replace(s, tumor_free_patches_only=True),
    ),
    "fixed_radii": Arm(
        "fixed radii instead of the prior's sizes", SYNTHESIS, "synthesis", change=_with_prior(sizes=_fixed_sizes())
    ),
    "after_intensity": Arm("planted after intensity augmentation", SYNTHESIS, "synthesis", after_intensity=True),
}
ALL_ARMS = ARMS | ABLATIONS


def plans_name(arm: str) -> str:
    """Name an arm's plans."""
    return f"{KEY}_{arm}"


def bundled(section: Section) -> Section:
    """Replace what was measured on the dataset by the bundled priors: a few labels are too few to measure on."""
    targets = (
        replace(target, prior=_prior(target.prior), source=f"bundled prior {target.prior.name}, as the study demands")
        for target in section.targets
    )
    return replace(section, targets=tuple(targets), generator="texture", judge="off")


def _prior(measured: Prior) -> Prior:
    return priors.load(measured.name)


def order_of(arm: Arm, budget: Budget, runs: tuple[Run, ...]) -> Order:
    """Write down what the arm's trainer has to do."""
    return Order(
        method=arm.method,
        budget=budget,
        runs=runs,
        foreground=arm.foreground,
        generator=arm.generator,
        after_intensity=arm.after_intensity,
        judged=arm.judged,
    )


def read_order(plans: dict[str, Any]) -> Order:
    """Read the order from an arm's plans.

    Raises:
        ValueError: these plans were not written by the study.
    """
    if KEY not in plans:
        raise ValueError(
            f"{plans['plans_name']}.json holds no '{KEY}' order. The study's trainers run by 'nnUNetv2_freetumor "
            "study' only; train with nnUNetTrainerFreeTumor."
        )
    return read_as(Order, plans[KEY], KEY)
