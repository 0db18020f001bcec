"""Pictures: what is measured and printed, how a case is hung, and that every sheet can be drawn."""

import matplotlib.image
import numpy as np
import pytest
import torch
from synthesis_examples import make_section

from nnunetv2_freetumor.intensity import Intensity
from nnunetv2_freetumor.pages import sheets
from nnunetv2_freetumor.pages.sheets import Picture, Views, lesion_sheet, pictures_of, upright, window_hu
from nnunetv2_freetumor.synthesis import compose
from nnunetv2_freetumor.synthesis.planted import Aim, BeforeAfter, measure_planted
from nnunetv2_freetumor.synthesis.planter import JUDGED, Lesion, Synthesis
from nnunetv2_freetumor.synthesis.region import Site
from nnunetv2_freetumor.synthesis.synthesizer import Synthesizer
from nnunetv2_freetumor.synthesis.volume import Box
from nnunetv2_freetumor.training import figures
from nnunetv2_freetumor.training.epoch_log import LOGGED
from nnunetv2_freetumor.training.figures import batch_preview, counts_curve

SPACING_MM = (3.0, 1.0, 1.0)


def ball(shape, center, radius_mm):
    offsets = np.moveaxis(np.indices(shape), 0, -1) - center
    return np.linalg.norm(offsets * SPACING_MM, axis=-1) <= radius_mm


def make_change():
    shape = (12, 40, 40)
    lesions = ball(shape, (6, 12, 12), 7) | ball(shape, (6, 28, 28), 4)
    label = np.zeros(shape, np.int16)
    label[:, 2:38, 2:38] = 1
    before = np.where(label == 1, 100.0, -100.0).astype(np.float32)
    after = np.where(lesions, before - 50, before)
    return BeforeAfter(before, after, label, np.where(lesions, 2, label).astype(np.int16))


AIMS = [Aim((6.0, 12.0, 12.0), 14.0, "large"), Aim((6.0, 28.0, 28.0), 8.0, "small")]


def test_lesions_are_measured_from_the_voxels():
    change = make_change()
    large, small = measure_planted(change, AIMS, SPACING_MM)
    assert (large.name, small.name) == ("large", "small")
    assert large.volume_mm3 == 3.0 * ball(change.before_hu.shape, (6, 12, 12), 7).sum()
    assert large.diameter_mm == pytest.approx(14, abs=0.6) and small.diameter_mm == pytest.approx(8, abs=0.6)
    assert np.allclose(large.center, (6, 12, 12)) and np.allclose(small.center, (6, 28, 28))
    assert (large.contrast_hu, large.host_hu) == (-50, 100)


def test_islands_belong_to_the_nearest_place():
    change = make_change()
    change.label_after[6, 12, 22] = 2
    large, small = measure_planted(change, AIMS, SPACING_MM)
    assert large.volume_mm3 == 3.0 * (ball(change.before_hu.shape, (6, 12, 12), 7).sum() + 1)


def test_a_place_without_voxels_is_left_out():
    nowhere = Aim((0.0, 0.0, 0.0), 1e-3, "nowhere")
    assert [lesion.name for lesion in measure_planted(make_change(), [*AIMS, nowhere], SPACING_MM)] == [
        "large",
        "small",
    ]


def test_a_lesion_in_unlabeled_tissue_is_compared_with_its_own_place():
    change = make_change()
    change = change._replace(
        label_before=np.zeros_like(change.label_before), label_after=np.where(change.label_after == 2, 2, 0)
    )
    assert measure_planted(change, AIMS, SPACING_MM)[0].host_hu == 100


@pytest.mark.parametrize("host_hu, window", [(104.0, (-75, 275)), (52.0, (-125, 225)), (-800.0, (-1350, 150))])
def test_the_window_is_the_organs(host_hu, window):
    assert window_hu(host_hu) == window


def test_size_and_contrast_are_printed():
    captions = [picture.caption for picture in pictures_of(make_change(), AIMS, SPACING_MM)]
    assert captions == ["large   14.2 mm   -50 HU", "small   8.0 mm   -50 HU"]


