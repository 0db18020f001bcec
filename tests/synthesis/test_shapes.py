"""Facts about lesion shapes; the slow test compares them with real masks."""

import csv
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import ks_2samp

from nnunetv2_freetumor import priors
from nnunetv2_freetumor.plan import Shape
from nnunetv2_freetumor.synthesis import shapes
from nnunetv2_freetumor.synthesis.shapes import Body
from nnunetv2_freetumor.synthesis.volume import Box, offsets_mm, sample_grid

FACTS = Path(__file__).parents[3] / "shared" / "facts"
ROUGH = Shape(coarse_cells=4, fine_cells=6, fine_share=0.6, roughness=(0.3, 0.3), lobe_odds=(1.0, 1.0))
QUANTITIES = ("volume_mm3", "elongation_2_1", "flatness_3_1", "sphericity_smooth", "solidity")
REAL = {  # prior: the real masks behind it, as (data set, lesion)
    "liver": {("lits", "liver_tumor")},
    "pancreas": {("msdpanc", "pancreas_tumor"), ("panorama", "pdac")},
    "kidney": {("kits23", "kidney_tumor")},
    "lung": {("lidc", "lung_nodule")},
}


def _body(seed: int, diameter_mm: float, shape: Shape = ROUGH) -> Body:
    return shapes.build(shape, diameter_mm, shapes.draw_shape((), torch.Generator().manual_seed(seed)))


def _distance(body: Body, spacing_mm, off_grid=(0.0, 0.0, 0.0), margin: int = 2) -> torch.Tensor:
    """Rasterize the signed distance on a grid that holds the body with room to spare."""
    size = tuple(2 * (math.ceil(reach / step) + margin) + 1 for reach, step in zip(body.reach_mm, spacing_mm))
    center = [(n - 1) / 2 + off for n, off in zip(size, off_grid)]
    offsets = offsets_mm(Box((0, 0, 0), size), center, spacing_mm, (1, 1, 1), torch.device("cpu"))
    return shapes.signed_distance_mm(body.surface, offsets)


def _surface_mm(body: Body, seed: int, count: int = 20_000) -> torch.Tensor:
    """Give points on the surfaces of the main body and its lobes, in directions of our own."""
    directions = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    directions /= directions.norm(dim=1, keepdim=True)
    radius = (-sample_grid(body.surface.field, directions.reshape(-1, 1, 1, 3))).exp().reshape(-1, 1)
    local = (directions * radius * body.surface.axes_mm) @ body.surface.rotation
    return torch.cat([center + scale * local for center, scale in zip(body.surface.centers_mm, body.surface.scales)])


def test_the_same_draw_gives_the_same_body() -> None:
    first, second = _body(3, 18.0), _body(3, 18.0)
    for one, other in zip((*first.surface, *first[1:]), (*second.surface, *second[1:])):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert not torch.equal(first.surface.field, _body(4, 18.0).surface.field)


@pytest.mark.parametrize("diameter_mm", [4.0, 12.0, 30.0, 90.0])
@pytest.mark.parametrize("anisotropy", [1.0, 4.0])
def test_the_drawn_volume_is_kept_within_ten_percent(diameter_mm: float, anisotropy: float) -> None:
    step = diameter_mm / 40
    spacing_mm = (step, step, step * anisotropy)
    for seed in range(6):
        volume = (_distance(_body(seed, diameter_mm), spacing_mm) < 0).sum() * math.prod(spacing_mm)
        assert float(volume) == pytest.approx(math.pi / 6 * diameter_mm**3, rel=0.1)


def test_every_body_is_one_piece_without_holes() -> None:
    for seed in range(40):
        mask = (_distance(_body(seed, 20.0), (0.6, 0.6, 0.6)) < 0).numpy()
        assert ndimage.label(mask)[1] == 1
        holes = ndimage.binary_fill_holes(mask).sum() - mask.sum()
        assert holes <= 1e-3 * mask.sum()  # lobes may enclose a voxel or two where they meet the main body


