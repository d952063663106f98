"""Typed configuration: dataclass fields with their help, unit and range, and a check of all fields."""

from __future__ import annotations

import dataclasses
import difflib
import json
import numbers
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

T = typing.TypeVar("T")


class SettingError(ValueError):
    """An invalid configuration value; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """The meaning of a field, and the constraints on its value.

    Attributes:
      help: one line, with the unit in brackets.
      interval: interval of allowed numbers in mathematical notation, "(0, 1]"; for a tuple, it applies to each entry.
      choices: allowed values.
      structural: whether the compiled program depends on the value, so that learners with different values cannot share
        a program; a number that is not structural may be traced.
      formerly: name of the field in earlier versions. Records with this name can be read; the command line rejects it.
      absent: value that reproduces runs whose record was written before the field existed; None if such records cannot
        be read.
    """

    help: str
    interval: str | None = None
    choices: tuple[str, ...] | None = None
    structural: bool = False
    formerly: str | None = None
    absent: Any = None


class Options(dict[str, Any]):
    """Values by names that this library does not define, for example arguments of an environment's constructor.

    The values are those of JSON, with tuples for lists, so that the options can be hashed like every other value of a
    configuration, and are the same after a run's record has been read. Do not modify options in place; use
    :func:`replace`.
    """

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()):
        super().__init__({name: hashable(value) for name, value in dict(values).items()})

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def setting(
    default: Any,
    help: str,
    *,
    interval: str | None = None,
    choices: Iterable[str] | None = None,
    structural: bool = False,
    formerly: str | None = None,
    absent: Any = None,
) -> Any:  # Any, so that type checkers use the annotation of the field instead of that of this function
    """Creates a dataclass field with a :class:`Rule`."""
    rule = Rule(help, interval, tuple(choices) if choices is not None else None, structural, formerly, absent)
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One field of a nested configuration: its dotted path, type, value and constraints."""

    path: str
    type: Any
    value: Any
    rule: Rule


def leaves(config: Any, prefix: str = "") -> Iterator[Leaf]:
    """Yields all fields of a configuration, depth first, in the order of their definition."""
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        path, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, path + ".")
        else:
            yield Leaf(path, types[field.name], value, field.metadata["rule"])


def find(config: Any, path: str, what: str = "field") -> Leaf:
    """Returns the field at a dotted path, which may end with a name in :class:`Options`: ``env.kwargs.size``.

    Raises:
      SettingError: if the field is unknown; the message calls it ``what``, and suggests the nearest known field.
    """
    known = {leaf.path: leaf for leaf in leaves(config)}
    if path in known:
        return known[path]
    for owner, leaf in known.items():
        name = path.removeprefix(f"{owner}.")
        if isinstance(leaf.value, Options) and name not in ("", path):
            return Leaf(path, Any, leaf.value.get(name), leaf.rule)
    if new := renamed(config, path):
        raise SettingError(f"{what}={path} has been renamed; use {new}")
    raise SettingError(unknown(what, path, known))


def assign(config: T, path: str, value: Any) -> T:
    """Returns a copy of a configuration with a value from Python, or its text, for the field at a dotted path.

    A whole number may be a float, such as 1e6. Only names in :class:`Options` can have texts as values; for all other
    fields, a text is parsed.

    Raises:
      SettingError: if the field is unknown, or a text is not a value of the field's type. Other values are checked by
        :func:`check`.
    """
    leaf = find(config, path)
    if isinstance(value, str) and leaf.type is not Any:
        return replace(config, path, parse(leaf, value))
    if leaf.type is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    return replace(config, path, hashable(value))


def renamed(config: Any, path: str) -> str | None:
    """The current path of a field that had this path in earlier versions; None if there is no such field."""
    for leaf in leaves(config):
        owner, dot, _ = leaf.path.rpartition(".")
        if leaf.rule.formerly and path == f"{owner}{dot}{leaf.rule.formerly}":
            return leaf.path
    return None


def replace(config: Any, path: str, value: Any) -> Any:
    """Returns a copy of a configuration with a new value for the field at a dotted path."""
    if isinstance(config, Options):
        return Options({**config, path: value})
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: replace(getattr(config, name), rest, value) if rest else value})


