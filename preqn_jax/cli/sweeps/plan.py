"""The plan of a sweep: points of a grid, seeds, and the units in which they are run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from preqn_jax import settings
from preqn_jax.settings import Leaf, SettingError
from preqn_jax.training import presets
from preqn_jax.training.config import Config, check_config
from preqn_jax.training.device import Member
from preqn_jax.training.files import replace_file

PLAN = "plan.json"  # in the directory of every sweep
_EXAMPLE = "agent.min_alignment=0.9,0.97"

_RESERVED = ("seed", "num_seeds", "total_steps")


class Axis(NamedTuple):
    """An axis of the grid: a field of the configuration and its values."""

    path: str
    values: tuple[Any, ...]


class Run(NamedTuple):
    """One learner of the sweep: its number, the value of each axis, and its seed."""

    number: int
    point: dict[str, Any]
    seed: int


class Unit(NamedTuple):
    """Runs that one process trains together: a population on the device, or a single run on the CPU.

    Attributes:
      name: name of the work directory.
      config: configuration without the fields that differ between the runs.
      runs: runs of the unit.
      members: members of the population, one per run; None for a run on the CPU.
    """

    name: str
    config: Config
    runs: tuple[Run, ...]
    members: tuple[Member, ...] | None

    @property
    def steps(self) -> int:
        """The length of the runs [environment steps]."""
        return self.config.total_steps

    def command(self, folder: pathlib.Path) -> list[str]:
        """The command that runs the unit."""
        return [sys.executable, "-m", "preqn_jax.cli.sweeps.unit", f"--out={folder}", f"--unit={self.name}"]


def parse_axes(config: Config, texts: Sequence[str]) -> list[Axis]:
    """Parses the values of ``--grid``, for example ``agent.min_alignment=0.9,0.97``.

    Raises:
      SettingError: if a field is unknown (the message suggests the nearest known field) or a value is invalid.
    """
    axes = []
    for text in texts:
        path, separator, values = text.partition("=")
        if not separator or not path:
            raise SettingError(f"--grid={text} needs a field and its values, for example --grid {_EXAMPLE}")
        if path in _RESERVED:
            raise SettingError(f"--grid {text}: {path} cannot be varied by the grid; use the sweep's own flags")
        field = settings.find(config, path, "--grid field")
        axis = Axis(path, _parse_values(field, values))
        if not axis.values or len(set(axis.values)) < len(axis.values):
            example = _lists(field) if _is_list(field) else _EXAMPLE
            raise SettingError(f"--grid {text} needs distinct values, for example --grid {example}")
        axes.append(axis)
    if len({axis.path for axis in axes}) < len(axes):
        raise SettingError("--grid contains a field twice; give all values of a field in one --grid")
    return axes


def _parse_values(field: Leaf, text: str) -> tuple[Any, ...]:
    """Parses the values of an axis; commas separate numbers, or the entries of a list, and semicolons the lists."""
    is_list, separator = _is_list(field), ";" if _is_list(field) or ";" in text else ","
    if is_list and "," in text and not {";", "[", "("} & set(text):
        # Several values may be meant, or the shell has ended the command at a semicolon without quotes.
        numbers = [number for number in text.split(",") if number]
        distinct = len(set(numbers)) == len(numbers) > 1
        several = f"'{field.path}={';'.join(numbers)}'" if distinct else _lists(field)
        raise SettingError(
            f"--grid {field.path}={text} is a single list; separate lists by semicolons, in quotes: --grid {several}, "
            f"or --grid '{field.path}={text};' for this list alone"
        )
    try:
        return tuple(settings.parse(field, value) for value in text.split(separator) if value)
    except SettingError as error:
        if not is_list and "[" not in text:
            raise
        raise SettingError(f"{error}; separate lists by semicolons, in quotes: --grid {_lists(field)}") from None


def _is_list(field: Leaf) -> bool:
    return isinstance(field.value, tuple)


def _lists(field: Leaf) -> str:
    """An example of several lists as the values of a field."""
    return f"'{field.path}={'64,64;256,256' if _is_list(field) else '[0.2,1];[0.5,1]'}'"


def runs_of(axes: Sequence[Axis], seeds: Sequence[int]) -> list[Run]:
    """All combinations of points of the grid and seeds."""
    points = [dict(zip([axis.path for axis in axes], values, strict=True))
              for values in itertools.product(*(axis.values for axis in axes))]  # fmt: skip
    return [Run(number, point, seed) for number, (point, seed) in enumerate(itertools.product(points, seeds))]


def units_of(
    config: Config, runs: Sequence[Run], per_unit: Callable[[Config, int], int], devices: int = 1
) -> list[Unit]:
    """Groups runs into units: single runs on the CPU; on the device, up to ``per_unit`` runs in one program.

    Args:
      config: base configuration of the sweep.
      runs: all runs of the sweep.
      per_unit: (configuration, number of runs that share it) -> number of members in one program.
      devices: number of devices over which the members of a program are distributed evenly.

    Raises:
      SettingError: if the configuration of a run is invalid.
    """
    for run in runs:
        check_config(_at(config, run))
    if not config.env.facts.on_device:
        return [Unit(f"run{run.number:04d}", _at(config, run), (run,), None) for run in runs]
    groups: dict[Config, list[Run]] = {}
    for run in runs:
        groups.setdefault(_of_its_program(config, run), []).append(run)
    units: list[Unit] = []
    for common, members in groups.items():
        start = 0
        for size in chunk_sizes(len(members), per_unit(common, len(members)), devices):
            chunk = tuple(members[start : start + size])
            population = tuple(_member(common, run) for run in chunk)
            units.append(Unit(f"chunk{len(units):04d}", common, chunk, population))
            start += size
    return units


def chunk_sizes(members: int, largest: int, devices: int) -> list[int]:
    """Splits members into chunks of nearly equal size, multiples of the number of devices, to compile few programs.

    If fewer members than devices remain, they form an additional chunk.
    """
    divides = min(members, largest) >= devices
    unit, rest = (devices, members % devices) if divides else (1, 0)
    whole = members - rest
    chunks = math.ceil(whole / (largest - largest % unit))
    size = math.ceil(whole / chunks / unit) * unit
    return [min(size, whole - start) for start in range(0, whole, size)] + [rest] * (rest > 0)


def resume(folder: pathlib.Path, config: Config, runs: Sequence[Run]) -> list[Unit] | None:
    """The units of the plan in ``folder``, with the given ``total_steps``, which may differ; None if there is no plan.

    Raises:
      SettingError: if the plan consists of other runs; the message names the first field that differs.
    """
    if not (folder / PLAN).exists():
        return None
    steps = config.total_steps
    units = [unit._replace(config=dataclasses.replace(unit.config, total_steps=steps)) for unit in read(folder)]
    _check_same(folder, _configs(units), [(_at(config, run), run) for run in runs])
    return units


def _configs(units: Sequence[Unit]) -> list[tuple[Config, Run]]:
    """All runs in the order of their numbers, each with its own configuration."""
    runs = [(_at(unit.config, run), run) for unit in units for run in unit.runs]
    return sorted(runs, key=lambda pair: pair[1].number)


def _check_same(folder: pathlib.Path, before: Sequence[tuple[Config, Run]], now: Sequence[tuple[Config, Run]]) -> None:
    """Raises SettingError unless the sweep in ``folder`` has the same runs; the message names the first difference."""
    difference = _grid_difference([run for _, run in before], [run for _, run in now])
    for (old, _), (new, _) in zip(before, now, strict=False):
        difference = difference or _config_difference(old, new)
    if difference is None:
        return
    had, given = difference
    if not given:
        text, remedy = f"with {had}, which this command lacks", "add it"
    elif not had:
        text, remedy = f"without {given}", "leave it out"
    else:
        text, remedy = f"with {had}, not {given}", f"give {had}"
    raise SettingError(f"--out={folder} holds a sweep {text}; choose another --out, or {remedy} to resume that sweep")


def _grid_difference(before: Sequence[Run], now: Sequence[Run]) -> tuple[str, str] | None:
    """The first flag for which two grids, or their seeds, differ, in both spellings; "" if one of them lacks it."""
    old, new = _axes(before), _axes(now)
    removed, added = [path for path in old if path not in new], [path for path in new if path not in old]
    if removed or added:
        return _spell_axis(old, removed), _spell_axis(new, added)
    for path in old:
        if old[path] != new[path]:
            return _spell_axis(old, [path]), _spell_axis(new, [path])
    if list(old) != list(new):
        return f"--grid in the order {', '.join(old)}", f"in the order {', '.join(new)}"
    seeds = [",".join(map(str, dict.fromkeys(run.seed for run in runs))) for runs in (before, now)]
    return None if seeds[0] == seeds[1] else (f"--seeds={seeds[0]}", f"--seeds={seeds[1]}")


def _axes(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The distinct values of each field of the grid."""
    paths = runs[0].point if runs else ()
    return {path: list(dict.fromkeys(run.point[path] for run in runs)) for path in paths}


