"""What an epoch planted: counted on the device, read once, written to nnU-Net's log and logger."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from torch import Tensor
from torch import distributed as dist

from nnunetv2_freetumor.plan import SIZE_NAMES
from nnunetv2_freetumor.synthesis.gate import Gate
from nnunetv2_freetumor.synthesis.planter import ACCEPTED, COUNTS, JUDGED, Planter
from nnunetv2_freetumor.training.judge import JudgeGate
from nnunetv2_freetumor.training.recognition import RECOGNIZED, WATCHED, recognized_share

COUNT_KEY = "freetumor/"  # in front of every count's name in nnU-Net's logger
LOGGED = (*COUNTS, *WATCHED, *RECOGNIZED)
LEAST_ELIGIBLE_SHARE = 0.2
MOST_SATURATED_SHARE = 0.05
NONE_WATCHED = "FreeTumor: planted lesions recognized: no lesion was planted"
PATIENCE_EPOCHS, PATIENCE_SHARE = 20, 0.1  # the first of both: nothing recognized by then is a warning
LEAST_JUDGED = 50  # lesions of a size class so far, for their accepted share to mean anything

Counts = dict[str, float]


class EpochCounts:
    """Sum the synthesizer's counts over an epoch without reading them."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, counts: Mapping[str, Float64[Tensor, ""]]) -> None:
        """Add a batch, which names all COUNTS."""
        batch = torch.stack([counts[name] for name in COUNTS])
        self._sum = batch if self._sum is None else self._sum + batch

    def read(self) -> Counts:
        """Sum over all processes and copy to the host; the only synchronization of the epoch."""
        assert self._sum is not None, "an epoch has at least one batch"
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._sum)
        return dict(zip(COUNTS, self._sum.tolist()))


