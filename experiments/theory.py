"""Checks every numbered statement of the paper: ``python -m experiments.theory``.

Prints one line for each statement of Achiam et al. (2019): whether it holds or fails as printed, the deciding number,
the number of cases, and what was compared. ``--out`` receives theory.csv, theory.png and theory.json (options,
versions, hardware). The exit code is 1 if a result differs from docs/theory.md. All computations use float64; most of
the time is spent on compilation.
"""

from __future__ import annotations

import json
import time

import jax
from absl import flags

from experiments.studies.theory import checks as theory_checks
from experiments.studies.theory import pictures, report
from preqn_jax.cli import command_line
from preqn_jax.training import provenance
from preqn_jax.training.files import replace_file
from preqn_jax.training.workdir import results_folder

_OUT = flags.DEFINE_string("out", "runs/theory", "directory for the results")


def main() -> int:
    """Checks all statements, and saves and prints the results; returns the exit code."""
    jax.config.update("jax_enable_x64", True)
    out = results_folder(_OUT.value)
    start = time.perf_counter()
    checks = [check for function in theory_checks.ALL for check in function()]
    curves = pictures.measure()
    seconds = time.perf_counter() - start
    replace_file(out / "theory.csv", report.to_csv(checks))
    replace_file(out / "theory.json", json.dumps({**provenance.collect(), "seconds": seconds}, indent=2) + "\n")
    drawn = pictures.draw_picture(curves, out / "theory.png")
    print("\n".join([*report.table(checks), *pictures.lines(curves)]))
    print(
        f"{seconds:.0f} s on {provenance.device()}; saved in {out}"
        + ("" if drawn else " (without a figure: no matplotlib)")
    )
    return report.exit_code(checks)


if __name__ == "__main__":
    command_line.run(main)
