"""Training from Python: ``preqn_jax.train``."""

from __future__ import annotations

import os
import pathlib
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

from preqn_jax import settings
from preqn_jax.settings import SettingError
from preqn_jax.training import presets, session
from preqn_jax.training.config import Config, check_config
from preqn_jax.training.loop import make_trainer
from preqn_jax.training.reporters import Reporters, RunReporter

ReporterFactory = Callable[[pathlib.Path, Config, int], session.ClosingReporter]


def train(
    config: str | Config,
    workdir: str | os.PathLike[str],
    *,
    reporters: Sequence[ReporterFactory] = (RunReporter,),
    should_stop: Callable[[], bool] = lambda: False,
    **fields: Any,
) -> bool:
    """Trains an agent, resuming from the newest checkpoint of the work directory if there is one.

        preqn_jax.train("preqn_halfcheetah", workdir="runs/mine", total_steps=100_000)
        preqn_jax.train("preqn_hopper", workdir="runs/other", **{"agent.max_backtracks": 10})

    Args:
      config: a name ``<agent>_<environment>``, as for ``python -m experiments.run --config=``, or a
        :class:`~preqn_jax.training.config.Config`.
      workdir: directory for config.json, metrics.csv, checkpoints and the learning curve.
      reporters: functions (work directory, configuration, first step) -> reporter; each reporter receives the progress
        and results of the run.
      should_stop: asked after every iteration and during evaluations; once it is true, the run writes a checkpoint and
        returns. An exception, as of Ctrl-C, ends the run at its newest checkpoint.
      **fields: overrides of configuration fields, by their dotted paths.

    Returns:
      Whether the run is complete.

    Raises:
      SettingError: if an argument or the configuration is invalid, the directory holds another run, or the environment
        fails.
      CheckpointError: if a checkpoint cannot be read, or the last one cannot be written.
      NonFiniteError: if a reward, an observation or a parameter becomes NaN or infinite.
    """
    _check_arguments(config, workdir, reporters, should_stop)
    full = presets.get_config(config) if isinstance(config, str) else config
    for path, value in fields.items():
        full = settings.assign(full, path, value)
    check_config(full)
    folder = pathlib.Path(workdir)

    def make_reporter(first_step: int) -> session.ClosingReporter:
        return Reporters([make(folder, full, first_step) for make in reporters])

    return session.train(make_trainer(full), folder, make_reporter, should_stop)


def _check_arguments(config: Any, workdir: Any, reporters: Any, should_stop: Any) -> None:
    """Raises SettingError if an argument of :func:`train` has a wrong type; without it, some fail after compilation."""
    several = isinstance(reporters, Sequence) and not isinstance(reporters, str)
    for name, value, valid, allowed in (
        ("config", config, isinstance(config, str | Config), "a name such as 'preqn_hopper', or a Config"),
        ("workdir", workdir, isinstance(workdir, str | os.PathLike), "a path, such as 'runs/mine'"),
        ("reporters", reporters, several and all(map(callable, reporters)),
         "a tuple of functions (work directory, configuration, first step) -> reporter, such as (RunReporter,)"),
        ("should_stop", should_stop, callable(should_stop), "a function without arguments"),
    ):  # fmt: skip
        if not valid:
            raise SettingError(f"{name}={reprlib.repr(value)} is not supported; allowed: {allowed}")
