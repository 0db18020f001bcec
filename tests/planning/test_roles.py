"""Roles: which label is an organ and which its tumor, by name."""

import pytest

from nnunetv2_freetumor.planning import roles

FLARE = ["background", "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava"]
FLARE += ["right adrenal gland", "left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney"]
FLARE += ["tumor"]
BTCV = ["background", "spleen", "kidney_right", "kidney_left", "gall_bladder", "liver", "stomach", "hepatic_vessel"]
BTCV += ["portal_vein_and_splenic_vein", "pancreas", "liver_tumor", "kidney_tumor", "kidney_cyst", "colon_cancer"]
LOBES = [f"lung_{name}" for name in ("upper_lobe_left", "lower_lobe_left", "middle_lobe_right", "vessels", "nodules")]


def numbered(names):
    return {name: i for i, name in enumerate(names)}


def read(labels, dataset_name="Dataset001_Any", given=None):
    labels = labels if isinstance(labels, dict) else numbered(labels)
    found = roles.resolve({"labels": labels}, dataset_name, given)
    return {role.name: (role.host_labels or role.host_hu, role.tumor_label, role.lesion_labels) for role in found}


@pytest.mark.parametrize(
    ("labels", "dataset_name", "expected"),
    [
        (["background", "liver", "cancer"], "Dataset003_Liver", {"liver": ((1,), 2, (2,))}),
        (["background", "pancreas", "cancer"], "Dataset007_Pancreas", {"pancreas": ((1,), 2, (2,))}),
        (["background", "cancer"], "Dataset006_Lung", {"lung": (roles.LUNG_HU, 1, (1,))}),
        (["background", "Hepatic Parenchyma", "Tumours"], "Dataset001_Any", {"liver": ((1,), 2, (2,))}),
        (["background", "liver", "liver_metastases", "ignore"], "Dataset001_Any", {"liver": ((1,), 2, (2,))}),
        (["background", "kidney", "tumor", "cyst"], "Dataset220_KiTS", {"kidney": ((1,), 2, (2, 3))}),
        (["background", "kidney", "mass", "tumor"], "Dataset001_Any", {"kidney": ((1,), 3, (2, 3))}),
        (
            {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2},
            "Dataset220_KiTS",
            {"kidney": ((1,), 2, (2, 3))},
        ),
        (
            {"background": 0, "kidney and masses": [1, 2, 3], "masses": [2, 3], "tumor": [2], "ignore": 4},
            "Dataset220_KiTS",
            {"kidney": ((1,), 2, (2, 3))},
        ),
        (
            FLARE,
            "Dataset701_FLARE22",
            {"liver": ((1,), 14, (14,)), "pancreas": ((4,), 14, (14,)), "kidney": ((2, 13), 14, (14,))},
        ),
        (
            BTCV,
            "Dataset017_BTCV",
            {"liver": ((5,), 10, (10, 11, 12, 13)), "kidney": ((2, 3), 11, (10, 11, 12, 13))},
        ),
        (
            ["background", "left kidney", "right kidney", "left kidney tumor", "right kidney tumor"],
            "Dataset001_Any",
            {"kidney left": ((1,), 3, (3, 4)), "kidney right": ((2,), 4, (3, 4))},
        ),
        (["background", "liver", "HCC", "hepatic cyst"], "Dataset001_Any", {"liver": ((1,), 2, (2, 3))}),
        (["background", *LOBES], "Dataset001_Any", {"lung": ((1, 2, 3), 5, (5,))}),
        (["background", "lung", "nodule"], "Dataset001_Any", {"lung": ((1,), 2, (2,))}),
        (["background", "nodule"], "Dataset001_LIDC", {"lung": (roles.LUNG_HU, 1, (1,))}),
        (["background", "lung", "infection"], "Dataset115_COVIDSeg", {"covid19": ((1,), 2, (2,))}),
        (["background", "lung", "lesion"], "Dataset115_COVID19", {"covid19": ((1,), 2, (2,))}),
        (["background", "left lung", "right lung", "infection"], "Dataset001_Any", {"covid19": ((1, 2), 3, (3,))}),
        (["background", "COVID lesion"], "Dataset001_Any", {"covid19": (roles.LUNG_HU, 1, (1,))}),
        (["background", "lung", "GGO", "Consolidation"], "Dataset001_Any", {"covid19": ((1,), 2, (2, 3))}),
    ],
)
def test_label_names_resolve_without_help(labels, dataset_name, expected):
    assert read(labels, dataset_name) == expected


