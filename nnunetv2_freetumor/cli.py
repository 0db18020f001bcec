"""Read the command line and call the function behind each command; torch and nnU-Net are imported only then.

Options that are not given are not passed on, so every default stands in one place: the function's signature.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.startup import EXT_TRAINER

PROGRAM = "nnUNetv2_freetumor"
ABOUT = "Plant synthetic tumors into nnU-Net v2's own training batches."
TRAIN = "Train with nnU-Net's own command: nnUNetv2_train DATASET 3d_fullres FOLD -tr nnUNetTrainerFreeTumor"


class Option(NamedTuple):
    """One option of a command: its flag, the keyword it fills, and what argparse needs to know."""

    flag: str
    keyword: str
    help: str
    kind: type = str
    required: bool = False
    many: bool = False


class Command(NamedTuple):
    """One command: the function that does it, as 'module:function', and its options."""

    target: str
    help: str
    options: tuple[Option, ...] = ()


DATASET = Option("-d", "dataset", "dataset number or name", required=True)
CONFIGURATION = Option("-c", "configuration", "nnU-Net configuration (default: 3d_fullres)")
PLANS = Option("-p", "plans_name", "name of the plans (default: nnUNetPlans)")
DEVICE = Option("-device", "device", "cpu or cuda (default: cuda where there is one)")
SEED = Option("--seed", "seed", "seed of all chance (default: 0)", int)

COMMANDS = {
    "plan": Command(
        "planning:plan_command",
        "derive the freetumor section from the dataset and write it into the plans",
        (DATASET, PLANS, Option("--widen-window", "widen", "widen the clip window where it would hide tumors", bool)),
    ),
    "preview": Command(
        "preview:preview_command",
        "draw before/after/mask pictures from the preprocessed training cases",
        (
            DATASET,
            CONFIGURATION,
            PLANS,
            Option("-o", "output", "folder for the pictures", required=True),
            Option("-n", "count", "number of lesions (default: 6)", int),
            SEED,
        ),
    ),
    "synthesize": Command(
        "offline:synthesize_case",
        "plant tumors into one raw CT case, without any nnU-Net dataset",
        (
            Option("-i", "image", "CT image in HU, such as .nii.gz", required=True),
            Option("-l", "label", "label map of the same geometry", required=True),
            Option("-o", "output", "folder for the new image, label map and record", required=True),
            Option("--prior", "prior", "bundled prior: liver, pancreas, kidney, lung ...", required=True),
            Option(
                "--host", "host", "labels of the host organ; may be left out for lungs without a label", int, many=True
            ),
            Option("--tumor", "tumor", "label that the planted tumors get", int, required=True),
            Option("-n", "lesions", "number of lesions (default: 1)", int),
            Option("--diameter-mm", "diameter_mm", "diameter of each lesion (default: drawn from the prior)", float),
            SEED,
            Option("--generator", "generator", "what draws the lesions' contrast (default: texture)"),
            DEVICE,
        ),
    ),
    "evaluate": Command(
        "evaluation:evaluate_command",
        "score predictions lesion by lesion: found by size, false positives, intervals, comparison, page",
        (
            Option("-ref", "references", "folder with reference label maps", required=True),
            Option("-pred", "predictions", "folder with predicted label maps, and CASE.npz for FROC", required=True),
            Option("-djfile", "dataset_json", "dataset.json of the dataset", required=True),
            Option("-pfile", "plans_file", "plans.json, for the tumors and hosts of its freetumor section"),
            Option("-vs", "other", "folder with another model's predictions of the same cases"),
            Option("-external", "external", "two folders, LABELS PREDICTIONS, of an external test set", many=True),
            Option("-o", "output", "output folder (freetumor_evaluation inside -pred otherwise)"),
            Option("-images", "images", "folder with the images CASE_0000, for pictures on CT"),
            Option("--patients", "patients", "JSON file {case: patient} (each case is a patient otherwise)"),
            Option("--bounds-mm", "bounds_mm", "bounds of the diameters (10 20 50 otherwise)", float, many=True),
            Option("--tolerance-mm", "tolerance_mm", "of the surface Dice (default: 2.0)", float),
            Option("--min-iou", "min_iou", "overlap from which a lesion is found (default: 0.1)", float),
            Option("--min-voxels", "min_voxels", "smaller components are left out (default: 1)", int),
            Option("-np", "processes", "number of processes (as for nnU-Net otherwise)", int),
            Option("--chill", "chill", "score what has a prediction, where some cases have none", bool),
            SEED,
        ),
    ),
    "doctor": Command(
        "doctor:doctor_command",
        "check the installation and say how to mend what is wrong",
        (Option("-d", "dataset", "also check this dataset's section and clip window"), PLANS),
    ),
    "trainer-path": Command("cli:print_trainer_path", "print the folder for nnU-Net's nnUNet_extTrainer"),
    "demo": Command(
        "demo:demo_command",
        "run the whole line on a made-up CT cohort and write a report",
        (Option("-o", "output", "folder for everything the demo makes", required=True), DEVICE),
    ),
    "study": Command(
        "study:study_command",
        "compare training with and without synthetic tumors: arms x few-label settings x seeds",
        (
            Option("-o", "output", "folder of the study; give it again to go on", required=True),
            Option("-d", "dataset", "prepared dataset with imagesTs and labelsTs (default: a cohort of CT phantoms)"),
            CONFIGURATION,
            PLANS,
            Option("--labeled", "labeled", "numbers of labeled training cases (default: 4 8 16)", int, many=True),
            Option(
                "--label-free-cases", "label_free_cases", "cases of the label-free setting; 0: none (default: 6)", int
            ),
            Option("--seeds", "seeds", "repetitions of everything (default: 3)", int),
            Option("--epochs", "epochs", "of each training (default: 60 for phantoms, 100 for a dataset)", int),
            Option("--iterations", "iterations", "of each epoch (default: 25 for phantoms, 250 for a dataset)", int),
            Option("--arms", "arms", "which arms to run (default: all but the ablation's)", many=True),
            Option("--ablation", "ablation", "change one factor of the texture arm at a time instead", bool),
            Option("--hours", "hours", "start no training that would likely end later", float),
            Option("--jobs", "jobs", "trainings at a time (default: 1)", int),
            DEVICE,
        ),
    ),
    "bench": Command(
        "bench:bench_command",
        "measure what synthesis costs beside plain nnU-Net",
        (Option("-o", "output", "folder for the benchmark's data and results", required=True), DEVICE),
    ),
}


def print_trainer_path() -> None:
    """Print the folder that nnU-Net finds the trainers in."""
    print(EXT_TRAINER)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser from the table of commands."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=ABOUT, epilog=TRAIN)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands_parser = commands.add_parser(
            name, help=command.help, description=command.help, argument_default=argparse.SUPPRESS
        )
        for option in command.options:
            _add_option(commands_parser, option)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake ends with one line on stderr and exit code 2."""
    options = vars(build_parser().parse_args(arguments))
    module, function = COMMANDS[options.pop("command")].target.split(":")
    try:
        getattr(importlib.import_module(f"{__package__}.{module}"), function)(**options)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    return 0


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    if option.kind is bool:
        parser.add_argument(option.flag, dest=option.keyword, action="store_true", help=option.help)
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
