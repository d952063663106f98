"""The report on a sweep: summary.csv, a table, and a heat map over two fields or learning curves of each point."""

from __future__ import annotations

import itertools
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
_KINDS = ("stopped", "failed", "unfinished")  # of runs without results: not finite, ended by an error, not ended yet


class Missing(NamedTuple):
    """Why a run has not finished: one of ``_KINDS``, and the reason, empty for an unfinished run."""

    kind: str
    reason: str


class Point(NamedTuple):
    """A point of the grid: the value on each axis, its finished seeds, their returns ``[runs, evaluations]``.

    ``planned`` is the number of its runs, of which some may not have finished.
    """

    values: dict[str, Any]
    seeds: tuple[int, ...]
    steps: np.ndarray
    returns: np.ndarray
    planned: int

    @property
    def runs(self) -> str:
        """The number of runs in the means: ``3``, or ``2 of 3`` if not all have finished."""
        finished = len(self.seeds)
        return str(finished) if finished == self.planned else f"{finished} of {self.planned}"

    @property
    def label(self) -> str:
        """The label of the point in figures."""
        values = (f"{path.rpartition('.')[2]} {settings.spell(value)}" for path, value in self.values.items())
        missing = [f"{self.runs} runs"] * (len(self.seeds) < self.planned)
        return ", ".join([*values, *missing])

    @property
    def final(self) -> statistics.Estimate:
        """Mean over runs of each run's last three evaluations."""
        return statistics.estimate(np.mean, statistics.final(self.returns))


def finished(units: Sequence[Unit], folder: pathlib.Path) -> dict[int, np.ndarray]:
    """The metrics of all finished runs, by the number of the run.

    Raises:
      SettingError: if a metrics.csv is damaged.
    """
    found = {}
    for unit in units:
        paths = sorted((folder / unit.name).glob("**/metrics.csv"))
        tables = [plots.read_metrics(path) for path in paths]
        for run in unit.runs:
            rows = [table[table["run"] == run.number] for table in tables if (table["run"] == run.number).any()]
            if rows and unit.steps in rows[0]["step"]:
                found[run.number] = rows[0][rows[0]["step"] <= unit.steps]
    return found


def stopped(units: Sequence[Unit], folder: pathlib.Path) -> dict[int, str]:
    """The reasons for which runs were stopped early, by the number of the run."""
    events = [event for unit in units for path in sorted((folder / unit.name).glob("**/config.json"))
              for event in read_json(path).get("events", [])]  # fmt: skip
    return {event["run"]: event["reason"] for event in events if event["event"] == "stopped"}


def write(
    units: Sequence[Unit], axes: Sequence[Axis], folder: pathlib.Path, failed: Mapping[str, str] | None = None
) -> str:
    """Writes the report on a sweep into ``folder``; the means are over the finished runs, and all others are counted.

    Args:
      units: the units of the sweep.
      axes: the axes of its grid.
      folder: its directory.
      failed: the reasons for which units failed, by the name of the unit.

    Returns:
      The text of the report.

    Raises:
      SettingError: if a metrics.csv is damaged.
    """
    metrics = finished(units, folder)
    missing = _missing(units, metrics, stopped(units, folder), failed or {})
    groups = _by_point(units)
    points = [_point(runs, metrics) for runs in groups if any(run.number in metrics for run in runs)]
    replace_file(folder / "summary.csv", _summary(points, groups, missing))
    lines = _missing_lines(groups, missing)
    if not points:
        return "\n".join(["no run has finished yet: there are no means to report", *lines])
    if len(axes) == 2:
        _heat_map(points, axes, folder / "sweep.png")
    else:
        panels: dict[str, plots.Curves] = {}
        for environment, best in _ranked(points).items():
            curves = {point.label or "all": (point.steps, point.returns) for point in best[:_MOST_CURVES]}
            panels[environment or units[0].config.env.id] = curves
        plots.curves(panels, folder / "sweep.png", "Sweep", "return of the deterministic policy")
    return "\n".join([_table(points, axes), *lines])


