"""The report of ``experiments.linear_regime``: a row per network, the table over widths, and the figure."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.studies.linear_regime.measurements import Trajectory
from preqn_jax.training import plots

_GROWN = 10.0  # on Baird's star, |Q| is followed until it has grown by this factor
STUDIES = (("garnet", "q_learning"), ("garnet", "preqn"), ("baird", "q_learning"))
TITLES = {
    ("garnet", "q_learning"): "Q-learning beside U3 with K_0, Garnet MDPs",
    ("garnet", "preqn"): "PreQN beside U1, Garnet MDPs",
    ("baird", "q_learning"): "Q-learning beside U3 with K_0, Baird's star",
}
_LABELS = {"deviation": "deviation of Q, relative", "kernel_change": "largest ||K_t - K_0|| / ||K_0||"}


class Row(NamedTuple):
    """One network.

    Attributes:
      activation: activation of the network.
      problem: "garnet" or "baird".
      method: "q_learning" or "preqn".
      width: units of both hidden layers.
      seed: seed of MDP and network.
      deviation: largest ||Q - Q_linear|| over largest ||Q_linear - Q_0||; infinite if the network's Q is not finite.
      kernel_change: largest ||K_t - K_0|| / ||K_0||.
      spectral_radius: spectral radius of the operator with the initial greedy policy; above 1, it diverges while this
        policy does not change.
      linear_grown: number of updates until the operator has increased max |Q| tenfold; -1 if this does not happen.
      network_grown: number of updates until the network has increased max |Q| tenfold; -1 if this does not happen.
    """

    activation: str
    problem: str
    method: str
    width: int
    seed: int
    deviation: float
    kernel_change: float
    spectral_radius: float
    linear_grown: int
    network_grown: int


def row_of(activation: str, study: tuple[str, str], width: int, seed: int, trajectory: Trajectory) -> Row:
    """Summarizes a trajectory; on Baird's star, only the part until the operator's values have grown tenfold."""
    grown = {name: first_grown(getattr(trajectory, name)) for name in ("linear", "network")}
    end = grown["linear"] if study[0] == "baird" and grown["linear"] >= 0 else len(trajectory.linear) - 1
    network, linear, change = (np.asarray(leaf[: end + 1], np.float64) for leaf in trajectory[:3])
    apart = np.nan_to_num(np.linalg.norm(network - linear, axis=1), nan=np.inf).max()
    way = np.linalg.norm(linear - linear[0], axis=1).max()
    return Row(activation, *study, width, seed, float(apart / way), float(np.nan_to_num(change, nan=np.inf).max()),
               float(trajectory.spectral_radius), grown["linear"], grown["network"])  # fmt: skip


def first_grown(q: np.ndarray) -> int:
    """Updates until max |Q| of q ``[updates + 1, N]`` is ten times its initial value, or not finite; -1 if never."""
    size = np.abs(q).max(axis=1)
    beyond = np.flatnonzero(~(size < _GROWN * size[0]))
    return int(beyond[0]) if len(beyond) else -1


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """The least-squares slope of log(value) over log(width), for the wider half of the networks."""
    half = len(widths) // 2
    if len(widths) - half < 2:
        return float("nan")
    return float(np.polyfit(np.log(widths[half:]), np.log(values[half:]), 1)[0])


def over_seeds(rows: Sequence[Row], quantity: str) -> tuple[list[int], list[float]]:
    """All widths, and the geometric mean over seeds of a quantity at each width."""
    widths = sorted({row.width for row in rows})
    values = [[getattr(row, quantity) for row in rows if row.width == width] for width in widths]
    return widths, [float(np.exp(np.mean(np.log(of_width)))) for of_width in values]


def summary(rows: Sequence[Row]) -> list[str]:
    """The lines of a table with one block per study and activation, and one line per width."""
    lines: list[str] = []
    for study, title in TITLES.items():
        for activation in dict.fromkeys(row.activation for row in rows):
            chosen = [row for row in rows if (row.problem, row.method, row.activation) == (*study, activation)]
            if chosen:
                lines += ["", f"{title}, {activation}", *_block(chosen, study[0] == "baird")]
    return lines


def _block(rows: Sequence[Row], on_the_star: bool) -> list[str]:
    widths, deviations = over_seeds(rows, "deviation")
    changes = over_seeds(rows, "kernel_change")[1]
    more = f"{'radius':>24}{'tenfold, linear':>24}{'tenfold, network':>24}" if on_the_star else ""
    lines = [f"{'width':>6}{'deviation of Q':>16}{'change of K':>14}{more}"]
    for width, deviation, change in zip(widths, deviations, changes, strict=True):
        line = f"{width:>6}{deviation:>16.4g}{change:>14.4g}"
        of_width = [row for row in rows if row.width == width]
        if on_the_star:
            radii = ", ".join(f"{row.spectral_radius:.3f}" for row in of_width)
            linear, network = (
                ", ".join(str(value) if value >= 0 else "never" for value in values)
                for values in ([row.linear_grown for row in of_width], [row.network_grown for row in of_width])
            )
            line += f"{radii:>24}{linear:>24}{network:>24}"
        lines.append(line)
    wider = f"{widths[len(widths) // 2]} to {widths[-1]}"
    return [*lines, f"slopes in log-log, {wider}: {slope(widths, deviations):.2f}, {slope(widths, changes):.2f}"]


def star_rows(star: dict[tuple[str, int, int], Trajectory]) -> list[tuple[Any, ...]]:
    """Rows with max |Q| of network and operator on Baird's star."""
    return [
        (*key, update, float(network), float(linear))
        for key, trajectory in star.items()
        for update, (network, linear) in enumerate(zip(*_sizes(trajectory), strict=True))
    ]


