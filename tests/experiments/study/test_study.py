"""A whole study, as small as it gets: phantoms, nnU-Net's own commands, table and figure; then nothing left to do."""

import json
from pathlib import Path

import pytest

from nnunetv2_freetumor.experiments.study import command, data, protocol

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]

OPTIONS = {
    "labeled": (2,),
    "label_free_cases": 1,
    "seeds": 1,
    "epochs": 1,
    "iterations": 1,
    "arms": ["real", "texture", "threshold"],
    "jobs": 2,
    "device": "cpu",
}


@pytest.fixture
def small(monkeypatch):
    """Shrink the phantom cohort."""
    for name, value in {
        "_TRAINING_CASES": 5,
        "_TRAINING_TUMOR_FREE_EVERY": 2,
        "_TEST_CASES": 2,
        "_TEST_TUMOR_FREE_EVERY": 2,
        "_TEST_LESIONS": (2, 2),
        "_CROP_MM": 5.0,
        "_PATCH": [16, 32, 32],
        "_FEATURES": [4, 4, 8],
        "_SCANNER": {"pixel_mm": (2.4, 2.5), "slice_mm": (6.0, 7.0)},
    }.items():
        monkeypatch.setattr(data, name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where the package is not installed
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA"):
        monkeypatch.setenv(name, "restored after the test")


def stop_where_the_protocol_is_frozen_and_no_test_case_exists(prepared, choice):
    """Stand in for the making of the test cases."""
    assert (prepared.context.root / "protocol.json").is_file()
    assert not (prepared.context.test.images / "test_000_0000.nii.gz").exists()
    raise ValueError("far enough")


def test_a_study_runs_from_phantoms_to_its_table_and_goes_on_where_it_was(small, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as stopped, pytest.raises(ValueError, match="far enough"):
        stopped.setattr(command, "make_test_cases", stop_where_the_protocol_is_frozen_and_no_test_case_exists)
        command.study_command(tmp_path, **OPTIONS)
    capsys.readouterr()

    command.study_command(tmp_path, **OPTIONS)
    first = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["setting"], row["arm"]) for row in results["rows"]] == [
        ("2 labeled", "real"),
        ("2 labeled", "texture"),
        ("2 labeled", "threshold"),
        ("label-free", "texture"),
        ("label-free", "threshold"),
    ]
    assert all(row["matched"]["all"]["count"] == 2 for row in results["rows"])
    assert len(results["seconds"]) == 5 and results["machine"]["device"].startswith("cpu")
    assert (tmp_path / "table.md").read_text().strip() in first
    assert (tmp_path / "study.png").stat().st_size > 0
    assert not list((tmp_path / "runs").rglob("*.npz"))
    assert first.count("done in an earlier run") == len(data.phantom_steps(tmp_path))

    command.study_command(tmp_path, **OPTIONS)
    again = capsys.readouterr().out
    assert "seed_0:" not in again and (tmp_path / "table.md").read_text().strip() in again

    with pytest.raises(ValueError, match="protocol.json was frozen with another seeds, runs"):
        command.study_command(tmp_path, **OPTIONS | {"seeds": 2})


def test_arms_and_settings_that_join_later_leave_a_protocol_valid_and_nothing_else_does(tmp_path):
    path, frozen = tmp_path / "protocol.json", {"seeds": 3, "sections": {"texture": {"seed": 0, "targets": [{"a": 1}]}}}
    protocol.keep(path, frozen)
    more = {"seeds": 3, "sections": {"texture": {"seed": 0, "targets": [{"a": 1}], "new": 1}, "lite": {"seed": 0}}}
    protocol.keep(path, more)
    for changed in ({"seeds": 4}, {"sections": {"texture": {"seed": 1, "targets": [{"a": 1}]}}}, {"sections": {}}):
        with pytest.raises(ValueError, match=f"frozen with another {next(iter(changed))}, and a study whose"):
            protocol.keep(path, frozen | changed)
    assert json.loads(path.read_text()) == frozen
