"""The command line is quick, passes on exactly what the user gave, and answers mistakes with one line."""

import importlib
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from nnunetv2_freetumor import __version__, cli
from nnunetv2_freetumor.startup import EXT_TRAINER

ROOT = Path(__file__).parent.parent
SHOW_MODULES = """
import sys
from nnunetv2_freetumor.cli import main
try:
    main(["--help"])
finally:
    print("LOADED", *sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.fixture
def fake_command(monkeypatch):
    """Put a function in the place of one command's and return the list of keywords that it was called with."""

    def replace(name, result=None, error=None):
        calls = []

        def command(**keywords):
            calls.append(keywords)
            if error is not None:
                raise error
            return result

        module, function = cli.COMMANDS[name].target.split(":")
        fake = types.ModuleType(module)
        setattr(fake, function, command)
        monkeypatch.setitem(sys.modules, f"nnunetv2_freetumor.{module}", fake)
        return calls

    return replace


def target(name):
    """Import the function behind a command."""
    module, function = cli.COMMANDS[name].target.split(":")
    return getattr(importlib.import_module(f"nnunetv2_freetumor.{module}"), function)


def test_help_imports_neither_torch_nor_nnunet():
    run = subprocess.run([sys.executable, "-c", SHOW_MODULES], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = run.stdout.rpartition("LOADED")[2].split()
    assert "argparse" in loaded
    assert not {"torch", "nnunetv2", "numpy", "SimpleITK", "matplotlib"} & set(loaded)


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(re.search(rf"^ +{name.split()[0]}\b", out, re.MULTILINE) for name in cli.COMMANDS)
    assert "-tr nnUNetTrainerFreeTumor" in " ".join(out.split())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_documents_every_option(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([*name.split(), "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert all(f"{option.flag} " in out and option.help in out for option in cli.COMMANDS[name].options)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_options_are_the_parameters_of_the_function_behind(name):
    parameters = inspect.signature(target(name)).parameters
    options = {option.keyword: option for option in cli.COMMANDS[name].options}
    assert set(options) == set(parameters)
    for keyword, option in options.items():
        default = parameters[keyword].default
        assert option.required == (default is inspect.Parameter.empty), f"{name} {option.flag}"
        stated = re.search(r"\(default: ([\w.]+)\)", option.help)
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        assert stated is None or stated[1] == shown, f"{name} {option.flag}"


def test_nnunets_flag_letters_mean_what_they_mean_in_nnunet():
    letters = {"-d": "dataset", "-c": "configuration", "-p": "plans_name", "-o": "output", "-device": "device"}
    for name, command in cli.COMMANDS.items():
        for option in command.options:
            assert letters.get(option.flag, option.keyword) == option.keyword, name


def test_only_what_the_user_gave_is_passed_on(fake_command):
    calls = fake_command("synthesize")
    required = "-i a_0000.nii.gz -l a.nii.gz -o out --prior liver --host 1 --tumor 2"
    assert cli.main(["synthesize", *required.split()]) == 0
    assert cli.main(["synthesize", *required.split(), "-n", "3", "--diameter-mm", "12.5", "-device", "cuda"]) == 0
    expected = {
        "image": "a_0000.nii.gz",
        "label": "a.nii.gz",
        "output": "out",
        "prior": "liver",
        "host": [1],
        "tumor": 2,
    }
    assert calls == [expected, {**expected, "lesions": 3, "diameter_mm": 12.5, "device": "cuda"}]


def test_a_command_of_two_words_has_a_group_with_its_own_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["generator", "--help"])
    out = capsys.readouterr().out
    words = [name.split()[1] for name in cli.COMMANDS if name.startswith("generator ")]
    assert words == ["convert", "list", "inspect", "install"]
    assert all(re.search(rf"^ +{word}\b", out, re.MULTILINE) for word in words)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["generator"])
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err


def test_arguments_may_be_given_by_position(fake_command):
    calls = fake_command("generator convert")
    cli.main("generator convert official.pt -o out.safetensors --host covid19".split())
    assert calls == [{"checkpoint": "official.pt", "output": "out.safetensors", "host": "covid19"}]


def test_widen_window_is_a_switch(fake_command):
    calls = fake_command("plan")
    cli.main(["plan", "-d", "7"])
    cli.main(["plan", "-d", "7", "--widen-window"])
    assert calls == [{"dataset": "7"}, {"dataset": "7", "widen": True}]


@pytest.mark.parametrize("error", [ValueError("'min_mm' must be above 0"), FileNotFoundError(2, "No such file", "x")])
def test_a_users_mistake_is_one_line_on_stderr_and_exit_code_2(fake_command, capsys, error):
    fake_command("plan", error=error)
    assert cli.main(["plan", "-d", "7"]) == 2
    assert capsys.readouterr().err == f"nnUNetv2_freetumor: error: {error}\n"


def test_our_own_mistakes_keep_their_traceback(fake_command):
    fake_command("plan", error=AssertionError("a mistake of ours"))
    with pytest.raises(AssertionError, match="a mistake of ours"):
        cli.main(["plan", "-d", "7"])


def test_an_interruption_ends_without_a_traceback(fake_command, capsys):
    fake_command("demo", error=KeyboardInterrupt())
    assert cli.main(["demo", "-o", "out"]) == 130
    assert capsys.readouterr().err == "nnUNetv2_freetumor: interrupted\n"


def test_a_missing_option_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plan"])
    assert "the following arguments are required: -d" in capsys.readouterr().err


def test_trainer_path_prints_the_folder_that_nnunet_searches(capsys):
    assert cli.main(["trainer-path"]) == 0
    assert capsys.readouterr().out == f"{EXT_TRAINER}\n"
    assert [path.name for path in Path(EXT_TRAINER).glob("*.py")] == ["freetumor_trainers.py"]


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"nnUNetv2_freetumor {__version__}\n"


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), ("a table", 0)])
def test_a_command_may_give_an_exit_code_and_nothing_else_that_it_gives_is_one(fake_command, result, code):
    fake_command("doctor", result=result)
    assert cli.main(["doctor"]) == code
