"""Learning curves from metrics.csv files."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np


def read_metrics(path: pathlib.Path) -> np.ndarray:
    """metrics.csv as a structured array, one record a row."""
    return np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True))


def learning_curve(paths: Sequence[pathlib.Path], out: pathlib.Path, title: str) -> bool:
    """Draws return over steps, a line a seed and their mean; False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = np.concatenate([read_metrics(path) for path in paths])
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    seeds = np.unique(rows["seed"])
    steps = np.unique(rows["step"])
    for seed in seeds:
        of_seed = rows[rows["seed"] == seed]
        style = {"alpha": 0.4, "linewidth": 1} if len(seeds) > 1 else {"linewidth": 2}
        axes.plot(of_seed["step"], of_seed["return_mean"], color="C0", **style)
    if len(seeds) > 1:
        mean = [rows["return_mean"][rows["step"] == step].mean() for step in steps]
        axes.plot(steps, mean, color="C0", linewidth=2, label=f"mean of {len(seeds)} seeds")
        axes.legend(frameon=False)
    axes.set(title=title, xlabel="environment steps of each seed", ylabel="return of the deterministic policy")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    partial = out.with_name(out.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(out)
    return True
