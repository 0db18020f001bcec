"""Read the command line and call the function behind each command; torch and nnU-Net are imported only then."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.commands import COMMANDS, GROUPS, Command, Option
from nnunetv2_freetumor.startup import EXT_TRAINER

PROGRAM = "nnUNetv2_freetumor"
ABOUT = "Plant synthetic tumors into nnU-Net v2's own training batches."
TRAIN = "Train with nnU-Net's own command: nnUNetv2_train DATASET 3d_fullres FOLD -tr nnUNetTrainerFreeTumor"


def print_trainer_path() -> None:
    """Print the folder that nnU-Net finds the trainers in."""
    print(EXT_TRAINER)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser from the table of commands."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=ABOUT, epilog=TRAIN)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    places = {"": parser.add_subparsers(metavar="COMMAND", required=True)}
    for name, command in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        if group not in places:
            group_parser = places[""].add_parser(group, help=GROUPS[group], description=GROUPS[group])
            places[group] = group_parser.add_subparsers(metavar="COMMAND", required=True)
        one = places[group].add_parser(word, help=command.help, description=command.help)
        one.set_defaults(command=name)
        add_options(one, command)
    return parser


def add_options(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add a command's options; what is not given is not passed on."""
    parser.argument_default = argparse.SUPPRESS
    for option in command.options:
        _add_option(parser, option)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run one command."""
    options = vars(build_parser().parse_args(arguments))
    return call(COMMANDS[options.pop("command")], options)


def call(command: Command, options: dict[str, Any]) -> int:
    """Run a command; a user's mistake ends with one line on stderr and exit code 2.

    A command may return an exit code of its own, such as 1 where some cases could not be made. Anything else,
    such as the table that comes from `evaluate`, is for Python.
    """
    module, function = command.target.split(":")
    try:
        code = getattr(importlib.import_module(f"{__package__}.{module}"), function)(**options)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    if option.kind is bool:
        parser.add_argument(option.flag, dest=option.keyword, action="store_true", help=option.help)
        return
    if not option.flag.startswith("-"):
        parser.add_argument(option.keyword, type=option.kind, help=option.help, metavar=option.flag)
        return
    parser.add_argument(
        option.flag,
        dest=option.keyword,
        type=option.kind,
        required=option.required,
        nargs="+" if option.many else None,
        help=option.help,
        metavar=option.keyword.upper(),
    )
