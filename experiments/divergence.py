"""Which Q-learning methods diverge, and why: ``python -m experiments.divergence``.

Compares Q-learning with and without a target network, and PreQN with and without its line search, on Baird's
counterexample, on that of Tsitsiklis and Van Roy, and on DDPG with a fixed data set of Pendulum-v1. The program prints
a summary, and writes divergence.csv, divergence.png and divergence.json (options, versions, hardware) to ``--out``.

``--methods`` also accepts agents of the library, for example ``--tasks=pendulum --methods=preqn,preqn_norm,td3,sac``:
they learn from the same fixed data of Pendulum, with their own actor and targets.

``--tasks=cascade`` is an MDP of eight state-action pairs on which over-generalization and missing data are harmful only
in combination. Pendulum is run for every combination of the lists ``--activation``, ``--hidden-sizes``,
``--preqn-step-size`` and ``--transitions``; divergence_seeds.png then shows every seed, and the summary reports how the
outcome correlates with the initial row ratio of the networks.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.studies.divergence import agents, pictures
from experiments.studies.divergence.tasks import (
    METHODS,
    Record,
    Task,
    cascade_task,
    learn,
    linear_task,
    pendulum_task,
)
from preqn_jax.cli import command_line
from preqn_jax.cli.lists import check_names
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.ops.diagnostics import FailureModes
from preqn_jax.settings import SettingError
from preqn_jax.theory import mdps
from preqn_jax.training import provenance, tables
from preqn_jax.training.files import replace_file
from preqn_jax.training.progress import track
from preqn_jax.training.statistics import rank_correlation
from preqn_jax.training.workdir import results_folder

_OUT = flags.DEFINE_string("out", "runs/divergence", "directory for the results")
_SEEDS = flags.DEFINE_integer(
    "num-seeds", 3, "number of seeds for Pendulum; the counterexamples are deterministic", lower_bound=1
)
_UPDATES = flags.DEFINE_integer(
    "updates", None, "updates of every task, rounded up to whole records (default: set by the task)", lower_bound=1
)
_TASKS = flags.DEFINE_list("tasks", "baird,tsitsiklis_van_roy,pendulum", "tasks to run; also allowed: cascade")
_METHODS = flags.DEFINE_list(
    "methods",
    ",".join(METHODS),
    f"methods of updating the critic; also allowed, for Pendulum: the agents {', '.join(agents.NAMES)}",
)
_ACTIVATION = flags.DEFINE_list(
    "activation", "relu", f"activations of Pendulum's networks; allowed: {', '.join(ACTIVATIONS)}"
)
_HIDDEN_SIZES = flags.DEFINE_string(
    "hidden-sizes", "32,32", "hidden layers of Pendulum's networks; separate several by ;"
)
_PREQN_STEP_SIZE = flags.DEFINE_list("preqn-step-size", "0.1", "initial step sizes of PreQN's line search on Pendulum")
_TRANSITIONS = flags.DEFINE_list("transitions", "2000", "sizes of the data set of Pendulum [transitions]")
_RECORDS = flags.DEFINE_integer(
    "records", 100, "number of measurements per run; one takes longer than most updates", lower_bound=1
)

_ALLOWED = ("baird", "tsitsiklis_van_roy", "pendulum", "cascade")


class Curve(NamedTuple):
    """The measurements of one method on one task, with leaves ``[seeds, records + 1]``, and their updates."""

    task: str
    method: str
    bound: float
    updates: np.ndarray
    record: Record


def main() -> int:
    """Runs everything, saves and prints; returns the exit code."""
    out = _check()
    tasks = _tasks()
    start = time.perf_counter()
    curves = []
    pairs = [(task, method) for task in tasks for method in _METHODS.value]
    for name, method in track(pairs, " ".join, "run"):
        seeds = _SEEDS.value if name.startswith("pendulum") else 1
        updates = _UPDATES.value or tasks[name].updates
        curves.append(run(name, tasks[name], method, seeds, updates, _RECORDS.value))
    seconds = time.perf_counter() - start

    replace_file(out / "divergence.csv", to_csv(curves))
    record = {**provenance.collect(), "settings": _settings(), "seconds": seconds}
    replace_file(out / "divergence.json", json.dumps(record, indent=2) + "\n")
    several = sum(name.startswith("pendulum") for name in tasks) > 1
    draw, picture = (pictures.divergence_seeds, "_seeds") if several else (pictures.divergence, "")
    drawn = draw(out / "divergence.csv", out / f"divergence{picture}.png")
    print("\n".join([*summary(curves), *trends(curves)]))
    print(f"{seconds:.0f} s on {provenance.device()}; saved in {out}" + ("" if drawn else " (without a figure)"))
    return 0


def _check() -> pathlib.Path:
    """Checks all flags and returns the output directory; raises SettingError if a flag is invalid."""
    check_names("--tasks", _TASKS.value, list(_ALLOWED))
    check_names("--methods", _METHODS.value, [*METHODS, *agents.NAMES])
    chosen = [name for name in _METHODS.value if name in agents.NAMES]
    if chosen and set(_TASKS.value) != {"pendulum"}:
        raise SettingError(f"--methods={','.join(chosen)} needs --tasks=pendulum: the other tasks have no actor")
    check_names("--activation", _ACTIVATION.value, list(ACTIVATIONS))
    _networks(), _steps(), _amounts()
    return results_folder(_OUT.value, "divergence.json", _settings())


def _settings() -> dict[str, Any]:
    holders = (_TASKS, _METHODS, _SEEDS, _UPDATES, _RECORDS, _ACTIVATION, _HIDDEN_SIZES, _PREQN_STEP_SIZE, _TRANSITIONS)
    return {holder.name: holder.value for holder in holders}


def _networks() -> list[tuple[int, ...]]:
    return [tuple(_numbers("--hidden-sizes", sizes.split(","), int)) for sizes in _HIDDEN_SIZES.value.split(";")]


def _steps() -> list[float]:
    return _numbers("--preqn-step-size", _PREQN_STEP_SIZE.value, float)


def _amounts() -> list[int]:
    return _numbers("--transitions", _TRANSITIONS.value, int)


def _numbers(flag: str, given: list[str], kind: Callable[[str], Any]) -> list[Any]:
    try:
        numbers = [kind(text) for text in given]
    except ValueError:
        numbers = [0]
    if not all(0 < number < np.inf for number in numbers):
        raise SettingError(f"{flag}={','.join(given)} must be {'whole ' if kind is int else ''}numbers above 0")
    return numbers


def _tasks() -> dict[str, Task]:
    """The tasks that are selected by the flags, by name."""
    tasks: dict[str, Task] = {}
    for name in _TASKS.value:
        if name == "pendulum":
            chosen = variants(_ACTIVATION.value, _networks(), _steps(), _amounts())
            tasks |= {label: pendulum_task(*values) for label, values in chosen.items()}
        elif name == "cascade":
            for shared, missing in itertools.product((0.0, 0.9), (False, True)):
                label = f"cascade {'shared' if shared else 'table'} {'missing' if missing else 'full'}"
                tasks[label] = cascade_task(shared, missing)
        else:
            tasks[name] = linear_task(getattr(mdps, name)())
    return tasks


def variants(*lists: list[Any]) -> dict[str, tuple[Any, ...]]:
    """Arguments of ``pendulum_task`` for every combination of the given lists, named by the arguments that differ."""
    spelling = ("{}", "{}", "step {}", "{} transitions")
    found = {}
    for values in itertools.product(*lists):
        words = [
            text.format("x".join(map(str, value)) if isinstance(value, tuple) else value)
            for text, value, choices in zip(spelling, values, lists, strict=True)
            if len(choices) > 1
        ]
        found[" ".join(["pendulum", *words])] = values
    return found


def run(name: str, task: Task, method: str, seeds: int, updates: int, records: int = 100) -> Curve:
    """Runs one method on one task, with all seeds at once."""
    updates = -(-updates // records) * records
    keys = jax.vmap(jax.random.key)(np.arange(seeds))
    record = jax.jit(jax.vmap(_learner(task, method, updates, records)))(keys)
    steps = np.arange(records + 1) * (updates // records)
    return Curve(name, method, task.bound, steps, jax.tree.map(np.asarray, record))


def _learner(task: Task, method: str, updates: int, records: int) -> Callable[[jax.Array], Record]:
    if method in METHODS:
        return lambda key: learn(task, METHODS[method], updates, records, key)
    return lambda key: agents.learn_agent(task, method, updates, records, key)


def to_csv(curves: list[Curve]) -> str:
    """The table in CSV, with one row per record."""
    scalars = [name for name in Record._fields if name != "failure_modes"]
    rows: list[list[Any]] = []
    for curve in curves:
        columns = [getattr(curve.record, name) for name in scalars] + list(curve.record.failure_modes)
        for seed, step in np.ndindex(curve.record.q_abs.shape):
            values = [float(column[seed, step]) for column in columns]
            rows.append([curve.task, curve.method, seed, curve.updates[step], *values])
    return tables.to_csv(rows, ["task", "method", "seed", "update", *scalars, *FailureModes._fields])


def summary(curves: list[Curve]) -> list[str]:
    """The lines of a table with one row per curve."""
    width = max(20, *(len(curve.task) + 2 for curve in curves))
    lines = [
        f"{'task':{width}}{'method':16}{'verdict by seed':40}{'|Q| at the end':30}"
        f"{'accepted':10}{'beta < 1':10}failure modes"
    ]
    for curve in curves:
        verdicts = [verdict(values, curve.bound) for values in curve.record.q_abs]
        row = f"{curve.task:{width}}{curve.method:16}{_by_seed(verdicts):40}{_ends(curve):30}"
        lines.append(row + (_diagnostics(curve) if curve.method in METHODS else "not measured for a whole agent"))
    bounds = ", ".join(f"{task} {bound:.4g}" for task, bound in {curve.task: curve.bound for curve in curves}.items())
    lines.append(f"largest |Q| explained by the rewards, or without rewards by the initial Q: {bounds}")
    lines.append("at the end of the run, diverges: |Q| not finite, or beyond ten times that; too large: beyond it")
    lines.append("beta < 1: share of the records in which the bound of Theorem 2 guarantees that the step contracts")
    lines.append("failure modes: those present in at least half of the records before a seed diverged")
    return lines


def _diagnostics(curve: Curve) -> str:
    record = curve.record
    modes = ", ".join(name.replace("_", "-") for name in frequent_modes(record, curve.bound)) or "none"
    return f"{record.accepted.mean():<10.2f}{np.mean(record.contraction_bound < 1):<10.2f}{modes}"


def _by_seed(verdicts: list[str]) -> str:
    """The verdict if all seeds agree, else the verdict of each seed, or the number of seeds with each verdict."""
    counts = {word: verdicts.count(word) for word in dict.fromkeys(verdicts)}
    if len(counts) == 1:
        return verdicts[0]
    return ", ".join(verdicts) if len(verdicts) <= 3 else ", ".join(f"{word} {n}" for word, n in sorted(counts.items()))


def _ends(curve: Curve) -> str:
    values = np.asarray(curve.record.q_abs)[:, -1]
    if len(values) <= 3:
        return ", ".join(f"{value:.3g}" for value in values)
    finite = np.where(np.isfinite(values), values, np.inf)
    return f"median {np.median(finite):.3g}, largest {finite.max():.3g}"


def trends(curves: list[Curve]) -> list[str]:
    """Correlations of the outcome on Pendulum with the initial row ratio, one line per method with several networks."""
    lines = []
    for method in dict.fromkeys(curve.method for curve in curves):
        chosen = [curve for curve in curves if curve.method == method and curve.task.startswith("pendulum")]
        ratios = np.array([curve.record.row_ratio[:, 0].mean() for curve in chosen])
        if len(np.unique(ratios)) < 3:
            continue
        outcomes = {
            "the share of seeds that diverge": [np.mean(_peaks(curve) > 10 * curve.bound) for curve in chosen],
            "the largest |Q| (median over seeds)": [np.median(_peaks(curve)) for curve in chosen],
            "the alignment of the first update": [np.mean(curve.record.alignment[:, 0]) for curve in chosen],
            "the alignment of all updates (median)": [np.nanmedian(curve.record.alignment) for curve in chosen],
        }
        found = ", ".join(f"{name} {rank_correlation(ratios, np.array(of)):.2f}" for name, of in outcomes.items())
        lines.append(f"{method}, {len(chosen)} variants: rank correlation of the initial row ratio with {found}")
    return lines


def _peaks(curve: Curve) -> np.ndarray:
    """Largest |Q| of each seed; infinity if it became non-finite."""
    return np.where(np.isfinite(curve.record.q_abs), curve.record.q_abs, np.inf).max(axis=1)


def verdict(q_abs: np.ndarray, bound: float) -> str:
    """A short description of the course of |Q|; q_abs is ``[records + 1]``."""
    last = q_abs[-1]
    if not np.isfinite(last) or last > 10 * bound:
        return "diverges"
    if last > bound:
        return "too large"
    if last < 1e-2 * q_abs[0]:
        return "goes to 0"
    return "does not move" if np.all(q_abs == q_abs[0]) else "bounded"


def frequent_modes(record: Record, bound: float) -> list[str]:
    """Names of the failure modes that are present in at least half of the records before a seed diverges."""
    before = np.logical_and.accumulate(record.q_abs <= 10 * bound, axis=1)  # False for NaN
    present = zip(FailureModes._fields, record.failure_modes.present(), strict=True)
    return [name for name, flag in present if np.asarray(flag)[before].mean() >= 0.5]


if __name__ == "__main__":
    command_line.run(main)
