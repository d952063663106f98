"""Figures of the divergence study."""

from __future__ import annotations

import itertools
import pathlib

import numpy as np

from preqn_jax.training import plots


@plots.harmless
def divergence(path: pathlib.Path, out: pathlib.Path) -> bool:
    """Draws the measurements, one column per task; returns False if matplotlib is not installed."""
    limits = {"q_abs": None, "linearization": 1, "overshooting": 1, "over_generalization": 1, "extrapolation": 0.5}
    figure = plots.new_figure(11, 11)
    if figure is None:
        return False
    rows = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    tasks, methods = (list(dict.fromkeys(rows[name].tolist())) for name in ("task", "method"))
    grid = figure.subplots(len(limits), len(tasks), sharex="col", squeeze=False)
    for (i, (measure, limit)), (j, task) in itertools.product(enumerate(limits.items()), enumerate(tasks)):
        axes = grid[i, j]
        for k, method in enumerate(methods):
            chosen = rows[(rows["task"] == task) & (rows["method"] == method)]
            for seed in np.unique(chosen["seed"]):
                curve = chosen[chosen["seed"] == seed]
                values = np.clip(curve[measure], 1e-6, 1e9)  # NaN remains, and ends the line
                label = method.replace("_", " ") if seed == 0 else None
                width = 2.5 - 0.5 * k  # so that lines that coincide remain visible
                axes.plot(curve["update"], values, color=f"C{k}", linewidth=width, alpha=0.7, label=label)
        if limit is not None:
            axes.axhline(limit, color="black", linewidth=0.8, linestyle=":")
        axes.set_yscale("linear" if measure == "extrapolation" else "log")
        axes.set_title(task.replace("_", " ") if i == 0 else "")
        if j == 0:
            axes.set_ylabel("largest |Q|" if measure == "q_abs" else measure.replace("_", "-"))
        axes.set_xlabel("updates" if i == len(limits) - 1 else "")
        plots.dress(axes)
    grid[0, 0].legend(frameon=False, fontsize="small")
    plots.save(figure, out)
    return True


@plots.harmless
def divergence_seeds(path: pathlib.Path, out: pathlib.Path) -> bool:
    """Draws every seed's largest |Q| for variants of a task, sorted by initial row ratio, with one panel per method.

    A dot at the upper edge means that |Q| became non-finite, or larger than the axis. Returns False if matplotlib is
    not installed.
    """
    rows = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    methods = list(dict.fromkeys(rows["method"].tolist()))
    fresh = rows[rows["update"] == 0]
    ratios = {task: fresh["row_ratio"][fresh["task"] == task].mean() for task in dict.fromkeys(rows["task"].tolist())}
    tasks = sorted(ratios, key=lambda task: ratios[task])
    if (figure := plots.new_figure(3.5 + 3 * len(methods), 1.5 + 0.35 * len(tasks))) is None:
        return False
    for axes, method in zip(figure.subplots(1, len(methods), sharey=True, squeeze=False)[0], methods, strict=True):
        for (i, task), which in itertools.product(enumerate(tasks), ("largest", "at the end")):
            chosen = rows[(rows["task"] == task) & (rows["method"] == method)]
            seeds = [np.nan_to_num(chosen["q_abs"][chosen["seed"] == seed], nan=np.inf) for seed in set(chosen["seed"])]
            values = [seed.max() if which == "largest" else seed[-1] for seed in seeds]
            style = (
                {"color": "C1", "marker": "|"} if which == "largest" else {"color": "C0", "marker": "o", "alpha": 0.5}
            )
            label = which if i == 0 else None
            axes.scatter(np.clip(values, None, 1e7), np.full(len(values), i), label=label, **style)
        axes.set(title=method.replace("_", " "), xlabel="|Q|", xscale="log", xlim=(10, 2e7))
        plots.dress(axes)
    grid = figure.axes
    grid[0].set_yticks(range(len(tasks)), [f"{task.removeprefix('pendulum ')} ({ratios[task]:.2f})" for task in tasks])
    grid[0].set_ylabel("variant (row ratio)")
    grid[-1].legend(frameon=False, fontsize="small")
    plots.save(figure, out)
    return True
