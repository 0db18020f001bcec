"""The CT phantom: anatomy in HU, grown tumors, noise, and the cohort on disk."""

import json

import numpy as np
import pytest

from nnunetv2_freetumor import grown_tumors
from nnunetv2_freetumor.cases import check_same_geometry, read_case, read_label
from nnunetv2_freetumor.phantom import kernel_noise, make_phantom
from nnunetv2_freetumor.phantom_anatomy import ORGANS
from nnunetv2_freetumor.phantom_cohort import write_cohort
from nnunetv2_freetumor.phantom_vessels import grow_tree, push_aside

COARSE = {"pixel_mm": (2.5, 2.5), "slice_mm": (6.0, 6.0)}
LARGE = {"diameter_mm": (24.0, 30.0), **COARSE}
MEDIAN_HU = {  # bounds by phase
    "unenhanced": {"liver": (35, 75), "kidney": (15, 50), "aorta": (25, 60), "lung": (-950, -750), "spleen": (30, 65)},
    "arterial": {
        "liver": (45, 95),
        "kidney": (60, 210),
        "aorta": (190, 370),
        "lung": (-950, -750),
        "spleen": (80, 160),
    },
    "venous": {
        "liver": (80, 140),
        "kidney": (110, 240),
        "aorta": (110, 200),
        "lung": (-950, -750),
        "spleen": (85, 160),
    },
}


@pytest.fixture(scope="module", params=MEDIAN_HU)
def phantom(request):
    """Give one coarse case of each phase with two large tumors."""
    return make_phantom(3, lesions=2, phase=request.param, family="budding", **LARGE)


def test_organs_measure_what_they_do_in_each_phase(phantom):
    for organ, (low, high) in MEDIAN_HU[phantom.phase].items():
        inside = (phantom.organ == ORGANS[organ]) & (phantom.tumor == 0)
        assert low < np.median(phantom.image[inside]) < high, organ


def test_tumors_lie_inside_the_liver_and_stand_out_from_it_as_the_phase_has_it(phantom):
    tumor, liver = phantom.tumor > 0, phantom.organ == ORGANS["liver"]
    contrast = np.median(phantom.image[tumor]) - np.median(phantom.image[liver & ~tumor])
    assert len(phantom.lesions) == 2
    assert not (tumor & ~liver).any()
    assert contrast < {"unenhanced": -7, "arterial": -9, "venous": -20}[phantom.phase]


def test_lesions_are_reported_where_and_as_large_as_the_label_has_them(phantom):
    for lesion in phantom.lesions:
        voxels = np.argwhere(phantom.tumor == lesion.number)
        center = np.asarray(phantom.origin_mm) + voxels.mean(0) * phantom.spacing_mm
        assert np.allclose(lesion.center_mm, center[::-1])
        volume = len(voxels) * np.prod(phantom.spacing_mm)
        assert np.isclose(lesion.diameter_mm, (6 * volume / np.pi) ** (1 / 3))
        assert 15 < lesion.diameter_mm < 34


def test_the_air_around_and_the_marrow_inside_are_what_they_are(phantom):
    assert phantom.image.dtype == np.int16
    assert np.median(phantom.image[:, :3, :3]) < -980
    assert np.median(phantom.image[phantom.organ == ORGANS["bone"]]) > 150
    assert (phantom.organ == ORGANS["pancreas"]).sum() * np.prod(phantom.spacing_mm) > 20_000


def test_the_same_seed_gives_the_same_voxels_and_another_seed_gives_another_patient():
    first, again, other = (
        make_phantom(seed, lesions=1, pixel_mm=(4.0, 4.0), slice_mm=(8.0, 8.0)) for seed in (5, 5, 6)
    )
    assert np.array_equal(first.image, again.image) and np.array_equal(first.tumor, again.tumor)
    assert first.image.shape != other.image.shape or not np.array_equal(first.organ, other.organ)


@pytest.mark.parametrize("host", ["kidney", "lung", "pancreas"])
def test_tumors_grow_in_other_organs_too(host):
    case = make_phantom(8, lesions=1, host=host, phase="venous", **LARGE)
    tumor = case.tumor > 0
    outside = (tumor & (case.organ != ORGANS[host])).sum() / tumor.sum()
    assert outside == 0 if host == "lung" else 0 < outside < 0.9


def test_a_host_without_phantom_tumors_is_refused():
    with pytest.raises(ValueError, match="tumors grow in liver, pancreas, kidney, lung, but the host is 'bone'"):
        make_phantom(0, lesions=1, host="bone")


