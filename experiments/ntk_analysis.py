"""The kernel of Q-networks at initialization: ``python -m experiments.ntk_analysis`` (Achiam et al. 2019, section 5.1).

For networks of widths 32 to 256 at two hidden layers and of depths 1 to 4 at 64 units, with tanh, relu and sin, it
measures how strongly an update at a state-action pair moves the value there (the mean diagonal of K) and how much of
it spills over to others (the mean row ratio). The pairs come from the rails-random policy in HalfCheetah, Walker2d and
Ant, one data set a task; Ant's observations hold the contact forces, in v4 too.

``--out`` gets ntk_analysis.csv with a row a trial, a figure for each task and initializer, and ntk_analysis.json with
what it was made with. On standard output each of the paper's findings holds or does not;
``experiments/ntk_findings.py`` defines exactly when.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil
import tqdm
from absl import flags

from experiments import flags as command_line
from experiments import plots, provenance, suite
from experiments.loggers import replace_file
from experiments.ntk_findings import decide, over_trials
from experiments.ntk_measurements import (
    ACTIVATIONS,
    ARCHITECTURES,
    BY_DEPTH,
    BY_WIDTH,
    TASKS,
    VERSIONS,
    Measurement,
    collect,
    measure,
)
from experiments.workdir import results_folder
from preqn_jax.networks import KERNEL_INITS
from preqn_jax.settings import SettingError

_TASKS = flags.DEFINE_list("tasks", list(TASKS), f"any of {', '.join(TASKS)}")
_VERSIONS = flags.DEFINE_list("versions", ["v5"], f"of Gymnasium's tasks: any of {', '.join(VERSIONS)}")
_INITS = flags.DEFINE_list("inits", ["glorot_uniform"], f"kernel initializers: any of {', '.join(KERNEL_INITS)}")
_TRIALS = flags.DEFINE_integer("trials", 3, "networks of each kind, with seeds 0, 1, ...", lower_bound=1)
_PAIRS = flags.DEFINE_integer("pairs", 1000, "state-action pairs N of a task", lower_bound=2)
_OUT = flags.DEFINE_string("out", "runs/ntk_analysis", "folder that the results go to")

_QUANTITIES = {"diagonal": "mean diagonal of K", "row_ratio": "mean row ratio"}


class Options(NamedTuple):
    """What the command line asks for; tasks are Gymnasium ids."""

    tasks: tuple[str, ...]
    inits: tuple[str, ...]
    trials: int
    pairs: int
    out: pathlib.Path

    def settings(self) -> dict[str, Any]:
        """What the results depend on."""
        return {name: value for name, value in self._asdict().items() if name != "out"}


def main() -> int:
    """Measures, decides, saves; returns the exit code."""
    options = _read_options()
    processor = time.process_time()
    rows = sorted(_with_progress(options))
    findings = {}
    for (version, init), subset in _by_version_and_init(rows).items():
        print(f"{version}, {init}:")
        findings[f"{version}, {init}"] = [str(finding) for finding in decide(subset)]
        print("\n".join(findings[f"{version}, {init}"]))

    _save_table(rows, options.out / "ntk_analysis.csv")
    drawn = [_bar_chart(rows, task, init, options.out) for task in options.tasks for init in options.inits]
    record = {
        **provenance.collect(),
        "settings": options.settings(),
        "processor_seconds": time.process_time() - processor,
        "findings": findings,
    }
    replace_file(options.out / "ntk_analysis.json", json.dumps(record, indent=2) + "\n")
    print(f"saved to {options.out}" + ("" if all(drawn) else ", without figures: matplotlib is not installed"))
    return 0


def _read_options() -> Options:
    """Raises SettingError on what the flags' own bounds cannot tell."""
    for flag, given, known in (
        ("--tasks", _TASKS.value, TASKS),
        ("--versions", _VERSIONS.value, VERSIONS),
        ("--inits", _INITS.value, KERNEL_INITS),
    ):
        suite.check_names(flag, given, sorted(known))
    needed, available = 3 * 4 * _PAIRS.value**2, psutil.virtual_memory().available  # K, and its copies on the way
    if needed > available:
        raise SettingError(
            f"--pairs={_PAIRS.value} needs about {needed / 2**30:.1f} GiB for K, but {available / 2**30:.1f} GiB of "
            "memory are available; choose fewer"
        )
    tasks = tuple(f"{TASKS[name]}-{version}" for version in _VERSIONS.value for name in _TASKS.value)
    options = Options(tasks, tuple(_INITS.value), _TRIALS.value, _PAIRS.value, pathlib.Path(_OUT.value))
    results_folder(_OUT.value, "ntk_analysis.json", options.settings())
    return options


def _with_progress(options: Options) -> Iterator[Measurement]:
    """All measurements, with a bar where there is a terminal and a line a task where there is none."""
    networks = len(ACTIVATIONS) * len(ARCHITECTURES) * len(options.inits) * options.trials
    total = networks * len(options.tasks)
    bar = tqdm.tqdm(total=total, unit="network", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    for i, task in enumerate(options.tasks):
        bar.set_description(task)
        if bar.disable:
            print(f"[{i + 1}/{len(options.tasks)}] {task}: {networks} networks", file=sys.stderr, flush=True)
        for rows in measure(task, collect(task, options.pairs), options.inits, options.trials):
            bar.update(len(rows))
            yield from rows
    bar.close()


def _by_version_and_init(rows: Sequence[Measurement]) -> dict[tuple[str, str], list[Measurement]]:
    """Versions differ in physics and observations: they are never pooled."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for row in rows:
        groups.setdefault((row.task.rpartition("-")[2], row.init), []).append(row)
    return groups


def _save_table(rows: Sequence[Measurement], path: pathlib.Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(Measurement._fields)
    for row in rows:
        writer.writerow([f"{value:.8g}" if isinstance(value, float) else value for value in row])
    replace_file(path, buffer.getvalue())


def _bar_chart(rows: Sequence[Measurement], task: str, init: str, folder: pathlib.Path) -> bool:
    """The paper's arrangement: a group of bars an architecture, a bar an activation, diagonal above row ratio.

    Bars are means over trials, whiskers their standard deviation. False where matplotlib is not installed.
    """
    figure = plots.new_figure(9, 6)
    if figure is None:
        return False
    rows = [row for row in rows if (row.task, row.init) == (task, init)]
    grid = figure.subplots(len(_QUANTITIES), 2, sharey="row")
    for (quantity, label), line in zip(_QUANTITIES.items(), grid, strict=True):
        spreads = over_trials(rows, quantity)
        for axes, architectures in zip(line, (BY_WIDTH, BY_DEPTH), strict=True):
            for i, activation in enumerate(ACTIVATIONS):
                means, stds = np.transpose([spreads[task, activation, a] for a in architectures])
                positions = np.arange(len(architectures)) + (i - 1) * 0.27
                axes.bar(positions, means, 0.25, yerr=stds, capsize=2, label=activation)
            axes.set_xticks(range(len(architectures)), [f"{a.depth} x {a.width}" for a in architectures])
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(label)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
    for axes, title in zip(grid[-1], ("width", "depth"), strict=True):
        axes.set_xlabel(f"hidden layers x units: by {title}")
    figure.suptitle(f"{task}, {init}", x=0.01, ha="left")
    plots.save(figure, folder / f"ntk_{task}_{init}.png")
    return True


if __name__ == "__main__":
    command_line.run(main)
