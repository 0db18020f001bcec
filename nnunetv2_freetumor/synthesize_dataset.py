"""Write an nnU-Net raw dataset of cases with planted tumors, on one machine or on a cluster."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from nnunetv2_freetumor import case_reports, cases, offline, synthetic_orders, synthetic_splits
from nnunetv2_freetumor.cluster import check_cluster, run_cases
from nnunetv2_freetumor.synthetic_case import PROVENANCE, files_of, is_made, make_case
from nnunetv2_freetumor.synthetic_orders import Orders, Wish
from nnunetv2_freetumor.synthetic_sources import Sources, from_dataset, from_folders

SETTINGS, REPORT = "settings.json", "report.json"  # in the new dataset
_PREPROCESSED = "nnUNet_preprocessed"
_NAME = re.compile(r"Dataset\d{3}_[\w-]+")


def synthesize_dataset(
    output: str,
    dataset: str | None = None,
    images: str | None = None,
    hosts: str | None = None,
    per_case: int = 1,
    lesions: int | None = None,
    prior: str | None = None,
    host: Sequence[int] | None = None,
    tumor: int | None = None,
    plans_name: str = "nnUNetPlans",
    seed: int = 0,
    generator: str = "texture",
    remake: str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    device: str = "cpu",
) -> int:
    """Make a dataset of synthetic cases from a dataset or from folders, or make one case again from its provenance.

    A run that was stopped goes on where it was when it is started again. Returns the exit code: 0 where every case was
    made, 1 where some were skipped or failed.

    Raises:
        ValueError: settings that cannot work; nothing is written then.
    """
    if remake is not None:
        return _remake(remake, output, images, hosts, generator)
    check_cluster(scheduler, workers)
    if scheduler is None or device not in ("cpu", "cuda"):  # a cluster's workers may have what this machine lacks
        offline.choose_device(device)
    folder, preprocessed = _places(output)
    sources = _sources(dataset, images, hosts, plans_name, prior, host, tumor)
    orders = synthetic_orders.make_orders(sources, folder, Wish(per_case, lesions, seed, generator, device))
    print(*orders.choices, sep="\n")
    _prepare(folder, orders)
    _copy_real_cases(sources, folder)
    if workers is None and scheduler is None and device == "cuda":
        workers = 1  # one process for a GPU
    reports = [*sources.unusable, *run_cases(make_case, orders.orders, is_made, scheduler, workers, title="planting")]
    notes = _finish(sources, orders, folder, preprocessed)
    case_reports.write_reports(reports, folder / REPORT)
    print("\n".join([*case_reports.summary_lines(reports), *notes]))
    return case_reports.exit_code(reports)


def _remake(provenance: str, output: str, images: str | None, hosts: str | None, generator: str) -> int:
    """Make one case again from its provenance; the voxels are compared with what it says."""
    order = synthetic_orders.order_again(provenance, output, images, hosts, generator)
    offline.choose_device(order.recipe.device)
    _make_folders(cases.check_writable(output))
    report = make_case(order)
    if report.state != "done":
        raise ValueError(report.reason)
    print(f"{order.case} is in {output}, bit for bit as its provenance says.")
    return 0


def _places(output: str) -> tuple[Path, Path | None]:
    """Check the new dataset's folder, and find where nnU-Net will look for its splits."""
    folder = Path(output).resolve()  # workers may run in another folder
    if not _NAME.fullmatch(folder.name):
        raise ValueError(
            f"-o must end in a name that nnU-Net takes for a dataset, such as $nnUNet_raw/Dataset901_Planted, but it "
            f"is {output}."
        )
    root = os.environ.get(_PREPROCESSED)
    preprocessed = Path(root) / folder.name if root else None
    number = folder.name.partition("_")[0]
    for place in filter(None, (folder, preprocessed)):
        if others := sorted({path.name for path in place.parent.glob(f"{number}_*")} - {folder.name}):
            raise ValueError(
                f"{place.parent} holds {others[0]}, and nnU-Net knows datasets by their number. Choose another number "
                "with -o."
            )
    synthetic_splits.check_place(preprocessed)
    return folder, preprocessed


