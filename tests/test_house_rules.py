"""The rules of the house that a machine can check."""

import ast
import re
import subprocess
from itertools import chain
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

from nnunetv2_freetumor.intensity import RAW_CT

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nnunetv2_freetumor"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "nnunetv2_freetumor/**/*.md",
        "Makefile",
        "setup.cfg",
        ".ci/run",
        "nnunetv2_freetumor/**/*.py",
        "plans/*",
        "tests/**/*.py",
    )
    for path in ROOT.glob(pattern)
    if path.is_file() and path != Path(__file__)
)
FORBIDDEN = {
    "a path of one machine": r"/work/|/root/|/home/\w",
    "a note to self": r"\b(TODO|FIXME|XXX)\b",
    "British spelling": r"(?i)\b(colour|centre|neighbour|behaviour|grey|modelling|labelled|normalis)",
    "an emoji": r"[\U0001F300-\U0001FAFF\u2600-\u27BF]",
}
SYNONYMS_MAY_SAY_TUMOUR = ("roles.py", "test_roles.py")


def name(path):
    """Name a file from the project's root."""
    return path.relative_to(ROOT).as_posix()


def functions(tree):
    """Walk all functions and methods."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(node):
    """Count the lines of a function's body, docstring aside."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def public(tree):
    """Walk the public functions, classes and methods of a module."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            yield from public(node) if isinstance(node, ast.ClassDef) else ()


def parse(path):
    """Parse a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_functions_classes_and_files_stay_short(path):
    tree = parse(path)
    long = [f"{node.name}: {body_lines(node)} lines" for node in functions(tree) if body_lines(node) > 40]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    long += [f"class {node.name}" for node in classes if node.end_lineno - node.lineno + 1 > 120]
    long += [f"file {path.name}"] * (len(path.read_text(encoding="utf-8").splitlines()) > 250)
    assert not long


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_everything_public_has_a_docstring_whose_first_line_is_a_sentence(path):
    tree = parse(path)
    documented = {node.name: ast.get_docstring(node) for node in public(tree)} | {"module": ast.get_docstring(tree)}
    assert [name for name, text in documented.items() if not text] == []
    assert [name for name, text in documented.items() if not re.match(r"\S[^\n]*(\n[^\n]+)*?[.:]", text)] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_module_is_a_drawer_or_a_script(path):
    assert not re.search(r"util|helper|misc|common|manager", path.stem)
    assert "__main__" not in path.read_text(encoding="utf-8")


def test_calls_of_our_own_functions_name_what_comes_behind_the_fourth_argument():
    found = [node for path in SOURCES for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef)]
    classes = [node for path in SOURCES for node in parse(path).body if isinstance(node, ast.ClassDef)]
    own = {node.name for node in [*found, *classes]} - {node.name for node in found if node.args.vararg}
    own -= {"reshape"}  # of tensors
    long = []
    for path in SOURCES:
        for call in (node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)):
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            plain = [value for value in call.args if not isinstance(value, ast.Starred)]
            if name in own and len(plain) > 4 and len(plain) == len(call.args):
                long.append(f"{path.name}:{call.lineno} {name}")
    assert not long


def underscored(node, context):
    """Name the members with an underscore in front that a class stores in, or reads from, itself."""
    return {
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, context) and isinstance(one.value, ast.Name)
        and one.value.id in ("self", "cls") and re.match("_[^_]", one.attr)
    }  # fmt: skip


def ancestors(node, classes):
    """Yield the classes of this package that a class inherits from."""
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            yield classes[base.id]
            yield from ancestors(classes[base.id][1], classes)


def test_no_class_reaches_into_the_underscore_names_of_another_module_s_class():
    found = [(path, node) for path in SOURCES for node in parse(path).body if isinstance(node, ast.ClassDef)]
    classes = {node.name: (path, node) for path, node in found}
    inherited = []
    for path, node in found:
        for other, base in ancestors(node, classes):
            names = {one.name for one in functions(base) if re.match("_[^_]", one.name)} | underscored(base, ast.Store)
            inherited += [(node.name, base.name)] if path != other else []
            assert path == other or not names & underscored(node, ast.Load), f"{node.name} uses {base.name}'s {names}"
    assert len(inherited) > 10, "this looks at the classes it means"


def test_no_module_reads_another_objects_underscore_names():
    foreign = {"os._exit", "DefaultPreprocessor._sample_foreground_locations"}  # no public name does this
    tuples = {"_asdict", "_replace", "_fields", "_make"}
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and isinstance(node.value, ast.Name):
                known = node.value.id in ("self", "cls") or node.attr in tuples or ast.unparse(node) in foreign
                assert known, f"{path.name}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_file_says_what_it_should_not(path):
    text = path.read_text(encoding="utf-8")
    found = [f"{rule}: {match[0]}" for rule, pattern in FORBIDDEN.items() for match in re.finditer(pattern, text)]
    if path.name not in SYNONYMS_MAY_SAY_TUMOUR:
        found += re.findall(r"(?i)tumour", text)
    assert not found


def test_shapes_are_checked_while_the_tests_run():
    with pytest.raises(TypeCheckError):
        RAW_CT.to_hu("not a tensor")


def test_the_makefile_has_every_promised_target():
    for target in ("setup", "demo", "test", "test-fast", "check", "bench", "clean"):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_build_file_holds_the_build_system_only():
    lines = (ROOT / "pyproject.toml").read_text().split("\n")
    assert list(chain(*(re.findall(r"^\[(.*)\]$", line) for line in lines))) == ["build-system"]
    assert not (ROOT / "setup.py").exists()
