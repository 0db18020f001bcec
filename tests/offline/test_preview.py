"""The preview: a sheet from preprocessed cases, and what it says where there is nothing to show."""

import json
import shutil

import matplotlib.image
import pytest

from nnunetv2_freetumor import cli
from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION, DATASET, PLANS, Layout, write_dataset
from nnunetv2_freetumor.offline import preview
from nnunetv2_freetumor.offline.preview import preview_command

LAYOUT = Layout((32, 56, 56), (4.0, 2.0, 2.0), (16, 32, 32), (4, 4, 8), cases=2)
DATA = f"{PLANS}_{CONFIGURATION}"


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    folder = tmp_path / "preprocessed"
    write_dataset(folder, LAYOUT)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return folder / DATASET


@pytest.fixture
def sheet(monkeypatch):
    """Catch what would be drawn."""
    drawn = []
    monkeypatch.setattr(preview, "lesion_sheet", lambda pictures, path, title: drawn.append(pictures))
    return drawn


def test_a_sheet_is_written_and_its_path_printed(preprocessed, tmp_path, capsys):
    assert cli.main(["preview", "-d", DATASET, "-o", str(tmp_path / "out"), "-n", "2"]) == 0
    path = tmp_path / "out" / f"preview_{DATASET}_{CONFIGURATION}.png"
    chosen, *rest = capsys.readouterr().out.splitlines()
    assert chosen.startswith("FreeTumor: ") and ": generator texture, " in chosen
    assert rest == ["Planted 2 of 2 lesion(s).", str(path)]
    assert matplotlib.image.imread(path).size


def test_every_picture_shows_a_planted_lesion_of_a_named_case(preprocessed, tmp_path, sheet):
    preview_command(DATASET, tmp_path, count=3)
    assert len(sheet[0]) == 3
    for picture in sheet[0]:
        assert picture.caption.startswith("case_") and picture.caption.endswith("HU")
        assert picture.views.mask[tuple(round(at) for at in picture.center)]
        assert (picture.views.before_hu != picture.views.after_hu).any()
    assert len({picture.caption.split(",")[0] for picture in sheet[0]}) == 2, "the cases take turns"


def test_the_same_seed_draws_the_same_lesions(preprocessed, tmp_path, sheet):
    for seed in (1, 1, 2):
        preview_command(DATASET, tmp_path, count=1, seed=seed)
    first, again, other = (pictures[0].caption for pictures in sheet)
    assert first == again != other


def test_data_that_are_not_preprocessed_end_with_the_command(preprocessed, tmp_path):
    shutil.rmtree(preprocessed / DATA)
    with pytest.raises(ValueError, match=rf"{DATA} holds no preprocessed cases. Run\n.*nnUNetv2_preprocess -d 999"):
        preview_command(DATASET, tmp_path)


def test_an_unknown_configuration_is_named_with_the_choices(preprocessed, tmp_path):
    with pytest.raises(ValueError, match=r"nnUNetPlans.json has no configuration '3d_low'; choose one of 3d_fullres"):
        preview_command(DATASET, tmp_path, configuration="3d_low")


def test_an_unknown_dataset_is_named(preprocessed, tmp_path):
    with pytest.raises(ValueError, match="123"):
        preview_command("123", tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="The output folder .* is not writable"):
        preview_command("no dataset", tmp_path / "file" / "out")


def test_a_dataset_without_any_place_for_a_lesion_is_said(preprocessed, tmp_path, sheet):
    path = preprocessed / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    for target in plans["freetumor"]["targets"]:
        target["prior"]["sizes"] = [{"distribution": "log_uniform", "weight": 1.0, "min_mm": 190.0, "max_mm": 200.0}]
    path.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="There was no room for any lesion in the cases of"):
        preview_command(DATASET, tmp_path, count=1)


def test_a_preview_also_plants_beside_real_tumors_where_training_would_not(preprocessed, tmp_path, sheet):
    for only in (False, True):
        path = preprocessed / f"{PLANS}.json"
        plans = json.loads(path.read_text())
        plans["freetumor"]["tumor_free_patches_only"] = only
        path.write_text(json.dumps(plans))
        preview_command(DATASET, tmp_path, count=3)
    everywhere, tumor_free_only = ([picture.caption for picture in pictures] for pictures in sheet)
    assert everywhere == tumor_free_only
