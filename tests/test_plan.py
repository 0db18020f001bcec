"""The section is read strictly: what is wrong is named, with the rule and the choices."""

import copy

import pytest

from nnunetv2_freetumor import plan, priors
from nnunetv2_freetumor.plan import plans_hash, read_section, size_index, to_json
from nnunetv2_freetumor.planning.section import check_origin

PLANS = {
    "dataset_name": "Dataset001_Liver",
    "plans_name": "nnUNetPlans",
    "transpose_forward": [0, 1, 2],
    "configurations": {"3d_fullres": {"spacing": [2.5, 0.8, 0.8], "patch_size": [48, 96, 96]}},
    "foreground_intensity_properties_per_channel": {"0": {"mean": 100.0, "std": 40.0}},
}
LABELS = {"background": 0, "liver": 1, "tumor": 2}


def section_json():
    """Give a whole section as it stands in a plans file."""
    target = {
        "name": "liver tumor", "host_labels": [1], "tumor_label": 2, "lesion_labels": [2], "source": "bundled",
        "prior": to_json(priors.load("liver")),
    }  # fmt: skip
    return {"targets": [target], "labels": LABELS, "plans_hash": plans_hash(PLANS)}


def test_a_section_survives_writing_and_reading():
    section = read_section(section_json())
    assert read_section(to_json(section)) == section


def test_settings_of_earlier_sections_are_read_as_they_always_stood_and_dropped():
    section = read_section(section_json() | {"quality": "by_size", "second_draw": False})
    assert section == read_section(section_json())
    assert not {"quality", "second_draw"} & set(to_json(section))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("probabilty_tumor_free",), 0.5, "'freetumor' has unknown keys; allowed are targets, .* it is 'probabilty_"),
        (("probability_tumor_free",), 1.5, "'probability_tumor_free' must lie between 0 and 1, but it is 1.5"),
        (("probability_tumor_free",), "0.5", "'freetumor.probability_tumor_free' must be of type float, .* is '0.5'"),
        (("tumor_free_patches_only",), 1, "'freetumor.tumor_free_patches_only' must be of type bool, but it is 1"),
        (("quality",), "published", r"'freetumor.quality' is no longer a setting .*: \[0.7, 0.7, 0.7, 0.7\]"),
        (("second_draw",), True, "'freetumor.second_draw' is no longer a setting .delete it.*, but it is True"),
        (("clearance_mm",), -1.0, "'clearance_mm' must not be negative"),
        (("seed",), -3, "'seed' must lie between 0 and 2\\^31 - 1"),
        (("targets",), [], "'targets' must hold at least one host/tumor pair"),
        (("targets", 0, "prior", "sizes", 0, "weight"), -0.5, "'weight' must not be negative, but it is -0.5"),
        (("targets", 0, "prior", "sizes", 0, "min_mm"), 90.0, "'min_mm' must be below max_mm"),
        (("targets", 0, "prior", "lesions_per_patch"), [0.0], "'lesions_per_patch' must be weights of 1, 2, 3"),
        (("targets", 0, "prior", "shape", "kind"), "cube", "must be one of 'blob', 'patchy', but it is 'cube'"),
        (("targets", 0, "prior", "texture", "opacity"), [0.9, 0.1], "'opacity' must be two rising shares"),
        (("targets", 0, "prior", "texture", "opacity"), [0.1], "must hold 2 values"),
        (("targets", 0, "host_labels"), [], "'host_labels' or host_hu must be given for 'liver tumor'"),
        (("targets", 0, "host_labels"), [1, 2], "'host_labels' must hold no lesion label"),
        (("targets", 0, "lesion_labels"), [3], "'lesion_labels' must hold tumor_label"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(path, value, message):
    data = section_json()
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        read_section(data)


def test_a_missing_key_is_named():
    data = section_json()
    del data["targets"][0]["tumor_label"]
    with pytest.raises(ValueError, match=r"'freetumor.targets\[0\]' lacks the keys tumor_label"):
        read_section(data)


def test_a_section_for_other_labels_is_refused():
    section = read_section(section_json())
    check_origin(section, PLANS, {"labels": LABELS})
    with pytest.raises(ValueError, match="was made for the labels .*Run 'nnUNetv2_freetumor plan -d Dataset001_Liver"):
        check_origin(section, PLANS, {"labels": {**LABELS, "cyst": 3}})


@pytest.mark.parametrize("change", ["spacing", "intensity", "axes"])
def test_a_section_for_other_plans_is_refused(change):
    section, other = read_section(section_json()), copy.deepcopy(PLANS)
    if change == "spacing":
        other["configurations"]["3d_fullres"]["spacing"][0] = 5.0
    if change == "intensity":
        other["foreground_intensity_properties_per_channel"]["0"]["std"] = 50.0
    if change == "axes":
        other["transpose_forward"] = [2, 0, 1]
    with pytest.raises(ValueError, match="was made for other plans"):
        check_origin(section, other, {"labels": LABELS})


def test_the_section_itself_does_not_change_the_hash():
    assert plans_hash({**PLANS, plan.SECTION: {"seed": 1}}) == plans_hash(PLANS)


def test_sizes_fall_into_the_classes_by_their_lower_bound():
    assert [size_index(mm) for mm in (3.0, 9.99, 10.0, 19.9, 20.0, 50.0, 100.0)] == [0, 0, 1, 1, 2, 3, 3]