@pytest.mark.parametrize(
    "direction, transpose",
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), (0, 1, 2)),
        ((-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 1, 2)),
        ((1, 0, 0, 0, 0, 1, 0, -1, 0), (0, 1, 2)),
        ((0, 0, 1, 1, 0, 0, 0, 1, 0), (2, 0, 1)),
    ],
)
def test_a_picture_is_hung_upright_whatever_the_axes(direction, transpose):
    """A volume whose values are superior, posterior and left coordinates in mm comes out rising along each axis."""
    shape_zyx, steps_zyx = (4, 5, 6), (3.0, 2.0, 1.0)
    direction = tuple(map(float, direction))
    index_xyz = np.indices(shape_zyx)[::-1].reshape(3, -1) * np.reshape(steps_zyx[::-1], (3, 1))
    patient = np.reshape(direction, (3, 3)) @ index_xyz
    turned = {}
    for name, row in (("superior", 2), ("posterior", 1), ("left", 0)):
        volume = patient[row].reshape(shape_zyx).transpose(transpose)
        views = Views(volume, volume, volume > 0, tuple(steps_zyx[axis] for axis in transpose))
        picture = Picture(views=views, center=(1.0, 2.0, 3.0), diameter_mm=10.0, host_hu=100.0, caption="")
        turned[name] = picture.turned(upright(direction, transpose))
        at = tuple(map(int, turned[name].center))
        assert turned[name].views.before_hu[at] == volume[1, 2, 3]
    for axis, picture in enumerate(turned.values()):
        steps = np.diff(picture.views.before_hu, axis=axis)
        assert np.allclose(steps, picture.views.spacing_mm[axis])
        assert picture.views.planes == ("axial", "coronal", "sagittal")


def test_a_sheet_has_one_row_for_each_lesion(tmp_path):
    pictures = pictures_of(make_change(), AIMS, SPACING_MM)
    for count in (1, 2):
        lesion_sheet(pictures[:count], tmp_path / f"{count}.png", "title")
    one, two = (matplotlib.image.imread(tmp_path / f"{count}.png") for count in (1, 2))
    assert one.shape[1] == two.shape[1] and 1.5 < two.shape[0] / one.shape[0] < 2


def test_thick_slices_keep_their_proportion(monkeypatch):
    """A ball is as high as it is wide in every plane."""
    drawn = []
    monkeypatch.setattr(
        sheets.Axes, "contour", lambda self, x, y, mask, **_: drawn.append((np.ptp(x), np.ptp(y), mask))
    )
    monkeypatch.setattr(sheets, "save_figure", lambda *_: None)
    lesion_sheet(pictures_of(make_change(), AIMS, SPACING_MM)[:1], "unused.png")
    for width_mm, height_mm, mask in drawn:
        rows, columns = (np.flatnonzero(mask[..., :22, :22].any(axis)) for axis in (1, 0))
        high = np.ptp(rows) * height_mm / (mask.shape[0] - 1)
        wide = np.ptp(columns) * width_mm / (mask.shape[1] - 1)
        assert abs(high - wide) <= 3.0
    assert len(drawn) == 3


def test_a_batch_is_drawn_from_z_scores(monkeypatch):
    change, window = make_change(), Intensity(80.0, 40.0, -100.0, 200.0)
    before, after = (window.to_z(torch.from_numpy(array).float())[None, None] for array in change[:2])
    labels = (torch.from_numpy(array)[None, None] for array in change[2:])
    kept, box = torch.tensor(True), Box((0, 0, 0), (12, 40, 40))
    mask = torch.ones(12, 40, 40, dtype=torch.bool)
    stayed = compose.Change(kept, *torch.zeros(3))
    lesions = [
        Lesion(Site(0, 0, [6.0, 12.0, 12.0], 14.0, box), stayed, mask, kept),
        Lesion(Site(0, 0, [6.0, 28.0, 28.0], 8.0, box), stayed._replace(kept=~kept), mask, kept),
    ]
    drawn = []
    monkeypatch.setattr(figures, "lesion_sheet", lambda pictures, *_: drawn.extend(pictures))
    label_before, label_after = labels
    synthesis = Synthesis(after, label_after, lesions, counts={})
    planter = Synthesizer(make_section(), SPACING_MM, window)
    assert batch_preview(before, label_before, synthesis, planter, "unused.png")
    assert [picture.caption[:8] for picture in drawn] == ["sample 1"], "a lesion that did not stay is not drawn"
    assert drawn[0].caption.endswith("-50 HU") and drawn[0].host_hu == pytest.approx(100, abs=1e-3)


def test_the_curve_takes_epochs_without_counts(tmp_path):
    history = {name: [float("nan"), 3.0, 4.0] for name in LOGGED}
    counts_curve(history, tmp_path / "curve.png")
    assert matplotlib.image.imread(tmp_path / "curve.png").size
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_the_curve_gets_a_panel_with_what_a_judge_accepted(tmp_path):
    history = {name: [3.0, 3.0, 4.0] for name in LOGGED}
    shown = []
    for judged in ([float("nan"), 0.0, 0.0], [float("nan"), 0.0, 8.0]):
        counts_curve(history | dict.fromkeys(JUDGED, judged), tmp_path / "curve.png")
        shown.append(matplotlib.image.imread(tmp_path / "curve.png").shape[0])
    assert shown[1] > shown[0]
