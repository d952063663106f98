"""Training from the first step to the last: one schedule, two trainers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from preqn_jax.training.base import Infos, Row, Trainer
from preqn_jax.training.checkpoint import CheckpointError
from preqn_jax.training.config import Config
from preqn_jax.training.host import HostTrainer


class Reporter(Protocol):
    """Who is told how a run goes."""

    def message(self, text: str) -> None:
        """One line for the user."""

    def event(self, event: dict[str, Any]) -> None:
        """To be kept beside the results: an :class:`~preqn_jax.training.base.Notice` says what."""

    def progress(self, step: int, info: Infos) -> None:
        """After every burst: environment steps so far, the scalars of its updates ``[S, U]``; empty without updates.

        They are NaN for seeds that were stopped.
        """

    def evaluation(self, rows: list[Row | None]) -> None:
        """After every evaluation: one row a seed, always the same columns; None for one that was stopped.

        A run that resumes from a checkpoint at an evaluation's step reports that evaluation again.
        """

    def checkpoint(self) -> None:
        """Before every checkpoint: a run that resumes from it does not repeat the progress up to here."""


def make_trainer(config: Config) -> Trainer:
    """The trainer for the configured environment; nothing is compiled yet.

    Raises:
      SettingError: on a configuration that cannot be.
    """
    if config.env.backend == "gymnasium":
        return HostTrainer(config)
    from preqn_jax.training.device import DeviceTrainer  # needs packages that the other does not

    return DeviceTrainer(config)


def run(trainer: Trainer, reporter: Reporter, save: Callable[[Trainer], None], should_stop: Callable[[], bool]) -> bool:
    """Trains to the end of the configured schedule, or until told to stop.

    Args:
      trainer: a compiled trainer, fresh or restored.
      reporter: told how it goes.
      save: writes a checkpoint of the trainer. A CheckpointError of it is a warning, and the run continues, unless it
        ends there.
      should_stop: asked after every burst, and during evaluations; when true the run writes a checkpoint and ends.

    Returns:
      Whether the end was reached.

    Raises:
      NonFiniteError: if training produced a NaN; no checkpoint is written then.
      CheckpointError: if the last checkpoint cannot be written.
    """
    config, stall, breakdown = trainer.config, StallWatch(reporter), BreakdownWatch(reporter)

    failed: CheckpointError | None = None  # of the newest checkpoint

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
        if not trainer.evaluation_due:  # one that was interrupted comes first
            info = trainer.advance()
            _report_notices(trainer, reporter)
            stall.watch(info)
            breakdown.watch(trainer)
            reporter.progress(trainer.step, info)
            finished = trainer.step == config.total_steps
            trainer.evaluation_due = finished or trainer.step % config.evaluate_every == 0
            # Before the evaluation, which may take long, or never end.
            if finished or trainer.step % config.checkpoint_every == 0:
                checkpoint()
        if trainer.evaluation_due and (rows := trainer.evaluate(should_stop)) is not None:
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
    """Warns when nearly no critic step is accepted, which otherwise looks like slow learning."""

    updates = 1000  # that must pass below the fraction
    fraction = 0.1

    def __init__(self, reporter: Reporter):
        self._reporter = reporter
        self._since = 0
        self._warned = False

    def watch(self, info: Infos) -> None:
        """Takes the info of one burst, ``[S, U]`` each."""
        if "accepted" not in info:
            return
        stalled = bool((info["accepted"].mean(axis=1) < self.fraction).any())
        self._since = self._since + info["accepted"].shape[1] if stalled else 0
        if self._since >= self.updates and not self._warned:
            self._warned = True
            predicted = float(np.nanmean(info["predicted_alignment"]))
            self._reporter.message(
                f"warning: under {self.fraction:.0%} of the critic steps were accepted in the last {self._since} "
                f"updates (predicted alignment {predicted:.2f}). Below min_alignment the solver cuts off too much of "
                "K: use --config.agent.solver=ridge, or a smaller rcond or damping; above it, use a smaller step_size; "
                "if no step size helps, the rows of Q may see each other (BatchNorm or Dropout in training mode): "
                "preqn_jax.ntk.check_example_by_example(q_fn, params, inputs) tells"
            )


class BreakdownWatch:
    """Tells of simulations that broke: at the first, and whenever they have become ten times as many."""

    def __init__(self, reporter: Reporter):
        self._reporter, self._next = reporter, 1

    def watch(self, trainer: Trainer) -> None:
        """Looks at the trainer after a burst."""
        if (broken := trainer.broken_episodes) >= self._next:
            self._next = 10 * broken
            self._reporter.message(
                f"warning: the simulation of {trainer.config.env.id} broke (not finite, or beyond any physics) in "
                f"{broken} episode(s) before step {trainer.step}; they were cut there and new ones begun"
            )
