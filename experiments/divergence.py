"""Which Q-learning diverges, and why: ``python -m experiments.divergence``.

Q-learning without and with a target network, and PreQN with its linesearch and without, on Baird's counterexample, on
Tsitsiklis and Van Roy's, and on DDPG from fixed data of Pendulum-v1. The summary goes to standard output;
divergence.csv, divergence.png and divergence.json (what it ran with) go to the folder ``--out``.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from absl import flags

from experiments import flags as command_line
from experiments import plots, provenance
from experiments.divergence_tasks import METHODS, Method, Record, Task, learn, linear_task, pendulum_task
from experiments.loggers import replace_file
from experiments.workdir import results_folder
from preqn_jax.ops import mdps
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.ops.diagnostics import FailureModes
from preqn_jax.settings import SettingError, unknown

_OUT = flags.DEFINE_string("out", "runs/divergence", "folder for the table, the picture and what they were made with")
_SEEDS = flags.DEFINE_integer("num_seeds", 3, "seeds 0, 1, ... of Pendulum; the counterexamples have no chance in them")
_UPDATES = flags.DEFINE_integer("updates", None, "updates of every task, if not its own number; rounded up to 100s")
_ACTIVATION = flags.DEFINE_string("activation", "relu", f"of Pendulum's networks; allowed: {', '.join(ACTIVATIONS)}")

_RECORDS = 100  # over a run


class Curve(NamedTuple):
    """One method on one task: at which updates, and what was measured, leaves ``[seeds, records + 1]``."""

    task: str
    method: str
    bound: float
    updates: np.ndarray
    record: Record


def main() -> int:
    """Runs everything, saves and prints; returns the exit code."""
    out = _check()
    tasks = {
        "baird": linear_task(mdps.baird()),
        "tsitsiklis_van_roy": linear_task(mdps.tsitsiklis_van_roy()),
        "pendulum": pendulum_task(_ACTIVATION.value),
    }
    start = time.perf_counter()
    curves = []
    for name, method in _with_progress([(task, method) for task in tasks for method in METHODS]):
        seeds = _SEEDS.value if name == "pendulum" else 1
        curves.append(run(name, tasks[name], method, seeds, _UPDATES.value or tasks[name].updates))
    seconds = time.perf_counter() - start

    replace_file(out / "divergence.csv", to_csv(curves))
    record = {**provenance.collect(), "settings": _settings(), "seconds": seconds}
    replace_file(out / "divergence.json", json.dumps(record, indent=2) + "\n")
    drawn = plots.divergence(out / "divergence.csv", out / "divergence.png")
    print("\n".join(summary(curves)))
    print(
        f"{seconds:.0f} s on {provenance.device()}; saved in {out}" + ("" if drawn else " (no picture: no matplotlib)")
    )
    return 0


def _check() -> pathlib.Path:
    """The folder to write to; raises SettingError on what cannot be."""
    if _SEEDS.value < 1:
        raise SettingError(f"--num_seeds={_SEEDS.value} must be at least 1")
    if _UPDATES.value is not None and _UPDATES.value < 1:
        raise SettingError(f"--updates={_UPDATES.value} must be at least 1")
    if _ACTIVATION.value not in ACTIVATIONS:
        raise SettingError(unknown("--activation", _ACTIVATION.value, ACTIVATIONS))
    return results_folder(_OUT.value, "divergence.json", _settings())


def _settings() -> dict[str, Any]:
    return {"num_seeds": _SEEDS.value, "updates": _UPDATES.value, "activation": _ACTIVATION.value}


def _with_progress(runs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """All runs, with a bar where there is a terminal and a line each where there is none."""
    bar = tqdm.tqdm(runs, unit="run", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    for i, (task, method) in enumerate(bar):
        bar.set_description(f"{task} {method}")
        if bar.disable:
            print(f"[{i + 1}/{len(runs)}] {task} {method}", file=sys.stderr, flush=True)
        yield task, method


def run(name: str, task: Task, method: str, seeds: int, updates: int) -> Curve:
    """Learns one task by one method, all seeds at once."""
    updates = -(-updates // _RECORDS) * _RECORDS
    keys = jax.vmap(jax.random.key)(np.arange(seeds))
    record = jax.jit(jax.vmap(_learner(task, METHODS[method], updates)))(keys)
    steps = np.arange(_RECORDS + 1) * (updates // _RECORDS)
    return Curve(name, method, task.bound, steps, jax.tree.map(np.asarray, record))


def _learner(task: Task, method: Method, updates: int) -> Callable[[jax.Array], Record]:
    return lambda key: learn(task, method, updates, _RECORDS, key)


def to_csv(curves: list[Curve]) -> str:
    """One row a record."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    scalars = [name for name in Record._fields if name != "failure_modes"]
    writer.writerow(["task", "method", "seed", "update", *scalars, *FailureModes._fields])
    for curve in curves:
        columns = [getattr(curve.record, name) for name in scalars] + list(curve.record.failure_modes)
        for seed, step in np.ndindex(curve.record.q_abs.shape):
            values = [f"{column[seed, step]:.6g}" for column in columns]
            writer.writerow([curve.task, curve.method, seed, curve.updates[step], *values])
    return buffer.getvalue()


def summary(curves: list[Curve]) -> list[str]:
    """Lines of a table, one a curve."""
    lines = [f"{'task':20}{'method':16}{'verdict by seed':34}{'|Q| at the end':30}{'accepted':10}failure modes"]
    for curve in curves:
        record = curve.record
        ends = ", ".join(f"{value:.3g}" for value in record.q_abs[:, -1])
        verdicts = [verdict(values, curve.bound) for values in record.q_abs]
        said = verdicts[0] if len(set(verdicts)) == 1 else ", ".join(verdicts)
        modes = ", ".join(name.replace("_", "-") for name in frequent_modes(record, curve.bound)) or "none"
        lines.append(f"{curve.task:20}{curve.method:16}{said:34}{ends:30}{record.accepted.mean():<10.2f}{modes}")
    bounds = ", ".join(f"{curve.task} {curve.bound:.4g}" for curve in curves[:: len(METHODS)])
    lines.append(f"largest |Q| that rewards, or without rewards the start, can explain: {bounds}")
    lines.append("diverges: |Q| not finite, or beyond ten times that; too large: beyond it; at the end of the run")
    lines.append("failure modes: those present in at least half of the records before a seed diverged")
    return lines


def verdict(q_abs: np.ndarray, bound: float) -> str:
    """In a word, what became of |Q|; q_abs is ``[records + 1]``."""
    last = q_abs[-1]
    if not np.isfinite(last) or last > 10 * bound:
        return "diverges"
    if last > bound:
        return "too large"
    if last < 1e-2 * q_abs[0]:
        return "goes to 0"
    return "does not move" if np.all(q_abs == q_abs[0]) else "bounded"


def frequent_modes(record: Record, bound: float) -> list[str]:
    """Names of the failure modes that half of the records show, up to where a seed diverges."""
    before = np.logical_and.accumulate(record.q_abs <= 10 * bound, axis=1)  # NaN is not
    present = zip(FailureModes._fields, record.failure_modes.present(), strict=True)
    return [name for name, flag in present if np.asarray(flag)[before].mean() >= 0.5]


if __name__ == "__main__":
    command_line.run(main)