def epoch_generator(seed: int, rank: int, epoch: int) -> torch.Generator:
    """Start the epoch's draws from (seed, rank, epoch), so that resuming needs no saved state and repeats nothing."""
    mixed = np.random.SeedSequence((seed, rank, epoch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def register(logger: MetaLogger, epoch: int, key: str = COUNT_KEY, names: Sequence[str] = LOGGED) -> None:
    """Make nnU-Net's logger know names, with `key` in front; epochs before `epoch` that lack them read NaN.

    Names of an earlier version go: nnU-Net draws its progress only as far as its shortest list is long.
    """
    log = logger.local_logger.my_fantastic_logging
    for old in [name for name in log if name.startswith(key) and name.removeprefix(key) not in names]:
        del log[old]
    for name in names:
        kept = log.get(key + name, [])[:epoch]
        log[key + name] = kept + [math.nan] * (epoch - len(kept))


def history(logger: MetaLogger, key: str = COUNT_KEY, names: Sequence[str] = LOGGED) -> dict[str, list[float]]:
    """Return each name's values, one per epoch."""
    return {name: logger.get_value(key + name, step=None) for name in names}


def ungate(synthesizer: Planter, logger: MetaLogger) -> list[str]:
    """Let size classes pass of which the judge has accepted hardly any so far, and warn of the new ones.

    The logged epochs alone decide, so that a training that is continued goes on as if it had not stopped.
    """
    gate, least_share = synthesizer.gate, synthesizer.section.min_accepted_share
    if not isinstance(gate, JudgeGate):
        return []
    before, log = gate.ungated, history(logger)
    gate.ungated = frozenset(size for size in range(len(SIZE_NAMES)) if _least_accepted(log, size) < least_share)
    return [
        f"WARNING: FreeTumor: so far the judge accepted only {100 * _least_accepted(log, size):.0f} % of the "
        f"lesions of {SIZE_NAMES[size]}, fewer than {100 * least_share:.0f} % (min_accepted_share): too few "
        "would remain. From now on they are kept regardless."
        for size in sorted(gate.ungated - before)
    ]


def _least_accepted(log: dict[str, list[float]], size: int) -> float:
    """Compute the smallest accepted share of all lesions judged so far, over the epochs with enough of them."""
    accepted, judged = (np.nancumsum(log[names[size]]) for names in (ACCEPTED, JUDGED))
    enough = judged >= LEAST_JUDGED
    return float((accepted[enough] / judged[enough]).min(initial=1.0))


def report(counts: Counts, synthesizer: Planter, logger: MetaLogger, repair_commands: str) -> list[str]:
    """Report an epoch that has been logged, with its warnings, for nnU-Net's log."""
    lines = epoch_lines(counts, synthesizer.gate) + warnings(counts, repair_commands)
    return lines + ungate(synthesizer, logger)


def epoch_lines(counts: Counts, gate: Gate | None = None) -> list[str]:
    """Report an epoch for nnU-Net's log."""
    sizes = ", ".join(f"{name}: {counts[name]:.0f}" for name in SIZE_NAMES)
    return [
        f"FreeTumor: of {counts['samples']:.0f} samples {counts['eligible']:.0f} eligible, {counts['planted']:.0f} "
        f"planted, {counts['no_room']:.0f} without room, {counts['too_faint']:.0f} with a lesion too faint; of "
        f"{counts['tumor_free']:.0f} tumor-free host patches {counts['untouched_tumor_free']:.0f} untouched",
        f"FreeTumor: lesions {sizes}; {100 * _saturated_share(counts):.1f} % of their voxels saturated",
        recognition_line(counts),
        *_judge_lines(counts, gate.ungated if isinstance(gate, JudgeGate) else frozenset()),
    ]


def recognition_line(counts: Counts) -> str:
    """Report which share of the planted lesions the training network recognized."""
    shares = [
        f"{name} {100 * counts[seen] / counts[watched]:.0f}"
        for name, watched, seen in zip(SIZE_NAMES, WATCHED, RECOGNIZED)
        if counts[watched]
    ]
    total = recognized_share(counts)
    return (
        f"FreeTumor: planted lesions recognized: {100 * total:.0f} % ({', '.join(shares)})" if shares else NONE_WATCHED
    )


def slow_start(logger: MetaLogger, epochs: int) -> list[str]:
    """Warn, once, where a training does not begin to recognize what is planted."""
    log = history(logger)
    due = min(PATIENCE_EPOCHS, math.ceil(PATIENCE_SHARE * epochs))
    seen, watched = (np.nansum([log[name] for name in names], axis=0) for names in (RECOGNIZED, WATCHED))
    if len(watched) != due or not watched.sum() or seen.sum():
        return []
    return [
        f"WARNING: FreeTumor: up to epoch {due - 1} the network recognizes none of the {watched.sum():.0f} lesions "
        "planted so far. Look at freetumor_first_batch.png: can you see them? If they are small or faint for the "
        "training spacing, plant larger or bolder ones first ('sizes', 'k_mean', 'min_visibility' in the plans' "
        "freetumor section). If the training loss does not fall either, suspect the learning rate."
    ]


def _judge_lines(counts: Counts, ungated: frozenset[int]) -> list[str]:
    shares = []
    for size, names in enumerate(zip(SIZE_NAMES, ACCEPTED, JUDGED)):
        accepted, judged = counts[names[1]], counts[names[2]]
        stays = " (kept anyway)" if size in ungated else ""
        if judged:
            shares.append(f"{names[0]}: {accepted:.0f} of {judged:.0f} ({100 * accepted / judged:.0f} %){stays}")
    if not shares:
        return []
    return [
        f"FreeTumor: judge accepted {', '.join(shares)}; {counts['rejected']:.0f} samples unchanged because all "
        "their lesions were rejected"
    ]


def warnings(counts: Counts, repair_commands: str) -> list[str]:
    """Warn of an epoch that planted into too few samples, or whose lesions the clip window hides."""
    eligible_share = counts["eligible"] / counts["samples"]
    texts = []
    if eligible_share < LEAST_ELIGIBLE_SHARE:
        texts.append(
            f"WARNING: FreeTumor: only {100 * eligible_share:.0f} % of the samples are eligible (show the host), fewer "
            "than 20 %: few tumors are planted. A trainer with a larger oversample_foreground_percent, or a larger "
            "patch, shows the host more often."
        )
    if _saturated_share(counts) > MOST_SATURATED_SHARE:
        texts.append(
            f"WARNING: FreeTumor: {100 * _saturated_share(counts):.0f} % of the lesion voxels are saturated, more than "
            "5 %: nnU-Net's clip window cuts these tumors off, in training and at prediction. Widen it, preprocess "
            f"again, and restart this training:\n{repair_commands}"
        )
    return texts


def _saturated_share(counts: Counts) -> float:
    return counts["saturated_voxels"] / max(counts["lesion_voxels"], 1.0)
