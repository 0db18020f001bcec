"""The bundled priors: complete, readable, and every number with its source."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest, norm

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.plan import read_prior, to_json

SHAPES = Path(__file__).parents[2] / "shared" / "facts" / "tumor_shapes.csv"
MASKS = {
    "liver": {"liver_tumor"},
    "pancreas": {"pancreas_tumor", "pdac"},
    "lung": {"lung_nodule"},
    "kidney": {"kits23"},
}


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}".lstrip("."))
    elif path == "sizes":
        yield from {f"sizes.{key}" for size in value for key in size}
    elif path != "name":
        yield path


def test_the_five_kinds_of_tumor_have_a_prior():
    assert priors.names() == ("covid19", "kidney", "liver", "lung", "pancreas")


@pytest.mark.parametrize("name", priors.names())
def test_every_setting_is_written_out_and_has_a_source(name):
    prior, sources = to_json(priors.load(name)), priors.sources(name)
    assert prior["name"] == name
    written = json.loads((Path(__file__).parents[1] / "plans" / f"{name}.json").read_text())["prior"]
    assert set(leaves(written)) == set(leaves(prior))
    for setting in leaves(prior):
        assert sources.get(setting) or sources.get(setting.split(".")[0]), setting
    assert set(sources) <= set(leaves(prior)) | {"sizes"}


@pytest.mark.parametrize("name", priors.names())
def test_a_prior_survives_writing_and_reading(name):
    assert read_prior(to_json(priors.load(name))) == priors.load(name)


@pytest.mark.parametrize("name", priors.names())
def test_half_of_the_sizes_are_log_uniform_over_6_to_30_mm(name):
    measured, small = priors.load(name).sizes
    assert measured.weight == small.weight
    assert (small.distribution, small.min_mm, small.max_mm) == ("log_uniform", 6.0, 30.0)


def test_kidney_tumors_stay_above_30_hu_and_only_kidney_and_pancreas_grow_out_of_the_organ():
    assert priors.load("kidney").texture.min_core_hu == 30.0
    assert {name for name in priors.names() if priors.load(name).exophytic_mm} == {"kidney", "pancreas"}
    assert priors.load("pancreas").exophytic_mm == 8.0
    assert priors.load("kidney").exophytic_per_diameter == 0.5


def test_covid_lesions_are_patchy_subpleural_ground_glass():
    prior = priors.load("covid19")
    assert prior.shape.kind == "patchy"
    assert prior.subpleural
    assert prior.texture.ground_glass_share == 1.0


def test_an_unknown_prior_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="no bundled prior 'colon'; choose one of covid19, kidney, liver"):
        priors.load("colon")


@pytest.mark.skipif(not SHAPES.exists(), reason=f"{SHAPES.name} is not there")
@pytest.mark.parametrize("name", MASKS)
def test_sizes_are_those_of_the_measured_masks(name):
    with SHAPES.open() as file:
        rows = [row for row in csv.DictReader(file) if row["spacing_ok"] == "True" and row["elongation_2_1"]]
    rows = [row for row in rows if float(row["eq_diam_mm"]) >= 3 and row["lesion"] != "kidney_cyst"]
    mm = [float(row["eq_diam_mm"]) for row in rows if {row["lesion"], row["dataset"]} & MASKS[name]]
    size = priors.load(name).sizes[0]
    low, high = norm.cdf(np.log([size.min_mm, size.max_mm]), size.ln_mm_mean, size.ln_mm_sd)

    def drawn(diameter_mm):
        below = norm.cdf(np.log(np.clip(diameter_mm, size.min_mm, size.max_mm)), size.ln_mm_mean, size.ln_mm_sd)
        return (below - low) / (high - low)

    assert kstest(mm, drawn).statistic < 0.1
