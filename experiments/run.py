"""Trains an agent: ``python -m experiments.run --config=preqn_ant``.

Started again with the same work folder it goes on where it stopped. ``--helpfull`` lists every field.
"""

from __future__ import annotations

import pathlib

from absl import flags

from experiments import compilation, training
from experiments import flags as command_line
from experiments.loggers import RunReporter
from preqn_jax.config import Config
from preqn_jax.train import make_trainer

_WORKDIR = flags.DEFINE_string("workdir", None, "work folder of the run; runs/<config> if left out")


def main(config: Config) -> int:
    """Trains; returns the exit code."""
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{flags.FLAGS.config}")
    stop = training.StopSignal()  # first: from here on Ctrl-C loses nothing
    compilation.keep()
    trainer = make_trainer(config)

    def program() -> int:
        if training.train(trainer, workdir, lambda step: RunReporter(workdir, config, step), stop):
            if trainer.step:  # else it had them before
                training.say(f"finished {config.total_steps} steps; results in {workdir}")
            return 0
        written = "checkpoint written; the same command goes on from there"
        training.say(f"stopped at step {trainer.step}, {written}")
        return 128 + stop.received

    return training.guarded(program, workdir)


if __name__ == "__main__":
    command_line.run_with_config(main)
