"""Measure what synthesis costs compared with plain nnU-Net, both in one run on the same data, plans and batches."""

import contextlib
import gc
import io
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tqdm import tqdm

from nnunetv2_freetumor.experiments.bench import data
from nnunetv2_freetumor.experiments.bench.data import CONFIGURATION, DATASET, PLANS, Layout, write_dataset
from nnunetv2_freetumor.files.cases import check_writable, write_json
from nnunetv2_freetumor.trainer import FreeTumorMixin, nnUNetTrainerFreeTumor
from nnunetv2_freetumor.training.augmentation import augment

MIB = 2**20
PEAK_RESET, PEAK_STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # on Linux
SETTLE_S = 1.0  # the other trainer's loader processes fill their queue and stop, so that each pays for its own only


class Setup(NamedTuple):
    """What is measured, by kind of device."""

    layout: Layout
    workers: int
    rounds: int
    iterations: int  # per trainer and round
    warm_up: int  # iterations before the first round


SETUPS = {
    "cpu": Setup(
        Layout((48, 96, 96), (4.0, 2.0, 2.0), (32, 64, 64), (32, 64, 128, 256)), 1, rounds=8, iterations=4, warm_up=2
    ),
    "cuda": Setup(
        Layout((192, 192, 192), (1.0, 0.8, 0.8), (128, 128, 128), (32, 64, 128, 256, 320, 320)),
        8,
        rounds=8,
        iterations=20,
        warm_up=20,
    ),
}


class Spread(NamedTuple):
    """A median with the quartiles around it. Field names are a file format: bench.json."""

    low: float
    median: float
    high: float


class Timed(NamedTuple):
    """What a call gave and how long it took, the device's work included."""

    result: Any
    ms: float


class Block(NamedTuple):
    """One trainer's turn."""

    times_ms: list[float]  # by iteration
    peak_mib: float


class Figures(NamedTuple):
    """Everything that was measured; memory is how much higher a block's peak is with FreeTumor.

    Field names are a file format: bench.json.
    """

    plain_ms: Spread
    freetumor_ms: Spread
    iteration_ratio: Spread  # of the medians of neighboring blocks, so that a machine's changing load cancels out
    synthesis_ms_per_lesion: Spread
    augmentation_ms: Spread
    extra_memory_mib: Spread


def bench_command(output: str, device: str | None = None) -> None:
    """Make a small dataset below the output folder, measure on it, and print a table and the `bench:` lines."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in SETUPS:
        raise ValueError(f"-device must be one of {', '.join(SETUPS)} for the benchmark, but it is '{kind}'.")
    figures = run_benchmark(check_writable(output), kind, SETUPS[kind])
    lines = {
        "iteration_ratio_texture": round(figures.iteration_ratio.median, 3),
        "synthesis_ms_per_lesion": round(figures.synthesis_ms_per_lesion.median, 2),
        "augmentation_ms": round(figures.augmentation_ms.median, 2),
        "extra_memory_mib": round(figures.extra_memory_mib.median, 1),
        "startup_hook_ms": round(data.hook_ms(), 2),
        "help_s": round(data.help_s(), 3),
    }
    write_json({"device": kind, "median_and_quartiles": _as_json(figures)} | lines, Path(output) / "bench.json")
    print("\n".join(figure_lines(kind, SETUPS[kind], figures)))
    print("\n".join(f"bench: {name}={value}" for name, value in lines.items()))


def run_benchmark(folder: Path, kind: str, setup: Setup) -> Figures:
    """Train plain nnU-Net and FreeTumor by turns, then time synthesis and augmentation by themselves."""
    with _nnunet_environment(folder, setup.workers) as preprocessed:
        write_dataset(preprocessed, setup.layout)
        plain = _start(nnUNetTrainer, preprocessed, kind)
        freetumor = _start(nnUNetTrainerFreeTumor, preprocessed, kind)
        ours, theirs = _by_turns(freetumor, plain, setup)
        parts = _parts(freetumor, setup)
        for trainer in (plain, freetumor):
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.on_train_end()
    return Figures(
        _spread([ms for block in theirs for ms in block.times_ms]),
        _spread([ms for block in ours for ms in block.times_ms]),
        _spread([statistics.median(a.times_ms) / statistics.median(b.times_ms) for a, b in zip(ours, theirs)]),
        *parts,
        _spread([a.peak_mib - b.peak_mib for a, b in zip(ours, theirs)]),
    )


def figure_lines(kind: str, setup: Setup, figures: Figures) -> list[str]:
    """Return the lines of a table: median and quartiles of each figure."""
    layout = setup.layout
    size = "x".join(map(str, layout.patch_size))
    head = (
        f"{kind}: patch {size}, batch {layout.batch_size}, network stages {layout.features}, {setup.workers} loader "
        f"process(es), {setup.rounds * setup.iterations} iterations each; median (quartiles)"
    )
    rows = zip(Figures._fields, figures)
    return [head] + [f"  {name:<24} {s.median:9.2f}  ({s.low:.2f} .. {s.high:.2f})" for name, s in rows]


@contextlib.contextmanager
def _nnunet_environment(folder: Path, workers: int) -> Iterator[Path]:
    """Point nnU-Net at a folder of this run's own, and back again afterwards."""
    run = folder / time.strftime("run_%Y%m%d_%H%M%S")
    paths = {f"nnUNet_{name}": str(run / name) for name in ("raw", "preprocessed", "results")}
    before = dict(os.environ)
    os.environ.update(paths | {"nnUNet_n_proc_DA": str(workers)})
    try:
        yield run / "preprocessed"
    finally:
        os.environ.clear()
        os.environ.update(before)


