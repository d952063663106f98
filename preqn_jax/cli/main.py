"""The console script: ``preqn_jax train``, ``preqn_jax evaluate`` and ``preqn_jax sweep``."""

from __future__ import annotations

import importlib
import sys

from preqn_jax.settings import nearest

PROGRAMS = {  # name -> whether the fields of a configuration are among the program's flags
    "train": True,
    "evaluate": False,
    "sweep": True,
}
USAGE = """usage: preqn_jax <command> --name=value ...

  train     train an agent:                   preqn_jax train --config=preqn_halfcheetah
  evaluate  evaluate a run, record a video:   preqn_jax evaluate --workdir=runs/preqn_halfcheetah
  sweep     sweep over a grid and seeds:      preqn_jax sweep --grid=agent.step_size=0.03,0.1 --num-seeds=3

preqn_jax <command> --helpfull lists the flags of a command."""


def main() -> None:
    """Runs the program named by the first argument; its result is the exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(USAGE)
        return
    if name not in PROGRAMS:
        near = nearest(name, list(PROGRAMS))
        print(f"error: {name} is not a command; did you mean {near}? allowed: {', '.join(PROGRAMS)}", file=sys.stderr)
        sys.exit(2)
    try:
        from preqn_jax.cli import command_line

        program = importlib.import_module(f"preqn_jax.cli.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("preqn_jax"):
            raise
        print(f"error: preqn_jax {name} needs {error.name}; pip install 'preqn_jax[train]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # these imports take about a second; later, command_line handles it
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.argv[:2] = [program.__name__]  # --help lists the flags of the module with this name
    if PROGRAMS[name]:
        command_line.run_with_config(program.main)
    else:
        command_line.run(program.main)


if __name__ == "__main__":
    main()
