"""Typed configuration: dataclass fields that carry their own help, unit and range, and one check of them all."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator
from typing import Any


class SettingError(ValueError):
    """A configuration value that cannot be used; the message is one line fit for a user."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field means and may be.

    Attributes:
      help: one line, with the unit in brackets.
      interval: allowed numbers in mathematical notation, "(0, 1]"; for a tuple, of each entry.
      choices: allowed values.
    """

    help: str
    interval: str | None = None
    choices: tuple[str, ...] | None = None


def setting(
    default: Any, help: str, *, interval: str | None = None, choices: Iterable[str] | None = None
) -> Any:  # Any: so that the annotation of the field, not of this function, is what a type checker sees
    """A dataclass field with a :class:`Rule`."""
    rule = Rule(help, interval, tuple(choices) if choices is not None else None)
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One field of a nested configuration: its dotted path, type, value and rule."""

    path: str
    type: Any
    value: Any
    rule: Rule


def leaves(config: Any, prefix: str = "") -> Iterator[Leaf]:
    """All fields of a configuration, depth first in the order of their definition."""
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        path, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, path + ".")
        else:
            yield Leaf(path, types[field.name], value, field.metadata["rule"])


def replace(config: Any, path: str, value: Any) -> Any:
    """A copy of a configuration with the field at a dotted path changed."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: replace(getattr(config, name), rest, value) if rest else value})


def parse(leaf: Leaf, text: str) -> Any:
    """The value that ``text`` spells for a field.

    Raises:
      SettingError: naming the field, the text and what is allowed.
    """
    try:
        if leaf.type is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_origin(leaf.type) is tuple:
            (entry, _) = typing.get_args(leaf.type)
            return tuple(entry(item) for item in text.strip("()[] ").split(",") if item.strip())
        if leaf.type is int:
            return int(text.replace("_", "")) if "e" not in text.lower() else _whole(float(text))
        return leaf.type(text)
    except (ValueError, KeyError, OverflowError):
        raise SettingError(f"config.{leaf.path}={text} is not {_type_name(leaf.type)}{_allowed(leaf.rule)}") from None


def check(config: Any) -> None:
    """Checks every field against its rule.

    Raises:
      SettingError: for the first field out of range: its name, value, what is allowed and the nearest choice.
    """
    for leaf in leaves(config):
        rule = leaf.rule
        if rule.choices is not None and leaf.value not in rule.choices:
            raise SettingError(unknown(f"config.{leaf.path}", leaf.value, rule.choices))
        values = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
        if rule.interval is not None and not all(_inside(value, rule.interval) for value in values):
            raise SettingError(f"config.{leaf.path}={spell(leaf.value)} is out of range{_allowed(rule)}")


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist, with the nearest that does."""
    known = sorted(known)
    return f"{what}={given} is unknown; did you mean {nearest(given, known)}? (allowed: {', '.join(known)})"


def nearest(given: str, known: Iterable[str]) -> str:
    """The known name most like the given one."""
    return max(known, key=lambda name: difflib.SequenceMatcher(None, given.lower(), name.lower()).ratio())


def spell(value: Any) -> str:
    """A value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a configuration, as JSON takes it."""
    return dataclasses.asdict(config)


def describe(leaf: Leaf) -> str:
    """Help for one field: meaning, unit, range."""
    return leaf.rule.help + _allowed(leaf.rule)


def _inside(value: float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return above and below


def _allowed(rule: Rule) -> str:
    if rule.choices is not None:
        return f"; allowed: {', '.join(rule.choices)}"
    return f"; allowed: {rule.interval}" if rule.interval is not None else ""


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError
    return int(value)


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a comma-separated list of {typing.get_args(kind)[0].__name__}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[kind]
