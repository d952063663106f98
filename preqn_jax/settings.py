"""Typed configuration: dataclass fields that carry their own help, unit and range, and one check of them all."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
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
      structural: whether the compiled program depends on the value, so that learners which differ in it cannot share
        one; a number without this may be traced.
      formerly: the field's name in earlier versions, whose records are read; on the command line it is refused.
    """

    help: str
    interval: str | None = None
    choices: tuple[str, ...] | None = None
    structural: bool = False
    formerly: str | None = None


class Options(dict[str, Any]):
    """Values by names that are not this library's, an environment's constructor arguments for example.

    Holds what JSON can hold, lists as tuples, so that it can be hashed like every other value of a configuration and
    is the same when a run's record is read again. Do not change one: :func:`replace` makes another.
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
) -> Any:  # Any: so that the annotation of the field, not of this function, is what a type checker sees
    """A dataclass field with a :class:`Rule`."""
    rule = Rule(help, interval, tuple(choices) if choices is not None else None, structural, formerly)
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


def find(config: Any, path: str, what: str = "field") -> Leaf:
    """The field at a dotted path, which may end with a name in :class:`Options`: ``env.kwargs.size``.

    Raises:
      SettingError: for an unknown field, which the message calls ``what``, with the nearest that exists.
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


def renamed(config: Any, path: str) -> str | None:
    """The path of the field that had this one in earlier versions, if there is such a field."""
    for leaf in leaves(config):
        owner, dot, _ = leaf.path.rpartition(".")
        if leaf.rule.formerly and path == f"{owner}{dot}{leaf.rule.formerly}":
            return leaf.path
    return None


def replace(config: Any, path: str, value: Any) -> Any:
    """A copy of a configuration with the field at a dotted path changed."""
    if isinstance(config, Options):
        return Options({**config, path: value})
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
        if isinstance(leaf.value, Options):
            _check_json(leaf)


def _check_json(leaf: Leaf) -> None:
    for name, value in leaf.value.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise SettingError(f"config.{leaf.path}.{name} cannot be kept with the run: {error}; allowed: what JSON "
                               "can hold") from None  # fmt: skip


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist, with the nearest that does."""
    known = sorted(known)
    return f"{what}={given} is unknown; did you mean {nearest(given, known)}? (allowed: {', '.join(known)})"


def nearest(given: str, known: Iterable[str]) -> str:
    """The known name most like the given one."""
    return max(known, key=lambda name: difflib.SequenceMatcher(None, given.lower(), name.lower()).ratio())


def first_line(thing: object) -> str:
    """What fits into a message of one line of an exception, or of anything else with a long text."""
    return next((line.strip() for line in str(thing).splitlines() if line.strip()), type(thing).__name__)


def spell(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, Options):
        return json.dumps(value)
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


def hashable(value: Any) -> Any:
    """A JSON value with its lists as tuples and its objects as :class:`Options`."""
    if isinstance(value, Mapping):
        return Options(value)
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value


def _json_or_text(text: str) -> Any:
    """The value that JSON, or Python's name of a constant, spells; other text stands for itself.

    Raises:
      ValueError: for what begins like a list, an object or a quoted text and is none.
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


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a comma-separated list of {typing.get_args(kind)[0].__name__}"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a string",
        Options: 'a JSON object, {"size": 5} for example',
        Any: 'a JSON value, 5, true, [0.2, 1] or "text" for example',
    }
    return names[kind]
