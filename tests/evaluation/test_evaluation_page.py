"""The page of an evaluation: everything is on it, it needs no other file, and its pictures show the right place."""

import io
import re

import numpy as np
import pytest
from evaluation_examples import PAIR, SPACING_MM, cohort, evaluation, label_map, scores, two_cases
from nnunet_folders import write_volume
from PIL import Image

from nnunetv2_freetumor.evaluation import page as evaluation_page
from nnunetv2_freetumor.evaluation import pictures
from nnunetv2_freetumor.evaluation.inputs import read_scored_labels
from nnunetv2_freetumor.evaluation.page import write_evaluation_page
from nnunetv2_freetumor.evaluation.pictures import Mistake, mistakes_sheet, worst_alarms, worst_misses
from nnunetv2_freetumor.evaluation.scores import Rule
from nnunetv2_freetumor.pages.slices import PREDICTION_COLOR, REFERENCE_COLOR


@pytest.fixture
def folders(tmp_path):
    return two_cases(tmp_path)


def shows(png, color):
    """Return whether a picture has pixels near a color."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels - wanted).max(axis=-1) < 12).any())


def test_the_page_needs_no_other_file_and_shows_tables_plots_misses_and_alarms(folders, tmp_path):
    page = write_evaluation_page(evaluation(), cohort(folders), None, tmp_path / "page.html").read_text(
        encoding="utf-8"
    )
    assert set(re.findall(r"(?:src|href)=['\"](.{10})", page)) == {"data:image"}
    assert page.count("<img") == 5
    assert "something &lt;is&gt; missing." in page
    assert "tumor (label 2 in label 1): 20 lesions in 9 scans, 3 of them tumor-free" in page
    assert "<td class=number>0.30 [0.20, 0.40]</td><td class=number>0.20 [0.10, 0.30]</td>" in page
    assert "share at least 10% of the volume" in page and "within 2 mm of each other" in page
    assert "Largest missed lesions" in page and "Every case (2)" in page


def test_without_misses_and_alarms_the_page_says_none(folders, tmp_path):
    given = evaluation(other=False, froc=False)
    first = scores()[0]
    perfect = first._replace(lesions=first.lesions[:1])
    given = given._replace(pairs=(given.pairs[0]._replace(scores={"predictions": (perfect,)}),))
    page = write_evaluation_page(given, cohort(folders), None, tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<p>None.</p>") == 2 and page.count("<img") == 2
    assert "FROC" not in page


def test_the_largest_misses_and_false_alarms_come_first():
    case, free = scores()
    lesions = tuple(case.lesions[1]._replace(number=n, diameter_mm=float(n)) for n in range(1, 9))
    assert [f.diameter_mm for f in worst_misses([case._replace(lesions=lesions), free])] == [8, 7, 6, 5, 4, 3]
    assert worst_alarms([case, free]) == [Mistake("b", 1, (5, 12, 12), 12.0)]


def test_a_picture_shows_reference_and_prediction_at_the_findings_place(folders):
    found = Mistake("a", 1, (4, 6, 6), 12.0)
    png = mistakes_sheet([found], cohort(folders), PAIR, None)
    assert shows(png, PREDICTION_COLOR)  # on top of the reference, which is the same there
    alarm = mistakes_sheet([Mistake("b", 1, (5, 12, 12), 12.0)], cohort(folders), PAIR, None)
    assert shows(alarm, PREDICTION_COLOR) and not shows(alarm, REFERENCE_COLOR)


def test_a_case_that_lies_the_other_way_round_is_turned_with_its_center(folders, tmp_path):
    straight = pictures._view(cohort(folders).files[0], PAIR, Mistake("a", 2, (5, 17, 17), 12.0), None)
    flip = np.flip(label_map((4, 6, 6), (5, 17, 17)), (1, 2))
    for name in ("ref", "pred"):
        write_volume(np.ascontiguousarray(flip), folders / f"{name}/a.nii.gz", SPACING_MM)
        turned = pictures.sitk.ReadImage(str(folders / f"{name}/a.nii.gz"))
        turned.SetDirection((-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
        pictures.sitk.WriteImage(turned, str(folders / f"{name}/a.nii.gz"))
    view = pictures._view(cohort(folders).files[0], PAIR, Mistake("a", 2, (5, 6, 6), 12.0), None)
    assert view.center == straight.center and np.array_equal(view.reference, straight.reference)
    assert view.spacing_mm == pytest.approx(SPACING_MM)


def test_images_give_the_background_and_must_fit(folders):
    (folders / "images").mkdir()
    for case in "ab":
        hu = label_map((4, 6, 6)).astype(np.float32) * 100
        write_volume(hu, folders / f"images/{case}_0000.nii.gz", SPACING_MM)
    files = cohort(folders).files[0]
    view = pictures._view(files, PAIR, Mistake("a", 1, (4, 6, 6), 12.0), folders / "images")
    assert view.background.max() == 200 and view.window == (-75.0, 275.0)
    write_volume(hu[:-1], folders / "images/b_0000.nii.gz", SPACING_MM)
    with pytest.raises(ValueError, match=r"b_0000.* must have the same size \(x, y, z\).*\(24, 24, 9\) and \(24, 24"):
        pictures.check_images(folders / "images", cohort(folders), read_scored_labels(folders.djfile))


def test_plots_without_numbers_are_left_out():
    given = evaluation(other=False, froc=False).pairs[0]
    assert evaluation_page.froc_figure(given, Rule()) is None
    nothing = tuple(score._replace(lesions=()) for score in given.scores["predictions"])
    assert evaluation_page.dice_figure(given._replace(scores={"predictions": nothing})) is None
    assert evaluation_page.sensitivity_figure(given, Rule()).startswith(b"\x89PNG")


def test_a_figure_is_the_same_whatever_style_was_left_behind():
    from matplotlib import rcParams

    given = evaluation().pairs[0]
    before = evaluation_page.sensitivity_figure(given, Rule())
    size, rcParams["font.size"] = rcParams["font.size"], 40.0
    try:
        assert evaluation_page.sensitivity_figure(given, Rule()) == before
    finally:
        rcParams["font.size"] = size
