"""The READMEs stay true: their commands, settings, links and files exist."""

import dataclasses
import re
from pathlib import Path

import pytest

from nnunetv2_freetumor.cli import COMMANDS
from nnunetv2_freetumor.plan import RETIRED, Prior, Section, Shape, SizeClass, Target, Texture

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nnunetv2_freetumor"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MANUALS = sorted(PACKAGE.rglob("README.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *MANUALS]
SETTINGS = [
    pytest.param(f"{prefix}{field.name}", id=f"{kind.__name__}.{field.name}")
    for kind, prefix in (
        (Section, ""),
        (Target, ""),
        (Prior, ""),
        (SizeClass, ""),
        (Shape, "shape."),
        (Texture, "texture."),
    )
    for field in dataclasses.fields(kind)
    if field.name not in ("shape", "texture")
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(page):
    """Name the places in a page that a link can lead to, as renderers of Markdown do."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_front_page_is_short():
    assert 150 <= len(README.splitlines()) <= 200


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_described(setting):
    assert f"`{setting}`" in (PACKAGE / "planning" / "README.md").read_text(encoding="utf-8")


def test_every_command_has_its_manual_in_a_room():
    text = "\n".join(page.read_text(encoding="utf-8") for page in MANUALS)
    assert [name for name in COMMANDS if f"nnUNetv2_freetumor {name}" not in text] == []


@every_page
def test_every_command_and_option_of_the_examples_exists(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^nnUNetv2_freetumor (.*?)(?: +#.*)?$", text, flags=re.MULTILINE):
        name = max((name for name in COMMANDS if f"{line} ".startswith(f"{name} ")), key=len)
        words = line.removeprefix(name).split()
        flags = {option.flag for option in COMMANDS[name].options}
        assert {word for word in words if word.startswith("-") and not word[1:].isdigit()} <= flags, line


@every_page
def test_every_link_and_picture_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), target
        assert not anchor or anchor in anchors(aim), target


def test_the_front_page_leads_to_every_room():
    rooms = {page.parent.relative_to(ROOT).as_posix() for page in MANUALS if "experiments/" not in page.as_posix()}
    assert {room for room in rooms if f"({room}/README.md)" not in README} == set()


def test_the_front_page_explains_its_words():
    glossary = README[README.index("## Glossary") : README.index("## The rooms")]
    assert re.findall(r"\*\*(\w+)\*\*", glossary) == ["host", "lesion", "judge", "pool", "prior", "card"]


@every_page
def test_no_page_describes_a_setting_that_is_gone(page):
    if page.name != "CHANGELOG.md":
        rows = re.findall(r"^\| `(\w+)`", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert not set(rows) & set(RETIRED)


def test_the_python_example_runs():
    import torch

    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    hu, label = torch.full((1, 1, 16, 40, 40), 100.0), torch.ones(1, 1, 16, 40, 40, dtype=torch.int16)
    names = {"hu": hu, "label": label}
    exec(code, names)
    assert names["image"].shape == hu.shape and names["label"].dtype == torch.int16
