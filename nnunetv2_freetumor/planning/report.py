"""Write the `freetumor` section as a table for people."""

import json
from typing import Any

from nnunetv2_freetumor.plan import Section, Target, read_section, to_json
from nnunetv2_freetumor.planning import clip_window
from nnunetv2_freetumor.planning.measurement import WIDTH_10_90
from nnunetv2_freetumor.planning.roles import read_labels
from nnunetv2_freetumor.synthesis.draws import probability

_NO_SETTINGS = ("targets", "labels", "plans_hash", "version", "fingerprint")  # what a section holds beside settings


def describe(section: Section, plans: dict[str, Any]) -> str:
    """Write what was chosen as a table for people."""
    names = {label.name: label.values for label in read_labels(section.labels)}
    lines = [f"FreeTumor section for {plans['dataset_name']}, {plans['plans_name']}:"]
    used: set[int] = set()
    for target in section.targets:
        used.update(target.host_labels, target.lesion_labels)
        lines += [
            f"  {target.name}",
            *(f"    {name:<10} {text}" for name, text in _describe_target(target, section, names)),
        ]
    lines.append(
        f"  lesions in {100 * probability(section, True):.0f} % of the organ patches without a real tumor, and in "
        f"{100 * probability(section, False):.0f} % of those with one"
    )
    unused = [name for name, values in names.items() if not values & used]
    lines.append(f"  labels without a role: {', '.join(unused) or 'none'}")
    if absent := section.fingerprint.get("absent_labels"):
        lines.append(f"  labels in no training case: {', '.join(absent)}; validation cannot measure them")
    return "\n".join([*lines, f"  clip window: {clip_window.clipped_at(plans)}"])


def _describe_target(target: Target, section: Section, names: dict[str, frozenset[int]]) -> list[tuple[str, str]]:
    texture, measured = target.prior.texture, section.fingerprint.get("targets", {}).get(target.name)
    contrast = "not measured on this dataset"
    if measured:
        host_hu = measured["host"]["median_hu"]["p50"]
        contrast = f"host at {host_hu:.0f} HU, lesions at {clip_window.cores(target, host_hu)}"
    sizes = [f"{size.weight:g} x {size.distribution} {size.min_mm:g}-{size.max_mm:g} mm" for size in target.prior.sizes]
    return [
        ("host", _name_labels(target.host_labels, names) or f"{target.host_hu} HU inside the body"),
        ("tumor", _name_labels((target.tumor_label,), names)),
        ("keep away", _name_labels(target.lesion_labels, names)),
        ("numbers", target.source),
        ("sizes", ", ".join(sizes)),
        ("contrast", contrast),
        ("edge", f"{WIDTH_10_90 * texture.edge_scale_mm:.1f} mm (10-90 %), at most {texture.edge_depth_mm:g} mm deep"),
    ]


def _name_labels(values: tuple[int, ...], names: dict[str, frozenset[int]]) -> str:
    """Find for each label the smallest entry of dataset.json that holds it."""
    found = {value: min((n for n in names if value in names[n]), key=lambda n: len(names[n])) for value in values}
    return ", ".join(f"{name} ({value})" for value, name in found.items())


def lost_settings(former: Any, section: Section) -> list[str]:
    """List in text lines where a section differed from the one that replaces it; measurements are no settings.

    Args:
        former: the replaced section's JSON, None if there was none.
        section: the new one.
    """
    if former is None:
        return []
    try:
        old = read_section(former)
    except ValueError as error:
        return [f"The replaced section could not be read: {error}"]
    both = {target.name for target in old.targets} & {target.name for target in section.targets}
    before, now = _settings(old, both), _settings(section, both)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    lines = [f"  {name}: was {json.dumps(before.get(name))}, is {json.dumps(now.get(name))}" for name in changed]
    heading = "Settings that the replaced section had otherwise; edit them again if you had edited them:"
    return [heading, *lines] if lines else []


def _settings(section: Section, targets: set[str]) -> dict[str, Any]:
    """Return all settings by name, those of a prior behind its target's name."""
    own = {name: value for name, value in to_json(section).items() if name not in _NO_SETTINGS}
    priors = {f"{target.name}.prior": to_json(target.prior) for target in section.targets if target.name in targets}
    return _flat(own | priors)


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat
