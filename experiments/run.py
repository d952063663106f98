"""Trains an agent: ``python -m experiments.run --config=preqn_ant``.

Started again with the same work folder it goes on where it stopped. ``--helpfull`` lists every field.
"""

from __future__ import annotations

import pathlib
import signal
import sys
from typing import Any

from absl import flags

from experiments import compilation, provenance
from experiments import flags as command_line
from experiments.loggers import RunReporter
from experiments.workdir import claim
from preqn_jax.checkpoint import CheckpointError, Checkpoints
from preqn_jax.config import Config
from preqn_jax.train import make_trainer, run
from preqn_jax.trainers.base import NonFiniteError, Trainer

_WORKDIR = flags.DEFINE_string("workdir", None, "work folder of the run; runs/<config> if left out")


def main(config: Config) -> int:
    """Trains; returns the exit code."""
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{flags.FLAGS.config}")
    stop = StopSignal()  # first: from here on Ctrl-C loses nothing
    compilation.keep()
    trainer = make_trainer(config)
    lock = claim(workdir, config)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        return _train(trainer, checkpoints, workdir, stop)
    except (CheckpointError, NonFiniteError) as error:
        print(f"error: {error}; {workdir} and its checkpoints are kept as they are", file=sys.stderr)
        return 1
    finally:
        checkpoints.close()
        lock.close()


def _train(trainer: Trainer, checkpoints: Checkpoints, workdir: pathlib.Path, stop: StopSignal) -> int:
    config, latest = trainer.config, checkpoints.latest_step()
    if latest is not None and latest >= config.total_steps:
        print(f"{workdir} has its {config.total_steps} steps; raise --config.total_steps to go on", file=sys.stderr)
        return 0
    arrays = checkpoints.restore(latest) if latest is not None else None
    compile_seconds = trainer.compile()
    if arrays is not None:
        trainer.restore(arrays)

    reporter = RunReporter(workdir, config, trainer.step)
    reporter.message(f"{provenance.device()}, replay {trainer.replay_bytes / 2**20:.0f} MiB, work folder {workdir}")
    reporter.message(f"compiled in {compile_seconds:.1f} s; training from step {trainer.step}")
    try:
        finished = run(trainer, reporter, lambda t: checkpoints.save(t.step, t.arrays()), stop)
    finally:
        reporter.close()
    if finished:
        print(f"finished {config.total_steps} steps; results in {workdir}", file=sys.stderr)
        return 0
    print(f"stopped at step {trainer.step}, checkpoint written; the same command goes on from there", file=sys.stderr)
    return 128 + stop.received


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


if __name__ == "__main__":
    command_line.run_with_config(main)
