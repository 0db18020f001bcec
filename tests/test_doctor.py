"""The doctor names each problem together with the command that fixes it."""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types

import pytest

from nnunetv2_freetumor import doctor
from nnunetv2_freetumor.generators import weights
from nnunetv2_freetumor.generators.cards import Card
from nnunetv2_freetumor.startup import EXT_TRAINER, VARIABLE


def import_file(folder, name):
    """Import a module from a folder, as nnU-Net does."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(folder, f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problems(findings):
    """Keep the problems, as (text, fix)."""
    return [(finding.text, finding.fix) for finding in findings if finding.problem]


@pytest.fixture
def quick(monkeypatch):
    """Leave out the checks that import all of nnU-Net or start another Python."""
    for name in ("check_versions", "check_device", "check_hook", "check_trainers"):
        monkeypatch.setattr(doctor, name, lambda: [])


@pytest.fixture
def paths(monkeypatch, tmp_path):
    """Set nnU-Net's three paths to folders that exist."""
    for name in doctor.PATHS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def fake_planning(monkeypatch, dataset_problems):
    """Put a function in the place of the planning module's check."""
    fake = types.ModuleType("planning")
    fake.dataset_problems = dataset_problems
    monkeypatch.setitem(sys.modules, "nnunetv2_freetumor.planning.section", fake)


def test_a_sound_installation_ends_without_an_exit_code(quick, paths, capsys):
    doctor.doctor_command()
    out = capsys.readouterr().out
    assert out.endswith("\nNo problems found.\n")
    assert f"ok       nnUNet_raw={paths}/nnUNet_raw" in out
    assert "PROBLEM" not in out


def test_a_problem_is_printed_with_its_command_and_ends_with_exit_code_1(quick, paths, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(SystemExit, match="1"):
        doctor.doctor_command()
    out = capsys.readouterr().out
    assert "  PROBLEM  nnUNet_results is not set\n           fix:  export nnUNet_results=" in out
    assert out.endswith("\n1 problem found.\n")


def test_a_folder_that_does_not_exist_or_cannot_be_written_to_is_a_problem(paths, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", f"{paths}/not there")
    monkeypatch.setattr(os, "access", lambda folder, mode: not str(folder).endswith("nnUNet_results"))
    assert problems(doctor.check_paths()) == [
        (f"nnUNet_raw={paths}/not there does not exist", f"mkdir -p '{paths}/not there'"),
        (f"nnUNet_results={paths}/nnUNet_results cannot be written to", f"chmod u+w '{paths}/nnUNet_results'"),
    ]


def test_a_missing_package_and_an_old_nnunet_are_problems(monkeypatch):
    def version(package):
        if package == "timm":
            raise importlib.metadata.PackageNotFoundError(package)
        return "2.7.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert problems(doctor.check_versions()) == [
        (
            "nnunetv2 2.7.1 is too old: 2.8 or newer is needed",
            f"{sys.executable} -m pip install --upgrade 'nnunetv2>=2.8'",
        ),
        ("timm is not installed", f"{sys.executable} -m pip install timm"),
    ]


def test_this_environment_has_the_versions_that_are_needed():
    assert problems(doctor.check_versions()) == []


def test_a_hook_that_is_off_is_mended_by_exporting_the_variable(monkeypatch):
    monkeypatch.setattr(doctor, "SHOW_HOOK", "print('/somewhere/else')")
    monkeypatch.delenv(VARIABLE, raising=False)
    (text, fix) = problems(doctor.check_hook())[0]
    assert text == f"off, and {VARIABLE} does not name {EXT_TRAINER}"
    assert fix == "export nnUNet_extTrainer=$(nnUNetv2_freetumor trainer-path)"
    monkeypatch.setenv(VARIABLE, EXT_TRAINER)
    assert [finding.text for finding in doctor.check_hook()] == [f"off, but {VARIABLE} names {EXT_TRAINER}"]


def test_a_hook_that_is_on_is_seen_in_a_new_python(monkeypatch):
    monkeypatch.setattr(doctor, "SHOW_HOOK", f"print('/mine{os.pathsep}{EXT_TRAINER}')")
    assert problems(doctor.check_hook()) == []


def test_every_trainer_is_found_by_nnunets_own_search(monkeypatch):
    monkeypatch.setenv(VARIABLE, EXT_TRAINER)
    findings = list(doctor.check_trainers())
    assert problems(findings) == []
    names = [finding.text.split(" from ")[0] for finding in findings]
    assert {"nnUNetTrainerFreeTumor", "nnUNetTrainerFreeTumor_1epoch", "nnUNetTrainerFreeTumor_500epochs"} <= set(names)
    assert all(finding.text.endswith(f" from {EXT_TRAINER}") for finding in findings)


def test_the_one_file_that_nnunet_searches_knows_every_trainer_of_its_modules_and_no_others():
    found = import_file(EXT_TRAINER, "freetumor_trainers")
    for module in map(importlib.import_module, found.MODULES.values()):
        own = [name for name, kind in vars(module).items() if getattr(kind, "__module__", "") == module.__name__]
        names = [name for name in own if name.startswith("nnUNetTrainerFreeTumor")]
        assert names and all(getattr(found, name) is getattr(module, name) for name in names)
    assert not hasattr(found, "nnUNetTrainerFreeTumor_17epochs") and not hasattr(found, "nnUNetTrainer")


def test_a_trainer_that_cannot_be_imported_is_not_taken_for_one_that_is_not_there(monkeypatch):
    found = import_file(EXT_TRAINER, "freetumor_trainers")

    def fail(_module):
        raise AttributeError("module 'torch' has no attribute 'gone'")

    monkeypatch.setattr(found.importlib, "import_module", fail)
    with pytest.raises(ImportError, match="nnunetv2_freetumor.trainer cannot be imported: module 'torch' has no"):
        hasattr(found, "nnUNetTrainerFreeTumor")


def test_a_trainer_of_the_same_name_in_another_folder_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "others.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerFreeTumor(nnUNetTrainer):\n    pass\n"
    )
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(tmp_path), EXT_TRAINER]))
    ((text, fix),) = problems(doctor.check_trainers())
    assert text == f"nnUNetTrainerFreeTumor from {tmp_path} hides this package's trainer"
    assert fix == f"take {tmp_path} out of {VARIABLE}, or rename its class"


