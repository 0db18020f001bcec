"""The folder of a dataset of synthetic cases: its owner, what an earlier run left there, and its real cases."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_freetumor.files import cases
from nnunetv2_freetumor.files.hashes import state_of
from nnunetv2_freetumor.offline.case import PROVENANCE, synthetic_files
from nnunetv2_freetumor.offline.orders import Orders
from nnunetv2_freetumor.offline.sources import Sources

SETTINGS, STATES = "settings.json", "sources.json"
SPLITS = "splits"  # in the settings: stamps of the splits that were written
_NAME = re.compile(r"Dataset\d{3}_[\w-]+")


def find_places(output: str) -> tuple[Path, Path | None]:
    """Check the new dataset's folder, and find where nnU-Net will look for its splits."""
    folder = Path(output).resolve()  # workers may run in another folder
    if not _NAME.fullmatch(folder.name):
        raise ValueError(
            f"-o must end in a valid dataset name for nnU-Net, such as $nnUNet_raw/Dataset901_Planted, but it is "
            f"{output}."
        )
    raw, root = (os.environ.get(f"nnUNet_{name}") for name in ("raw", "preprocessed"))
    in_nnunet = raw and root and folder.parent == Path(raw).resolve()
    preprocessed = Path(root) / folder.name if in_nnunet and root else None
    number = folder.name.partition("_")[0]
    for place in filter(None, (folder, preprocessed)):
        if others := sorted({path.name for path in place.parent.glob(f"{number}_*")} - {folder.name}):
            raise ValueError(
                f"{place.parent} holds {others[0]}, but nnU-Net needs every dataset to have its own number. Choose "
                "another number with -o."
            )
    return folder, preprocessed


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of an earlier run, if any.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / SETTINGS
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}). Choose another folder with -o, or delete {folder}."
        ) from error


def prepare_folder(folder: Path, orders: Orders) -> None:
    """Make the folders, or refuse those of a run with other settings or sources."""
    settings, before = orders.settings, read_settings(folder)
    if before:
        changed = [
            f"{name} was {before.get(name)}, now {settings[name]}"
            for name in settings
            if before.get(name) != settings[name]
        ]
        if changed:
            raise ValueError(
                f"{folder} was begun with other settings ({'; '.join(changed)}). Give the same settings to continue, "
                "or choose another folder with -o."
            )
        made = {path.stem for path in (folder / PROVENANCE).glob("*.json")}
        if others := sorted(made - {order.case for order in orders.orders}):
            raise ValueError(
                f"{folder} holds {others[0]}, which was made from a source that is not given now. Give the same "
                "sources again, or choose another folder with -o."
            )
    elif folder.is_dir() and any(not path.name.startswith(".unfinished-") for path in folder.iterdir()):
        raise ValueError(f"{folder} exists and was not made by this command. Choose another folder with -o.")
    cases.write_json(before | settings, cases.check_writable(folder) / SETTINGS)
    make_folders(folder)


def remove_stale(sources: Sources, orders: Orders, folder: Path) -> None:
    """Remove what an earlier run made from files that have changed since."""
    now = {source.case: [_state(path) for path in (source.image, source.label)] for source in sources.cases}
    path = folder / STATES
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stale = {case for case, state in now.items() if before.get(case, state) != state}
    for order in orders.orders:
        if order.source.case in stale:
            synthetic_files(order).provenance.unlink(missing_ok=True)
    for source in sources.real:
        if source.case in stale:
            for place in _files_of_real(source.case, sources):
                (folder / place).unlink(missing_ok=True)
    if stale:
        print(f"{len(stale)} source(s) have changed since the last run ({min(stale)} ...): their cases are recreated.")
    cases.write_json(before | now, path)


def _state(path: str) -> list[int]:
    return [*state_of(Path(path))[0]] if Path(path).is_file() else []


def make_folders(folder: Path) -> None:
    """Make the folders that cases are written to."""
    for name in ("imagesTr", "labelsTr", PROVENANCE):
        cases.check_writable(folder / name)


def copy_real_cases(sources: Sources, folder: Path) -> None:
    """Copy the real labeled cases, to validate on."""
    for case, *files in tqdm(sources.real, desc="copying real cases", unit="case", disable=not sources.real):
        for file, place in zip(files, _files_of_real(case, sources)):
            if not (folder / place).is_file():
                with cases.replacing(folder / place) as unfinished:
                    shutil.copyfile(file, unfinished)


def _files_of_real(case: str, sources: Sources) -> tuple[str, str]:
    """Return the paths of a real case's image and label in the new dataset."""
    ending = sources.dataset_json["file_ending"]
    return f"imagesTr/{case}_0000{ending}", f"labelsTr/{case}{ending}"
