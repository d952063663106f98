"""What the programs that run a suite share: their flags, and from jobs to report."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags

from experiments.suites import report, suite
from preqn_jax.cli import lists, processes
from preqn_jax.envs import DISCRETE_ENVS, ENVS
from preqn_jax.settings import SettingError
from preqn_jax.training.workdir import results_folder

_KNOWN = [*ENVS, *DISCRETE_ENVS]
_ENVS = flags.DEFINE_list("envs", None, f"tasks; allowed: {', '.join(_KNOWN)}")
_SEEDS = flags.DEFINE_list("seeds", None, "which seeds, 0,1,2 for example")
_NUM_SEEDS = flags.DEFINE_integer("num-seeds", None, "how many seeds, counted from 0", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", None, "length of every run [environment steps]", lower_bound=1)
_SET = flags.DEFINE_multi_string("set", [], "a field of every run's configuration, agent.gamma=0.98 for example")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "runs at a time", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "folder of the runs and the report; runs/<program> if left out")


Report = Callable[[Sequence[suite.Job], pathlib.Path], str]


class Extent(NamedTuple):
    """On which tasks, with which seeds, for how long."""

    envs: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int


def read_extent(default: Extent) -> Extent:
    """The extent that the flags ask for, ``default`` where they are silent.

    Raises:
      SettingError: on an unknown task or impossible seeds.
    """
    if _ENVS.value is not None:
        lists.check_names("--envs", _ENVS.value, _KNOWN)
        default = default._replace(envs=tuple(_ENVS.value))
    default = default._replace(seeds=lists.choose_seeds(_SEEDS.value, _NUM_SEEDS.value, default.seeds))
    return default._replace(steps=_STEPS.value) if _STEPS.value is not None else default


def overrides(fixed: Sequence[str] = ()) -> tuple[str, ...]:
    """What ``--set`` asks for.

    Raises:
      SettingError: if it asks for what this suite has ``fixed``.
    """
    for override in _SET.value:
        if override.partition("=")[0] in fixed:
            raise SettingError(f"--set={override}: this suite needs {' and '.join(fixed)} as they are")
    return tuple(_SET.value)


def folder_of_stored(kind: str) -> pathlib.Path:
    """The folder for a report on stored runs, runs/<kind>_stored if ``--out`` is left out.

    Raises:
      SettingError: if it holds a run or a suite, or cannot be written.
    """
    return results_folder(_OUT.value or f"runs/{kind}_stored")


def run(kind: str, title: str, jobs: Sequence[suite.Job], more: Report = lambda jobs, folder: "") -> int:
    """Runs what is missing, then reports on all there is; returns the exit code.

    Args:
      kind: what a folder of such a suite is marked as.
      title: of the report.
      jobs: all of it.
      more: writes besides the report what is special to this suite; returns text for the terminal.

    Raises:
      SettingError: before anything runs, if a job cannot be or the folder is not this suite's.
    """
    folder = pathlib.Path(_OUT.value or f"runs/{kind}")
    suite.check_jobs(jobs, folder)
    processes.claim(folder, kind, {"runs": [job.name for job in jobs], "set": overrides()})
    runner = processes.Runner(jobs, folder, _WORKERS.value)
    code = runner.run()
    print(report.write(jobs, folder, title))
    print(more(jobs, folder))
    processes.report_failures(runner.failed)
    return code
