"""Match the names of somebody else's masks with a dataset's labels: by name, by organ, or by a name map."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nnunetv2_freetumor.plan import Section
from nnunetv2_freetumor.planning import roles


class PoolLabels(NamedTuple):
    """What a dataset's label values mean to the pool."""

    labels: list[roles.Label]
    hosts: frozenset[int]
    lesions: frozenset[int]  # all tumors and cysts: never taught as organ, never annotated in a pool
    ignore: int

    def lesion_names(self) -> list[str]:
        """Name the labels that are lesions throughout."""
        return [label.name for label in self.labels if label.values <= self.lesions]

    def organs(self) -> frozenset[int]:
        """Give the values that masks have to annotate before what is left of a scan counts as background."""
        return frozenset[int]().union(*(label.values for label in self.labels)) - self.lesions

    def named(self, name: str) -> int:
        """Give the value that a dataset's label stands for, without the lesions that its region may include.

        Raises:
            ValueError: the dataset has no such label, or it stands for several.
        """
        for label in self.labels:
            values = label.values if label.values <= self.lesions else label.values - self.lesions
            if _plain(label.name) == _plain(name) and len(values) == 1:
                return min(values)
        known = ", ".join(repr(label.name) for label in self.labels)
        raise ValueError(f"The dataset has no single label '{name}'; its labels are {known}.")

    def matched(self, name: str) -> int | None:
        """Give the value for a mask's name: of the label with that name, or with that organ and side; None without one.

        A name that tells of lesions stands for a lesion.
        """
        exact = [label for label in self.labels if _plain(label.name) == _plain(name)]
        if exact:
            return self.named(name)
        words = roles.split_words(name)
        if words & roles.LESIONS:
            return min(self.lesions)
        for organ in roles.HOSTS.values():
            found = [label for label in self.labels if self._is_organ(label, organ, words)]
            if words & organ and not words & roles.ELSEWHERE and len(found) == 1:
                return self.named(found[0].name)
        return None

    def _is_organ(self, label: roles.Label, organ: set[str], words: frozenset[str]) -> bool:
        sides = [side for side in roles.SIDES if side in label.words]
        names_it = bool(label.words & organ) and not label.words & roles.ELSEWHERE and not label.values <= self.lesions
        return names_it and all(side in words for side in sides)


def pool_labels(section: Section, dataset_json: dict[str, Any], ignore: int) -> PoolLabels:
    """Take from the section which labels are hosts and which lesions."""
    hosts = frozenset(value for target in section.targets for value in target.host_labels)
    lesions = frozenset(v for target in section.targets for v in (target.tumor_label, *target.lesion_labels))
    return PoolLabels(roles.read_labels(dataset_json["labels"]), hosts, lesions, ignore)


def value_for(name: str, known: PoolLabels, name_map: Mapping[str, str]) -> int | None:
    """Give the value for a mask's name, by the name map where it has that name."""
    return known.named(name_map[name]) if name in name_map else known.matched(name)


def annotated_values(names: Mapping[str, int], known: PoolLabels) -> frozenset[int]:
    """Tell which labels the masks of these names annotate; one kidney of two does not annotate 'kidney'."""
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
