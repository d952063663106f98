"""Measures how much tasks on MJX differ from Gymnasium's: ``python -m experiments.parity``.

Compares one environment step on MJX with one step in Gymnasium, from the same state with the same action. The states
are visited by random and rails-random policies in Gymnasium, starting at resets and continuing after the robot has
fallen, when there are many contacts.

Errors are relative: |v' - v| / max(1, |v|) in the Euclidean norm for each state, where v are Gymnasium's generalized
velocities, its observation, or its reward. The table lists their median, 99th percentile and maximum over states. The
rows "contact" are restricted to states with any contact, the rows "steep" to states in which a capsule touches the
floor at more than 60 degrees (MJX uses other friction axes than C MuJoCo for such contacts; the tasks correct this).
The target is a 99th percentile of the velocity error below 1e-3.

``--options=own,8x8,euler`` also measures cheaper solvers and integrators (``OPTIONS`` in
``experiments/studies/parity/measurements.py``), ``--float64`` computes in double precision. ``--out`` receives
parity.csv, and parity.json (options, versions, hardware).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.studies.parity.measurements import OPTIONS, Row, Stepper, collect, compare
from preqn_jax.cli import command_line, lists
from preqn_jax.envs import MJX_TASKS
from preqn_jax.training import provenance
from preqn_jax.training.files import replace_file
from preqn_jax.training.progress import Progress
from preqn_jax.training.tables import to_csv, to_markdown
from preqn_jax.training.workdir import results_folder

_TASKS = flags.DEFINE_list("tasks", list(MJX_TASKS), f"tasks; allowed: {', '.join(MJX_TASKS)}")
_STATES = flags.DEFINE_integer("states", 1000, "number of states per task", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 250, "number of environments that are stepped together", lower_bound=1)
_OPTIONS = flags.DEFINE_list("options", ["own"], f"options of the physics; allowed: {', '.join(OPTIONS)}")
_FLOAT64 = flags.DEFINE_bool("float64", False, "whether to compute in double precision")
_OUT = flags.DEFINE_string("out", "runs/parity", "directory for the results")

_AIM = 1e-3


def main() -> int:
    """Measures, prints, saves; returns the exit code."""
    lists.check_names("--tasks", _TASKS.value, list(MJX_TASKS))
    lists.check_names("--options", _OPTIONS.value, list(OPTIONS))
    out = results_folder(_OUT.value, "parity.json", _settings())
    jax.config.update("jax_enable_x64", _FLOAT64.value)
    rows = [row for task in _TASKS.value for row in _measure(task)]
    print("\n".join(_markdown(rows)))
    missed = [f"{row.task} ({row.options})" for row in rows if row.kind == "all" and not row.velocity_p99 < _AIM]
    print(f"\n99th percentile of the velocities under {_AIM:g}: {'all' if not missed else 'not ' + ', '.join(missed)}")
    _save(rows, out)
    print(f"saved to {out}")
    return 0


def _measure(task: str) -> list[Row]:
    """Measures the rows of one task and shows progress: a bar in a terminal, else one line per set of options."""
    cases, rows = collect(task, _STATES.value), []
    for options in _OPTIONS.value:
        stepper, batches = Stepper(task, cases, _BATCH.value, OPTIONS[options]), []
        with Progress(-(-_STATES.value // _BATCH.value), "batch") as progress:
            progress.describe(f"{task}, {options}: {_STATES.value} states")
            for batch in stepper.run():
                batches.append(batch)
                progress.advance()
        outcomes, times = zip(*batches, strict=True)
        outcome = jax.tree.map(lambda *leaves: np.concatenate(leaves), *outcomes)
        rows += compare(task, options, cases, outcome, float(np.median(times)), stepper.compile_seconds)
    return rows


def _markdown(rows: Sequence[Row]) -> list[str]:
    head = ["task", "physics", "states", "velocities: median", "p99", "max", "observation: p99", "max"]
    head += ["reward: p99", "max", "termination differs", "ms a step", "compile s"]
    lines = []
    for row in rows:
        errors = [row.velocity_median, row.velocity_p99, row.velocity_max, row.observation_p99, row.observation_max]
        errors += [row.reward_p99, row.reward_max]
        line = [row.task, row.options, f"{row.kind}: {row.states}", *(f"{error:.1e}" for error in errors)]
        lines.append([*line, str(row.disagreements), f"{row.ms_per_step:.3g}", f"{row.compile_seconds:.0f}"])
    return to_markdown(head, lines)


def _save(rows: Sequence[Row], out: pathlib.Path) -> None:
    replace_file(out / "parity.csv", to_csv(rows, Row._fields))
    record = {**provenance.collect(), "settings": _settings(), "rows": [row._asdict() for row in rows]}
    replace_file(out / "parity.json", json.dumps(record, indent=2) + "\n")


def _settings() -> dict[str, Any]:
    return {flag.name: flag.value for flag in (_TASKS, _STATES, _BATCH, _OPTIONS, _FLOAT64)}


if __name__ == "__main__":
    command_line.run(main)