def _ranked(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points by environment ("" if the grid has one only), since returns compare within it; the best come first."""
    groups: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: -point.final.value):
        groups.setdefault(point.values.get("env.id", ""), []).append(point)
    return groups


def _missing(
    units: Sequence[Unit], metrics: Mapping[int, Any], reasons: Mapping[int, str], failed: Mapping[str, str]
) -> dict[int, Missing]:
    """Why each run that is not in ``metrics`` has not finished, by its number."""
    missing = {}
    for unit in units:
        for run in unit.runs:
            if run.number in metrics:  # even if it was stopped after the last step of this sweep
                continue
            if run.number in reasons:
                missing[run.number] = Missing("stopped", reasons[run.number])
            elif unit.name in failed:
                missing[run.number] = Missing("failed", failed[unit.name])
            else:
                missing[run.number] = Missing("unfinished", "")
    return missing


def _by_point(units: Sequence[Unit]) -> list[list[Run]]:
    """The runs of each point of the grid, in the order of the plan."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted((run for unit in units for run in unit.runs), key=lambda run: run.number):
        groups.setdefault(tuple(run.point.values()), []).append(run)
    return list(groups.values())


def _point(runs: Sequence[Run], metrics: Mapping[int, np.ndarray]) -> Point:
    """The results of the runs of a point, of which at least one has finished."""
    done = [run for run in runs if run.number in metrics]
    tables = plots.at_common_steps([metrics[run.number] for run in done])
    returns = np.stack([table["return_mean"] for table in tables])
    steps = tables[0]["step"].astype(int)
    return Point(done[0].point, tuple(run.seed for run in done), steps, returns, len(runs))


def _missing_lines(groups: Sequence[Sequence[Run]], missing: Mapping[int, Missing]) -> list[str]:
    """One line for each run that was stopped or failed, and one for all that have not ended."""
    runs = sorted((run for group in groups for run in group), key=lambda run: run.number)
    lines = []
    for run in runs:
        kind, reason = missing.get(run.number, ("", ""))
        if kind in ("stopped", "failed"):
            point = "".join(f"{path}={settings.spell(value)}, " for path, value in run.point.items())
            lines.append(f"{kind}: run {run.number} ({point}seed {run.seed}): {reason}; the means exclude it")
    if unfinished := sum(kind == "unfinished" for kind, _ in missing.values()):
        lines.append(f"unfinished: {unfinished} of {len(runs)} runs; the means exclude them, and the same command "
                     "resumes them")  # fmt: skip
    return lines


def _summary(points: Sequence[Point], groups: Sequence[Sequence[Run]], missing: Mapping[int, Missing]) -> str:
    """The table of all points with the number of runs that have not finished; points without any means come last."""
    header = [*groups[0][0].point, "seeds", "steps", "final_mean", "final_low", "final_high", "max_mean", *_KINDS]
    counts: dict[tuple[Any, ...], list[int]] = {}
    for runs in groups:
        kinds = [missing[run.number].kind for run in runs if run.number in missing]
        counts[tuple(runs[0].point.values())] = [kinds.count(kind) for kind in _KINDS]
    rows: list[list[Any]] = []
    for point in points:
        values = tuple(point.values.values())
        numbers = [float(number) for number in (*point.final, point.returns.max(axis=1).mean())]
        rows.append([*map(settings.spell, values), len(point.seeds), point.steps[-1], *numbers, *counts.pop(values)])
    for values, numbers_missing in counts.items():
        rows.append([*map(settings.spell, values), 0, "", "", "", "", "", *numbers_missing])
    return to_csv(rows, header, digits=8)


def _table(points: Sequence[Point], axes: Sequence[Axis]) -> str:
    header = [axis.path for axis in axes]
    header += ["runs", "final: mean of the last three evaluations", "95% bootstrap interval"]
    rows = []
    for point in itertools.chain(*_ranked(points).values()):
        value, low, high = point.final
        spelled = [settings.spell(value) for value in point.values.values()]
        interval = f"{low:.1f} to {high:.1f}" if len(point.seeds) > 1 else ""
        rows.append([*spelled, point.runs, f"{value:.1f}", interval])
    return "\n".join(to_markdown(header, rows))


@plots.harmless
def _heat_map(points: Sequence[Point], axes: Sequence[Axis], out: pathlib.Path) -> bool:
    rows, columns = axes
    if (figure := plots.new_figure(1.5 + 1.1 * len(columns.values), 1.5 + 0.8 * len(rows.values))) is None:
        return False
    final = np.full((len(rows.values), len(columns.values)), np.nan)
    counts = np.full(final.shape, "", object)
    for point in points:
        at = rows.values.index(point.values[rows.path]), columns.values.index(point.values[columns.path])
        final[at] = point.final.value
        if len(point.seeds) < point.planned:
            counts[at] = f"\n{point.runs}"
    axis = figure.subplots()
    image = axis.imshow(final, aspect="auto", cmap="viridis")
    for at, value in np.ndenumerate(final):
        text = f"{value:.0f}{counts[at]}"
        axis.text(at[1], at[0], text, ha="center", va="center", color="white", backgroundcolor="#00000040")
    axis.set_xticks(range(len(columns.values)), [settings.spell(value) for value in columns.values])
    axis.set_yticks(range(len(rows.values)), [settings.spell(value) for value in rows.values])
    axis.set(xlabel=columns.path, ylabel=rows.path, title="final return, mean over seeds")
    figure.colorbar(image)
    plots.save(figure, out)
    return True
