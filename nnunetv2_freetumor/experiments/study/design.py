"""What the study compares: arms, few-label settings, seeds and budget, all frozen before a test case is seen.

A trial trains one arm in one setting with one seed. It runs on nnU-Net's own concepts: each arm has its own plans
(`freetumor_study_ARM.json`), and each pair of setting and seed is a fold of those plans.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.files.strict_json import read_as
from nnunetv2_freetumor.plan import Prior, Section, Shape, SizeClass

ASSIGNMENT_KEY = "freetumor_study"  # in the plans, and the prefix of the plans' names
FIXED_RADII_MM = (4.0, 8.0, 16.0)  # of the ellipsoids; the published code's largest, 32 voxels, exceeds most lesions
_FIXED_MM = 0.01  # a size class needs two bounds
_ELLIPSOID = Shape(
    elongation_logit=(1.39, 0.5), flatness_logit=(1.39, 0.5), roughness=(0.0, 0.0), lobe_odds=(0.0, 0.0)
)  # axes within about .75..1.25 of each other, as in the published code


Method = Literal["real", "synthesis", "copy_paste"]
TRAINERS: dict[Method, str] = {
    "real": "nnUNetTrainerFreeTumor_study_real",
    "synthesis": "nnUNetTrainerFreeTumor_study",
    "copy_paste": "nnUNetTrainerFreeTumor_study_copy_paste",
}


class Setting(NamedTuple):
    """The real labels that a training gets. Field names are a file format: protocol.json."""

    name: str
    cases: int  # training cases, one in four tumor-free; all of them in a label-free setting
    label_free: bool = False


@dataclass(frozen=True, kw_only=True)
class FoldCases:
    """One fold of the arms' plans: the cases of one setting with one seed, the same in every arm.

    Field names are a file format: protocol.json and the arms' plans.
    """

    fold: int
    setting: str
    seed: int
    training: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The cost of a training, the same for all arms.

    Field names are a file format: protocol.json and the arms' plans.
    """

    epochs: int
    iterations: int  # in each epoch
    recipe: Literal["short", "nnunet"]  # Adam without mirroring for minutes, or nnU-Net's own optimizer and mirroring


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a trainer of the study reads from its plans. Field names are a file format: the arms' plans."""

    method: Method
    budget: Budget
    runs: tuple[FoldCases, ...]
    foreground: float = 0.33  # share of patches that nnU-Net centers on foreground
    generator: Literal["section", "constant"] = "section"  # constant: the same contrast everywhere inside a lesion
    after_intensity: bool = False  # plant after nnU-Net's intensity transforms instead of before them
    judged: bool = False  # by the same run's training on real labels only


class Arm(NamedTuple):
    """One way to train, as a change of the texture arm's section and of the assignment."""

    title: str
    method: Method
    foreground: float = 0.33
    generator: Literal["section", "constant"] = "section"
    after_intensity: bool = False
    judged: bool = False  # waits for the real arm, whose network judges
    change: Callable[[Section], Section] = lambda section: section

    @property
    def trainer(self) -> str:
        """Return the name of the trainer class."""
        return TRAINERS[self.method]

    @property
    def needs_tumors(self) -> bool:
        """Return whether the arm cannot be trained without real tumors."""
        return self.method != "synthesis" or self.judged


def _with_prior(**changes: Any) -> Callable[[Section], Section]:
    def change(section: Section) -> Section:
        targets = (replace(t, prior=replace(t.prior, **changes)) for t in section.targets)
        return replace(section, targets=tuple(targets))

    return change


def _fixed_sizes() -> tuple[SizeClass, ...]:
    return tuple(
        SizeClass(distribution="log_uniform", weight=1.0, min_mm=2 * radius, max_mm=2 * radius + _FIXED_MM)
        for radius in FIXED_RADII_MM
    )


TEXTURE_ARM = "texture"
BASELINE = "real"  # the arm that the others are compared with; its network is the judge
THRESHOLD_ARM = "threshold"  # the arm without learning

ARMS = {
    "real": Arm("real labels only", "real"),
    "real_fg66": Arm("real labels only, foreground oversampling .66", "real", foreground=0.66),
    "copy_paste": Arm("tumor copy-paste (CarveMix)", "copy_paste"),
    "ellipsoids": Arm(
        "plain ellipsoids, fixed radii, constant contrast",
        "synthesis",
        generator="constant",
        change=_with_prior(sizes=_fixed_sizes(), shape=_ELLIPSOID),
    ),
    TEXTURE_ARM: Arm("FreeTumor, texture generator", "synthesis"),
    "texture_judged": Arm("FreeTumor, texture generator, judge", "synthesis", judged=True),
    "lite": Arm("FreeTumor, lite generator", "synthesis", change=lambda s: replace(s, generator="lite")),
    "lite_judged": Arm(
        "FreeTumor, lite generator, judge",
        "synthesis",
        judged=True,
        change=lambda s: replace(s, generator="lite"),
    ),
}
ABLATIONS = {
    "share_low": Arm(
        "half as many planted patches",
        "synthesis",
        change=lambda s: replace(s, probability_tumor_free=0.25, probability_tumor_bearing=0.125),
    ),
    "share_high": Arm(
        "planted wherever allowed (70 % / 50 %)",
        "synthesis",
        change=lambda s: replace(s, probability_tumor_free=0.7, probability_tumor_bearing=0.5),
    ),
    "free_only": Arm(
        "tumor-free patches only (published rule)",
        "synthesis",
        change=lambda s: replace(s, tumor_free_patches_only=True),
    ),
    "fixed_radii": Arm(
        "fixed radii instead of the prior's sizes", "synthesis", change=_with_prior(sizes=_fixed_sizes())
    ),
    "after_intensity": Arm("planted after intensity augmentation", "synthesis", after_intensity=True),
}
ALL_ARMS = ARMS | ABLATIONS


def plans_name(arm: str) -> str:
    """Return the name of an arm's plans."""
    return f"{ASSIGNMENT_KEY}_{arm}"


def bundled(section: Section) -> Section:
    """Replace what was measured on the dataset with the bundled priors: a few labels are too few to measure on."""
    targets = (
        replace(target, prior=_prior(target.prior), source=f"bundled prior {target.prior.name}, as the study demands")
        for target in section.targets
    )
    return replace(section, targets=tuple(targets), generator="texture", judge="off")


def _prior(measured: Prior) -> Prior:
    return priors.load(measured.name)


def assignment_of(arm: Arm, budget: Budget, folds: tuple[FoldCases, ...]) -> Assignment:
    """Return the assignment of an arm's trainer."""
    return Assignment(
        method=arm.method,
        budget=budget,
        runs=folds,
        foreground=arm.foreground,
        generator=arm.generator,
        after_intensity=arm.after_intensity,
        judged=arm.judged,
    )


def read_assignment(plans: dict[str, Any]) -> Assignment:
    """Read the assignment from an arm's plans.

    Raises:
        ValueError: the study did not write these plans.
    """
    if ASSIGNMENT_KEY not in plans:
        raise ValueError(
            f"{plans['plans_name']}.json has no entry '{ASSIGNMENT_KEY}'. The study's trainers are only for "
            "'nnUNetv2_freetumor study'; train with nnUNetTrainerFreeTumor."
        )
    return read_as(Assignment, plans[ASSIGNMENT_KEY], ASSIGNMENT_KEY)
