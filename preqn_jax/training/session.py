"""Trains one run: locks the work directory, resumes from the newest checkpoint, trains, and saves."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from preqn_jax.settings import SettingError
from preqn_jax.training import plots, provenance
from preqn_jax.training.base import Trainer
from preqn_jax.training.checkpoint import Arrays, CheckpointError, Checkpoints
from preqn_jax.training.config import Config
from preqn_jax.training.loop import Reporter, run
from preqn_jax.training.presets import from_dict, read_config
from preqn_jax.training.workdir import check_recorded, claim, write_record
from preqn_jax.types import NonFiniteError


class ClosingReporter(Reporter, Protocol):
    """A reporter that has to be closed."""

    def close(self) -> None:
        """Writes everything that is still buffered and closes the files."""


def train(
    trainer: Trainer,
    workdir: pathlib.Path,
    make_reporter: Callable[[int], ClosingReporter],
    should_stop: Callable[[], bool],
    checkpoints: Checkpoints | None = None,
) -> bool:
    """Trains a run from its newest checkpoint, or from the start if it has none.

    Args:
      trainer: the trainer, which must not be compiled yet.
      workdir: work directory of the run; it must be empty, new, or hold an earlier part of the same run.
      make_reporter: function from the first environment step to the reporter of this run.
      should_stop: called after every iteration and during evaluations; training stops once it returns True.
      checkpoints: the checkpoints of the run (default: those in its work directory).

    Returns:
      Whether the run is complete. If not, a checkpoint has been written at the step where it stopped.

    Raises:
      SettingError: if the work directory holds something else, another process uses it, or the environment fails.
      CheckpointError: if the checkpoint cannot be read.
      NonFiniteError: if training produced a NaN; the previous checkpoint remains the newest one.
    """
    lock = claim(workdir, trainer.config)
    checkpoints = checkpoints or Checkpoints(workdir / "checkpoints")
    try:
        latest = checkpoints.latest_step()
        _check_results(workdir, trainer.config, latest)
        if latest is not None and _has_ended(latest, total := trainer.config.total_steps, workdir):
            say(f"{workdir} is complete: it has {latest} steps, and config.total_steps={total}; raise "
                f"--config.total_steps above {latest} to train further")  # fmt: skip
            return True
        arrays = _read(checkpoints, latest, workdir, trainer.config) if latest is not None else None
        seconds = trainer.compile()
        if arrays is not None:
            with _unchanged(workdir):
                trainer.restore(arrays)
        write_record(workdir, trainer.config)  # an earlier part may have had other total_steps, or another commit
        reporter = make_reporter(trainer.step)
        size = f"replay {trainer.replay_bytes / 2**20:.0f} MiB"
        reporter.message(f"{provenance.device()}, {size}, work directory {workdir}")
        reporter.message(f"compiled in {seconds:.1f} s; training from step {trainer.step}")
        try:
            return run(trainer, reporter, lambda trainer: _save(checkpoints, trainer), should_stop)
        except SettingError as error:  # the environment failed; the checkpoints are intact
            kept = f"the same command resumes from step {checkpoints.latest_step() or 0}"
            raise SettingError(f"{error}, in step {trainer.step} of the run; {kept}") from error
        except CheckpointError as error:  # the last checkpoint cannot be written
            earlier = checkpoints.latest_step()
            kept = f"the same command resumes from step {earlier}" if earlier else "there is no earlier checkpoint"
            raise CheckpointError(f"{error}; {kept}") from error
        finally:
            reporter.close()
    finally:
        checkpoints.close()
        lock.close()


def _check_results(workdir: pathlib.Path, config: Config, latest: int | None) -> None:
    """Raises SettingError if metrics.csv is damaged, or has evaluations after the first checkpoint, which is missing.

    Without this error, the run would start again and overwrite them.
    """
    last = plots.last_step(workdir / "metrics.csv")
    if latest is None and last >= min(config.checkpoint_every, from_dict(read_config(workdir)).total_steps):
        raise SettingError(
            f"{workdir} has results up to step {last} in metrics.csv, but no checkpoint to resume from: the run "
            f"would start again and overwrite them; restore {workdir / 'checkpoints'}, or delete {workdir}"
        )


def _read(checkpoints: Checkpoints, step: int, workdir: pathlib.Path, config: Config) -> Arrays:
    with _unchanged(workdir):
        check_recorded(workdir, config, checkpoints.record(step), step)
        return checkpoints.restore(step)


@contextlib.contextmanager
def _unchanged(workdir: pathlib.Path) -> Iterator[None]:
    """Adds to the message of a CheckpointError, raised while a checkpoint is read, that nothing has been changed."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {workdir} and its checkpoints have not been changed") from error


def _save(checkpoints: Checkpoints, trainer: Trainer) -> None:
    checkpoints.save(trainer.step, trainer.arrays(), trainer.record())


def _has_ended(step: int, total_steps: int, workdir: pathlib.Path) -> bool:
    """Whether a run with a checkpoint at ``step`` is complete, in all of its processes."""
    if step <= total_steps:  # the last evaluation follows the last checkpoint
        ended = step == total_steps and plots.last_step(workdir / "metrics.csv") == total_steps
    else:
        ended = True
    return ended if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(ended)).all())


def guarded(program: Callable[[], int], workdir: pathlib.Path) -> int:
    """Runs ``program()`` and returns its exit code; checkpoint and NaN errors become one line and exit code 1."""
    try:
        return program()
    except CheckpointError as error:
        say(f"error: {error}")
        return 1
    except NonFiniteError as error:
        say(f"error: {error}; the checkpoints in {workdir} are from before this step, but a run resumed from them "
            "would probably fail again: use other settings, in another directory")  # fmt: skip
        return 1


def say(text: str) -> None:
    """Prints one line to stderr, and ignores errors such as a closed terminal or a full disk."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


class StopSignal:
    """Returns True once the process has received Ctrl-C or SIGTERM; a second signal terminates it immediately."""

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
