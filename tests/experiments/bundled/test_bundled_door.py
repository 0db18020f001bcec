"""Maintainers start the making of the bundled generator as a module; users do not meet it among their commands."""

import runpy
import sys

import pytest

from nnunetv2_freetumor.commands import COMMANDS
from nnunetv2_freetumor.experiments.bundled import command

DOOR = "nnunetv2_freetumor.experiments.bundled"


def test_the_door_passes_its_options_on(monkeypatch):
    given = []
    monkeypatch.setattr(command, "make_bundled_command", lambda **options: given.append(options))
    monkeypatch.setattr(sys, "argv", [DOOR, "-o", "out", "--real", "ct", "label", "-device", "cpu"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(DOOR, run_name="__main__")
    assert given == [{"output": "out", "real": ["ct", "label"], "device": "cpu"}]


def test_a_mistake_ends_in_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", [DOOR, "-o", str(tmp_path), "--real", "ct"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module(DOOR, run_name="__main__")
    assert "error: --real takes pairs of files" in capsys.readouterr().err


def test_users_have_no_such_command():
    assert not [name for name in COMMANDS if "bundled" in name]
