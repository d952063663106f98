"""The report on a sweep: summary.csv, a table, and a heat map over two fields or learning curves of each point."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from preqn_jax import settings
from preqn_jax.cli.sweeps.plan import Axis, Run, Unit
from preqn_jax.training import plots, statistics
from preqn_jax.training.files import replace_file
from preqn_jax.training.tables import to_csv, to_markdown
from preqn_jax.training.workdir import read_json

_MOST_CURVES = 8  # in one figure


class Point(NamedTuple):
    """A point of the grid: the value on each axis, its finished seeds, and their returns ``[runs, evaluations]``."""

    values: dict[str, Any]
    seeds: tuple[int, ...]
    steps: np.ndarray
    returns: np.ndarray

    @property
    def label(self) -> str:
        """The label of the point in figures."""
        return ", ".join(f"{path.rpartition('.')[2]} {settings.spell(value)}" for path, value in self.values.items())

    @property
    def final(self) -> statistics.Estimate:
        """Mean over runs of each run's last three evaluations."""
        return statistics.estimate(np.mean, statistics.final(self.returns))


def collect(units: Sequence[Unit], folder: pathlib.Path) -> list[Point]:
    """The points that have finished runs, in the order of the plan.

    Raises:
      SettingError: if a metrics.csv is damaged.
    """
    points: dict[tuple[Any, ...], list[tuple[int, np.ndarray]]] = {}
    values: dict[tuple[Any, ...], dict[str, Any]] = {}
    for unit in units:
        paths = sorted((folder / unit.name).glob("**/metrics.csv"))
        tables = [plots.read_metrics(path) for path in paths]
        for run in unit.runs:
            rows = [table[table["run"] == run.number] for table in tables if (table["run"] == run.number).any()]
            if rows and rows[0]["step"].max() >= unit.steps:
                key = tuple(run.point.values())
                values[key] = run.point
                points.setdefault(key, []).append((run.seed, rows[0][rows[0]["step"] <= unit.steps]))
    return [
        Point(values[key], tuple(seed for seed, _ in runs), runs[0][1]["step"].astype(int),
              np.stack([rows["return_mean"] for _, rows in runs]))
        for key, runs in points.items()
    ]  # fmt: skip


def stopped(units: Sequence[Unit], folder: pathlib.Path) -> dict[int, str]:
    """The reasons for which runs were stopped early, by the number of the run."""
    events = [event for unit in units for path in sorted((folder / unit.name).glob("**/config.json"))
              for event in read_json(path).get("events", [])]  # fmt: skip
    return {event["run"]: event["reason"] for event in events if event["event"] == "stopped"}


def write(units: Sequence[Unit], axes: Sequence[Axis], folder: pathlib.Path) -> str:
    """Writes the report on all finished runs into ``folder``; returns its text."""
    points, reasons = collect(units, folder), stopped(units, folder)
    runs = {run.number: run for unit in units for run in unit.runs}
    stops = [_stopped_line(runs[number], reason) for number, reason in sorted(reasons.items())]
    if not points:
        return "\n".join(["no run has finished yet: nothing to report", *stops])
    counts = collections.Counter(tuple(runs[number].point.values()) for number in reasons)
    replace_file(folder / "summary.csv", _summary(points, counts))
    if len(axes) == 2:
        _heat_map(points, axes, folder / "sweep.png")
    else:
        best = sorted(points, key=lambda point: -point.final.value)[:_MOST_CURVES]
        lines = {point.label or "all": (point.steps, point.returns) for point in best}
        environment = units[0].config.env.id
        plots.curves({environment: lines}, folder / "sweep.png", "Sweep", "return of the deterministic policy")
    return "\n".join([_table(points, axes), *stops])


def _stopped_line(run: Run, reason: str) -> str:
    point = "".join(f"{path}={settings.spell(value)}, " for path, value in run.point.items())
    return f"stopped: run {run.number} ({point}seed {run.seed}): {reason}; the means exclude it"


def _summary(points: Sequence[Point], stopped: Mapping[tuple[Any, ...], int]) -> str:
    """The table of all points with the number of stopped runs; points without finished runs come last."""
    header = [*points[0].values, "seeds", "steps", "final_mean", "final_low", "final_high", "max_mean", "stopped"]
    rows: list[list[Any]] = []
    for point in points:
        values = tuple(point.values.values())
        numbers = [float(number) for number in (*point.final, point.returns.max(axis=1).mean())]
        counts = len(point.seeds), point.steps[-1]
        rows.append([*map(settings.spell, values), *counts, *numbers, stopped.get(values, 0)])
    reported = [tuple(point.values.values()) for point in points]
    for values in [values for values in stopped if values not in reported]:
        rows.append([*map(settings.spell, values), 0, "", "", "", "", "", stopped[values]])
    return to_csv(rows, header, digits=8)


def _table(points: Sequence[Point], axes: Sequence[Axis]) -> str:
    header = [axis.path for axis in axes]
    header += ["runs", "final: mean of the last three evaluations", "95% bootstrap interval"]
    rows = []
    for point in sorted(points, key=lambda point: -point.final.value):
        value, low, high = point.final
        spelled = [settings.spell(value) for value in point.values.values()]
        rows.append([*spelled, len(point.seeds), f"{value:.1f}", f"{low:.1f} to {high:.1f}"])
    return "\n".join(to_markdown(header, rows))


@plots.harmless
def _heat_map(points: Sequence[Point], axes: Sequence[Axis], out: pathlib.Path) -> bool:
    rows, columns = axes
    if (figure := plots.new_figure(1.5 + 1.1 * len(columns.values), 1.5 + 0.8 * len(rows.values))) is None:
        return False
    final = np.full((len(rows.values), len(columns.values)), np.nan)
    for point in points:
        at = rows.values.index(point.values[rows.path]), columns.values.index(point.values[columns.path])
        final[at] = point.final.value
    axis = figure.subplots()
    image = axis.imshow(final, aspect="auto", cmap="viridis")
    for at, value in np.ndenumerate(final):
        axis.text(at[1], at[0], f"{value:.0f}", ha="center", va="center", color="white", backgroundcolor="#00000040")
    axis.set_xticks(range(len(columns.values)), [settings.spell(value) for value in columns.values])
    axis.set_yticks(range(len(rows.values)), [settings.spell(value) for value in rows.values])
    axis.set(xlabel=columns.path, ylabel=rows.path, title="final return, mean over seeds")
    figure.colorbar(image)
    plots.save(figure, out)
    return True
