"""The `freetumor` section of the nnU-Net plans: what it may contain, and how it is read, checked and written.

Every setting carries its unit in its name. `read_section` refuses unknown keys and wrong types with a `ValueError` that
names the setting, the rule and the choices, so that a typing error ends before training starts.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from nnunetv2_freetumor.files.strict_json import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    ValueRule,
    between,
    check,
    check_all,
    read_as,
    rising,
)

SECTION = "freetumor"
DIAMETER_BOUNDS_MM = (10.0, 20.0, 50.0)
SIZE_NAMES = ("<10 mm", "10-20 mm", "20-50 mm", ">=50 mm")
RETIRED = {  # settings of earlier sections: what every one of them held, and what to do where one held something else
    "quality": ("by_size", 'write "min_quality": [0.7, 0.7, 0.7, 0.7] for what "published" asked'),
    "second_draw": (False, "delete it: rejected samples stay as they were"),
}
_RULES: dict[str, dict[str, ValueRule]] = {
    "SizeClass": dict.fromkeys(("weight", "ln_mm_sd"), NOT_NEGATIVE) | {"min_mm": POSITIVE},
    "Shape": dict.fromkeys(("roughness_ln_sd", "fine_share", "roughness", "lobe_odds"), NOT_NEGATIVE)
    | dict.fromkeys(("coarse_cells", "fine_cells"), between(2, 16))
    | {"roughness_at_mm": rising("diameters in mm", above=0)},
    "Texture": dict.fromkeys(
        ("k_sd", "min_contrast_hu", "edge_depth_mm", "edge_depth_per_radius", "fine_hu", "coarse_hu", "rim_hu"),
        NOT_NEGATIVE,
    )
    | dict.fromkeys(("necrotic_share", "rim_enhancing_share", "part_solid_share", "ground_glass_share"), SHARE)
    | dict.fromkeys(("edge_scale_mm", "fine_mm", "coarse_per_diameter"), POSITIVE)
    | {"opacity": ValueRule("must be two rising shares between 0 and 1", lambda pair: 0 <= pair[0] <= pair[1] <= 1)},
    "Prior": dict.fromkeys(("exophytic_mm", "exophytic_per_diameter"), NOT_NEGATIVE)
    | {
        "sizes": ValueRule("need one weight above 0", lambda sizes: sum(size.weight for size in sizes) > 0),
        "lesions_per_patch": ValueRule(
            "must be weights of 1, 2, 3 ... lesions, one above 0", lambda w: bool(w) and min(w) >= 0 < sum(w)
        ),
    },
    "Target": {
        "tumor_label": ValueRule("must be a foreground label", lambda label: label > 0),
        "host_hu": rising("HU values"),
    },
    "Section": {
        "version": ValueRule("must be 1", lambda version: version == 1),
        "targets": ValueRule("must hold at least one host/tumor pair", bool),
        "min_quality": ValueRule("must be four shares", lambda shares: all(0 <= share <= 1 for share in shares)),
        "seed": ValueRule("must lie between 0 and 2^31 - 1", lambda seed: 0 <= seed < 2**31),
    }
    | dict.fromkeys(("probability_tumor_free", "probability_tumor_bearing", "untouched_share"), SHARE)
    | dict.fromkeys(("min_accepted_share", "unlabeled_share"), SHARE)
    | dict.fromkeys(("clearance_mm", "min_visibility", "min_judge_tumors"), NOT_NEGATIVE),
}
"""What each setting's value must be; rules between several settings stand with their class."""


class _Checked:
    """Settings that are checked by the table when they are made."""

    def __post_init__(self) -> None:
        check_all(self, next(_RULES[kind.__name__] for kind in type(self).__mro__ if kind.__name__ in _RULES))


@dataclass(frozen=True, kw_only=True)
class SizeClass(_Checked):
    """One way to draw a lesion's equivalent diameter in mm. Field names are a file format: plans."""

    distribution: Literal["log_normal", "log_uniform"]
    weight: float
    min_mm: float
    max_mm: float
    ln_mm_mean: float = 0.0  # of the log-normal: mean and standard deviation of ln(diameter in mm)
    ln_mm_sd: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.min_mm < self.max_mm, "min_mm", f"must be below max_mm ({self.max_mm})", self.min_mm)


