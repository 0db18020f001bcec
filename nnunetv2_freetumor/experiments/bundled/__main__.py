"""Make the generator that comes with the package: `python -m nnunetv2_freetumor.experiments.bundled`."""

import argparse
import sys

from nnunetv2_freetumor.cli import add_options, call
from nnunetv2_freetumor.commands import DEVICE, Command, Option

COMMAND = Command(
    "experiments.bundled.command:make_bundled_command",
    "train the generator that comes with this package, on phantoms and on real CT with grown tumors",
    (
        Option("-o", "output", "folder for everything; give it again to resume", required=True),
        Option("--real", "real", "CT LABEL CT LABEL ...: tumor-free livers (label 1) to grow tumors in", many=True),
        Option("--attribution", "attribution", "source and license of the real CT, for the card"),
        DEVICE,
    ),
)
parser = argparse.ArgumentParser(prog="python -m nnunetv2_freetumor.experiments.bundled", description=COMMAND.help)
add_options(parser, COMMAND)
sys.exit(call(COMMAND, vars(parser.parse_args())))
