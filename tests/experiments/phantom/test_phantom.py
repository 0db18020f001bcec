"""The CT phantom: anatomy in HU, grown tumors, noise, and the cohort on disk."""

import hashlib
import json

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_freetumor.experiments.phantom import cohort as phantom_cohort
from nnunetv2_freetumor.experiments.phantom import tumors as grown_tumors
from nnunetv2_freetumor.experiments.phantom.anatomy import ORGANS
from nnunetv2_freetumor.experiments.phantom.cohort import write_cohort, write_test_cases
from nnunetv2_freetumor.experiments.phantom.phantom import kernel_noise, make_phantom
from nnunetv2_freetumor.experiments.phantom.vessels import grow_tree, push_aside
from nnunetv2_freetumor.files.cases import check_same_geometry, read_case, read_label

COARSE = {"pixel_mm": (2.5, 2.5), "slice_mm": (6.0, 6.0)}
TINY = {"pixel_mm": (4.0, 4.0), "slice_mm": (8.0, 8.0)}
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
    """Return one coarse case of each phase with two large tumors."""
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
        center = np.asarray(phantom.grid.origin_mm) + voxels.mean(0) * phantom.grid.spacing_mm
        assert np.allclose(lesion.center_mm, center[::-1])
        volume = len(voxels) * np.prod(phantom.grid.spacing_mm)
        assert np.isclose(lesion.diameter_mm, (6 * volume / np.pi) ** (1 / 3))
        assert 15 < lesion.diameter_mm < 34


def test_the_air_around_and_the_marrow_inside_are_what_they_are(phantom):
    assert phantom.image.dtype == np.int16
    assert np.median(phantom.image[:, :3, :3]) < -980
    assert np.median(phantom.image[phantom.organ == ORGANS["bone"]]) > 150
    assert (phantom.organ == ORGANS["pancreas"]).sum() * np.prod(phantom.grid.spacing_mm) > 20_000


def test_the_same_seed_gives_the_same_voxels_and_another_seed_gives_another_patient():
    first, again, other = (make_phantom(seed, lesions=1, **TINY) for seed in (5, 5, 6))
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


def test_an_invading_tumor_is_connected_and_has_as_many_cells_as_asked_for():
    habitat = np.ones((47, 47, 47), dtype=bool)
    habitat[:, :, 27:] = False
    for cells in (300, 6000):
        colony = grown_tumors.grow("invading", habitat, cells, np.random.default_rng(cells))
        assert 0.95 * cells <= colony.sum() <= 1.1 * cells
        assert ndimage.label(colony)[1] == 1
        assert not (colony & ~habitat).any()


def test_an_invading_tumor_follows_from_its_seed_and_is_no_other_familys():
    habitat = np.ones((41, 41, 41), dtype=bool)
    families = ("invading", "invading", *grown_tumors.FAMILIES)
    first, again, *others = (grown_tumors.grow(family, habitat, 3000, np.random.default_rng(4)) for family in families)
    assert np.array_equal(first, again)
    assert all((first ^ other).sum() > 0.2 * first.sum() for other in others)


def test_invading_tumors_are_longer_than_the_other_families_and_smoother_than_compact_ones():
    def form(family):
        habitat, forms = np.ones((53, 53, 53), dtype=bool), []
        for seed in range(5):
            colony = grown_tumors.grow(family, habitat, 3000, np.random.default_rng(seed))
            low, _, high = np.linalg.eigvalsh(np.cov(np.argwhere(colony).T))
            surface = sum(np.diff(colony, axis=axis).sum() for axis in range(3)) / colony.sum() ** (2 / 3)
            forms.append((np.sqrt(high / low), surface))
        return np.median(forms, axis=0)

    invading, compact, budding = map(form, ("invading", "compact", "budding"))
    assert invading[0] > 1.15 * max(compact[0], budding[0])
    assert invading[1] < 0.9 * compact[1]


def test_the_held_out_family_is_never_drawn_but_grows_when_it_is_named():
    assert not set(grown_tumors.FAMILIES) & set(grown_tumors.HELD_OUT_FAMILIES)
    drawn = {make_phantom(seed, lesions=0, **TINY).family for seed in range(6)}
    named = make_phantom(1, lesions=1, family="invading", **{**TINY, "diameter_mm": (30.0, 34.0)})
    assert drawn == {"compact", "budding"}
    assert named.family == "invading" and len(named.lesions) == 1


def test_invading_tumors_vary_from_nearly_invisible_to_marked_and_some_enhance():
    def contrasts(phase):
        rng = np.random.default_rng(0)
        return np.asarray([grown_tumors.draw_biology("invading", phase, 110.0, rng).vital_hu for _ in range(300)]) - 110

    arterial, venous = contrasts(1), contrasts(2)
    assert 0.2 < (arterial > 15).mean() < 0.5
    assert (venous < 0).all() and (venous > -15).any() and (venous < -50).any()


