"""A suite: a resumable list of training runs, which run in parallel single-threaded processes.

A job is one ``python -m experiments.run`` with its own seed and work directory. Small networks gain little from a
second core, so parallel runs are faster than parallel threads. Completed runs are not repeated, interrupted runs resume
from their checkpoints, and a failed run is retried once while the others continue.
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

_RESERVED = ("env.id", "seed", "num_seeds", "total_steps")


class Variant(NamedTuple):
    """An agent with overrides of its default configuration.

    Attributes:
      name: name of the variant in tables and figures.
      agent: name of the agent, a key of ``AGENTS``.
      overrides: overrides as on the command line, without ``--config.``, for example ``agent.min_alignment=0.9``.
    """

    name: str
    agent: str
    overrides: tuple[str, ...] = ()

    def config(self, task: str) -> Config:
        """The configuration for a task; raises SettingError if it is invalid."""
        for override in self.overrides:
            if override.partition("=")[0] in _RESERVED:
                raise SettingError(f"{override}: this field cannot be overridden; use the suite's own flags")
        name = f"{self.agent}_{task}"
        if name not in presets.names():
            kind = "discrete" if task in DISCRETE_ENVS else "continuous"
            raise SettingError(f"--envs={task} has {kind} actions, which {self.agent} does not support; choose another")
        return functools.reduce(presets.override, self.overrides, presets.get_config(name))


class Job(NamedTuple):
    """One run: a variant, a task (a key of ``ENVS``), a seed, and the number of environment steps."""

    variant: Variant
    task: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """The name of the work directory."""
        return work_folder(self.variant.name, self.task, self.seed)

    def config(self) -> Config:
        """The configuration; raises SettingError if it is invalid."""
        config = dataclasses.replace(self.variant.config(self.task), seed=self.seed, total_steps=self.steps)
        check_config(config)
        return config

    def command(self, folder: pathlib.Path) -> list[str]:
        """The command that runs the job."""
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
    """The name of a job's work directory."""
    return f"{variant}_{task}_seed{seed}"


def check_jobs(jobs: Sequence[Job], folder: pathlib.Path) -> None:
    """Checks the jobs, and that existing runs in their work directories have the same configurations.

    Raises:
      SettingError: if a configuration is invalid, or a work directory holds a run with another configuration.
    """
    for job in jobs:
        config, workdir = job.config(), folder / job.name
        if (workdir / presets.CONFIG_FILE).exists():
            check_same(workdir, config, "--out")
        elif (workdir / "metrics.csv").exists():
            raise SettingError(
                f"{workdir} has metrics, but no {presets.CONFIG_FILE} that states their configuration; move it away"
            )


def read_updates(workdir: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """Reads the metrics of every update that a run with ``record_updates`` has saved, ``[S, updates]`` in each file.

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
