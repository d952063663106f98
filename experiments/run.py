"""Trains an agent: ``python -m experiments.run --config=preqn_ant``, like ``preqn_jax train``."""

from absl import flags

from preqn_jax.cli import command_line, train

flags.adopt_module_key_flags(train)

if __name__ == "__main__":
    command_line.run_with_config(train.main)
