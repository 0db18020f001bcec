"""Check that nnU-Net's clip window keeps host and lesions apart, and widen it where it does not.

nnU-Net clips CT at the .5th and 99.5th percentile of the foreground. Where hardly a tumor is labeled that is healthy
organ, and darker or brighter lesions are clipped away, in training and at prediction.
"""

import copy
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_freetumor.intensity import RAW_CT, from_plans
from nnunetv2_freetumor.plan import Section, Target
from nnunetv2_freetumor.synthesis.texture import core_hu

ORIGINAL = "freetumor_original_intensity"  # key in the plans: what nnU-Net had planned, and when it was widened
_INTENSITY = "foreground_intensity_properties_per_channel"
_MARGIN_SD = 3.0  # of noise, when widening; the check asks for one
_SPAN_SD = 6.0  # nnU-Net's own windows span about six standard deviations


class Window(NamedTuple):
    """A range in HU."""

    low_hu: float
    high_hu: float

    def __str__(self) -> str:
        return f"{self.low_hu:.0f} to {self.high_hu:.0f} HU"


def window_problem(section: Section, plans: dict[str, Any]) -> str | None:
    """Describe the lesions that would be clipped; None if all fit."""
    low_hu, high_hu = clipped_at(plans)
    for target in section.targets:
        need = _needed(target, section, margin_sd=1.0)
        if need and (need.low_hu < low_hu or need.high_hu > high_hu):
            host_hu = section.fingerprint["targets"][target.name]["host"]["median_hu"]["p50"]
            return (
                f"The clip window hides tumors: '{target.name}' needs {need} (host at {host_hu:.0f} HU, lesions at "
                f"{cores(target, host_hu)}, and noise), but nnU-Net clips at {Window(low_hu, high_hu)}, in training "
                "and at prediction."
            )
    return None


def widen(plans: dict[str, Any], section: Section) -> dict[str, Any]:
    """Return plans whose window holds every target with room for noise; what nnU-Net had planned is kept beside it."""
    needs = [need for target in section.targets if (need := _needed(target, section, _MARGIN_SD))]
    window = clipped_at(plans)
    low_hu = min(window.low_hu, *(math.floor(need.low_hu) for need in needs))
    high_hu = max(window.high_hu, *(math.ceil(need.high_hu) for need in needs))
    plans = copy.deepcopy(plans)
    properties = plans[_INTENSITY]["0"]
    planned = plans.get(ORIGINAL, {name: properties[name] for name in ("percentile_00_5", "percentile_99_5", "std")})
    plans[ORIGINAL] = {**planned, "widened_at": time.time()}
    properties["percentile_00_5"], properties["percentile_99_5"] = float(low_hu), float(high_hu)
    properties["std"] = max(properties["std"], (high_hu - low_hu) / _SPAN_SD)
    return plans


def preprocessed_configurations(plans: dict[str, Any], folder: Path) -> list[str]:
    """List the configurations whose preprocessed data are there, one for each folder of data."""
    first_of = {data: name for name, data in reversed(_data_folders(plans, folder).items())}
    return [name for data, name in reversed(first_of.items()) if data.is_dir() and any(data.iterdir())]


def repair_commands(plans: dict[str, Any], configurations: list[str]) -> str:
    """Write the commands that widen the window and preprocess again."""
    number = int(plans["dataset_name"][7:10])
    return f"  nnUNetv2_freetumor plan -d {number} -p {plans['plans_name']} --widen-window\n" + preprocess_command(
        plans, configurations
    )


def preprocess_command(plans: dict[str, Any], configurations: list[str]) -> str:
    """Write the command that preprocesses these configurations again."""
    number = int(plans["dataset_name"][7:10])
    return f"  nnUNetv2_preprocess -d {number} -plans_name {plans['plans_name']} -c {' '.join(configurations)}"


def stale_data(plans: dict[str, Any], folder: Path) -> str | None:
    """Describe the preprocessed data that are older than the widened window; None if there are none."""
    widened_at = plans.get(ORIGINAL, {}).get("widened_at", 0.0)
    folders = _data_folders(plans, folder)
    stale = [
        name
        for name in preprocessed_configurations(plans, folder)
        if min(file.stat().st_mtime for file in folders[name].iterdir()) < widened_at
    ]
    if not stale:
        return None
    return (
        f"The preprocessed data of {', '.join(stale)} are older than the widened clip window. Preprocess again:\n"
        f"{preprocess_command(plans, stale)}"
    )


def plans_with_other_window(plans: dict[str, Any], folder: Path) -> list[str]:
    """List other plans that use the same preprocessed data with another window, as nnU-Net's ResEnc plans may."""
    ours, found = set(_data_folders(plans, folder).values()), []
    for file in sorted(folder.glob("*.json")):
        other = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(other, dict) or "configurations" not in other or other["plans_name"] == plans["plans_name"]:
            continue
        if ours & set(_data_folders(other, folder).values()) and other[_INTENSITY] != plans[_INTENSITY]:
            found.append(other["plans_name"])
    return found


def _data_folders(plans: dict[str, Any], folder: Path) -> dict[str, Path]:
    manager = PlansManager(plans)
    return {name: folder / manager.get_configuration(name).data_identifier for name in plans["configurations"]}


def clipped_at(plans: dict[str, Any]) -> Window:
    """Read the window that nnU-Net clips at."""
    intensity = from_plans(plans)
    return Window(intensity.low_hu, intensity.high_hu)


def _needed(target: Target, section: Section, margin_sd: float) -> Window | None:
    """Find the HU that host and lesions take up over the cases; None where the host was not measured."""
    measured = section.fingerprint.get("targets", {}).get(target.name)
    if measured is None:
        return None
    host = measured["host"]
    hosts_hu = [host["median_hu"]["p05"], host["median_hu"]["p95"]]
    levels = hosts_hu + [level for host_hu in hosts_hu for level in cores(target, host_hu)]
    margin_hu = margin_sd * host["sd_hu"]["p50"]
    return Window(max(min(levels) - margin_hu, RAW_CT.low_hu), min(max(levels) + margin_hu, RAW_CT.high_hu))


def cores(target: Target, host_hu: float) -> Window:
    """Predict where usual lesions' cores lie: core = host - k (host - 20 HU), for k one standard deviation off."""
    texture = target.prior.texture
    filled = texture.opacity if texture.ground_glass_share == 1 else (1.0, 1.0)
    full = [
        float(core_hu(torch.tensor(host_hu, dtype=torch.float64), k, texture))
        for k in (texture.k_mean - texture.k_sd, texture.k_mean + texture.k_sd)
    ]
    cores = [host_hu + share * (core - host_hu) for core, share in zip(full, filled)]
    return Window(min(cores), max(cores))