@dataclass(frozen=True, kw_only=True)
class Shape(_Checked):
    """How lesion surfaces are drawn (formula: `synthesis/shapes.py`). Field names are a file format: plans."""

    kind: Literal["blob", "patchy"] = "blob"
    elongation_logit: tuple[float, float] = (2.0, 0.9)  # axis2/axis1 = sigmoid(N(mean, sd))
    flatness_logit: tuple[float, float] = (1.8, 0.78)  # axis3/axis2 = sigmoid(N(mean, sd))
    roughness: tuple[float, float] = (0.25, 0.24)  # median amplitude at the two diameters below
    roughness_at_mm: tuple[float, float] = (8.0, 60.0)
    roughness_ln_sd: float = 0.4
    coarse_cells: int = 4
    fine_cells: int = 6
    fine_share: float = 0.6  # amplitude of the fine octave relative to the coarse one
    lobe_odds: tuple[float, float] = (0.24, 0.57)  # chance of one more lobe, as odds, drawn uniformly


@dataclass(frozen=True, kw_only=True)
class Texture(_Checked):
    """What a lesion looks like. Field names are a file format: plans."""

    k_mean: float = 0.55  # core = host - k (host - 20 HU), so that contrast follows the enhancement phase
    k_sd: float = 0.15
    min_core_hu: float = -1000.0
    min_contrast_hu: float = 18.0  # no core is closer to its host
    edge_depth_mm: float = 1.8  # half-contrast depth inside the mask, at most
    edge_depth_per_radius: float = 0.25  # and at most this share of the radius
    edge_scale_mm: float = 0.75  # scale of the logistic ramp
    fine_hu: float = 4.0  # standard deviation of the fine heterogeneity
    fine_mm: float = 2.0  # and its Gaussian sigma
    coarse_hu: float = 5.0
    coarse_per_diameter: float = 0.2  # sigma of the coarse heterogeneity as a share of the diameter, at least 3 mm
    rim_hu: float = 12.0  # rim enhancement is uniform in 0..rim_hu
    necrotic_share: float = 0.0  # share of lesions above 15 mm with a darker center
    rim_enhancing_share: float = 0.0  # share of lesions above 15 mm with a bright rim instead of the usual faint one
    part_solid_share: float = 0.0  # share of lesions with a ground-glass shell around a solid core
    ground_glass_share: float = 0.0  # share of lesions that are ground glass throughout
    opacity: tuple[float, float] = (0.25, 0.55)  # share of the voxel that ground glass fills, drawn uniformly


@dataclass(frozen=True, kw_only=True)
class Prior(_Checked):
    """All that is known about one kind of tumor, without any label number. Field names are a file format: plans."""

    name: str
    sizes: tuple[SizeClass, ...]
    lesions_per_patch: tuple[float, ...] = (1.0,)  # weights of 1, 2, 3 ... lesions
    shape: Shape = field(default_factory=Shape)
    texture: Texture = field(default_factory=Texture)
    exophytic_mm: float = 0.0  # how far a lesion may leave the host into fat
    exophytic_per_diameter: float = 0.0  # and at most this share of its diameter
    subpleural: bool = False  # lesions hug the surface of the host


@dataclass(frozen=True, kw_only=True)
class Target(_Checked):
    """One host/tumor pair of a dataset. Field names are a file format: plans."""

    name: str
    tumor_label: int
    lesion_labels: tuple[int, ...]  # real tumors and cysts of any kind; synthetic lesions keep away from them
    prior: Prior
    source: str  # where the prior's numbers come from: a bundled prior, or the measured tumors
    host_labels: tuple[int, ...] = ()
    host_hu: tuple[float, float] | None = None  # instead of labels: connected tissue in this HU range inside the body

    def __post_init__(self) -> None:
        super().__post_init__()
        one = bool(self.host_labels) != (self.host_hu is not None)
        check(one, "host_labels", f"or host_hu must be given for '{self.name}', one of the two", self.host_labels)
        check(self.tumor_label in self.lesion_labels, "lesion_labels", "must hold tumor_label", self.lesion_labels)
        check(not set(self.host_labels) & set(self.lesion_labels), "host_labels", "must hold no lesion label", self)


@dataclass(frozen=True, kw_only=True)
class Section(_Checked):
    """The `freetumor` section of a plans file. Field names are a file format: plans."""

    targets: tuple[Target, ...]
    labels: dict[str, Any]  # dataset.json's labels that the section was made for
    plans_hash: str  # of the plans that the section was made for
    version: int = 1
    generator: str = "auto"  # or texture, the name of an installed one, or a path
    judge: str = "auto"  # the fold's finished nnUNetTrainer where there is one; off; or a model folder
    min_quality: tuple[float, float, float, float] = (0.3, 0.5, 0.7, 0.7)  # recognized share, by SIZE_NAMES
    min_accepted_share: float = 0.3  # a size class accepted more rarely passes ungated
    min_judge_tumors: int = 20  # in the judge's training cases; with fewer it is off
    recipe: Literal["lite", "published"] = "lite"  # how nnUNetTrainerFreeTumorGenerator trains
    recipe_changes: dict[str, Any] = field(default_factory=dict)  # single numbers of the recipe
    seed: int = 0
    probability_tumor_free: float = 0.5
    probability_tumor_bearing: float = 0.25
    untouched_share: float = 0.3  # of the tumor-free host patches, at least
    tumor_free_patches_only: bool = False
    min_visibility: float = 4.0  # signal-to-noise ratio after Rose; fainter lesions are not planted
    unlabeled_share: float | None = None  # of each batch from the pool; None: the pool's share of all cases, up to 0.5
    clearance_mm: float = 5.0  # between a synthetic lesion's surface and the nearest real tumor or cyst
    fingerprint: dict[str, Any] = field(default_factory=dict)  # what was measured, by target; for people to read


def plans_hash(plans: dict[str, Any]) -> str:
    """Hash what synthesis depends on in the plans: spacings, axis order, intensity properties and normalization."""
    configurations = {
        name: {key: value.get(key) for key in ("spacing", "patch_size", "normalization_schemes", "inherits_from")}
        for name, value in plans["configurations"].items()
    }
    properties = plans["foreground_intensity_properties_per_channel"]
    text = json.dumps([plans["dataset_name"], plans["transpose_forward"], configurations, properties], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_section(data: Any) -> Section:
    """Read a section from the plans' JSON.

    Raises:
        ValueError: an unknown key, a missing key, a wrong type, or a value outside its bounds; the text names it.
    """
    return read_as(Section, without_retired(data) if isinstance(data, dict) else data, SECTION)


def without_retired(data: dict[str, Any]) -> dict[str, Any]:
    """Drop the settings that are no more from a section, and refuse them where they asked for something."""
    for name, (always, instead) in RETIRED.items():
        check(
            data.get(name, always) == always, f"{SECTION}.{name}", f"is no longer a setting ({instead})", data.get(name)
        )
    return {name: value for name, value in data.items() if name not in RETIRED}


def read_prior(data: Any) -> Prior:
    """Read a prior from JSON; errors as in `read_section`."""
    return read_as(Prior, data, "prior")


def to_json(value: Any) -> Any:
    """Turn a section or a part of one into what `json.dump` takes."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def always_planting(section: Section, lesions: int | None = None) -> Section:
    """Return a section that plants into every patch with room, beside real tumors too; `lesions` in each, if given."""
    targets = section.targets
    if lesions is not None:
        weights = (0.0,) * (lesions - 1) + (1.0,)
        priors = [dataclasses.replace(target.prior, lesions_per_patch=weights) for target in targets]
        targets = tuple(dataclasses.replace(target, prior=prior) for target, prior in zip(targets, priors))
    return dataclasses.replace(
        section,
        targets=targets,
        probability_tumor_free=1.0,
        probability_tumor_bearing=1.0,
        untouched_share=0.0,
        tumor_free_patches_only=False,
    )


def size_index(diameter_mm: float) -> int:
    """Return the index in `SIZE_NAMES` of a diameter's class."""
    return sum(diameter_mm >= bound for bound in DIAMETER_BOUNDS_MM)
