"""Read from dataset.json, and from the plans where they are given, what is to be scored and what the numbers mean."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_freetumor.evaluation.scores import Pair
from nnunetv2_freetumor.plan import SECTION, read_section
from nnunetv2_freetumor.planning import roles


class Labels(NamedTuple):
    """The labels of a dataset as evaluation needs them."""

    pairs: tuple[Pair, ...]
    values: frozenset[int]  # that a label map may hold, background and ignore label among them
    ignore: int | None
    file_ending: str
    channels: tuple[tuple[int, ...], ...]  # label values behind each channel of nnU-Net's probabilities

    def channel_of(self, pair: Pair) -> int | None:
        """Give the channel of nnU-Net's probabilities that is a pair's tumor; None where no channel is exactly that."""
        return self.channels.index(pair.tumor) if pair.tumor in self.channels else None


def read_labels(dataset_json: str | Path, plans_file: str | Path | None = None) -> Labels:
    """Read what to score: tumors and hosts from the plans' section, or else from the label names.

    Raises:
        ValueError: a file is missing or incomplete, or no label can be told to be a tumor; the text says what to do.
    """
    path = Path(dataset_json)
    data = read_json(path, "-djfile", ("labels", "file_ending"))
    plans = {} if plans_file is None else read_json(Path(plans_file), "-pfile", ())
    entries = {name: _values(value) for name, value in data["labels"].items()}
    ignore = entries.get("ignore", (None,))[0]
    foreground = [values for name, values in entries.items() if name != "ignore" and set(values) != {0}]
    labels = {value for values in entries.values() for value in values}
    by_region = any(len(values) > 1 for values in foreground)
    channels = foreground if by_region else [(value,) for value in sorted(labels - {ignore})]
    return Labels(
        pairs=_pairs(path, data, plans, entries),
        values=frozenset(labels | {0}),
        ignore=ignore,
        file_ending=data["file_ending"],
        channels=tuple(channels),
    )


def read_json(path: Path, flag: str, keys: Sequence[str]) -> dict[str, Any]:
    """Read an object from a JSON file and refuse one that lacks a key.

    Raises:
        ValueError: names the file, the option it was given by, and what is wrong.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}; {flag} must name an existing JSON file.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} ({flag}) cannot be read as JSON: {error}.") from error
    missing = [key for key in keys if key not in data] if isinstance(data, dict) else ["object of keys and values"]
    if missing:
        raise ValueError(f"{path} ({flag}) must hold {', '.join(map(repr, keys)) or 'an object'}, but lacks {missing}.")
    return data


def _pairs(
    path: Path, data: dict[str, Any], plans: dict[str, Any], entries: dict[str, tuple[int, ...]]
) -> tuple[Pair, ...]:
    """Make a pair of each tumor label; a label that means tumors of several hosts is scored once, in all of them."""
    hosts: dict[int, set[int]] = {}
    names: dict[int, str] = {values[0]: name for name, values in reversed(entries.items()) if len(values) == 1}
    for item in _targets(path, data, plans):
        hosts.setdefault(item.tumor_label, set()).update(item.host_labels)
        names.setdefault(item.tumor_label, item.name)
    return tuple(Pair(names[tumor], (tumor,), tuple(sorted(host))) for tumor, host in hosts.items())


def _targets(path: Path, data: dict[str, Any], plans: dict[str, Any]) -> Sequence[Any]:
    if SECTION in plans:
        section = read_section(plans[SECTION])
        if section.labels != data["labels"]:
            raise ValueError(
                f"The plans' freetumor section was made for the labels {section.labels}, but {path} has "
                f"{data['labels']}. Give the plans and the dataset.json of one dataset, or leave -pfile out."
            )
        return section.targets
    name = plans.get("dataset_name") or data.get("name") or path.absolute().parent.name
    try:
        return roles.resolve(data, name, plans.get(roles.ROLES))
    except ValueError as error:
        raise ValueError(f"{path}: {error} Give that plans file with -pfile.") from error


def _values(value: Any) -> tuple[int, ...]:
    return tuple(sorted({int(v) for v in value})) if isinstance(value, list | tuple) else (int(value),)
