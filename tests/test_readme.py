"""The README stays true: its commands, settings and files exist."""

import dataclasses
import re
from pathlib import Path

import pytest

from nnunetv2_freetumor.cli import COMMANDS
from nnunetv2_freetumor.plan import Prior, Section, Shape, SizeClass, Target, Texture

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
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


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_described(setting):
    assert f"`{setting}`" in README


def test_every_command_and_option_of_the_examples_exists():
    for line in re.findall(r"^nnUNetv2_freetumor (.*?)(?: +#.*)?$", README, flags=re.MULTILINE):
        name = max((name for name in COMMANDS if f"{line} ".startswith(f"{name} ")), key=len)
        words = line.removeprefix(name).split()
        flags = {option.flag for option in COMMANDS[name].options}
        assert {word for word in words if word.startswith("-") and not word[1:].isdigit()} <= flags


def test_every_picture_is_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()


def test_the_python_example_runs():
    import torch

    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    hu, label = torch.full((1, 1, 16, 40, 40), 100.0), torch.ones(1, 1, 16, 40, 40, dtype=torch.int16)
    names = {"hu": hu, "label": label}
    exec(code, names)
    assert names["image"].shape == hu.shape and names["label"].dtype == torch.int16