@pytest.mark.parametrize("family", grown_tumors.FAMILIES)
def test_a_colony_has_the_size_it_was_asked_for_and_stays_in_its_habitat(family):
    habitat = np.ones((47, 47, 47), dtype=bool)
    habitat[:, :, 27:] = False
    colony = grown_tumors.grow(family, habitat, 6000, np.random.default_rng(1))
    assert 5900 < colony.sum() < 8000
    assert colony[23, 23, 23] and not (colony & ~habitat).any()


def test_the_two_families_differ_in_their_surface():
    def surface(family):
        habitat = np.ones((61, 61, 61), dtype=bool)
        colonies = [grown_tumors.grow(family, habitat, 8000, np.random.default_rng(seed)) for seed in range(4)]
        return np.mean([sum(np.diff(c, axis=a).sum() for a in range(3)) / c.sum() ** (2 / 3) for c in colonies])

    assert surface("compact") > 1.1 * surface("budding")


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family must be one of compact, budding, but it is 'starry'"):
        grown_tumors.grow("starry", np.ones((9, 9, 9), dtype=bool), 20, np.random.default_rng(0))


def test_what_lies_too_deep_for_oxygen_dies():
    axes = np.meshgrid(*(np.arange(-20, 21),) * 3, indexing="ij")
    ball = sum(a**2 for a in axes) < 18**2
    biology = grown_tumors.Biology(vital_hu=70.0, hypoxic_mm=9.0, capsule_hu=0.0, edge_mm=1.0)
    dressed = grown_tumors.dress(ball, 1.0, biology, np.random.default_rng(0))
    assert dressed.hu[20, 20, 20] < 35 < 55 < np.median(dressed.hu[20, 20, 3:6])
    assert dressed.share[20, 20, 20] > 0.99 > 0.01 > dressed.share[0, 0, 0]


def test_noise_is_correlated_like_a_reconstruction_and_even_over_large_distances():
    noise = kernel_noise((6, 128, 128), (5.0, 0.8, 0.8), np.random.default_rng(0))
    neighbors = np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1]
    blocks = noise.reshape(6, 8, 16, 8, 16).mean(axis=(2, 4))
    assert np.isclose(noise.std(), 1, atol=1e-3)
    assert neighbors > 0.4
    assert blocks.std() < 0.15


def test_vessels_thin_out_from_the_root_and_give_way_to_a_tumor():
    rng = np.random.default_rng(0)
    tree = grow_tree(np.zeros(3), rng.uniform(10, 60, (80, 3)), 0.8, rng)
    near = np.linalg.norm(tree.points, axis=1) < 8
    assert tree.radii_mm[near].min() > 3 * tree.radii_mm.min()
    center = np.asarray([35.0, 35.0, 35.0])
    pushed = push_aside(tree, center[None], np.asarray([10.0]))
    assert np.linalg.norm(pushed.points - center, axis=1).min() > 8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Write a small cohort."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset900_Phantom"
    write_cohort(folder, 4, seed=2, test_cases=1, **COARSE)
    return folder


def test_a_cohort_is_an_nnunet_dataset_whose_images_and_labels_share_their_geometry(cohort):
    description = json.loads((cohort / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "liver": 1, "tumor": 2}
    assert description["numTraining"] == 4 and description["channel_names"] == {"0": "CT"}
    for part, count in (("Tr", 4), ("Ts", 1)):
        labels = sorted((cohort / f"labels{part}").glob("*.nii.gz"))
        assert len(labels) == len(list((cohort / f"images{part}").glob("*.nii.gz"))) == count
        for path in labels:
            image = read_case(cohort / f"images{part}" / path.name.replace(".nii.gz", "_0000.nii.gz"))
            check_same_geometry(image, read_label(path))
            assert image.array.dtype == np.int16


def test_a_cohort_has_cases_with_and_without_tumor(cohort):
    tumors = [(read_label(path).array == 2).any() for path in sorted((cohort / "labelsTr").glob("*.nii.gz"))]
    assert tumors == [True, True, True, False]


def test_the_same_cohort_has_the_same_bytes(cohort, tmp_path):
    write_cohort(tmp_path / "again", 1, seed=2, processes=1, **COARSE)
    for part in ("imagesTr/phantom_000_0000.nii.gz", "labelsTr/phantom_000.nii.gz"):
        assert (tmp_path / "again" / part).read_bytes() == (cohort / part).read_bytes()