def test_an_invading_tumor_dies_in_patches_and_fades_more_slowly_on_one_side():
    axes = np.meshgrid(*(np.arange(-24, 25),) * 3, indexing="ij")
    ball = sum(a**2 for a in axes) < 18**2
    biology = grown_tumors.draw_biology("invading", 2, 110.0, np.random.default_rng(0))
    dressed = grown_tumors.dress(ball, 1.0, biology, np.random.default_rng(2))
    dead = (dressed.hu < 40) & ball
    fading = (dressed.share > 0.1) & (dressed.share < 0.9)
    side = [fading[tuple(slice(*ends) if a == axis else slice(None) for a in range(3))].sum()
            for axis in range(3) for ends in ((0, 24), (25, 49))]  # fmt: skip
    assert 0.005 < dead.sum() / ball.sum() < 0.35
    assert ndimage.label(dead)[1] > 1
    assert max(side) > 1.05 * min(side)


@pytest.mark.parametrize("family", grown_tumors.FAMILIES)
def test_the_drawn_families_are_the_same_bit_for_bit_as_ever(family):
    rng = np.random.default_rng(7)
    colony = grown_tumors.grow(family, np.ones((31, 31, 31), dtype=bool), 2000, rng)
    biology = grown_tumors.draw_biology(family, 2, 110.0, rng)
    digest = hashlib.sha256(np.packbits(colony).tobytes() + f"{biology.vital_hu:.9f} {rng.random():.9f}".encode())
    assert digest.hexdigest()[:12] == {"compact": "8ddc4d4ea366", "budding": "7a2f5f645eb0"}[family]


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family must be one of compact, budding, invading, but it is 'starry'"):
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


def test_test_cases_join_a_dataset_without_touching_it_and_are_other_patients(cohort, tmp_path):
    write_cohort(tmp_path, 2, seed=2, **TINY)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_test_cases(tmp_path, 2, 2, lesions=(3, 3), tumor_free_every=2, family="invading", **TINY)
    new = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {path.name for path in before}
    images = [read_case(path).array for path in (*sorted((tmp_path / "imagesTr").glob("*")),
                                                 *sorted((tmp_path / "imagesTs").glob("*")))]  # fmt: skip
    assert all(path.read_bytes() == content for path, content in before.items())
    assert new == {f"test_{number:03d}{end}.nii.gz" for number in range(2) for end in ("", "_0000")}
    assert len({image.tobytes() for image in images}) == 4
    labels = [read_label(tmp_path / "labelsTs" / f"test_{number:03d}.nii.gz").array for number in range(2)]
    assert [(label == 2).any() for label in labels] == [True, False]


def test_a_cropped_case_is_the_same_place_in_the_patient(tmp_path):
    for name, crop_mm in (("whole", None), ("cropped", 20.0)):
        write_cohort(tmp_path / name, 1, seed=5, crop_mm=crop_mm, **TINY)
    whole, cropped = (
        read_case(tmp_path / name / "imagesTr" / "phantom_000_0000.nii.gz") for name in ("whole", "cropped")
    )
    label = read_label(tmp_path / "cropped" / "labelsTr" / "phantom_000.nii.gz")
    check_same_geometry(cropped, label)
    steps = (np.asarray(cropped.origin_mm) - whole.origin_mm)[::-1] / whole.spacing_mm
    start = np.round(steps).astype(int)
    assert np.allclose(steps, start, atol=1e-3) and (start > 0).any()
    box = tuple(slice(first, first + size) for first, size in zip(start, cropped.array.shape))
    assert np.array_equal(whole.array[box], cropped.array)
    full = read_label(tmp_path / "whole" / "labelsTr" / "phantom_000.nii.gz").array
    assert (full > 0).sum() == (label.array > 0).sum()
    for axis, step in enumerate(cropped.spacing_mm):
        others = tuple(a for a in range(3) if a != axis)
        kept = np.flatnonzero((label.array > 0).any(others))
        assert kept[0] == min(np.ceil(20.0 / step), kept[0] + start[axis])


def test_a_cohort_can_have_more_tumors_and_no_tumor_free_cases(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(phantom_cohort, "_fill", asked.append)
    write_cohort(tmp_path, 40, lesions=(3, 6), tumor_free_every=0)
    assert {spec.lesions for spec in asked} == {3, 4, 5, 6}
    asked.clear()
    write_cohort(tmp_path, 40, tumor_free_every=10)
    assert [spec.lesions for spec in asked].count(0) == 4


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"lesions": (0, 3)}, r"lesions must be the fewest and the most .* but they are \(0, 3\)"),
        ({"lesions": (4, 3)}, r"1 or more, but they are \(4, 3\)"),
        ({"tumor_free_every": -1}, "tumor_free_every must be 0"),
        ({"crop_mm": -2.0}, "crop_mm must be None"),
    ],
)
def test_a_cohort_that_makes_no_sense_is_refused_before_anything_is_written(wrong, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        write_cohort(tmp_path / "none", 1, **wrong)
    assert not (tmp_path / "none").exists()
