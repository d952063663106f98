"""The report on a suite: learning_curves.png, summary.csv, report.md and returns.npz."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.suites.published import PUBLISHED
from experiments.suites.suite import Job, work_folder
from preqn_jax.cli.processes import steps_done
from preqn_jax.training import plots, provenance, statistics
from preqn_jax.training.files import replace_file
from preqn_jax.training.presets import CONFIG_FILE
from preqn_jax.training.statistics import Estimate
from preqn_jax.training.tables import to_csv, to_markdown
from preqn_jax.training.workdir import read_json

# Scores that are averaged over tasks are returns in units of this agent's published return on the same task.
_UNIT = next(row for row in PUBLISHED if row.agent == "TD3" and "Tianshou" in row.source)

Curve = tuple[np.ndarray, np.ndarray]  # positions on the axis [C], and values of the runs [runs, C]


class Cell(NamedTuple):
    """The finished runs of one variant on one task.

    Attributes:
      variant: name of the variant.
      task: short name of the task.
      environment: Gymnasium id of the task, with its version.
      seeds: seeds of the runs.
      tables: metrics of each run, with one record per evaluation, ``[C]``.
    """

    variant: str
    task: str
    environment: str
    seeds: tuple[int, ...]
    tables: tuple[np.ndarray, ...]

    @property
    def steps(self) -> np.ndarray:
        """Environment step of each evaluation, ``[C]``."""
        return self.tables[0]["step"].astype(int)

    def metric(self, name: str) -> np.ndarray:
        """A metric of all runs, ``[runs, C]``; NaN for runs that do not have this metric."""
        missing = np.full(self.steps.shape, np.nan)
        return np.stack([table[name] if name in (table.dtype.names or ()) else missing for table in self.tables])

    @property
    def returns(self) -> np.ndarray:
        """Mean return of each evaluation, ``[runs, C]``."""
        return self.metric("return_mean")

    @property
    def final(self) -> np.ndarray:
        """Mean of each run's last three evaluations, ``[runs]``."""
        return statistics.final(self.returns)


