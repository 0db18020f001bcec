"""After an install nnU-Net finds the trainers with no variable set; after an uninstall nothing is left."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "nnunetv2_freetumor", "plans")
SHOW = "import os; print(os.environ.get('nnUNet_extTrainer'))"
SPAWN = """
import multiprocessing, os
def show():
    print(os.environ.get("nnUNet_extTrainer"))
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=show)
    child.start()
    child.join()
"""
FIND = """
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
print(find("nnUNetTrainerFreeTumor").__module__)
"""


class Installed(NamedTuple):
    """A bare environment with the package in it."""

    python: Path
    site: Path
    ext_trainer: Path
    before: set[str]  # names in site-packages before the install


def run(python, *arguments, quiet=True, **variables):
    """Run Python without inheriting anything that could stand in for the hook, and return what it printed."""
    skip = ("nnUNet_extTrainer", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")
    env = {name: value for name, value in os.environ.items() if name not in skip}
    done = subprocess.run(
        [python, *arguments], env={**env, **variables}, cwd=ROOT.anchor, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not (quiet and done.stderr), done.stderr
    return done.stdout.strip()


def pip(python, *arguments):
    """Run this environment's pip on another one, without network."""
    command = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def names(folder):
    """List what a site-packages folder holds."""
    return {path.name for path in folder.iterdir() if path.name != "__pycache__"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Copy the project, so that building leaves nothing in the working tree."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.exists():
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module", params=["wheel", "editable"])
def wheel(request, source, tmp_path_factory):
    """Build a wheel, as `pip install .` and `pip install -e .` do."""
    folder = tmp_path_factory.mktemp(request.param)
    code = f"from setuptools import build_meta; build_meta.build_{request.param}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def install(wheel, source, folder):
    """Install into a new environment that has nothing else."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    (site / "other.py").touch()  # an empty folder would go with the uninstall
    before = names(site)
    pip(python, "install", "--no-deps", "--no-index", str(wheel))
    package = (source if "editable" in str(wheel) else site) / "nnunetv2_freetumor"
    return Installed(python, site, package / "ext_trainer", before)


@pytest.fixture(scope="module")
def installed(wheel, source, tmp_path_factory):
    """Share an environment among the tests that leave it as it was."""
    return install(wheel, source, tmp_path_factory.mktemp("shared"))


def test_every_python_start_knows_the_trainers_and_keeps_the_users_own_folder(installed):
    ours = str(installed.ext_trainer)
    assert run(installed.python, "-c", SHOW) == ours
    assert run(installed.python, "-c", SHOW, nnUNet_extTrainer="/mine") == os.pathsep.join(["/mine", ours])
    assert run(installed.python, "-c", SHOW, nnUNet_extTrainer=ours) == ours
    script = installed.python.parent / "nnUNetv2_freetumor"
    assert run(installed.python, str(script), "trainer-path") == ours


def test_spawned_children_know_the_trainers(installed, tmp_path):
    (tmp_path / "spawn.py").write_text(SPAWN)
    assert run(installed.python, str(tmp_path / "spawn.py")) == str(installed.ext_trainer)


def test_the_priors_and_the_bundled_generator_are_installed_with_the_package(installed):
    folder = Path(run(installed.python, "-c", "import nnunetv2_freetumor.plans as p; print(*p.__path__)"))
    assert names(folder) == names(ROOT / "plans")
    assert names(installed.ext_trainer.parent / "bundled") == names(ROOT / "nnunetv2_freetumor" / "bundled")
    assert "lite_phantom.safetensors" in names(installed.ext_trainer.parent / "bundled")


def test_every_module_of_the_source_is_installed(installed):
    package = installed.ext_trainer.parent
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py")} - {"plans/__init__.py"}
    source = ROOT / "nnunetv2_freetumor"
    assert found == {path.relative_to(source).as_posix() for path in source.rglob("*.py")} and len(found) > 150


def test_nnunet_finds_the_trainer_with_no_variable_set(installed):
    outer = sysconfig.get_path("purelib")  # nnU-Net and torch of the environment that runs the tests, without its hooks
    link = installed.site / "zz_outer.pth"
    link.write_text(outer + "\n")
    try:
        assert (
            run(installed.python, "-W", "ignore", "-c", FIND, quiet=False).splitlines()[-1]
            == "nnunetv2_freetumor.trainer"
        )
    finally:
        link.unlink()


def test_uninstalling_leaves_nothing(wheel, source, tmp_path):
    installed = install(wheel, source, tmp_path)
    assert run(installed.python, "-c", SHOW) == str(installed.ext_trainer)
    pip(installed.python, "uninstall", "-y", "nnunetv2_freetumor")
    assert names(installed.site) == installed.before
    assert run(installed.python, "-c", SHOW) == "None"


@pytest.mark.parametrize("text", ["raise RuntimeError('broken')\n", "def (\n", "import not_there\n"])
def test_a_broken_hook_neither_stops_python_nor_makes_a_noise(installed, text):
    startup = installed.ext_trainer.parent / "startup.py"
    whole = startup.read_text()
    startup.write_text(text)
    try:
        assert run(installed.python, "-c", SHOW) == "None"
    finally:
        startup.write_text(whole)
