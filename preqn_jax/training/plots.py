"""Figures, mainly learning curves, and reading of the metrics.csv files that they show."""

from __future__ import annotations

import functools
import io
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from preqn_jax.settings import SettingError, first_line
from preqn_jax.training.statistics import mean_interval


def harmless(draw: Callable[..., bool]) -> Callable[..., bool]:
    """Wraps ``draw`` so that a failure to draw or write the figure prints one warning and returns False."""

    @functools.wraps(draw)
    def guarded(*arguments: Any, **options: Any) -> bool:
        try:
            return draw(*arguments, **options)
        except SettingError:
            raise
        except Exception as error:  # a full disk, missing fonts, a broken installation: any exception type
            print(f"warning: a figure could not be drawn ({first_line(error)})", file=sys.stderr)
            return False

    return guarded


def read_metrics(path: pathlib.Path) -> np.ndarray:
    """Reads a metrics.csv as a structured array with one record per row.

    Raises:
      SettingError: if the file is damaged, for example incomplete.
    """
    try:
        text = path.read_text()
        if not text.strip():
            raise ValueError("empty file")
        rows = np.atleast_1d(np.genfromtxt(io.StringIO(text), delimiter=",", names=True))
        whole = text.endswith("\n") and {"step", "seed", "return_mean"} <= set(rows.dtype.names or ())
        whole = whole and bool(np.isfinite(rows["step"]).all())
    except (ValueError, IndexError):  # NumPy's parsing errors, also for binary files
        whole = False
    if not whole:
        raise SettingError(f"{path} is damaged; move it away")
    return rows


def evaluated_steps(path: pathlib.Path) -> list[int]:
    """The environment steps of all evaluations in a metrics.csv, in order; none if there is no such file.

    Raises:
      SettingError: if the file is damaged.
    """
    return [int(step) for step in np.unique(read_metrics(path)["step"])] if path.exists() else []


def last_step(path: pathlib.Path) -> int:
    """The environment step of the last evaluation in a metrics.csv; 0 if there is none.

    Raises:
      SettingError: if the file is damaged.
    """
    return max(evaluated_steps(path), default=0)


def at_common_steps(tables: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The rows of the evaluations that all runs have; one line on stderr gives the number of rows that are left out."""
    steps = functools.reduce(np.intersect1d, (table["step"] for table in tables))
    common = [table[np.isin(table["step"], steps)] for table in tables]
    if left_out := sum(map(len, tables)) - sum(map(len, common)):
        print(f"warning: {left_out} evaluation(s) are left out, since only some runs have them", file=sys.stderr)
    return common


def learning_curve(paths: Sequence[pathlib.Path], out: pathlib.Path, title: str) -> bool:
    """Plots the return of each seed and their mean against steps; returns False if matplotlib is not installed."""
    if (figure := new_figure(6, 4)) is None:
        return False
    rows = np.concatenate([read_metrics(path) for path in paths])
    axes = figure.subplots()
    seeds = np.unique(rows["seed"])
    for seed in seeds:
        of_seed = rows[rows["seed"] == seed]
        style = {"alpha": 0.4, "linewidth": 1} if len(seeds) > 1 else {"linewidth": 2}
        axes.plot(of_seed["step"], of_seed["return_mean"], color="C0", **style)
    if len(seeds) > 1:
        # A mean over fewer seeds, after one of them was stopped, would jump.
        whole = [step for step in np.unique(rows["step"]) if np.sum(rows["step"] == step) == len(seeds)]
        mean = [rows["return_mean"][rows["step"] == step].mean() for step in whole]
        axes.plot(whole, mean, color="C0", linewidth=2, label=f"mean of {len(seeds)} seeds")
        axes.legend(frameon=False)
    axes.set(title=title, xlabel="environment steps of each seed", ylabel="return of the deterministic policy")
    _label_steps(axes)
    dress(axes)
    save(figure, out)
    return True


Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]  # label -> steps [C], values [runs, C]


@harmless
def curves(panels: Mapping[str, Curves], out: pathlib.Path, title: str, ylabel: str) -> bool:
    """Plots means over runs with 95% bootstrap intervals, one panel per task; returns False without matplotlib."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    if (figure := new_figure(4.2 * columns, 3.2 * rows)) is None:
        return False
    grid = figure.subplots(rows, columns, squeeze=False)
    labels = _labels(panels)
    for axes, (task, lines) in zip(grid.flat, panels.items(), strict=False):
        _draw(axes, lines, labels)
        axes.set(title=task, xlabel="environment steps", ylabel=ylabel)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    several = any(len(values) > 1 for lines in panels.values() for _, values in lines.values())
    figure.suptitle(f"{title}: {'mean over runs, with 95% bootstrap intervals' if several else 'single runs'}")
    save(figure, out)
    return True


@harmless
def rows_of_curves(rows: Mapping[str, Mapping[str, Curves]], out: pathlib.Path) -> bool:
    """Like :func:`curves`, with one row per quantity and one column per task; returns False without matplotlib."""
    tasks = list(next(iter(rows.values())))
    if not tasks or (figure := new_figure(4.2 * len(tasks), 3.2 * len(rows))) is None:
        return False
    grid = figure.subplots(len(rows), len(tasks), squeeze=False, sharex=True)
    for i, (quantity, panels) in enumerate(rows.items()):
        for j, task in enumerate(tasks):
            _draw(grid[i, j], panels[task], _labels(panels))
            grid[i, j].set(
                title=task if i == 0 else "",
                xlabel="environment steps" if i == len(rows) - 1 else "",
                ylabel=quantity if j == 0 else "",
            )
    save(figure, out)
    return True


class Panel(NamedTuple):
    """One panel: title, label of the y axis, and curves."""

    title: str
    ylabel: str
    lines: Curves


@harmless
def row_of_panels(panels: Sequence[Panel], out: pathlib.Path, title: str = "") -> bool:
    """Like :func:`curves`, for panels given side by side; returns False without matplotlib."""
    if not panels or (figure := new_figure(4.2 * len(panels), 3.6)) is None:
        return False
    labels = _labels({str(i): panel.lines for i, panel in enumerate(panels)})
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel.lines, labels)
        axes.set(title=panel.title, xlabel="environment steps", ylabel=panel.ylabel)
    figure.suptitle(title)
    save(figure, out)
    return True


def _labels(panels: Mapping[str, Curves]) -> list[str]:
    """The labels of all curves, which determine their colours, so that a label has the same colour in all panels."""
    return list(dict.fromkeys(label for lines in panels.values() for label in lines))


def _draw(axes: Any, lines: Curves, labels: list[str]) -> None:
    for label, (steps, values) in lines.items():
        color = f"C{labels.index(label)}"
        axes.plot(steps, values.mean(axis=0), color=color, label=f"{label} ({len(values)})")
        axes.fill_between(steps, *mean_interval(values), color=color, alpha=0.2, linewidth=0)
    axes.legend(frameon=False, fontsize="small")
    _label_steps(axes)
    dress(axes)


def _label_steps(axes: Any) -> None:
    """Labels the axis of environment steps as 100k and 1M; in full, the numbers of long runs would overlap."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def new_figure(width: float, height: float) -> Any:
    """Creates a matplotlib Figure [inches] without a window; returns None if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Any) -> None:
    """Applies the style that all figures share."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, out: pathlib.Path) -> None:
    """Writes a figure as PNG, atomically."""
    partial = out.with_name(out.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(out)
