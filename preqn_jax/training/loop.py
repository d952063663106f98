"""The training loop, which is the same for the CPU trainer and the device trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from preqn_jax.training.base import Infos, Row, Trainer
from preqn_jax.training.checkpoint import CheckpointError
from preqn_jax.training.config import Config
from preqn_jax.training.host import HostTrainer


class Reporter(Protocol):
    """Receives the progress and the results of a run."""

    def message(self, text: str) -> None:
        """Shows one line of text to the user."""

    def event(self, event: dict[str, Any]) -> None:
        """Stores an event with the results; see :class:`~preqn_jax.training.base.Notice`."""

    def progress(self, step: int, info: Infos) -> None:
        """Called after every iteration.

        Args:
          step: environment steps so far, per seed.
          info: metrics of each gradient step of the iteration ``[S, U]``, by name; empty if there were none, NaN for
            seeds that were stopped.
        """

    def evaluation(self, rows: list[Row | None]) -> None:
        """Called after every evaluation.

        A run that resumes from a checkpoint taken at an evaluation step reports that evaluation again.

        Args:
          rows: one row per seed, always with the same columns; None for seeds that were stopped.
        """

    def checkpoint(self) -> None:
        """Called before every checkpoint; a run that resumes from it does not report earlier progress again."""


def make_trainer(config: Config) -> Trainer:
    """Creates the trainer for the configured environment, without compiling anything.

    Raises:
      SettingError: if the configuration is invalid.
    """
    if not config.env.facts.on_device:
        return HostTrainer(config)
    from preqn_jax.training.device import DeviceTrainer  # imported here because it needs optional packages

    return DeviceTrainer(config)


def run(trainer: Trainer, reporter: Reporter, save: Callable[[Trainer], None], should_stop: Callable[[], bool]) -> bool:
    """Trains until the end of the configured schedule, or until ``should_stop`` returns True.

    Args:
      trainer: a compiled trainer, new or restored from a checkpoint.
      reporter: receives progress and results.
      save: writes a checkpoint of the trainer. If it raises CheckpointError, the run reports a warning and continues,
        unless this was the last checkpoint of the run.
      should_stop: called after every iteration and during evaluations; once it returns True, the run writes a
        checkpoint and ends.

    Returns:
      Whether the run is complete.

    Raises:
      NonFiniteError: if training produced a NaN; no checkpoint is written in this case.
      CheckpointError: if the last checkpoint cannot be written.
    """
    config, stall, breakdown = trainer.config, StallWatch(reporter), BreakdownWatch(reporter)

    failed: CheckpointError | None = None  # error of the latest attempt to save

    def checkpoint() -> None:
        nonlocal failed
        reporter.checkpoint()
        try:
            save(trainer)
            failed = None
        except CheckpointError as error:
            reporter.message(f"warning: {error}; the run continues")
            failed = error

    def ended() -> bool:
        return trainer.step >= config.total_steps and not trainer.evaluation_due

    _report_notices(trainer, reporter)
    while not ended():
        if not trainer.evaluation_due:  # an interrupted evaluation is repeated first
            info = trainer.advance()
            _report_notices(trainer, reporter)
            stall.watch(info)
            breakdown.watch(trainer)
            reporter.progress(trainer.step, info)
            finished = trainer.step == config.total_steps
            trainer.evaluation_due = finished or trainer.step % config.evaluate_every == 0
            # The checkpoint is written before the evaluation, which may take long, or never end.
            if finished or trainer.step % config.checkpoint_every == 0:
                checkpoint()
        if trainer.evaluation_due and (rows := trainer.evaluate(should_stop)) is not None:
            _report_notices(trainer, reporter)
            reporter.evaluation(rows)
        if not ended() and should_stop():
            checkpoint()
            break
    if failed:
        raise failed
    return ended()


def _report_notices(trainer: Trainer, reporter: Reporter) -> None:
    for notice in trainer.notices:
        reporter.message(notice.text)
        if notice.event:
            reporter.event(notice.event)
    trainer.notices.clear()


class StallWatch:
    """Warns when almost no critic step is accepted, which would otherwise look like slow learning."""

    updates = 1000  # the smallest number of updates over which the share of accepted steps is computed
    fraction = 0.1  # share of accepted steps of a seed below which it warns

    def __init__(self, reporter: Reporter):
        self._reporter = reporter
        self._accepted: Any = 0  # number of accepted steps per seed, [S], among the latest `self._count` updates
        self._count = 0
        self._warned = False

    def watch(self, info: Infos) -> None:
        """Examines the metrics of one iteration, arrays ``[S, U]`` by name."""
        if "accepted" not in info or self._warned:
            return
        self._accepted = self._accepted + info["accepted"].sum(axis=1)
        self._count += info["accepted"].shape[1]
        if self._count < self.updates:
            return
        accepted, count = self._accepted / self._count, self._count
        self._accepted, self._count = 0, 0
        if (accepted < self.fraction).any():
            self._warned = True
            predicted = float(np.nanmean(info["predicted_alignment"]))
            self._reporter.message(
                f"warning: under {self.fraction:.0%} of the critic steps were accepted in the last {count} "
                f"updates (predicted alignment {predicted:.2f}). If this is below min_alignment, the solver discards "
                "too much of K: use --config.agent.solver=ridge, or a smaller rcond or damping. Otherwise use a "
                "smaller step_size. If no step size helps, Q-values may depend on other rows of the minibatch "
                "(BatchNorm or Dropout in training mode): check the Q-function with "
                "preqn_jax.ntk.check_example_by_example(q_fn, params, inputs)"
            )


class BreakdownWatch:
    """Warns when simulations have diverged: at the first one, and each time their number has grown tenfold."""

    def __init__(self, reporter: Reporter):
        self._reporter, self._next = reporter, 1

    def watch(self, trainer: Trainer) -> None:
        """Examines the trainer after an iteration."""
        if (broken := trainer.broken_episodes) >= self._next:
            self._next = 10 * broken
            self._reporter.message(
                f"warning: the simulation of {trainer.config.env.id} diverged (values not finite, or far too large) in "
                f"{broken} episode(s) before step {trainer.step}; these were truncated, and new ones started"
            )
