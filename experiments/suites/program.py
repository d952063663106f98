"""The flags that all programs with a suite share, and the steps from the jobs to the report."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags

from experiments.suites import report, stored, suite
from preqn_jax.cli import lists, processes
from preqn_jax.settings import SettingError
from preqn_jax.training.workdir import results_folder

_ENVS = flags.DEFINE_list("envs", None, f"tasks; allowed: {', '.join(stored.TASKS)}")
_SEEDS = flags.DEFINE_list("seeds", None, "list of seeds, for example 0,1,2")
_NUM_SEEDS = flags.DEFINE_integer("num-seeds", None, "number of seeds, starting at 0", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", None, "length of every run [environment steps]", lower_bound=1)
_SET = flags.DEFINE_multi_string("set", [], "an override of every run's configuration, for example agent.gamma=0.98")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "number of parallel runs", lower_bound=1)
_STORED = flags.DEFINE_string(
    "stored",
    None,
    "directory with metrics <variant>_<task>_seed<seed>.csv to report on, without running anything; --variants and "
    "--envs select some of these runs",
)
_OUT = flags.DEFINE_string("out", None, "directory of the runs and the report (default: runs/<program>)")
_OF_NEW_RUNS = ("preset", "algos", "seeds", "num-seeds", "steps", "set", "workers")

Report = Callable[[Sequence[report.Cell], pathlib.Path], str]


class Extent(NamedTuple):
    """The tasks and seeds of a suite, and the number of environment steps of each run."""

    envs: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int


def read_extent(default: Extent) -> Extent:
    """Reads the extent from the flags; flags that are not given leave ``default`` unchanged.

    Raises:
      SettingError: if a task is unknown, or the seeds are invalid.
    """
    if _ENVS.value is not None:
        lists.check_names("--envs", _ENVS.value, list(stored.TASKS))
        default = default._replace(envs=tuple(_ENVS.value))
    default = default._replace(seeds=lists.choose_seeds(_SEEDS.value, _NUM_SEEDS.value, default.seeds))
    return default._replace(steps=_STEPS.value) if _STEPS.value is not None else default


def overrides(fixed: Sequence[str] = ()) -> tuple[str, ...]:
    """Reads the overrides of ``--set``.

    Raises:
      SettingError: if an override changes a field in ``fixed``.
    """
    for override in _SET.value:
        if override.partition("=")[0] in fixed:
            raise SettingError(f"--set={override}: this suite does not allow overrides of {' and '.join(fixed)}")
    return tuple(_SET.value)


def stored_cells(variants: Sequence[str], column: str = "return_mean") -> list[report.Cell] | None:
    """Reads the runs in ``--stored``, see :func:`stored.read`; None without this flag.

    ``--variants`` and ``--envs`` select some of them.

    Raises:
      SettingError: if a run cannot be read, a selected variant or task has no run, or a flag of new runs is given.
    """
    if _STORED.value is None:
        return None
    for name in _OF_NEW_RUNS:
        if name in flags.FLAGS and flags.FLAGS[name].present:
            raise SettingError(f"--{name} applies to new runs and cannot be used with --stored={_STORED.value}")
    cells = stored.read(pathlib.Path(_STORED.value), variants, column)
    cells = _selected("variants", cells, [cell.variant for cell in cells])
    return _selected("envs", cells, [cell.task for cell in cells])


def _selected(flag: str, cells: list[report.Cell], names: Sequence[str]) -> list[report.Cell]:
    """The cells whose name is listed by the flag; all cells without the flag."""
    if flag not in flags.FLAGS or not flags.FLAGS[flag].present:
        return cells
    chosen = flags.FLAGS[flag].value or []
    lists.check_names(f"--{flag}", chosen, list(dict.fromkeys(names)))
    return [cell for cell, name in zip(cells, names, strict=True) if name in chosen]


def folder_of_stored(kind: str) -> pathlib.Path:
    """The directory for a report on stored runs: ``--out``, by default runs/<kind>_stored.

    Raises:
      SettingError: if it holds a run or a suite, or cannot be written.
    """
    return results_folder(_OUT.value or f"runs/{kind}_stored")


def report_on_stored(kind: str, title: str, cells: Sequence[report.Cell], more: Report) -> int:
    """Reports on stored runs as :func:`run` does on its own; returns the exit code."""
    folder = folder_of_stored(kind)
    runs = sum(len(cell.seeds) for cell in cells)
    print(report.write(cells, folder, title, f"Stored runs: {runs}; their versions are stated where they are stored."))
    print(more(cells, folder))
    return 0


def run(kind: str, title: str, jobs: Sequence[suite.Job], more: Report) -> int:
    """Runs all unfinished jobs, then reports on all jobs; returns the exit code.

    Args:
      kind: name of the suite, which is stored in its directory.
      title: title of the report.
      jobs: all jobs of the suite.
      more: writes additional results on the finished runs; returns text for the terminal.

    Raises:
      SettingError: before anything runs, if a configuration is invalid, or the directory belongs to another suite.
    """
    folder = pathlib.Path(_OUT.value or f"runs/{kind}")
    suite.check_jobs(jobs, folder)
    options = {"runs": [job.name for job in jobs], "set": overrides()}
    held = processes.claim(folder, kind, options)
    runner = processes.Runner(jobs, folder, _WORKERS.value)
    code = runner.run()
    cells = report.collect(jobs, folder)
    print(report.write(cells, folder, title, report.origin(cells, len(jobs), folder)))
    print(more(cells, folder))
    processes.report_failures(runner.failed)
    held.close()
    return code
