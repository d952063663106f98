"""Evaluates and films a run: ``python -m experiments.rollout --workdir=runs/preqn_ant``; as ``preqn_jax evaluate``."""

from absl import flags

from preqn_jax.cli import command_line, evaluate

flags.adopt_module_key_flags(evaluate)

if __name__ == "__main__":
    command_line.run(evaluate.main)
