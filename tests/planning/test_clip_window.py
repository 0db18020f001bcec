"""The clip window: what host and lesions need, and what widening writes."""

import dataclasses

import pytest

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.plan import Section, Target
from nnunetv2_freetumor.planning import clip_window


def section(prior, host_hu, noise_hu, **texture):
    """Make a section of one target whose host was measured at the same HU in every case."""
    changed = dataclasses.replace(
        priors.load(prior), texture=dataclasses.replace(priors.load(prior).texture, **texture)
    )
    target = Target(name=prior, tumor_label=2, lesion_labels=(2,), prior=changed, source="", host_labels=(1,))
    host = {"median_hu": dict.fromkeys(("p05", "p50", "p95"), host_hu), "sd_hu": {"p50": noise_hu}}
    fingerprint = {"targets": {prior: {"host": host}}}
    return Section(targets=(target,), labels={}, plans_hash="", fingerprint=fingerprint)


def plans(low_hu, high_hu, sd_hu=20.0):
    properties = {"mean": 100.0, "std": sd_hu, "percentile_00_5": low_hu, "percentile_99_5": high_hu}
    return {"foreground_intensity_properties_per_channel": {"0": properties}}


@pytest.mark.parametrize(
    ("prior", "texture", "host_hu", "low_hu", "high_hu"),
    [
        ("liver", {"k_mean": 0.5, "k_sd": 0.1}, 120.0, 60 - 10, 120 + 10),
        ("liver", {"k_mean": 0.5, "k_sd": 0.1}, -30.0, -30 - 10, 0 + 10),  # lesions brighter than a fatty liver
        ("kidney", {"k_mean": 0.9, "k_sd": 0.1}, 120.0, 30 - 10, 120 + 10),  # cores stay above 30 HU
        ("lung", {"k_mean": 1.0, "k_sd": 0.1}, -800.0, -800 - 10, 102 + 10),
        ("covid19", {"k_mean": 1.0, "k_sd": 0.0, "opacity": (0.2, 0.5)}, -800.0, -800 - 10, -390 + 10),
    ],
)
def test_the_window_must_hold_host_core_and_noise(prior, texture, host_hu, low_hu, high_hu):
    made = section(prior, host_hu, 10.0, **texture)
    assert clip_window.window_problem(made, plans(low_hu - 0.5, high_hu + 0.5)) is None
    for window in ((low_hu + 0.5, high_hu + 0.5), (low_hu - 0.5, high_hu - 0.5)):
        problem = clip_window.window_problem(made, plans(*window))
        assert f"'{prior}' needs {low_hu} to {high_hu} HU (host at {host_hu:.0f} HU" in problem
        assert "in training and at prediction" in problem


def test_widening_leaves_room_for_noise_and_keeps_what_nnunet_had_planned():
    made = section("liver", 120.0, 10.0, k_mean=0.5, k_sd=0.1)
    stock = plans(100.0, 140.0, sd_hu=9.0)
    widened = clip_window.widen(stock, made)
    assert stock == plans(100.0, 140.0, sd_hu=9.0)
    properties = widened["foreground_intensity_properties_per_channel"]["0"]
    assert (properties["percentile_00_5"], properties["percentile_99_5"]) == (30.0, 150.0)
    assert properties["std"] == pytest.approx(120 / 6)
    assert properties["mean"] == 100.0
    kept = {"percentile_00_5": 100.0, "percentile_99_5": 140.0, "std": 9.0}
    assert kept.items() <= widened[clip_window.ORIGINAL].items()
    assert clip_window.window_problem(made, widened) is None
    again = clip_window.widen(widened, section("liver", 180.0, 10.0))
    assert kept.items() <= again[clip_window.ORIGINAL].items()


def test_widening_never_narrows_and_never_leaves_ct():
    wide = clip_window.widen(plans(-1024.0, 900.0, sd_hu=400.0), section("lung", -850.0, 80.0))
    assert wide["foreground_intensity_properties_per_channel"]["0"] == {
        "mean": 100.0, "std": 400.0, "percentile_00_5": -1024.0, "percentile_99_5": 900.0,
    }  # fmt: skip
    lung = clip_window.widen(plans(-900.0, 0.0), section("lung", -850.0, 80.0))
    assert lung["foreground_intensity_properties_per_channel"]["0"]["percentile_00_5"] == -1024.0


def test_a_section_without_measurements_cannot_be_checked():
    made = dataclasses.replace(section("liver", 120.0, 10.0), fingerprint={})
    assert clip_window.window_problem(made, plans(100.0, 110.0)) is None
