"""The bundled priors: what is known about each kind of tumor where a dataset has too few to measure."""

import importlib.util
import json
from pathlib import Path

from nnunetv2_freetumor.plan import Prior, read_prior

_PACKAGE = "nnunetv2_freetumor.plans"


def names() -> tuple[str, ...]:
    """List the bundled priors."""
    return tuple(sorted(file.stem for file in _folder().glob("*.json")))


def load(name: str) -> Prior:
    """Read a bundled prior.

    Raises:
        ValueError: there is no prior of that name; the text lists the choices.
    """
    return read_prior(_read(name)["prior"])


def sources(name: str) -> dict[str, str]:
    """Return where each number of a bundled prior comes from, by setting."""
    return _read(name)["sources"]


def _read(name: str) -> dict:
    if name not in names():
        raise ValueError(f"There is no bundled prior '{name}'; choose one of {', '.join(names())}.")
    return json.loads((_folder() / f"{name}.json").read_text())


def _folder() -> Path:
    """Find the folder: a package once installed, and beside the package in the source tree."""
    installed = importlib.util.find_spec(_PACKAGE)
    if installed and installed.submodule_search_locations:
        return Path(installed.submodule_search_locations[0])
    return Path(__file__).parent.parent / "plans"