def test_trainers_that_nnunet_cannot_find_are_problems(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    found = problems(doctor.check_trainers())
    assert "Could not find requested nnunet trainer nnUNetTrainerFreeTumor" in found[0][0]
    assert {fix for _, fix in found} == {"export nnUNet_extTrainer=$(nnUNetv2_freetumor trainer-path)"}


def test_a_generator_file_that_cannot_be_read_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    (tmp_path / "freetumor_generators").mkdir()
    broken = tmp_path / "freetumor_generators" / "broken.safetensors"
    broken.write_bytes(b"nothing")
    ((text, fix),) = problems(doctor.check_bundled())
    assert str(broken) in text and fix == f"rm '{broken}'"


def test_the_generators_and_priors_are_listed(monkeypatch, tmp_path):
    card = Card(
        name="ours", kind="lite", hosts=("liver", "kidney"), window_hu=(-175.0, 250.0), spacing_mm=(1.5, 1.5, 1.5),
        side_voxels=(48, 48, 48), sign=-1, activation="tanh", recipe="none", training_data="none",
    )  # fmt: skip
    monkeypatch.setattr(weights, "available", lambda: [(tmp_path, card)])
    generators, priors = (finding.text for finding in doctor.check_bundled())
    assert generators == "generators: texture, ours (liver, kidney)"
    assert priors == "priors: covid19, kidney, liver, lung, pancreas"


def test_a_datasets_problems_are_passed_on(quick, paths, monkeypatch, capsys):
    fake_planning(monkeypatch, lambda dataset, plans_name: [f"{dataset} {plans_name}: the window hides tumors."])
    with pytest.raises(SystemExit, match="1"):
        doctor.doctor_command("7", "nnUNetPlans")
    assert "\nDataset 7\n  PROBLEM  7 nnUNetPlans: the window hides tumors.\n" in capsys.readouterr().out


def test_a_dataset_that_cannot_be_read_is_a_problem(monkeypatch):
    def dataset_problems(dataset, plans_name):
        raise ValueError("There is no dataset 7.")

    fake_planning(monkeypatch, dataset_problems)
    assert problems(doctor.check_dataset("7", "nnUNetPlans")) == [("There is no dataset 7.", "")]


def test_a_dataset_without_problems_is_said_to_fit(monkeypatch):
    fake_planning(monkeypatch, lambda dataset, plans_name: [])
    assert [f.text for f in doctor.check_dataset("7", "nnUNetPlans")] == ["the section and the clip window fit"]
