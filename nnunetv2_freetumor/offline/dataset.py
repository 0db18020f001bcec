"""Write an nnU-Net raw dataset of cases with planted tumors, on one machine or on a cluster."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nnunetv2_freetumor.cluster import reports as case_reports
from nnunetv2_freetumor.cluster.run import check_cluster, run_cases
from nnunetv2_freetumor.files import cases
from nnunetv2_freetumor.offline import folder as dataset_folder
from nnunetv2_freetumor.offline import orders as synthetic_orders
from nnunetv2_freetumor.offline.case import is_made, make_case, synthetic_files
from nnunetv2_freetumor.offline.folder import SETTINGS, SPLITS, read_settings
from nnunetv2_freetumor.offline.orders import Orders, Request
from nnunetv2_freetumor.offline.sources import Sources, from_dataset, from_folders
from nnunetv2_freetumor.training import synthetic_splits
from nnunetv2_freetumor.training.device import choose_device
from nnunetv2_freetumor.training.synthetic_splits import SPLITS_FILE

_REPORT = "report.json"  # in the new dataset


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
    """Make a dataset of synthetic cases from a dataset or from folders, or recreate one case from its provenance.

    A stopped run continues when the same command is given again. Returns the exit code: 0 if every case was made, 1 if
    some were skipped or failed.

    Raises:
        ValueError: settings cannot work; nothing is written then.
    """
    if remake is not None:
        given = {"-d": dataset, "-n": per_case > 1, "--lesions": lesions, "--prior": prior, "--host": host}
        given |= {"--tumor": tumor, "--seed": seed, "--scheduler": scheduler, "--workers": workers}
        _check_alone({"-device": device != "cpu", "-p": plans_name != "nnUNetPlans", **given})
        return _remake(remake, output, images=images, hosts=hosts, generator=generator)
    check_cluster(scheduler, workers)
    if scheduler is None or device not in ("cpu", "cuda"):  # a cluster's workers may have what this machine lacks
        choose_device(device)
    folder, preprocessed = dataset_folder.find_places(output)
    splits_at = [place for place in (preprocessed, folder) if place is not None]
    written = read_settings(folder).get(SPLITS)
    if written is None and preprocessed is not None:
        synthetic_splits.check_place(preprocessed)
    edited = synthetic_splits.edited_splits(splits_at, written) if written else []
    sources = _sources(dataset, images, hosts=hosts, plans_name=plans_name, prior=prior, host=host, tumor=tumor)
    orders = synthetic_orders.make_orders(
        sources, folder, Request(per_case, lesions, seed=seed, generator=generator, device=device)
    )
    print(*orders.choices, sep="\n")
    dataset_folder.prepare_folder(folder, orders)
    dataset_folder.remove_stale(sources, orders, folder)
    dataset_folder.copy_real_cases(sources, folder)
    if workers is None and scheduler is None and device == "cuda":
        workers = 1  # one process for a GPU
    reports = run_cases(make_case, orders.orders, done=is_made, scheduler=scheduler, workers=workers, title="planting")
    reports = [*sources.unusable, *reports]
    notes = _finish(sources, orders, folder, [] if edited else splits_at)
    notes += [f"{path} was edited by hand; left unchanged." for path in edited]
    case_reports.write_reports(reports, folder / _REPORT)
    print("\n".join([*case_reports.summary_lines(reports), *notes]))
    return case_reports.exit_code(reports)


def _check_alone(given: dict[str, Any]) -> None:
    """Refuse options that the provenance file decides.

    Raises:
        ValueError: there are such options.
    """
    if named := [flag for flag, value in given.items() if value]:
        raise ValueError(
            f"--remake takes everything from the provenance file: leave out {', '.join(named)}. Give only -o, "
            "--generator if its file has moved, and -i and -l if the case was made from folders."
        )


def _remake(provenance: str, output: str, images: str | None, hosts: str | None, generator: str) -> int:
    """Recreate one case from its provenance and compare the voxels with it."""
    order = synthetic_orders.order_again(provenance, output, images=images, hosts=hosts, generator=generator)
    if (Path(output) / "dataset.json").exists():
        raise ValueError(
            f"{output} is a dataset, and its splits do not include {order.case}. Choose another folder with -o."
        )
    if order.settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{order.case} was made on CUDA, but PyTorch finds no CUDA device. Use a machine with one.")
    dataset_folder.make_folders(cases.check_writable(output))
    report = make_case(order)
    if report.state != "done":
        raise ValueError(report.reason)
    print(f"{order.case} is in {output}, bit for bit as in its provenance.")
    return 0


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
        return from_folders(images, hosts, prior=prior, host=host or (), tumor=tumor)
    if dataset is None or images is not None or hosts is not None:
        raise ValueError("Give either -d DATASET, or both -i IMAGES and -l HOSTS.")
    if prior is not None or host is not None or tumor is not None:
        raise ValueError(
            "With -d, priors, hosts and tumors come from the plans' freetumor section: leave out --prior, --host and "
            "--tumor."
        )
    return from_dataset(dataset, plans_name)


def _finish(sources: Sources, orders: Orders, folder: Path, splits_at: Sequence[Path]) -> list[str]:
    """Write the splits and, last of all, dataset.json; return notes about them."""
    made = {order.case: order.source.case for order in orders.orders if is_made(order)}
    for order in orders.orders:
        if order.case not in made:  # nnU-Net refuses datasets with an image that has no label
            for file in synthetic_files(order):
                file.unlink(missing_ok=True)
    real = [source.case for source in sources.real]
    splits = synthetic_splits.make_splits(real, made, sources.splits, orders.seen)
    if splits_at:
        settings = read_settings(folder)
        stamps = [*settings.get(SPLITS, []), synthetic_splits.stamp_of(splits)]
        cases.write_json(settings | {SPLITS: sorted(set(stamps))}, folder / SETTINGS)
        synthetic_splits.write_splits(splits, splits_at)
    for leftover in folder.rglob(".unfinished-*"):  # of workers that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    cases.write_json(sources.dataset_json | {"numTraining": len(real) + len(made)}, folder / "dataset.json")
    bare = [str(fold) for fold, split in enumerate(splits) if set(split["val"]) & orders.seen]
    lines = [
        f"{folder}: {len(made)} synthetic and {len(real)} real case(s); {SPLITS_FILE} keeps synthetic ones "
        "out of validation."
    ]
    if not any(split["val"] for split in splits):
        lines.append(
            "There are too few real labeled cases to validate on: train fold 'all', or add real cases to imagesTr, "
            f"labelsTr and {SPLITS_FILE}. Numbered folds have an empty validation set and cannot be trained."
        )
    elif bare and made:
        lines.append(
            f"Fold {', '.join(bare)} gets no synthetic cases, because the generator was trained on its "
            "validation cases."
        )
    return lines
