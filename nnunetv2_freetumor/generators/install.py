"""`generator list`, `inspect` and `install`: generator files and their cards, readable by people."""

import shutil
import textwrap
from pathlib import Path

from nnunetv2_freetumor.files.cases import replacing
from nnunetv2_freetumor.files.hashes import file_hash
from nnunetv2_freetumor.generators.cards import Card, check_name
from nnunetv2_freetumor.generators.weights import (
    ALIASES,
    GENERATOR_ENDING,
    available,
    bundled_folder,
    find_generator,
    installed_folder,
    load_generator,
    parameter_count,
)

NOT_NAMES = ("auto", "texture", "constant", "freetumor_random")  # they mean something else where a generator is named
WHERE = ("Bundled with the package", "Installed")


def list_command() -> None:
    """Print the bundled and the installed generators, and unusable files with the reason."""
    found = available()
    bundled = [item for item in found if item[0].parent == bundled_folder()]
    for where, items in zip(WHERE, (bundled, [item for item in found if item not in bundled])):
        print(f"{where}:" if items else f"{where}: none")
        for file, card in items:
            if isinstance(card, str):
                print(_aligned({file.stem: f"cannot be used: {card}"}, "  "))
            else:
                print(f"  {file.stem}\n{_aligned(summary(file, card), '    ')}")
    try:
        print(f"Generators are installed in {installed_folder()}.")
    except ValueError as error:
        print(error)


def inspect_command(file: str) -> None:
    """Fully check a generator file and print its card.

    Args:
        file: path, or name of an installed or bundled generator.

    Raises:
        ValueError: there is no such file, or it cannot be used; the text says why.
    """
    path = find_generator(file)
    card = load_generator(path).card
    print(f"{path}\n{_aligned(summary(path, card) | details(path, card), '  ')}")


def install_command(file: str, name: str | None = None) -> None:
    """Fully check a generator file and copy it to where generators are found by name.

    Args:
        file: path of the generator file.
        name: to install it under (default: the name on its card).

    Raises:
        ValueError: the file cannot be used, or another file has that name; the text says what to do.
    """
    path = find_generator(file)
    card = load_generator(path).card
    name = name or card.name
    check_name(name)
    taken = (*NOT_NAMES, *ALIASES, *(bundled.stem for bundled in bundled_folder().glob(f"*{GENERATOR_ENDING}")))
    if name in taken:
        raise ValueError(f"The name '{name}' is reserved by this package. Choose another one with --name.")
    target = installed_folder() / f"{name}{GENERATOR_ENDING}"
    if target.exists():
        if file_hash(target) != file_hash(path):
            raise ValueError(
                f"A different generator is already installed as {target}; it is not overwritten. Choose another name "
                "with --name, or delete that file first."
            )
        print(f"{path} is already installed as '{name}'.")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as unfinished:
        shutil.copyfile(path, unfinished)
    print(f'Installed {target}.\nTo use it, set "generator": "{name}" in the plans\' freetumor section.')


def summary(path: Path, card: Card) -> dict[str, str]:
    """Summarize what matters most about a generator file."""
    return {
        "kind": card.kind,
        "hosts": ", ".join(card.hosts),
        "training data": card.training_data,
        "real tumors": f"yes: {', '.join(card.real_tumors)}" if card.real_tumors else "no",
        "purpose": card.purpose,
        "not seen": card.not_seen,
        "license": card.license,
        "size": f"{path.stat().st_size / 1e6:.1f} MB, {parameter_count(card):,} parameters",
    }


def details(path: Path, card: Card) -> dict[str, str]:
    """List the remaining facts about a generator file, with its checksum."""
    low, high = card.window_hu
    output = f"{card.activation}, {'added to' if card.sign > 0 else 'subtracted from'} the image"
    return {
        "window": f"{low:g} to {high:g} HU",
        "spacing": f"{_by(card.spacing_mm)} mm (x, y, z)",
        "trained region": f"{_by(card.side_voxels)} voxels (x, y, z)",
        "output": output if card.kind == "freetumor" else "residual over texture in HU",
        "recipe": card.recipe,
        "judge": card.judge,
        "dataset": card.dataset,
        "plans": card.plans,
        "configuration": card.configuration,
        "fold": card.fold,
        "training cases": f"{len(card.training_cases)}: {', '.join(card.training_cases)}"
        if card.training_cases
        else "",
        "card's name": card.name,
        "date": card.date,
        "version": card.version,
        "sha256": file_hash(path),
    }


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _aligned(rows: dict[str, str], indent: str) -> str:
    """Format one row per line, wrapped; drop characters that a terminal would take for commands."""
    width = max(map(len, rows))
    return "\n".join(
        textwrap.fill(
            "".join(letter for letter in text if letter.isprintable()),
            width=110,
            initial_indent=f"{indent}{key:<{width}}  ",
            subsequent_indent=f"{indent}{'':<{width}}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for key, text in rows.items()
        if text
    )