def parse(leaf: Leaf, text: str) -> Any:
    """Parses the text of a command-line flag as a value of a field.

    Raises:
      SettingError: if the text is not a value of the field's type; the message states what is allowed.
    """
    try:
        if leaf.type is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_origin(leaf.type) is tuple:
            (entry, _) = typing.get_args(leaf.type)
            return tuple(entry(item) for item in text.strip("()[] ").split(",") if item.strip())
        if leaf.type is Options:
            return Options(json.loads(text))
        if leaf.type is Any:
            return hashable(_json_or_text(text))
        if leaf.type is int:
            return int(text.replace("_", "")) if "e" not in text.lower() else _whole(float(text))
        return leaf.type(text)
    except (ValueError, KeyError, OverflowError, TypeError):
        raise SettingError(f"config.{leaf.path}={text} is not {_type_name(leaf.type)}{_allowed(leaf.rule)}") from None


def check(config: Any) -> None:
    """Checks every field against its constraints.

    Raises:
      SettingError: if a value is invalid (the first one found); the message states what is allowed, and the nearest
        choice.
    """
    for leaf in leaves(config):
        rule = leaf.rule
        if not _is_a(leaf.value, leaf.type):
            wanted = _type_name(leaf.type, sequence="tuple")
            raise SettingError(f"config.{leaf.path}={leaf.value!r} is not {wanted}{_allowed(rule)}")
        if rule.choices is not None and leaf.value not in rule.choices:
            raise SettingError(unknown(f"config.{leaf.path}", leaf.value, rule.choices))
        values = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
        if rule.interval is not None and not all(_inside(value, rule.interval) for value in values):
            raise SettingError(f"config.{leaf.path}={spell(leaf.value)} is out of range{_allowed(rule)}")
        if isinstance(leaf.value, Options):
            _check_json(leaf)


def _check_json(leaf: Leaf) -> None:
    for name, value in leaf.value.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise SettingError(f"config.{leaf.path}.{name} cannot be saved with the run: {error}; allowed: values that "
                               "JSON can represent") from None  # fmt: skip


def check_multiple(name: str, value: int, of: str, unit: int) -> None:
    """Raises SettingError unless the value is a multiple of another; the message states the nearest positive one."""
    if value % unit:
        raise SettingError(
            f"{name}={value} must be a multiple of {of}={unit}; nearest: {max(unit, round(value / unit) * unit)}"
        )


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """An error message for an unknown name, which suggests the nearest known name."""
    known = sorted(known)
    return f"{what}={given} is unknown; did you mean {nearest(given, known)}? (allowed: {', '.join(known)})"


def nearest(given: str, known: Iterable[str]) -> str:
    """The known name that is most similar to the given one."""
    return max(known, key=lambda name: difflib.SequenceMatcher(None, given.lower(), name.lower()).ratio())


def first_line(thing: object) -> str:
    """The first line of the text of an exception, or of any other object, that is not empty."""
    return next((line.strip() for line in str(thing).splitlines() if line.strip()), type(thing).__name__)


def spell(value: Any) -> str:
    """Formats a value as on the command line."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a configuration to nested plain dictionaries, for JSON."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    """Replaces NumPy's numbers, which JSON does not know, by Python's."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value.item() if hasattr(value, "item") else value


def describe(leaf: Leaf) -> str:
    """Help for one field: meaning, unit, range."""
    return leaf.rule.help + _allowed(leaf.rule)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value has the type of a field; whole numbers are numbers, but true and false are not."""
    if kind is Any:
        return True
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(entry, typing.get_args(kind)[0]) for entry in value)
    general = {int: numbers.Integral, float: numbers.Real, Options: Mapping}
    return isinstance(value, general.get(kind, kind)) and (kind is bool or not isinstance(value, bool))


def _inside(value: float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return above and below


def _allowed(rule: Rule) -> str:
    if rule.choices is not None:
        return f"; allowed: {', '.join(rule.choices)}"
    return f"; allowed: {rule.interval}" if rule.interval is not None else ""


def hashable(value: Any) -> Any:
    """Converts a JSON value to a hashable one, with tuples for lists and :class:`Options` for objects."""
    if isinstance(value, Mapping):
        return Options(value)
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value


def _json_or_text(text: str) -> Any:
    """Parses JSON, or the name of a Python constant; returns any other text as it is.

    Raises:
      ValueError: if the text begins like a list, an object or a string of JSON, but is not valid JSON.
    """
    constants = {"True": True, "False": False, "None": None}
    if text in constants:
        return constants[text]
    try:
        return json.loads(text)
    except ValueError:
        if text.startswith(("[", "{", '"', "(", "'")):
            raise
        return text


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError
    return int(value)


def _type_name(kind: Any, sequence: str = "comma-separated list") -> str:
    if typing.get_origin(kind) is tuple:
        return f"a {sequence} of {typing.get_args(kind)[0].__name__}"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a string",
        Options: 'a JSON object, for example {"size": 5}',
        Any: 'a JSON value, for example 5, true, [0.2, 1] or "text"',
    }
    return names[kind]
