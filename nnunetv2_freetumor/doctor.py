"""Look at the installation as nnU-Net will, and print for each problem the command that fixes it."""

import contextlib
import importlib.metadata
import io
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from nnunetv2_freetumor import __version__
from nnunetv2_freetumor.startup import EXT_TRAINER, VARIABLE

PACKAGES = (
    "nnunetv2",
    "torch",
    "torchvision",  # with timm: nnU-Net's search imports all of its own trainers, and those import these two
    "timm",
    "dynamic-network-architectures",
    "batchgenerators",
    "batchgeneratorsv2",
    "acvl-utils",
    "numpy",
    "SimpleITK",
    "safetensors",
    "jaxtyping",
)
OLDEST_NNUNET = (2, 8)
PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
SHOW_HOOK = f"import os; print(os.environ.get({VARIABLE!r}, ''))"
EXPORT = f"export {VARIABLE}=$(nnUNetv2_freetumor trainer-path)"


class Finding(NamedTuple):
    """One line of the report; `fix` is the command that fixes a problem."""

    text: str
    problem: bool = False
    fix: str = ""


def doctor_command(dataset: str | None = None, plans_name: str = "nnUNetPlans") -> None:
    """Print the state of the installation, and of one dataset when it is named.

    Raises:
        SystemExit: with code 1 when there is any problem.
    """
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "Versions": check_versions,
        "Device": check_device,
        "Paths": check_paths,
        "Start-up hook": check_hook,
        "Trainers": check_trainers,
        "Generators and priors": check_bundled,
    }
    if dataset is not None:
        checks[f"Dataset {dataset}"] = partial(check_dataset, dataset, plans_name)
    problems = sum(_print_findings(title, check()) for title, check in checks.items())
    print(f"\n{problems} problem{'s' * (problems != 1)} found." if problems else "\nNo problems found.")
    if problems:
        raise SystemExit(1)


def check_versions() -> Iterator[Finding]:
    """List the versions of Python, this package and what it stands on."""
    yield Finding(f"Python {platform.python_version()} on {platform.platform()}")
    yield Finding(f"nnunetv2_freetumor {__version__} in {os.path.dirname(__file__)}")
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"{package} is not installed", True, f"{sys.executable} -m pip install {package}")
            continue
        old = package == "nnunetv2" and tuple(map(int, version.split(".")[:2])) < OLDEST_NNUNET
        fix = f"{sys.executable} -m pip install --upgrade 'nnunetv2>=2.8'"
        yield Finding(f"{package} {version}" + " is too old: 2.8 or newer is needed" * old, old, fix)


def check_device() -> Iterator[Finding]:
    """List the devices that torch sees."""
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        yield Finding("no CUDA device: add -device cpu to nnUNetv2_train and nnUNetv2_predict; training is slow there")
    yield Finding(f"cpu, {os.cpu_count()} cores")


def check_paths() -> Iterator[Finding]:
    """Check whether nnU-Net's three folders are set, exist and can be written to."""
    for name in PATHS:
        folder = os.environ.get(name)
        if not folder:
            yield Finding(f"{name} is not set", True, f"export {name}=/your/folder/{name}")
        elif not os.path.isdir(folder):
            yield Finding(f"{name}={folder} does not exist", True, f"mkdir -p '{folder}'")
        elif not os.access(folder, os.W_OK):
            yield Finding(f"{name}={folder} cannot be written to", True, f"chmod u+w '{folder}'")
        else:
            yield Finding(f"{name}={folder}")


def check_hook() -> Iterator[Finding]:
    """Check whether a new Python gets the folder of trainers, and through what."""
    bare = {name: value for name, value in os.environ.items() if name != VARIABLE}
    child = subprocess.run([sys.executable, "-c", SHOW_HOOK], env=bare, capture_output=True, text=True, check=False)
    if EXT_TRAINER in child.stdout.strip().split(os.pathsep):
        yield Finding(f"on: every Python start appends {EXT_TRAINER} to {VARIABLE}")
    elif EXT_TRAINER in os.environ.get(VARIABLE, "").split(os.pathsep):
        yield Finding(f"off, but {VARIABLE} names {EXT_TRAINER}")
    else:
        yield Finding(f"off, and {VARIABLE} does not name {EXT_TRAINER}", True, EXPORT)


def check_trainers() -> Iterator[Finding]:
    """Run nnU-Net's own search for every FreeTumor trainer and tell where it finds each."""
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        from nnunetv2_freetumor import trainer
    except Exception as error:  # whatever a third package raises on import is what the user needs to see
        yield Finding(f"nnU-Net or the trainers cannot be imported: {error!r}", True, _reinstall())
        return
    for name in filter(re.compile("nnUNetTrainer").match, trainer.__all__):
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                found = recursive_find_trainer_class_by_name(name)
        except Exception as error:  # nnU-Net imports every trainer it meets on the way
            yield Finding(f"{name}: nnU-Net's search ends with {error!r}", True, EXPORT)
            continue
        folder = said.getvalue().rpartition(f"Using trainer '{name}' from: ")[2].strip()
        ours = found is getattr(trainer, name)
        fix = f"take {folder} out of {VARIABLE}, or rename its class"
        yield Finding(f"{name} from {folder}" + " hides this package's trainer" * (not ours), not ours, fix)


def check_bundled() -> Iterator[Finding]:
    """List the generators and the bundled priors."""
    from nnunetv2_freetumor.generators.cards import Card
    from nnunetv2_freetumor.generators.weights import available
    from nnunetv2_freetumor.priors import load, names

    found = available()
    served = [f"{card.name} ({', '.join(card.hosts)})" for _, card in found if isinstance(card, Card)]
    yield Finding(f"generators: {', '.join(['texture', *served])}")
    for path, problem in found:
        if isinstance(problem, str):
            yield Finding(problem, True, f"rm '{path}'")
    if not names():
        yield Finding("the bundled priors are missing", True, _reinstall())
    else:
        yield Finding(f"priors: {', '.join(load(name).name for name in names())}")


def check_dataset(dataset: str, plans_name: str) -> Iterator[Finding]:
    """Check one dataset's section and clip window."""
    from nnunetv2_freetumor.planning.section import dataset_problems

    try:
        problems = dataset_problems(dataset, plans_name)
    except (ValueError, OSError) as error:
        problems = [str(error)]
    yield from (Finding(problem, True) for problem in problems)
    if not problems:
        yield Finding("the section and the clip window fit")


def _reinstall() -> str:
    return f"{sys.executable} -m pip install --force-reinstall . (in this package's source folder)"


def _print_findings(title: str, findings: Iterable[Finding]) -> int:
    """Print one check's findings as they come and count the problems."""
    print(f"\n{title}", flush=True)
    problems = 0
    for finding in findings:
        problems += finding.problem
        text = finding.text.replace("\n", "\n" + " " * 11)
        print(f"  {'PROBLEM' if finding.problem else 'ok     '}  {text}", flush=True)
        if finding.problem and finding.fix:
            print(f"           fix:  {finding.fix}")
    return problems
