"""One run from its work folder's claim to its last checkpoint, for every program that trains."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from preqn_jax.settings import SettingError
from preqn_jax.training import plots, provenance
from preqn_jax.training.base import Trainer
from preqn_jax.training.checkpoint import CheckpointError, Checkpoints
from preqn_jax.training.loop import Reporter, run
from preqn_jax.training.workdir import claim, write_record
from preqn_jax.types import NonFiniteError


class ClosingReporter(Reporter, Protocol):
    """A reporter with files open."""

    def close(self) -> None:
        """Leaves nothing unwritten."""


def train(
    trainer: Trainer,
    workdir: pathlib.Path,
    make_reporter: Callable[[int], ClosingReporter],
    should_stop: Callable[[], bool],
    checkpoints: Checkpoints | None = None,
) -> bool:
    """Trains from the newest checkpoint on, or from the start.

    Args:
      trainer: not compiled yet.
      workdir: of the run; anything in it that is not an earlier part of this very run is refused.
      make_reporter: makes the one that is told how it goes, from the step at which it begins.
      should_stop: asked after every burst, and during evaluations.
      checkpoints: of the run; those in its work folder if left out.

    Returns:
      Whether the end was reached, now or before; if not, a checkpoint of where it stopped is written.

    Raises:
      SettingError: if the work folder is not this run's, another process is at it, or the environment fails.
      CheckpointError: if the checkpoint cannot be used.
      NonFiniteError: if training produced a NaN; the checkpoint before stays the newest.
    """
    lock = claim(workdir, trainer.config)
    checkpoints = checkpoints or Checkpoints(workdir / "checkpoints")
    try:
        latest = checkpoints.latest_step()
        if latest is not None and _has_ended(latest, asked := trainer.config.total_steps, workdir):
            say(f"{workdir} has {latest} steps, and {asked} were asked for; raise --config.total_steps above {latest} "
                "to go on")  # fmt: skip
            return True
        arrays = checkpoints.restore(latest) if latest is not None else None
        seconds = trainer.compile()
        if arrays is not None:
            trainer.restore(arrays)
            write_record(workdir, trainer.config)  # it may have become longer
        reporter = make_reporter(trainer.step)
        size = f"replay {trainer.replay_bytes / 2**20:.0f} MiB"
        reporter.message(f"{provenance.device()}, {size}, work folder {workdir}")
        reporter.message(f"compiled in {seconds:.1f} s; training from step {trainer.step}")
        try:
            return run(trainer, reporter, lambda t: checkpoints.save(t.step, t.arrays()), should_stop)
        except SettingError as error:  # the environment failed: nothing that was saved is lost
            kept = f"the same command resumes from step {checkpoints.latest_step() or 0}"
            raise SettingError(f"{error}, in step {trainer.step} of the run; {kept}") from error
        finally:
            reporter.close()
    finally:
        checkpoints.close()
        lock.close()


def _has_ended(step: int, total_steps: int, workdir: pathlib.Path) -> bool:
    """Whether a run with a checkpoint of ``step`` has nothing left to do, in any of its processes."""
    if step <= total_steps:  # the last evaluation follows the last checkpoint
        ended = step == total_steps and plots.last_step(workdir / "metrics.csv") == total_steps
    else:
        ended = True
    return ended if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(ended)).all())


def guarded(program: Callable[[], int], workdir: pathlib.Path) -> int:
    """``program()``; what cannot go on ends with one line and exit code 1."""
    try:
        return program()
    except CheckpointError as error:
        say(f"error: {error}; {workdir} and its checkpoints are kept as they are")
        return 1
    except NonFiniteError as error:
        say(f"error: {error}; no checkpoint has it: the same command resumes {workdir} before it")
        return 1


def say(text: str) -> None:
    """One line for the user, whose terminal or log may be gone or full."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


class StopSignal:
    """True once Ctrl-C or SIGTERM has come; a second one ends the program at once."""

    def __init__(self) -> None:
        self.received = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.received > 0
