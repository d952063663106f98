"""Evaluates a run and records a video: ``python -m experiments.rollout --workdir=DIR``, like ``preqn_jax evaluate``."""

from absl import flags

from preqn_jax.cli import command_line, evaluate

flags.adopt_module_key_flags(evaluate)

if __name__ == "__main__":
    command_line.run(evaluate.main)
