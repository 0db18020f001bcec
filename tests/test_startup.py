"""The hook appends one folder to nnUNet_extTrainer and leaves everything else alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_freetumor import startup
from nnunetv2_freetumor._build import PTH, STARTUP_FILES

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, [startup.EXT_TRAINER]),
        ("", [startup.EXT_TRAINER]),
        ("/mine", ["/mine", startup.EXT_TRAINER]),
        (os.pathsep.join(["/mine", "/theirs"]), ["/mine", "/theirs", startup.EXT_TRAINER]),
        (os.pathsep.join([startup.EXT_TRAINER, "/mine"]), [startup.EXT_TRAINER, "/mine"]),
    ],
)
def test_the_users_own_folders_stay_in_front(monkeypatch, before, after):
    monkeypatch.delenv(startup.VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(startup.VARIABLE, before)
    startup.extend()
    startup.extend()
    assert os.environ[startup.VARIABLE].split(os.pathsep) == after


def test_the_variable_is_the_one_that_nnunet_reads():
    from nnunetv2.paths import nnUNet_extTrainer

    assert nnUNet_extTrainer.env_var_name == startup.VARIABLE


def test_the_pth_file_is_one_import_line_that_swallows_a_broken_package(tmp_path):
    assert PTH.startswith("import ")
    assert PTH.count("\n") == 1
    broken = tmp_path / "nnunetv2_freetumor"
    broken.mkdir()
    for text in ("raise RuntimeError('broken')\n", "def (\n", "import not_there\n"):
        (broken / "__init__.py").write_text(text)
        run = subprocess.run([sys.executable, "-S", "-c", PTH], cwd=tmp_path, capture_output=True, check=False)
        assert (run.returncode, run.stderr) == (0, b"")


def test_the_start_file_names_the_function_that_exists():
    module, function = STARTUP_FILES["nnunetv2_freetumor.start"].strip().split(":")
    assert module == startup.__name__
    assert getattr(startup, function) is startup.extend


def test_the_hook_imports_nothing_but_os_and_the_package():
    code = (
        "import os, sys; before = set(sys.modules); from nnunetv2_freetumor.startup import extend; extend();"
        "print(sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['nnunetv2_freetumor', 'nnunetv2_freetumor.startup']"
