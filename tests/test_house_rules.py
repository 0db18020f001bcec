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
LAYERS = (
    # foundations: volumes, intensities, files, one class each from nnU-Net
    "__init__ _build startup commands synthetic_names strict_json volume intensity cases augmentation label_free "
    "planted phantom_scene pairs networks lite_network checkpoints",
    "contents bench_startup cpu_pairs critics cards segmenter plan compose patchy grown_tumors phantom_anatomy "
    "phantom_vessels page matching surfaces suspects pool_images case_reports synthetic_splits",
    "hosts shapes generators weights judge frozen_segmenter priors phantom_organs scores grown_placing pool "
    "local_cases provenance split_guard",
    "pool_training draws region_grid measurement roles phantom grown_cases case_scores resampling "
    "thresholding dask_cases",
    "placement learned fingerprint measured_prior clip_window pool_segmenter pool_labels phantom_cohort "
    "bench_data patients",
    "proposals pool_hosts cluster generator_choice judge_choice",
    # the story
    "synthesis plan_report chosen pool_orders",
    "pool_case pool_options",
    # what is planned, shown, logged and summed up
    "planning pool_marking figures raw_case epoch_log demo_steps report_figures summary comparison copy_paste "
    "conversion generator_files",
    # the adversarial stage, and the section of every training
    "recipes losses training_section",
    "divergence training_windows generator_card",
    "adversaries judge_term",
    "adversarial",
    "generator_log",
    "generator_figures",
    "generator_stage generator_setup",
    "generator_trainer",
    # evaluation, from its files to its page
    "evaluation_results evaluation_labels",
    "evaluation_cases evaluation_figures evaluation_files evaluation_table",
    "evaluation_volumes",
    "evaluation_pictures",
    "evaluation_page",
    "evaluation",
    "evaluation_after_training",
    # what people run, through nnU-Net or through the command line
    "trainer offline preview report synthetic_case",
    "unlabeled demo_trainer bench doctor synthetic_sources",
    "demo synthetic_orders",
    "bundled_training synthetic_place",
    "synthesize_dataset",
    # how real planted lesions look
    "realism_features",
    "realism_lesions realism_classifier realism_contestants",
    "realism_pairs",
    "realism_data realism_pictures realism_results",
    "realism_page",
    "realism",
    # the study
    "study_design study_scores",
    "study_results study_trainers study_data study_runs",
    "study_place study_threshold study_figure",
    "study_protocol",
    "study",
    "cli",
)
LAYER = {module: layer for layer, modules in enumerate(LAYERS) for module in modules.split()}
SOURCES = sorted(PACKAGE.glob("*.py"))
TEXTS = sorted(
    path
    for pattern in ("*.md", "Makefile", "setup.cfg", ".ci/run", "nnunetv2_freetumor/**/*.py", "plans/*", "tests/*.py")
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


def imported_modules(tree):
    """Name whatever a module imports from this package, anywhere in its text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports within the package are absolute"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in full if name.startswith("nnunetv2_freetumor."))


def parse(path):
    """Parse a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_imports_point_to_lower_layers_only(path):
    assert path.stem in LAYER, f"give {path.stem} a layer in the table"
    imported = {name for name in imported_modules(parse(path)) if name in LAYER}
    upward = {name for name in imported if LAYER[name] >= LAYER[path.stem]}
    assert not upward, f"{path.stem} (layer {LAYER[path.stem]}) imports {upward}"


def test_the_layer_table_names_only_modules_that_exist():
    assert set(LAYER) == {path.stem for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_functions_classes_and_files_stay_short(path):
    tree = parse(path)
    long = [f"{node.name}: {body_lines(node)} lines" for node in functions(tree) if body_lines(node) > 40]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    long += [f"class {node.name}" for node in classes if node.end_lineno - node.lineno + 1 > 120]
    long += [f"file {path.name}"] * (len(path.read_text(encoding="utf-8").splitlines()) > 250)
    assert not long


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_everything_public_has_a_docstring_whose_first_line_is_a_sentence(path):
    tree = parse(path)
    documented = {node.name: ast.get_docstring(node) for node in public(tree)} | {"module": ast.get_docstring(tree)}
    assert [name for name, text in documented.items() if not text] == []
    assert [name for name, text in documented.items() if not re.match(r"\S[^\n]*(\n[^\n]+)*?[.:]", text)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_module_is_a_drawer_or_a_script(path):
    assert not re.search(r"util|helper|misc|common|manager", path.stem)
    assert "__main__" not in path.read_text(encoding="utf-8")


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
