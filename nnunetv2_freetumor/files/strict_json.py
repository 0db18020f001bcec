"""Read JSON into frozen dataclasses, refusing unknown keys, missing keys, wrong types and wrong values by name."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple


class ValueRule(NamedTuple):
    """What a setting's value must be; of a tuple, each of its numbers."""

    text: str  # goes on after the setting's name: "must not be negative"
    holds: Callable[[Any], bool]


def each(text: str, holds: Callable[[float], bool]) -> ValueRule:
    """Ask the same of a number, or of each number in a tuple."""
    return ValueRule(text, lambda value: all(map(holds, value if isinstance(value, tuple) else (value,))))


def between(low: float, high: float) -> ValueRule:
    """Ask for a number from `low` to `high`, both included."""
    return each(f"must lie between {low} and {high}", lambda number: low <= number <= high)


def rising(what: str, above: float = -math.inf) -> ValueRule:
    """Ask for two finite numbers, the first above a bound and below the second."""
    return ValueRule(f"must be two rising {what}", lambda pair: above < pair[0] < pair[1] < math.inf)


NOT_NEGATIVE = each("must not be negative", lambda number: number >= 0)
POSITIVE = each("must be above 0", lambda number: 0 < number < math.inf)
AT_LEAST_ONE = each("must be at least 1", lambda number: number >= 1)
SHARE = between(0, 1)
SHARE_BELOW_ONE = each("must lie between 0 and 1, 1 excluded", lambda number: 0 <= number < 1)


def check_all(owner: object, rules: Mapping[str, ValueRule]) -> None:
    """Check an object's settings by a table of rules; a setting that is None is not checked.

    Raises:
        ValueError: names the first setting that breaks its rule.
    """
    for setting, rule in rules.items():
        value = getattr(owner, setting)
        check(value is None or rule.holds(value), setting, rule.text, value)


def check(condition: bool, setting: str, rule: str, value: object) -> None:
    """Raise a `ValueError` that names the setting, the rule and the value, unless the condition holds."""
    if not condition:
        raise ValueError(f"freetumor plans: '{setting}' {rule}, but it is {value!r}.")


def read_as(kind: Any, value: Any, where: str) -> Any:
    """Read a JSON value as a type; `where` names it in errors.

    Raises:
        ValueError: an unknown or missing key, a wrong type, or a value that the type itself refuses.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is Literal:
        check(value in arguments, where, f"must be one of {', '.join(map(repr, arguments))}", value)
        return value
    if origin is types.UnionType:
        return None if value is None else read_as(arguments[0], value, where)
    if origin is dict:
        check(isinstance(value, dict), where, "must be an object", value)
        return value
    number = kind is float and isinstance(value, int) and not isinstance(value, bool)
    check(number or type(value) is kind, where, f"must be of type {kind.__name__}", value)
    return kind(value)


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    check(isinstance(value, dict), where, "must be an object", value)
    known = {item.name: item for item in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(known))
    check(not unknown, where, f"has unknown keys; allowed are {', '.join(known)}", ", ".join(unknown))
    needed = [n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING and n not in value]
    check(not needed, where, f"lacks the keys {', '.join(needed)}", value)
    hints = typing.get_type_hints(kind)
    return kind(**{name: read_as(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    check(isinstance(value, list | tuple), where, "must be a list", value)
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    check(len(value) == len(arguments), where, f"must hold {len(arguments)} values", value)
    return tuple(read_as(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value)))