def _sources(
    dataset: str | None,
    images: str | None,
    hosts: str | None,
    plans_name: str,
    prior: str | None,
    host: Sequence[int] | None,
    tumor: int | None,
) -> Sources:
    if dataset is None and images is not None and hosts is not None:
        return from_folders(images, hosts, prior, host or (), tumor)
    if dataset is None or images is not None or hosts is not None:
        raise ValueError("Give either -d DATASET, or both -i IMAGES and -l HOSTS.")
    if prior is not None or host is not None or tumor is not None:
        raise ValueError(
            "With -d, priors, hosts and tumors stand in the plans' freetumor section: leave --prior, --host and "
            "--tumor out."
        )
    return from_dataset(dataset, plans_name)


def _prepare(folder: Path, orders: Orders) -> None:
    """Make the folders, or refuse those of a run with other settings or other sources."""
    settings, known = orders.settings, folder / SETTINGS
    if known.is_file():
        before = json.loads(known.read_text(encoding="utf-8"))
        changed = [
            f"{name} was {before.get(name)}, now {settings[name]}"
            for name in settings
            if before.get(name) != settings[name]
        ]
        if changed:
            raise ValueError(
                f"{folder} was begun with other settings ({'; '.join(changed)}). Give the same again to go on, or "
                "another -o."
            )
        made = {path.stem for path in (folder / PROVENANCE).glob("*.json")}
        if others := sorted(made - {order.case for order in orders.orders}):
            raise ValueError(
                f"{folder} holds {others[0]}, which comes from none of the sources given now. Give the same sources "
                "again, or another -o."
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is there already and is not this command's. Choose another -o.")
    _make_folders(cases.check_writable(folder))
    cases.write_json(settings, known)


def _make_folders(folder: Path) -> None:
    for name in ("imagesTr", "labelsTr", PROVENANCE):
        cases.check_writable(folder / name)


def _copy_real_cases(sources: Sources, folder: Path) -> None:
    """Copy the real labeled cases, so that validation has some."""
    ending = sources.dataset_json["file_ending"]
    for case, *files in tqdm(sources.real, desc="copying real cases", unit="case"):
        for file, place in zip(files, (f"imagesTr/{case}_0000{ending}", f"labelsTr/{case}{ending}")):
            if not (folder / place).is_file():
                with cases.replacing(folder / place) as unfinished:
                    shutil.copyfile(file, unfinished)


def _finish(sources: Sources, orders: Orders, folder: Path, preprocessed: Path | None) -> list[str]:
    """Write the splits and, last of all, dataset.json; give what there is to say about them."""
    made = {order.case: order.source.case for order in orders.orders if is_made(order)}
    for order in orders.orders:
        if order.case not in made:  # nnU-Net refuses datasets with an image that has no label
            for file in files_of(order):
                file.unlink(missing_ok=True)
    real = [source.case for source in sources.real]
    splits = synthetic_splits.make_splits(real, made, sources.splits, orders.seen)
    synthetic_splits.write_splits(splits, folder, preprocessed)
    for leftover in folder.rglob(".unfinished-*"):  # of workers that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    cases.write_json(sources.dataset_json | {"numTraining": len(real) + len(made)}, folder / "dataset.json")
    bare = [str(fold) for fold, split in enumerate(splits) if split["val"] and not set(split["train"]) & set(made)]
    lines = [
        f"{folder}: {len(made)} synthetic and {len(real)} real case(s); {synthetic_splits.FILE} keeps synthetic ones "
        "out of validation."
    ]
    if not any(split["val"] for split in splits):
        lines.append(
            "There are too few real labeled cases to validate on: train fold 'all', or add real cases to imagesTr, "
            f"labelsTr and {synthetic_splits.FILE}. Numbered folds have an empty validation set and do not train."
        )
    elif bare and made:
        lines.append(
            f"The generator was trained on validation cases of fold {', '.join(bare)}: no synthetic case there."
        )
    return lines
