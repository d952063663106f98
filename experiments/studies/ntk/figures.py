"""The paper's Figures 1 and 4 to 9: bar charts of kernels at initialization, one file per task and initializer.

The captions in the paper state the networks, their names (small to exlarge by width, shallow to vdeep by depth), and
that bars are means over three networks. The axes and the grouping of the bars are choices of this library.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.studies.ntk.findings import over_trials
from experiments.studies.ntk.measurements import ACTIVATIONS, BY_DEPTH, BY_WIDTH, Architecture, Measurement
from preqn_jax.training import plots

_WIDTHS = dict(zip(("small", "med", "large", "exlarge"), BY_WIDTH, strict=True))
_DEPTHS = dict(zip(("shallow", "normal", "deep", "vdeep"), BY_DEPTH, strict=True))
_ROW_RATIO = ("row_ratio", "mean row ratio", "linear")
_BY_WIDTH = (("diagonal", "mean diagonal of K", "linear"), _ROW_RATIO)
_BY_DEPTH = (("diagonal", "mean diagonal of K", "log"), _ROW_RATIO)  # it decreases with depth by a factor of up to 60


class Figure(NamedTuple):
    """One of the paper's figures.

    Attributes:
      number: number of the figure in the paper.
      task: name of the task, without its version.
      by: "width" or "depth".
      architectures: name of each network in the paper -> the network.
      quantities: for each panel, a field of :class:`Measurement`, its label, and the scale of its axis.
    """

    number: int
    task: str
    by: str
    architectures: dict[str, Architecture]
    quantities: tuple[tuple[str, str, str], ...]


FIGURES = (
    Figure(1, "Walker2d", "width", _WIDTHS, (_ROW_RATIO,)),
    Figure(4, "Ant", "width", _WIDTHS, _BY_WIDTH),
    Figure(5, "HalfCheetah", "width", _WIDTHS, _BY_WIDTH),
    Figure(6, "Walker2d", "width", _WIDTHS, _BY_WIDTH),
    Figure(7, "Ant", "depth", _DEPTHS, _BY_DEPTH),
    Figure(8, "HalfCheetah", "depth", _DEPTHS, _BY_DEPTH),
    Figure(9, "Walker2d", "depth", _DEPTHS, _BY_DEPTH),
)


def draw(rows: Sequence[Measurement], folder: pathlib.Path) -> bool:
    """Draws the figures of all measured tasks, for each version and initializer; returns False without matplotlib.

    The files are named figure<number>_<task>_<width or depth>_<initializer>.png.
    """
    drawn = True
    for figure in FIGURES:
        for task, init in sorted({(row.task, row.init) for row in rows}):
            if task.rpartition("-")[0] == figure.task:
                chosen = [row for row in rows if (row.task, row.init) == (task, init)]
                name = f"figure{figure.number}_{task}_{figure.by}_{init}.png"
                drawn = _draw(figure, chosen, folder / name) and drawn
    return drawn


@plots.harmless
def _draw(figure: Figure, rows: Sequence[Measurement], out: pathlib.Path) -> bool:
    """Draws one figure; bars are means over trials, and whiskers standard deviations."""
    picture = plots.new_figure(0.8 + 4.2 * len(figure.quantities), 3.6)
    if picture is None:
        return False
    task, init = rows[0].task, rows[0].init
    grid = picture.subplots(1, len(figure.quantities), squeeze=False)[0]
    for axes, (quantity, label, scale) in zip(grid, figure.quantities, strict=True):
        _bars(axes, figure, rows, quantity)
        axes.set(ylabel=label, yscale=scale)
    picture.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    picture.suptitle(f"Figure {figure.number}: {task} by {figure.by}, {init}", x=0.01, ha="left", fontsize="medium")
    plots.save(picture, out)
    return True


def _bars(axes: Any, figure: Figure, rows: Sequence[Measurement], quantity: str) -> None:
    spreads, task = over_trials(rows, quantity), rows[0].task
    for i, activation in enumerate(ACTIVATIONS):
        means, stds = np.transpose([spreads[task, activation, a] for a in figure.architectures.values()])
        positions = np.arange(len(means)) + (i - 1) * 0.27
        axes.bar(positions, means, 0.25, yerr=stds, capsize=2, label=activation)
    names = [f"{name}\n{a.depth} x {a.width}" for name, a in figure.architectures.items()]
    axes.set_xticks(range(len(names)), names)
    axes.spines[["top", "right"]].set_visible(False)
