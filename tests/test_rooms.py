"""The house: which room may import which, and what each room says at its door."""

import ast
import configparser
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAME = "nnunetv2_freetumor"
PACKAGE = ROOT / NAME
# from the ground up, with all that a room imports; the package's own folder is two rooms, `settings` and `doors`
ROOMS = {
    "files": "",
    "settings": "files",
    "cluster": "files",
    "synthesis": "settings",
    "pages": "files synthesis",
    "planning": "files settings cluster synthesis",
    "generators": "files settings synthesis",
    "evaluation": "files settings cluster pages planning",
    "training": "files settings synthesis pages planning generators evaluation",
    "pool": "files settings cluster synthesis planning training",
    "offline": "files settings cluster synthesis pages planning generators training",
    "generator_training": "files settings synthesis pages generators training pool",
    "doors": "settings synthesis planning generators training pool",
    "experiments": "files settings synthesis doors",
    "experiments/phantom": "files cluster",
    "experiments/demo": "files pages training doors experiments experiments/phantom",
    "experiments/bench": "files settings training doors experiments",
    "experiments/bundled": "files settings generators training doors experiments experiments/phantom",
    "experiments/realism": "files settings synthesis pages planning generators evaluation training offline experiments "
    "experiments/phantom",
    "experiments/study": "files settings cluster synthesis planning generators evaluation training doors "
    "experiments experiments/phantom",
}
SETTINGS = ("plan", "priors", "intensity")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent.name != "ext_trainer"
}
FOLDERS = [room for room in ROOMS if room not in ("settings", "doors")]
COUNT = f"""
import sys
{{}}
ours = {{{{name for name, module in sys.modules.items() if name.startswith({NAME!r})}}}}
print(len({{{{name for name in ours if not (sys.modules[name].__file__ or "").endswith("__init__.py")}}}}))
print(*sorted({{{{name.split(".")[1] for name in ours if "." in name}}}}))
"""


def room_of(module):
    """Name the room that a module lies in; the package itself, where the version stands, is none."""
    parts = module.split(".")[1:]
    if not parts:
        return None
    folder = "/".join(parts if module_is_package(module) else parts[:-1])
    return folder or ("settings" if parts[0] in SETTINGS else "doors")


def module_is_package(module):
    """Tell whether a module is a folder."""
    return MODULES[module].name == "__init__.py"


def imported(module):
    """Yield the modules that a module imports anywhere in its text, without its own package."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports within the package are absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in MODULES else node.module for name in whole} & set(MODULES)


def rooms_imported_by(room):
    """Name the rooms that a room imports."""
    found = {room_of(name) for module in MODULES if room_of(module) == room for name in imported(module)}
    return found - {room, None}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_exactly_the_rooms_of_its_line_and_all_of_them_lie_below(room):
    assert rooms_imported_by(room) == set(ROOMS[room].split())
    order = list(ROOMS)
    assert all(order.index(other) < order.index(room) for other in ROOMS[room].split())


def test_every_module_lies_in_a_room_of_the_table():
    assert {room_of(module) for module in MODULES} - {None} == set(ROOMS)
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == (
        {room.split("/")[0] for room in FOLDERS} | {"ext_trainer", "bundled", "pictures"}
    )


def test_only_faces_and_doors_lie_at_the_root():
    faces = {"__init__", "_build", "startup", "cli", "commands", "doctor", "plan", "priors", "intensity", "trainer"}
    assert {path.stem for path in PACKAGE.glob("*.py")} == faces


def test_nothing_outside_the_experiments_imports_them():
    outside = [module for module in MODULES if not module.startswith(f"{NAME}.experiments")]
    assert len(outside) > 90
    assert not [m for m in outside for name in imported(m) if name.startswith(f"{NAME}.experiments")]


def test_no_two_modules_import_each_other_in_a_circle():
    packages = {module for module in MODULES if module_is_package(module)}
    graph = {module: set(imported(module)) - packages for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize(
    ("start", "most"),
    [
        (f"import {NAME}.trainer", 55),
        (
            f"sys.path.insert(0, {str(PACKAGE / 'ext_trainer')!r}); import freetumor_trainers as found; "
            "assert hasattr(found, 'nnUNetTrainerFreeTumor') and not hasattr(found, 'nnUNetTrainerOfSomebody')",
            60,
        ),
    ],
    ids=["trainer", "ext_trainer"],
)
def test_a_training_loads_few_modules_and_no_evaluation_or_experiment(start, most):
    code = COUNT.format(start)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    count, rooms = done.stdout.splitlines()
    assert 30 < int(count) <= most
    assert not {"evaluation", "experiments", "offline", "cluster", "generator_training"} & set(rooms.split())


def test_the_installed_package_has_every_room():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    assert sorted(listed) == sorted([NAME, f"{NAME}.plans", *(f"{NAME}.{room.replace('/', '.')}" for room in FOLDERS)])


def test_tests_lie_in_the_folders_of_the_rooms():
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders - {"."} <= set(FOLDERS)
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest imports tests by their name alone"


@pytest.mark.parametrize("room", FOLDERS)
def test_every_room_says_at_its_door_what_is_in_it(room):
    text = (PACKAGE / room / "README.md").read_text(encoding="utf-8")
    for heading in ("In:", "Out:", "Open first:", "Never:"):
        assert f"**{heading}**" in text
    named = set(re.findall(r"`(\w+)\.py`", text))
    assert {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"} <= named
