"""Runs a sweep: ``python -m experiments.sweep --grid=agent.decay=0.5,0.8 --num-seeds=8``."""

from absl import flags

from preqn_jax.cli import command_line, sweep

flags.adopt_module_key_flags(sweep)

if __name__ == "__main__":
    command_line.run_with_config(sweep.main)