def test_a_single_body_has_no_hole_at_all() -> None:
    shape = Shape(coarse_cells=4, fine_cells=6, fine_share=0.6, roughness=(0.3, 0.3), lobe_odds=(0.0, 0.0))
    for seed in range(20):
        mask = (_distance(_body(seed, 20.0, shape), (0.6, 0.6, 0.6)) < 0).numpy()
        assert ndimage.label(mask)[1] == 1
        assert not (ndimage.binary_fill_holes(mask) & ~mask).any()


def test_two_diameters_of_one_draw_are_scaled_copies() -> None:
    small, large = _body(5, 10.0), _body(5, 25.0)
    assert torch.allclose(large.surface.axes_mm, 2.5 * small.surface.axes_mm, rtol=1e-4)
    assert torch.allclose(large.surface.centers_mm, 2.5 * small.surface.centers_mm, rtol=1e-4, atol=1e-4)
    assert large.reach_mm == pytest.approx([2.5 * reach for reach in small.reach_mm], rel=1e-4)
    assert torch.equal(_distance(small, (1.0, 1.0, 2.0)) < 0, _distance(large, (2.5, 2.5, 5.0)) < 0)


def test_roughness_is_interpolated_between_its_two_diameters() -> None:
    shape = Shape(roughness=(0.1, 0.3), roughness_at_mm=(8.0, 32.0))
    found = [shapes.roughness(shape, diameter_mm) for diameter_mm in (2.0, 8.0, 16.0, 32.0, 99.0)]
    assert found == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.3])


def test_the_signed_distance_is_zero_on_the_surface_and_negative_inside() -> None:
    body = _body(6, 24.0, Shape(coarse_cells=4, fine_cells=6, lobe_odds=(0.0, 0.0)))
    surface = _surface_mm(body, seed=1, count=500).reshape(-1, 1, 1, 3)
    assert shapes.signed_distance_mm(body.surface, surface).abs().max() < 1e-3
    assert shapes.signed_distance_mm(body.surface, 0.9 * surface).max() < 0
    assert shapes.signed_distance_mm(body.surface, 1.1 * surface).min() > 0


def test_the_signed_distance_of_a_smooth_sphere_is_exact() -> None:
    sphere = Shape(elongation_logit=(20.0, 0.0), flatness_logit=(20.0, 0.0), roughness=(0.0, 0.0), lobe_odds=(0.0, 0.0))
    body = _body(0, 20.0, sphere)
    offsets = torch.tensor([[0.0, 0.0, 6.0], [8.0, 0.0, 0.0], [0.0, 10.0, 0.0], [6.0, 0.0, 8.0], [0.0, 0.0, 13.0]])
    found = shapes.signed_distance_mm(body.surface, offsets.reshape(-1, 1, 1, 3)).flatten()
    assert torch.allclose(found, offsets.norm(dim=1) - 10.0, atol=1e-3)


def test_reach_and_radius_enclose_the_surface() -> None:
    for seed in range(30):
        body = _body(seed, 20.0)
        surface = _surface_mm(body, seed)
        assert (surface.abs().amax(0) <= torch.tensor(body.reach_mm)).all()
        assert surface.norm(dim=1).max() <= body.radius_mm
        assert (surface.abs().amax(0) >= 0.95 * torch.tensor(body.reach_mm)).all()


def test_interior_points_lie_inside_and_spread_over_the_lesion() -> None:
    for seed in range(20):
        body = _body(seed, 20.0)
        assert shapes.signed_distance_mm(body.surface, body.interior_mm.reshape(-1, 1, 1, 3)).max() < 0.05
        mask = _distance(body, (1.0, 1.0, 1.0)) < 0
        voxels = mask.nonzero() - (torch.tensor(mask.shape) - 1) / 2
        assert torch.allclose(body.interior_mm.mean(0), voxels.mean(0), atol=0.12 * 20)
        assert body.interior_mm.std(0) == pytest.approx(voxels.std(0), rel=0.25)


@pytest.mark.parametrize("cells", [2, 4, 9, 16])
def test_noise_has_unit_variance_everywhere(cells: int) -> None:
    shape = Shape(coarse_cells=cells, fine_share=0.0)
    control = shapes.draw_shape((400,), torch.Generator().manual_seed(0)).control
    soft = torch.stack([shapes.noise_field(shape, one)[::9, ::9, ::9] for one in control])
    noise = shapes.SOFT_LIMIT * torch.atanh(soft / shapes.SOFT_LIMIT)  # before it was limited
    assert noise.std(0) == pytest.approx(torch.ones(4, 4, 4), abs=0.2)


