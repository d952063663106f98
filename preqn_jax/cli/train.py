"""Trains an agent: ``python -m experiments.run --config=preqn_ant``.

The same command resumes an interrupted run from its newest checkpoint. ``--helpfull`` lists all fields.
"""

from __future__ import annotations

import pathlib

from absl import flags

from preqn_jax.cli import compilation
from preqn_jax.training import session
from preqn_jax.training.config import Config
from preqn_jax.training.loop import make_trainer
from preqn_jax.training.reporters import Reporters, RunReporter, WandbReporter, check_wandb

_WORKDIR = flags.DEFINE_string("workdir", None, "work directory of the run (default: runs/<config>)")
_WANDB = flags.DEFINE_string("wandb", None, "also report to this project of Weights & Biases (default: none)")


def main(config: Config) -> int:
    """Trains; returns the exit code."""
    if _WANDB.value:
        check_wandb()  # before compiling
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{flags.FLAGS.config}")
    stop = session.StopSignal()  # first, so that Ctrl-C always writes a checkpoint
    compilation.keep()
    trainer = make_trainer(config)

    def make_reporter(first_step: int) -> session.ClosingReporter:
        reporters: list[session.ClosingReporter] = [RunReporter(workdir, config, first_step)]
        if _WANDB.value:
            reporters.append(WandbReporter(workdir, config, first_step, project=_WANDB.value))
        return Reporters(reporters)

    def program() -> int:
        if session.train(trainer, workdir, make_reporter, stop):
            if trainer.step:  # otherwise the run was complete already
                session.say(f"finished {config.total_steps} steps; results in {workdir}")
            return 0
        written = "checkpoint written; the same command resumes from it"
        session.say(f"stopped at step {trainer.step}, {written}")
        return 128 + stop.received

    return session.guarded(program, workdir)
