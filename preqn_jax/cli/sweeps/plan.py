"""The plan of a sweep: points of a grid, seeds, and the units in which they are run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from preqn_jax import settings
from preqn_jax.settings import SettingError
from preqn_jax.training import presets
from preqn_jax.training.config import Config, check_config
from preqn_jax.training.device import Member
from preqn_jax.training.files import replace_file

PLAN = "plan.json"  # in the directory of every sweep

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
        path, _, values = text.partition("=")
        if path in _RESERVED:
            raise SettingError(f"--grid {text}: {path} cannot be varied by the grid; use the sweep's own flags")
        field = settings.find(config, path, "--grid field")
        # Commas separate the entries of one list, semicolons the lists: --grid 'agent.hidden_sizes=64,64;256,256'.
        separator = ";" if isinstance(field.value, tuple) or ";" in values else ","
        axis = Axis(path, tuple(settings.parse(field, value) for value in values.split(separator) if value))
        if not axis.values or len(set(axis.values)) < len(axis.values):
            raise SettingError(f"--grid {text} needs distinct values, for example --grid agent.min_alignment=0.9,0.97")
        axes.append(axis)
    if len({axis.path for axis in axes}) < len(axes):
        raise SettingError("--grid contains a field twice; give all values of a field in one --grid")
    return axes


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
    """The units of the plan in ``folder`` if it consists of the same runs, else None; ``total_steps`` may differ."""
    if not (folder / PLAN).exists():
        return None
    steps = config.total_steps
    units = [unit._replace(config=dataclasses.replace(unit.config, total_steps=steps)) for unit in read(folder)]
    planned = {run.number: (unit.config, run) for unit in units for run in unit.runs}
    return units if planned == {run.number: (_of_its_program(config, run), run) for run in runs} else None


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
    if path.exists() and _comparable(read(folder)) != _comparable(units):
        raise SettingError(f"--out={folder} holds a sweep over other values or seeds; choose another")
    replace_file(path, text)


def read(folder: pathlib.Path) -> list[Unit]:
    """Reads the plan that :func:`write` has written.

    Raises:
      SettingError: if there is none, or it cannot be read.
    """
    try:
        return [_from_json(entry) for entry in json.loads((folder / PLAN).read_text())]
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingError(f"--out={folder} is not the directory of a sweep: it has no readable {PLAN}") from None


def _comparable(units: Sequence[Unit]) -> Any:
    return [(unit.name, dataclasses.replace(unit.config, total_steps=1), unit.runs) for unit in units]


def _to_json(unit: Unit) -> dict[str, Any]:
    runs = [run._asdict() for run in unit.runs]
    return {"name": unit.name, "config": presets.to_dict(unit.config), "runs": runs}


def _from_json(entry: dict[str, Any]) -> Unit:
    config = presets.from_dict(entry["config"])
    points = [{path: settings.hashable(value) for path, value in run["point"].items()} for run in entry["runs"]]
    runs = tuple(Run(run["number"], point, run["seed"]) for run, point in zip(entry["runs"], points, strict=True))
    population = tuple(_member(config, run) for run in runs) if config.env.facts.on_device else None
    return Unit(entry["name"], config, runs, population)