def _start(trainer_class: type[nnUNetTrainer], preprocessed: Path, kind: str) -> nnUNetTrainer:
    """Start a training as `nnUNetv2_train` does, without its output on the screen."""
    plans = load_json(str(preprocessed / DATASET / f"{PLANS}.json")) | {"continue_training": False}
    dataset_json = load_json(str(preprocessed / DATASET / "dataset.json"))
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = trainer_class(plans, CONFIGURATION, 0, dataset_json, torch.device(kind))
        trainer.disable_checkpointing = True
        trainer.on_train_start()
        trainer.on_train_epoch_start()
    return trainer


def _by_turns(a: nnUNetTrainer, b: nnUNetTrainer, setup: Setup) -> tuple[list[Block], list[Block]]:
    """Let two trainers take turns, in alternating order."""
    blocks: dict[nnUNetTrainer, list[Block]] = {a: [], b: []}
    for trainer in (a, b):
        _block(trainer, setup.warm_up)
    for index in tqdm(range(setup.rounds), desc="plain and FreeTumor by turns"):
        for trainer in ((a, b), (b, a))[index % 2]:
            blocks[trainer].append(_block(trainer, setup.iterations))
    return blocks[a], blocks[b]


def _block(trainer: nnUNetTrainer, iterations: int) -> Block:
    """Time whole iterations, waiting for the loader included."""
    time.sleep(SETTLE_S)
    _forget_peak(trainer.device)
    steps = [
        _timed(lambda: trainer.train_step(next(trainer.dataloader_train)), trainer.device) for _ in range(iterations)
    ]
    return Block([step.ms for step in steps], _peak_mib(trainer.device))


def _parts(trainer: FreeTumorMixin, setup: Setup) -> tuple[Spread, Spread]:
    """Time synthesis, per planted lesion, and the augmentation of a batch; ms. Samples without lesions count too."""
    synthesizer, device = trainer.planter, trainer.device
    synthesis_ms, augmentation_ms = [], []
    for _ in range(setup.rounds):
        spent_ms, lesions = 0.0, 0
        while not lesions:
            for _ in range(setup.iterations):
                batch = next(trainer.dataloader_train)
                image, label = (batch[name].to(device) for name in ("data", "target"))
                draw = synthesizer.draw(len(image), trainer.rng)
                planted = _timed(partial(synthesizer, image, label, draw), device)
                made = planted.result
                augmented = _timed(partial(augment, trainer.second_half, made.image, made.label), device)
                augmentation_ms.append(augmented.ms)
                spent_ms += planted.ms
                lesions += sum(bool(lesion.change.kept) for lesion in made.lesions)
        synthesis_ms.append(spent_ms / lesions)
    return _spread(synthesis_ms), _spread(augmentation_ms)


def _timed(function: Callable[[], Any], device: torch.device) -> Timed:
    _wait(device)
    start = time.perf_counter()
    result = function()
    _wait(device)
    return Timed(result, 1000 * (time.perf_counter() - start))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PEAK_RESET.exists():
        PEAK_RESET.write_text("5")


def _peak_mib(device: torch.device) -> float:
    """Return the peak since `_forget_peak`: of CUDA's allocator, or of the process's resident memory on Linux."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    if not PEAK_RESET.exists():
        return float("nan")
    kib = next(line.split()[1] for line in PEAK_STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(kib) / 1024


def _spread(values: list[float]) -> Spread:
    return Spread(*statistics.quantiles(values, n=4))


def _as_json(figures: Figures) -> dict[str, dict[str, float]]:
    return {name: spread._asdict() for name, spread in figures._asdict().items()}