def _spell_axis(axes: Mapping[str, Sequence[Any]], paths: Sequence[str]) -> str:
    """The flag of the first of these axes, quoted for the shell; "" if there is none."""
    if not paths:
        return ""
    path, values = paths[0], axes[paths[0]]
    as_json = path.startswith(("env.kwargs.", "env.reset_options."))
    spelled = [json.dumps(value) if as_json else settings.spell(value) for value in values]
    lists = any("," in text for text in spelled) or any(isinstance(value, tuple) for value in values)
    text = ";".join([*spelled, ""] if len(spelled) == 1 else spelled) if lists else ",".join(spelled)
    return f"--grid {shlex.quote(f'{path}={text}')}"


def _config_difference(old: Config, new: Config) -> tuple[str, str] | None:
    """The flag of the first field, except ``total_steps``, that differs between two runs, with each value."""
    if old.agent.name != new.agent.name:
        return f"the agent {old.agent.name}", new.agent.name
    if dataclasses.replace(old, total_steps=new.total_steps) == new:
        return None
    for before, now in zip(settings.leaves(old), settings.leaves(new), strict=True):
        if before.value != now.value and before.path != "total_steps":
            flag = f"--config.{before.path}"
            return f"{flag}={settings.spell(before.value)}", f"{flag}={settings.spell(now.value)}"
    return None