def test_a_tumor_that_names_its_organ_comes_before_one_that_does_not():
    found = read(["background", "liver", "pancreas", "tumor", "pancreatic cancer"])
    assert found == {"liver": ((1,), 3, (3, 4)), "pancreas": ((2,), 4, (3, 4))}


def test_tumor_and_infection_of_one_lung_are_two_targets():
    found = read(["background", "lung", "lung tumor", "pneumonia"])
    assert found == {"lung": ((1,), 2, (2, 3)), "covid19": ((1,), 3, (2, 3))}


def test_order_of_labels_and_number_of_regions_do_not_matter():
    labels = {"tumor": 2, "masses": [2, 3], "kidney": [1, 2, 3], "background": 0}
    assert read(labels) == {"kidney": ((1,), 2, (2, 3))}


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["background", "hippocampus"], "names no supported organ"),
        (["background", "liver"], "names no supported organ"),
        (["background", "colon cancer primaries"], "names no supported organ"),
        (["background", "hepatic vessel", "tumor"], "names no supported organ"),
        (
            ["background", "liver", "primary tumor", "metastasis"],
            "tumor of the liver ('primary tumor' or 'metastasis')",
        ),
        ({"background": 0, "kidney": [1, 2, 3], "masses": [2, 3]}, "tumor of the kidney ('masses') is unclear"),
    ],
)
def test_what_stays_ambiguous_shows_the_names_and_the_lines_to_add(labels, problem):
    with pytest.raises(ValueError) as error:
        read(labels)
    text = str(error.value)
    assert problem in text
    assert all(repr(name) in text for name in list(labels)[1:])
    assert '"freetumor_roles": [{"prior": "liver", "host": ["LIVER LABEL"], "tumor": "TUMOR LABEL"}]' in text
    assert "covid19, kidney, liver, lung, pancreas" in text


def test_the_lines_that_the_error_shows_settle_it():
    labels = ["background", "organ", "thing", "other thing"]
    given = [{"prior": "liver", "host": ["organ"], "tumor": "thing"}, {"prior": "lung", "tumor": "other thing"}]
    assert read(labels, given=given) == {"liver": ((1,), 2, (2,)), "lung": (roles.LUNG_HU, 3, (3,))}
    labels = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "core": 2}
    assert read(labels, given=[{"prior": "kidney", "host": "kidney", "tumor": "core"}]) == {"kidney": ((1,), 2, (2, 3))}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([{"prior": "liver", "host": ["lver"], "tumor": "tumor"}], "freetumor_roles name 'lver'. The labels are"),
        (
            [{"prior": "spleen", "host": ["liver"], "tumor": "tumor"}],
            "no bundled prior 'spleen'; choose one of covid19",
        ),
        ([{"prior": "liver", "organ": ["liver"], "tumor": "tumor"}], "which is not of the form below"),
        ([{"prior": "liver", "host": ["tumor"], "tumor": "tumor"}], "need a tumor of one label and a host"),
        ([{"prior": "liver", "tumor": "tumor"}], "need a tumor of one label and a host"),
    ],
)
def test_lines_that_do_not_fit_are_refused(given, problem):
    with pytest.raises(ValueError, match="Assign them with a line|choose one of") as error:
        read(["background", "liver", "tumor"], given=given)
    assert problem in str(error.value)
