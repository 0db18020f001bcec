"""The dataset's labels as the pool sees them, and which of them the name of a third-party mask means."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nnunetv2_freetumor.plan import Section
from nnunetv2_freetumor.planning import roles


class PoolLabels(NamedTuple):
    """A dataset's labels, and which of their values are hosts and lesions."""

    labels: list[roles.Label]
    hosts: frozenset[int]
    lesions: frozenset[int]  # all tumors and cysts: never taught as organ, never annotated in a pool
    ignore: int

    def lesion_names(self) -> list[str]:
        """Return the names of the labels that hold nothing but lesions."""
        return [label.name for label in self.labels if label.values <= self.lesions]

    def organs(self) -> frozenset[int]:
        """Return the values that masks must annotate before the rest of a scan counts as background."""
        return frozenset[int]().union(*(label.values for label in self.labels)) - self.lesions

    def named(self, name: str) -> int:
        """Return the value of one of the dataset's labels, without the lesions that a region may include.

        Raises:
            ValueError: the dataset has no such label, or the label has several values.
        """
        for label in self.labels:
            values = label.values if label.values <= self.lesions else label.values - self.lesions
            if _plain(label.name) == _plain(name) and len(values) == 1:
                return min(values)
        known = ", ".join(repr(label.name) for label in self.labels)
        raise ValueError(f"The dataset has no label '{name}' with a single value; its labels are {known}.")

    def matched(self, name: str) -> int | None:
        """Return the value that a mask's name means: of the label with that name, or that organ and side; None if none.

        A name with a word for lesions means a lesion.
        """
        exact = [label for label in self.labels if _plain(label.name) == _plain(name)]
        if exact:
            return self.named(name)
        words = roles.split_words(name)
        if words & roles.LESION_WORDS:
            return min(self.lesions)
        for organ in roles.ORGAN_WORDS.values():
            found = [label for label in self.labels if self._is_organ(label, organ, words)]
            if words & organ and not words & roles.ELSEWHERE and len(found) == 1:
                return self.named(found[0].name)
        return None

    def _is_organ(self, label: roles.Label, organ: set[str], words: frozenset[str]) -> bool:
        sides = [side for side in roles.SIDES if side in label.words]
        names_it = bool(label.words & organ) and not label.words & roles.ELSEWHERE and not label.values <= self.lesions
        return names_it and all(side in words for side in sides)


def pool_labels(section: Section, dataset_json: dict[str, Any], ignore: int) -> PoolLabels:
    """Read from the section which labels are hosts and which are lesions."""
    hosts = frozenset(value for target in section.targets for value in target.host_labels)
    lesions = frozenset(v for target in section.targets for v in (target.tumor_label, *target.lesion_labels))
    return PoolLabels(roles.read_labels(dataset_json["labels"]), hosts, lesions, ignore)


def value_for(name: str, known: PoolLabels, name_map: Mapping[str, str]) -> int | None:
    """Return the value that a mask's name means, by the name map if it lists that name; None without one."""
    return known.named(name_map[name]) if name in name_map else known.matched(name)


def annotated_values(names: Mapping[str, int], known: PoolLabels) -> frozenset[int]:
    """Return the values that masks of these names annotate; one kidney of two does not annotate 'kidney'."""
    whole = set()
    for value in set(names.values()) - known.lesions:
        sides = {side for name, v in names.items() if v == value for side in _sides(name)}
        label = next(label for label in known.labels if value in label.values)
        if len(sides) != 1 or sides <= label.words:
            whole.add(value)
    return frozenset(whole)


def _sides(name: str) -> Iterable[str]:
    return roles.split_words(name) & set(roles.SIDES)


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