def collect(jobs: Sequence[Job], folder: pathlib.Path) -> list[Cell]:
    """The cells of all variants and tasks with finished runs, in the order of the jobs."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        if steps_done(job, folder) >= job.steps:
            groups.setdefault((job.variant.name, job.task), []).append(job)
    cells = []
    for (variant, task), members in groups.items():
        tables = [plots.read_metrics(folder / job.name / "metrics.csv") for job in members]
        tables = [table[table["step"] <= job.steps] for table, job in zip(tables, members, strict=True)]
        tables = plots.at_common_steps(tables)
        seeds = tuple(job.seed for job in members)
        cells.append(Cell(variant, task, members[0].config().env.id, seeds, tuple(tables)))
    return cells


def write(cells: Sequence[Cell], folder: pathlib.Path, title: str, origin: str) -> str:
    """Writes the report on finished runs into ``folder``; returns its text.

    Args:
      cells: the finished runs.
      folder: directory for the files of the report.
      title: title of the report.
      origin: a sentence on where the runs come from.
    """
    if not cells:
        return "no run has finished yet: nothing to report"
    replace_file(folder / "summary.csv", _summary(cells))
    np.savez(folder / "returns.npz", allow_pickle=False, **_raw(cells))
    plots.curves(panels(cells), folder / "learning_curves.png", title, "return of the deterministic policy")
    text = _markdown(cells, title, origin)
    replace_file(folder / "report.md", text)
    return text


def panels(cells: Sequence[Cell], metric: str = "return_mean") -> dict[str, dict[str, Curve]]:
    """environment -> variant -> learning curves, or curves of another metric."""
    curves: dict[str, dict[str, Curve]] = {}
    for cell in cells:
        curves.setdefault(cell.environment, {})[cell.variant] = (cell.steps, cell.metric(metric))
    return curves


def _summary(cells: Sequence[Cell]) -> str:
    header = ["algo", "task", "version", "seeds", "steps", "final_mean", "final_low", "final_high", "max_mean"]
    rows = []
    for cell in cells:
        final = statistics.estimate(np.mean, cell.final)
        numbers = [float(number) for number in (*final, cell.returns.max(axis=1).mean())]
        rows.append([cell.variant, cell.task, _version(cell), len(cell.seeds), cell.steps[-1], *numbers])
    return to_csv(rows, header, digits=8)


def _version(cell: Cell) -> str:
    return cell.environment.rpartition("-")[2]


def _raw(cells: Sequence[Cell]) -> dict[str, np.ndarray]:
    """returns [algos, tasks, runs, evaluations], NaN for missing runs, and the labels of the axes."""
    algos, tasks = _names(cells)
    seeds = sorted({seed for cell in cells for seed in cell.seeds})
    steps = np.unique(np.concatenate([cell.steps for cell in cells]))
    returns = np.full((len(algos), len(tasks), len(seeds), len(steps)), np.nan)
    for cell in cells:
        runs = [seeds.index(seed) for seed in cell.seeds]
        at = np.ix_(np.array(runs), np.searchsorted(steps, cell.steps))
        returns[algos.index(cell.variant), tasks.index(cell.task)][at] = cell.returns
    return {"returns": returns, "algos": np.array(algos), "tasks": np.array(tasks), "seeds": np.array(seeds),
            "steps": steps}  # fmt: skip


def _names(cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    """The names of variants and tasks, in order, without duplicates."""
    return list(dict.fromkeys(cell.variant for cell in cells)), list(dict.fromkeys(cell.task for cell in cells))


def origin(cells: Sequence[Cell], jobs: int, folder: pathlib.Path) -> str:
    """A sentence on finished runs in ``folder``: how many of all jobs they are, and with which versions they ran."""
    runs = sum(len(cell.seeds) for cell in cells)
    return f"{runs} of {jobs} runs finished, made with: {_made_with(cells, folder)}."


def _made_with(cells: Sequence[Cell], folder: pathlib.Path) -> str:
    """Device, versions and commit as recorded by the runs, with all values if runs differ."""
    values: dict[str, dict[str, None]] = {}  # ordered sets
    for cell in cells:
        for seed in cell.seeds:
            record = read_json(folder / work_folder(cell.variant, cell.task, seed) / CONFIG_FILE)
            versions = record.pop("versions", {})
            for name in ("device", "machine", "commit", "python"):
                values.setdefault(name, {})[record.get(name, "unknown")] = None
            for name, version in versions.items():
                values.setdefault(name, {})[version] = None
    return ", ".join(f"{name} {' or '.join(found)}" for name, found in values.items())


def _markdown(cells: Sequence[Cell], title: str, origin: str) -> str:
    lines = [
        f"# {title}",
        "",
        f"`{provenance.command()}`",
        "",
        origin,
        "",
        "FINAL is the mean of a run's last three evaluations, MAX its largest evaluation. The table lists means over "
        f"runs, with {100 * statistics.CONFIDENCE:.0f}% bootstrap intervals over runs in brackets. Published values "
        "are marked as such; they are for other environment versions and, where another number of steps is given, for "
        "runs of another length.",
        "",
        *_table_of_returns(cells),
        "",
        *_aggregates(cells),
        "",
    ]
    return "\n".join(lines)


def _table_of_returns(cells: Sequence[Cell]) -> list[str]:
    rows: list[list[Any]] = []
    for task in _names(cells)[1]:
        of_task = [cell for cell in cells if cell.task == task]
        for cell in of_task:
            final = _spell(statistics.estimate(np.mean, cell.final), 1)
            most = cell.returns.max(axis=1).mean()
            steps = f"{cell.steps[-1]:,}"
            rows.append([cell.environment, cell.variant, len(cell.seeds), steps, final, f"{most:.1f}"])
        for row in PUBLISHED:
            if task in row.returns and row.steps in (of_task[0].steps[-1], _UNIT.steps):
                value = f"{row.returns[task]:g}"
                rows.append(
                    [f"{task} {row.version}", f"published: {row.agent}", "", f"{row.steps:,}", value, row.source]
                )
    return to_markdown(("task", "agent", "runs", "steps", "FINAL", "MAX, or source"), rows)


def _aggregates(cells: Sequence[Cell]) -> list[str]:
    """Interquartile means over tasks with finished runs of all variants, and probabilities of improvement."""
    algos, tasks = _names(cells)
    by_name = {(cell.variant, cell.task): cell for cell in cells}
    common = [task for task in tasks if task in _UNIT.returns and all((algo, task) in by_name for algo in algos)]
    if not common:
        return ["There is no aggregate over tasks, since no task has finished runs of every agent yet."]
    scores = {algo: [by_name[algo, task].final / _UNIT.returns[task] for task in common] for algo in algos}
    middles = []
    for algo in algos:
        middle = statistics.estimate(lambda *samples: statistics.interquartile_mean(samples), *scores[algo])
        middles.append((algo, _spell(middle, 3)))
    comparisons = []
    for i, algo in enumerate(algos):
        for other in algos[i + 1 :]:

            def improvement(*samples: np.ndarray) -> float:
                half = len(samples) // 2
                return statistics.probability_of_improvement(samples[:half], samples[half:])

            value = statistics.estimate(improvement, *scores[algo], *scores[other])
            comparisons.append((f"{algo} than {other}", _spell(value, 2)))
    return [
        f"Over {', '.join(common)}, stratified bootstrap over runs. A score is FINAL in units of TD3's published "
        f"return on the task ({_UNIT.source}, {_UNIT.steps:,} steps, {_UNIT.version}).",
        "",
        *to_markdown(("agent", "interquartile mean of scores"), middles),
        "",
        *to_markdown(("better than", "probability of improvement"), comparisons),
    ]


def _spell(estimate: Estimate, digits: int) -> str:
    value = f"{estimate.value:.{digits}f}"
    return value if np.isnan(estimate.low) else f"{value} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
