"""The bundled generator's whole making, as small as it gets: phantoms and a grown case, nnU-Net's commands, a file."""

import functools
import json
from pathlib import Path

import pytest
from nnunet_folders import write_volume
from phantom_examples import SPACING_MM, scan

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.experiments.bundled import command
from nnunetv2_freetumor.experiments.bundled.command import make_bundled_command
from nnunetv2_freetumor.experiments.phantom.cohort import write_cohort
from nnunetv2_freetumor.generators import weights

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
CHANGES = {
    "epochs": 1,
    "iterations_per_epoch": 2,
    "validation_iterations": 1,
    "lesions_per_step": 2,
    "side_voxels": [16, 16, 16],
    "judge_weight": 0.0,
}
SMALL = {
    "_PHANTOM_CASES": 2,
    "VARIANTS": 1,
    "CPU_CHANGES": CHANGES,
    "_FINE": {"spacing": [6.0, 3.0, 3.0], "patch_size": [16, 32, 32], "batch_size": 2},
    "write_cohort": functools.partial(write_cohort, pixel_mm=(3.0, 3.0), slice_mm=(6.0, 6.0)),
}


@pytest.fixture
def real(tmp_path):
    """Return a CT and its label map, the liver without tumors."""
    image, host = scan()
    files = [tmp_path / "ct.nii.gz", tmp_path / "liver.nii.gz"]
    for array, path in zip((image.array, host.astype("uint8")), files):
        write_volume(array, path, SPACING_MM)
    return list(map(str, files))


def test_the_bundled_generator_is_made_from_nothing_and_a_second_call_repeats_nothing(
    real, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where the package is not installed
    for name, value in SMALL.items():
        monkeypatch.setattr(command, name, value)
    output = tmp_path / "bundled"
    make_bundled_command(output, real, "a made-up scan, CC0", "cpu")
    path = output / "lite_phantom.safetensors"
    assert capsys.readouterr().out.splitlines()[-1] == str(path)

    card = weights.load_generator(path, "cpu").card
    assert (card.name, card.kind, card.hosts, card.real_tumors) == ("lite_phantom", "lite", ("liver",), ())
    assert card.training_data == (
        "2 CT phantoms of this package and 1 variants of each of 1 real CTs (a made-up scan, CC0), all with tumors "
        "grown by this package"
    )
    assert json.loads(card.recipe.removeprefix("lite, changed: ")) == CHANGES
    assert (card.side_voxels, card.judge, card.version) == ((16, 16, 16), "none", __version__)
    assert card.dataset == card.fold == "" and card.training_cases == ()

    make_bundled_command(output, real, "a made-up scan, CC0", "cpu")
    again = capsys.readouterr().out
    assert again.count("done in an earlier run") == 8 and weights.read_card(path) == card