def _sizes(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    return np.abs(trajectory.network).max(axis=1), np.abs(trajectory.linear).max(axis=1)


@plots.harmless
def picture(rows: Sequence[Row], star: dict[tuple[str, int, int], Trajectory], out: pathlib.Path) -> bool:
    """Draws deviation of Q, change of K, and |Q| on Baird's star, a row per activation; False without matplotlib."""
    activations = list(dict.fromkeys(row.activation for row in rows))
    figure = plots.new_figure(14, 3.8 * len(activations))
    if figure is None:
        return False
    for line, activation in zip(figure.subplots(len(activations), 3, squeeze=False), activations, strict=True):
        for axes, (quantity, label) in zip(line, _LABELS.items(), strict=False):
            for i, study in enumerate(STUDIES[:2]):
                chosen = [row for row in rows if (row.problem, row.method, row.activation) == (*study, activation)]
                _draw_widths(axes, chosen, quantity, f"C{i}", TITLES[study].split(",")[0])
            axes.set(xscale="log", yscale="log", xlabel="width", ylabel=label, title=f"{activation}, Garnet MDPs")
            axes.legend(frameon=False, fontsize="small")
            plots.dress(axes)
        _draw_star(line[2], {key[1]: value for key, value in star.items() if (key[0], key[2]) == (activation, 0)})
        line[2].set(title=f"{activation}, Baird's star, seed 0")
    plots.save(figure, out)
    return True


def _draw_widths(axes: Any, rows: Sequence[Row], quantity: str, color: str, label: str) -> None:
    """Draws geometric means over seeds as a line, and seeds as dots."""
    widths, means = over_seeds(rows, quantity)
    axes.plot(widths, means, color=color, label=f"{label}: slope {slope(widths, means):.2f}")
    axes.plot([row.width for row in rows], [getattr(row, quantity) for row in rows], ".", color=color, alpha=0.5)


def _draw_star(axes: Any, trajectories: dict[int, Trajectory]) -> None:
    """Draws max |Q| over updates, a colour per width: the network solid, linear TD-learning with its K_0 dotted."""
    widths = sorted(trajectories)
    for width in widths[:: max(1, len(widths) // 3)]:
        network, linear = _sizes(trajectories[width])
        color = f"C{widths.index(width)}"
        axes.plot(np.clip(network, None, 1e6), color=color, label=f"width {width}")
        axes.plot(np.clip(linear, None, 1e6), color=color, linestyle=":")
    axes.set(yscale="log", xlabel="updates", ylabel="max |Q|; dotted: linear TD-learning with K_0")
    axes.legend(frameon=False, fontsize="small")
    plots.dress(axes)