def _measure_function():
    file = FACTS / "measure_shape.py"
    if not file.exists() or not (FACTS / "tumor_shapes.csv").exists():
        pytest.skip("no ../shared/facts/measure_shape.py and tumor_shapes.csv: nothing to compare with")
    spec = importlib.util.spec_from_file_location("measure_shape", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.measure


def _real(prior: str) -> list[dict[str, float]]:
    with (FACTS / "tumor_shapes.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["dataset"], row["lesion"]) in REAL[prior]]
    names = (*QUANTITIES, "slice_mm", "eq_diam_mm")
    kept = [row for row in rows if row["spacing_ok"] == "True" and row["elongation_2_1"]]
    return [numbers for row in kept if (numbers := {name: float(row[name]) for name in names})["eq_diam_mm"] >= 3]


def _largest(mask: np.ndarray) -> np.ndarray:
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return mask if count < 2 else components == 1 + np.bincount(components.ravel())[1:].argmax()


def _drawn(prior: str, measure, count: int, seed: int) -> list[dict[str, float]]:
    """Measure lesions of a prior's own shape and log-normal size, at the real masks' slice distances."""
    known, chance = priors.load(prior), np.random.RandomState(seed)
    rng, slices = torch.Generator().manual_seed(seed), [row["slice_mm"] for row in _real(prior)]
    size = next(size for size in known.sizes if size.distribution == "log_normal")
    found: list[dict[str, float]] = []
    while len(found) < count:
        diameter_mm = math.exp(size.ln_mm_mean + size.ln_mm_sd * chance.randn())
        slice_mm, off = float(chance.choice(slices)), chance.rand(3) - 0.5
        if not size.min_mm <= diameter_mm <= size.max_mm:
            continue
        body = shapes.build(known.shape, diameter_mm, shapes.draw_shape((), rng))
        in_plane = 0.78 if diameter_mm < 50 else 1.5  # large lesions coarser, for the test's speed
        spacing_mm = (in_plane, in_plane, max(slice_mm, in_plane if in_plane > 1 else 0.0))
        mask = _largest((_distance(body, spacing_mm, tuple(off)) < 0).numpy())
        if mask.sum() >= 10 and (row := measure(mask, spacing_mm))["eq_diam_mm"] >= 3:
            found.append(row)
    return found


def _ellipsoids(measure, count: int) -> list[dict[str, float]]:
    """Measure plain ellipsoids with radii of 4, 8, 16 or 32 voxels at 1.5 mm, each semi-axis within a quarter of it."""
    chance, found = np.random.RandomState(0), []
    for i in range(count):
        axes = (4, 8, 16, 32)[i % 4] * chance.uniform(0.75, 1.25, 3)
        grid = np.meshgrid(*(np.arange(-math.ceil(a) - 1, math.ceil(a) + 2) / a for a in axes), indexing="ij")
        found.append(measure(sum(g**2 for g in grid) <= 1, (1.5, 1.5, 1.5)))
    return found


def _ks(rows: list[dict[str, float]], real: list[dict[str, float]]) -> list[float]:
    return [float(ks_2samp([row[q] for row in rows], [row[q] for row in real]).statistic) for q in QUANTITIES]


@pytest.mark.slow
def test_shapes_match_real_masks() -> None:
    measure = _measure_function()
    ellipsoids = _ellipsoids(measure, 80)
    print("\nKolmogorov-Smirnov distance to real masks:", *QUANTITIES)
    for prior in REAL:
        real = _real(prior)
        ours, plain = _ks(_drawn(prior, measure, 150, seed=1), real), _ks(ellipsoids, real)
        print(f"{prior:9} ours      ", *(f"{value:.2f}" for value in ours))
        print(f"{prior:9} ellipsoids", *(f"{value:.2f}" for value in plain))
        assert max(ours) <= 0.20, prior
        assert all(our <= other + 0.06 for our, other in zip(ours, plain)), prior  # .06: chance alone, 150 lesions
