"""Many training runs as one resumable list of jobs, side by side in single-threaded processes.

A job is one ``python -m experiments.run`` with a seed and a work folder of its own: small networks gain little from a
second core, so runs side by side beat threads. What has finished is not run again; what was cut off goes on from its
checkpoint; what fails is tried once more while the rest goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from preqn_jax.envs import DISCRETE_ENVS
from preqn_jax.settings import SettingError
from preqn_jax.training import presets
from preqn_jax.training.config import Config, check_config
from preqn_jax.training.workdir import check_same

_RESERVED = ("algorithm", "env.id", "seed", "num_seeds", "total_steps")


class Variant(NamedTuple):
    """An agent and what differs from its defaults.

    Attributes:
      name: what tables and pictures call it.
      agent: its name in ``AGENTS``.
      overrides: ``agent.min_alignment=0.9`` and the like, as the command line takes them after ``--config.``.
    """

    name: str
    agent: str
    overrides: tuple[str, ...] = ()

    def config(self, task: str) -> Config:
        """Its configuration on a task; raises SettingError if there can be none."""
        for override in self.overrides:
            if override.partition("=")[0] in _RESERVED:
                raise SettingError(f"{override}: the suite itself decides this field, by its own flags")
        name = f"{self.agent}_{task}"
        if name not in presets.names():
            kind = "discrete" if task in DISCRETE_ENVS else "continuous"
            raise SettingError(f"--envs={task} has {kind} actions, for which {self.agent} is not made; choose another")
        return functools.reduce(presets.override, self.overrides, presets.get_config(name))


class Job(NamedTuple):
    """One run: a variant on a task, by its name in ``ENVS``, with a seed."""

    variant: Variant
    task: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Name of the work folder."""
        return work_folder(self.variant.name, self.task, self.seed)

    def config(self) -> Config:
        """Its configuration; raises SettingError if there can be none."""
        config = dataclasses.replace(self.variant.config(self.task), seed=self.seed, total_steps=self.steps)
        check_config(config)
        return config

    def command(self, folder: pathlib.Path) -> list[str]:
        """The command that runs it."""
        return [
            sys.executable,
            "-m",
            "experiments.run",
            f"--config={self.variant.agent}_{self.task}",
            f"--config.seed={self.seed}",
            f"--config.total_steps={self.steps}",
            *(f"--config.{override}" for override in self.variant.overrides),
            f"--workdir={folder / self.name}",
        ]


def work_folder(variant: str, task: str, seed: int) -> str:
    """Name of a job's work folder."""
    return f"{variant}_{task}_seed{seed}"


def check_jobs(jobs: Sequence[Job], folder: pathlib.Path) -> None:
    """Makes sure that what is there of the jobs was run as they would be now.

    Raises:
      SettingError: if a job cannot be, or its work folder holds a run of other settings.
    """
    for job in jobs:
        config, workdir = job.config(), folder / job.name
        if (workdir / presets.CONFIG_FILE).exists():
            check_same(workdir, config, "--out")
        elif (workdir / "metrics.csv").exists():
            raise SettingError(
                f"{workdir} does not say how it was run: there is no {presets.CONFIG_FILE}; move it away"
            )


def read_updates(workdir: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """The scalars of every update that a run with ``record_updates`` kept, ``[S, updates]`` a file, in order.

    Raises:
      SettingError: if a file is damaged.
    """
    parts = []
    for path in sorted((workdir / "updates").glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                parts.append(dict(file))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            raise SettingError(f"{path} is damaged; move it away") from None
    return parts
