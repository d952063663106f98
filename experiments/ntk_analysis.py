"""The kernel of Q-networks at initialization: ``python -m experiments.ntk_analysis`` (Achiam et al. 2019, section 5.1).

For networks with two hidden layers of 32 to 256 units, and with 1 to 4 hidden layers of 64 units, with tanh, relu and
sin, this program measures how strongly an update at a state-action pair changes the value of that pair (mean diagonal
of K), and how strongly it changes the values of other pairs in comparison (mean row ratio). The pairs come from the
rails-random policy in HalfCheetah, Walker2d and Ant, with one data set per task; Ant's observations include the contact
forces, in v4 too.

``--out`` receives ntk_analysis.csv with one row per trial, the paper's Figures 1 and 4 to 9 for each initializer, and
ntk_analysis.json (options, versions, hardware). The program prints for each finding of the paper whether it holds;
``experiments/studies/ntk/findings.py`` defines the criteria. With ``--table``, it evaluates and draws an earlier
ntk_analysis.csv without measuring.
"""

from __future__ import annotations

import csv
import itertools
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments.studies.ntk import figures
from experiments.studies.ntk.findings import decide
from experiments.studies.ntk.measurements import (
    ACTIVATIONS,
    ARCHITECTURES,
    TASKS,
    VERSIONS,
    Measurement,
    collect,
    measure,
)
from preqn_jax.cli import command_line, lists
from preqn_jax.networks import KERNEL_INITS
from preqn_jax.settings import SettingError
from preqn_jax.training import memory, provenance
from preqn_jax.training.files import replace_file
from preqn_jax.training.progress import Progress
from preqn_jax.training.tables import to_csv
from preqn_jax.training.workdir import results_folder

_TASKS = flags.DEFINE_list("tasks", list(TASKS), f"tasks; allowed: {', '.join(TASKS)}")
_VERSIONS = flags.DEFINE_list("versions", ["v5"], f"versions of Gymnasium's tasks; allowed: {', '.join(VERSIONS)}")
_INITS = flags.DEFINE_list("inits", ["glorot_uniform"], f"weight initializers; allowed: {', '.join(KERNEL_INITS)}")
_TRIALS = flags.DEFINE_integer("trials", 3, "number of networks of each kind, with seeds 0, 1, ...", lower_bound=1)
_PAIRS = flags.DEFINE_integer("pairs", 1000, "number N of state-action pairs per task", lower_bound=2)
_TABLE = flags.DEFINE_string("table", None, "path of an earlier ntk_analysis.csv to evaluate instead of measuring")
_OUT = flags.DEFINE_string("out", "runs/ntk_analysis", "directory for the results")


class Options(NamedTuple):
    """The options given on the command line; tasks are Gymnasium ids."""

    tasks: tuple[str, ...]
    inits: tuple[str, ...]
    trials: int
    pairs: int


def main() -> int:
    """Measures, or reads measurements, decides on the findings, and saves; returns the exit code."""
    table, options = _read_table(), _read_options()
    settings: dict[str, Any] = options._asdict() if table is None else {"table": _TABLE.value}
    out = results_folder(_OUT.value, "ntk_analysis.json", settings)
    processor = time.process_time()
    rows = sorted(_with_progress(options)) if table is None else table
    findings = {}
    for (version, init), subset in _by_version_and_init(rows).items():
        print(f"{version}, {init}:")
        findings[f"{version}, {init}"] = [str(finding) for finding in decide(subset)]
        print("\n".join(findings[f"{version}, {init}"]))

    if table is None:
        _save_table(rows, out / "ntk_analysis.csv")
    drawn = figures.draw(rows, out)
    record = {
        **provenance.collect(),
        "settings": settings,
        "processor_seconds": time.process_time() - processor,
        "findings": findings,
    }
    replace_file(out / "ntk_analysis.json", json.dumps(record, indent=2) + "\n")
    print(f"saved to {out}" + ("" if drawn else ", without some figures"))
    return 0


def _read_table() -> list[Measurement] | None:
    """The measurements in ``--table``; None without this flag.

    Raises:
      SettingError: if the file is not such a table, a network is missing for one of its tasks, or flags are given that
        apply to new measurements only.
    """
    if _TABLE.value is None:
        return None
    for flag in (_TASKS, _VERSIONS, _INITS, _TRIALS, _PAIRS):
        if flag.present:
            raise SettingError(f"--{flag.name} applies to new measurements and cannot be used with --table")
    try:
        with pathlib.Path(_TABLE.value).open(newline="") as lines:
            rows = sorted(_parse(row) for row in csv.DictReader(lines))
    except OSError as error:
        raise SettingError(f"--table={_TABLE.value} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):  # including a file that is not text
        raise SettingError(f"--table={_TABLE.value} is not an ntk_analysis.csv, or is damaged") from None
    cells = {(row.task, row.init, row.activation, row.architecture) for row in rows}
    groups = {(row.task, row.init) for row in rows}
    missing = {(*group, *kind) for group in groups for kind in itertools.product(ACTIVATIONS, ARCHITECTURES)} - cells
    if not rows or missing:
        what = ", ".join(map(str, min(missing))) if missing else "everything"
        raise SettingError(f"--table={_TABLE.value} is incomplete: {what} is missing")
    return rows


def _parse(row: dict[str, str]) -> Measurement:
    kinds = {"width": int, "depth": int, "trial": int, "diagonal": float, "row_ratio": float}
    return Measurement(**{name: kinds.get(name, str)(row[name]) for name in Measurement._fields})


def _read_options() -> Options:
    """Reads the options; raises SettingError for errors that the bounds of the flags do not detect."""
    for flag, given, known in (
        ("--tasks", _TASKS.value, TASKS),
        ("--versions", _VERSIONS.value, VERSIONS),
        ("--inits", _INITS.value, KERNEL_INITS),
    ):
        lists.check_names(flag, given, sorted(known))
    memory.check(3 * 4 * _PAIRS.value**2, f"--pairs={_PAIRS.value}", "K and its copies", "choose fewer")
    tasks = tuple(f"{TASKS[name]}-{version}" for version in _VERSIONS.value for name in _TASKS.value)
    return Options(tasks, tuple(_INITS.value), _TRIALS.value, _PAIRS.value)


def _with_progress(options: Options) -> Iterator[Measurement]:
    """Measures all networks and shows progress: a bar in a terminal, else one line per task."""
    networks = len(ACTIVATIONS) * len(ARCHITECTURES) * len(options.inits) * options.trials
    with Progress(networks * len(options.tasks), "network") as progress:
        for number, task in enumerate(options.tasks, 1):
            progress.describe(f"[{number}/{len(options.tasks)}] {task}: {networks} networks")
            for rows in measure(task, collect(task, options.pairs), options.inits, options.trials):
                progress.advance(len(rows))
                yield from rows


def _by_version_and_init(rows: Sequence[Measurement]) -> dict[tuple[str, str], list[Measurement]]:
    """Groups measurements by version and initializer; versions differ in physics and observations."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for row in rows:
        groups.setdefault((row.task.rpartition("-")[2], row.init), []).append(row)
    return groups


def _save_table(rows: Sequence[Measurement], path: pathlib.Path) -> None:
    replace_file(path, to_csv(rows, Measurement._fields, digits=8))


if __name__ == "__main__":
    command_line.run(main)