def _of_its_program(config: Config, run: Run) -> Config:
    """The configuration that a run shares with the other runs of one compiled program; on the CPU, its own."""
    if not config.env.facts.on_device:
        return _at(config, run)
    fixed = {path: value for path, value in run.point.items() if not varies_inside(config, path)}
    return _at(config, Run(run.number, fixed, config.seed))


def varies_inside(config: Config, path: str) -> bool:
    """Whether members of one compiled program can have different values of a field, as for numbers of the agent."""
    leaf = {leaf.path: leaf for leaf in settings.leaves(config)}[path]
    return path.startswith("agent.") and type(leaf.value) in (int, float) and not leaf.rule.structural


def _at(config: Config, run: Run) -> Config:
    for path, value in run.point.items():
        config = settings.replace(config, path, value)
    return dataclasses.replace(config, seed=run.seed, num_seeds=1)


def _member(config: Config, run: Run) -> Member:
    inside = {path: value for path, value in run.point.items() if varies_inside(config, path)}
    return Member(run.seed, {path.partition(".")[2]: value for path, value in inside.items()})


def write(units: Sequence[Unit], folder: pathlib.Path) -> None:
    """Writes the plan to the directory of the sweep.

    Raises:
      SettingError: if the directory holds a different plan; ``total_steps`` may differ.
    """
    path, text = folder / PLAN, json.dumps([_to_json(unit) for unit in units], indent=1) + "\n"
    if path.exists():
        before = read(folder)
        _check_same(folder, _configs(before), _configs(units))
        if [(unit.name, unit.runs) for unit in before] != [(unit.name, unit.runs) for unit in units]:
            raise SettingError(f"--out={folder} holds this sweep in other chunks; choose another --out")
    replace_file(path, text)


def read(folder: pathlib.Path) -> list[Unit]:
    """Reads the plan that :func:`write` has written.

    Raises:
      SettingError: if there is none, or it cannot be read.
    """
    try:
        return [_from_json(entry) for entry in json.loads((folder / PLAN).read_text())]
    except SettingError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingError(f"--out={folder} is not the directory of a sweep: it has no readable {PLAN}") from None


def _to_json(unit: Unit) -> dict[str, Any]:
    runs = [run._asdict() for run in unit.runs]
    return {"name": unit.name, "config": presets.to_dict(unit.config), "runs": runs}


def _from_json(entry: dict[str, Any]) -> Unit:
    config = presets.from_dict(entry["config"])
    points = [{path: settings.hashable(value) for path, value in run["point"].items()} for run in entry["runs"]]
    runs = tuple(Run(run["number"], point, run["seed"]) for run, point in zip(entry["runs"], points, strict=True))
    population = tuple(_member(config, run) for run in runs) if config.env.facts.on_device else None
    return Unit(entry["name"], config, runs, population)
