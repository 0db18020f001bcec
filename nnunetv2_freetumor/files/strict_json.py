"""Read JSON into frozen dataclasses, refusing unknown keys, missing keys and wrong types by name."""

import dataclasses
import types
import typing
from typing import Any, Literal


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
    check(not unknown, where, f"knows only the keys {', '.join(known)}", ", ".join(unknown))
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
