"""Do wide networks learn as linear TD-learning does?: ``python -m experiments.linear_regime``.

In the limit of wide networks the neural tangent kernel is constant, and through Lemma 3 deep Q-learning "should behave
quite closely to linear TD-learning" (Achiam et al. 2019, section 7). For networks of two hidden layers and growing
width this measures, on Garnet MDPs with all pairs in every update, how far Q-learning's values depart from those of U3
with the network's first kernel K_0, and PreQN's from those of U1, and how much the kernel changes meanwhile. On Baird's
star, where a network observes his features, linear TD-learning with K_0 may diverge: the network should do so with it.

linear_regime.csv (a row a network), linear_regime_baird.csv (the values on the star, update by update),
linear_regime.png and linear_regime.json (what they were made with) go to the folder ``--out``, a table to standard
output.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from absl import flags

from experiments import flags as command_line
from experiments import plots, provenance, suite
from experiments.linear_regime_measurements import Problem, Trajectory, baird, follow, garnet
from experiments.loggers import replace_file
from experiments.workdir import results_folder
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.settings import SettingError

_WIDTHS = flags.DEFINE_list("widths", ["32", "64", "128", "256", "512", "1024", "2048"], "units of each hidden layer")
_ACTIVATIONS = flags.DEFINE_list("activations", ["relu", "sin"], f"any of {', '.join(ACTIVATIONS)}")
_SEEDS = flags.DEFINE_integer("num_seeds", 3, "seeds 0, 1, ... of MDP and network", lower_bound=1)
_UPDATES = flags.DEFINE_integer("updates", 100, "updates of each network", lower_bound=1)
_GAMMA = flags.DEFINE_float("gamma", 0.9, "discount factor of the Garnet MDPs", lower_bound=0.0)
_OUT = flags.DEFINE_string("out", "runs/linear_regime", "folder that the results go to")

_GROWN = 10.0  # times its start, to which |Q| is followed on Baird's star
_STUDIES = (("garnet", "q_learning"), ("garnet", "preqn"), ("baird", "q_learning"))
_TITLES = {
    ("garnet", "q_learning"): "Q-learning beside U3 with K_0, Garnet MDPs",
    ("garnet", "preqn"): "PreQN beside U1, Garnet MDPs",
    ("baird", "q_learning"): "Q-learning beside U3 with K_0, Baird's star",
}
_LABELS = {"deviation": "deviation of Q, relative", "kernel_change": "largest ||K_t - K_0|| / ||K_0||"}


class Row(NamedTuple):
    """One network.

    Attributes:
      activation: of the network.
      problem: "garnet" or "baird".
      method: "q_learning" or "preqn".
      width: units of both hidden layers.
      seed: of MDP and network.
      deviation: largest ||Q - Q_linear|| over largest ||Q_linear - Q_0||; infinite where the network's Q is not finite.
      kernel_change: largest ||K_t - K_0|| / ||K_0||.
      spectral_radius: of the operator, with the greedy policy of the start; above 1 it diverges while that stays.
      linear_grown: updates until max |Q| is ten times that at the start under the operator; -1: not within the run.
      network_grown: the same of the network.
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


class Options(NamedTuple):
    """What the command line asks for."""

    widths: tuple[int, ...]
    activations: tuple[str, ...]
    num_seeds: int
    updates: int
    gamma: float


def main() -> int:
    """Measures, saves and prints; returns the exit code."""
    options = _read_options()
    out = results_folder(_OUT.value, "linear_regime.json", options._asdict())
    start, processor = time.perf_counter(), time.process_time()
    rows, star = [], {}
    for row, trajectory in _with_progress(options):
        rows.append(row)
        if row.problem == "baird":
            star[row.activation, row.width, row.seed] = trajectory
    _save_rows(Row._fields, rows, out / "linear_regime.csv")
    _save_rows(("activation", "width", "seed", "update", "network", "linear"), _star_rows(star),
               out / "linear_regime_baird.csv")  # fmt: skip
    record = {
        **provenance.collect(),
        "settings": options._asdict(),
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
    }
    replace_file(out / "linear_regime.json", json.dumps(record, indent=2) + "\n")
    drawn = _picture(rows, star, out / "linear_regime.png")
    print("\n".join(summary(rows)))
    print(f"saved in {out}" + ("" if drawn else ", without a picture: matplotlib is not installed"))
    return 0


def _read_options() -> Options:
    """Raises SettingError on what the flags' own bounds cannot tell."""
    try:
        widths = tuple(sorted({int(width) for width in _WIDTHS.value}))
    except ValueError:
        widths = ()
    if not widths or widths[0] < 1:
        raise SettingError(f"--widths={','.join(_WIDTHS.value)} must be whole numbers of at least 1, 32,64 for example")
    suite.check_names("--activations", _ACTIVATIONS.value, sorted(ACTIVATIONS))
    if not _GAMMA.value < 1:
        raise SettingError(f"--gamma={_GAMMA.value:g} must be below 1")
    return Options(widths, tuple(_ACTIVATIONS.value), _SEEDS.value, _UPDATES.value, _GAMMA.value)


def _with_progress(options: Options) -> Iterator[tuple[Row, Trajectory]]:
    """All networks, with a bar where there is a terminal and a line a width where there is none."""
    kinds = [(a, study, width) for a in options.activations for study in _STUDIES for width in options.widths]
    bar = tqdm.tqdm(kinds, unit="width", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    for i, (activation, study, width) in enumerate(bar):
        name = f"{activation}, {_TITLES[study]}, width {width}"
        bar.set_description(name)
        if bar.disable:
            print(f"[{i + 1}/{len(kinds)}] {name}", file=sys.stderr, flush=True)
        yield from measure(activation, study, width, options)


def measure(activation: str, study: tuple[str, str], width: int, options: Options) -> Iterator[tuple[Row, Trajectory]]:
    """The networks of one kind, a seed after the other; compiled once."""
    problem, method = study
    draw: Callable[[jax.Array], Problem] = functools.partial(garnet, gamma=options.gamma)
    run = jax.jit(follow(draw if problem == "garnet" else baird, activation, (width, width), method, options.updates))
    for seed in range(options.num_seeds):
        trajectory = jax.tree.map(np.asarray, run(jax.random.key(seed)))
        yield row_of(activation, study, width, seed, trajectory), trajectory


def row_of(activation: str, study: tuple[str, str], width: int, seed: int, trajectory: Trajectory) -> Row:
    """What is kept of a trajectory: on Baird's star, of the part in which the operator's values grow tenfold."""
    grown = {name: first_grown(getattr(trajectory, name)) for name in ("linear", "network")}
    end = grown["linear"] if study[0] == "baird" and grown["linear"] >= 0 else len(trajectory.linear) - 1
    network, linear, change = (np.asarray(leaf[: end + 1], np.float64) for leaf in trajectory[:3])
    apart = np.nan_to_num(np.linalg.norm(network - linear, axis=1), nan=np.inf).max()
    way = np.linalg.norm(linear - linear[0], axis=1).max()
    return Row(activation, *study, width, seed, float(apart / way), float(np.nan_to_num(change, nan=np.inf).max()),
               float(trajectory.spectral_radius), grown["linear"], grown["network"])  # fmt: skip


def first_grown(q: np.ndarray) -> int:
    """Updates until max |Q| is ten times the start's or not finite, -1: never within q, ``[updates + 1, N]``."""
    size = np.abs(q).max(axis=1)
    beyond = np.flatnonzero(~(size < _GROWN * size[0]))
    return int(beyond[0]) if len(beyond) else -1


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Of log(value) over log(width) by least squares, over the wider half of the networks."""
    half = len(widths) // 2
    if len(widths) - half < 2:
        return float("nan")
    return float(np.polyfit(np.log(widths[half:]), np.log(values[half:]), 1)[0])


def over_seeds(rows: Sequence[Row], quantity: str) -> tuple[list[int], list[float]]:
    """Widths, and the geometric mean of a quantity at each."""
    widths = sorted({row.width for row in rows})
    values = [[getattr(row, quantity) for row in rows if row.width == width] for width in widths]
    return widths, [float(np.exp(np.mean(np.log(of_width)))) for of_width in values]


def summary(rows: Sequence[Row]) -> list[str]:
    """Lines of a table: a block a study and activation, a line a width."""
    lines: list[str] = []
    for study, title in _TITLES.items():
        for activation in dict.fromkeys(row.activation for row in rows):
            chosen = [row for row in rows if (row.problem, row.method, row.activation) == (*study, activation)]
            lines += ["", f"{title}, {activation}", *_block(chosen, study[0] == "baird")]
    return lines


def _block(rows: Sequence[Row], on_the_star: bool) -> list[str]:
    widths, deviations = over_seeds(rows, "deviation")
    changes = over_seeds(rows, "kernel_change")[1]
    more = f"  {'radius':>16}{'tenfold, linear':>18}{'tenfold, network':>18}" if on_the_star else ""
    lines = [f"{'width':>6}{'deviation of Q':>16}{'change of K':>14}{more}"]
    for width, deviation, change in zip(widths, deviations, changes, strict=True):
        line = f"{width:>6}{deviation:>16.4f}{change:>14.4f}"
        of_width = [row for row in rows if row.width == width]
        if on_the_star:
            radii = ", ".join(f"{row.spectral_radius:.3f}" for row in of_width)
            linear, network = (
                ", ".join(str(value) if value >= 0 else "never" for value in values)
                for values in ([row.linear_grown for row in of_width], [row.network_grown for row in of_width])
            )
            line += f"  {radii:>16}{linear:>18}{network:>18}"
        lines.append(line)
    wider = f"{widths[len(widths) // 2]} to {widths[-1]}"
    return [*lines, f"slopes in log-log, {wider}: {slope(widths, deviations):.2f}, {slope(widths, changes):.2f}"]


def _save_rows(header: Sequence[str], rows: Sequence[Sequence[Any]], path: pathlib.Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
    replace_file(path, buffer.getvalue())


def _star_rows(star: dict[tuple[str, int, int], Trajectory]) -> list[tuple[Any, ...]]:
    """max |Q| on Baird's star, of network and operator."""
    return [
        (*key, update, float(network), float(linear))
        for key, trajectory in star.items()
        for update, (network, linear) in enumerate(zip(*_sizes(trajectory), strict=True))
    ]


def _sizes(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    return np.abs(trajectory.network).max(axis=1), np.abs(trajectory.linear).max(axis=1)


def _picture(rows: Sequence[Row], star: dict[tuple[str, int, int], Trajectory], out: pathlib.Path) -> bool:
    """A line an activation: deviation of Q, change of K, and |Q| on Baird's star; False without matplotlib."""
    activations = list(dict.fromkeys(row.activation for row in rows))
    figure = plots.new_figure(14, 3.8 * len(activations))
    if figure is None:
        return False
    for line, activation in zip(figure.subplots(len(activations), 3, squeeze=False), activations, strict=True):
        for axes, (quantity, label) in zip(line, _LABELS.items(), strict=False):
            for i, study in enumerate(_STUDIES[:2]):
                chosen = [row for row in rows if (row.problem, row.method, row.activation) == (*study, activation)]
                _draw_widths(axes, chosen, quantity, f"C{i}", _TITLES[study].split(",")[0])
            axes.set(xscale="log", yscale="log", xlabel="width", ylabel=label, title=f"{activation}, Garnet MDPs")
            axes.legend(frameon=False, fontsize="small")
            plots.dress(axes)
        _draw_star(line[2], {key[1]: value for key, value in star.items() if (key[0], key[2]) == (activation, 0)})
        line[2].set(title=f"{activation}, Baird's star, seed 0")
    plots.save(figure, out)
    return True


def _draw_widths(axes: Any, rows: Sequence[Row], quantity: str, color: str, label: str) -> None:
    """Geometric means over seeds as a line, the seeds as dots; dotted, what falls as width^-1/2 and as width^-1."""
    widths, means = over_seeds(rows, quantity)
    axes.plot(widths, means, color=color, label=f"{label}: slope {slope(widths, means):.2f}")
    axes.plot([row.width for row in rows], [getattr(row, quantity) for row in rows], ".", color=color, alpha=0.5)


def _draw_star(axes: Any, trajectories: dict[int, Trajectory]) -> None:
    """max |Q| over updates: a colour a width, the network solid and linear TD-learning with its K_0 dotted."""
    widths = sorted(trajectories)
    for width in widths[:: max(1, len(widths) // 3)]:
        network, linear = _sizes(trajectories[width])
        color = f"C{widths.index(width)}"
        axes.plot(np.clip(network, None, 1e6), color=color, label=f"width {width}")
        axes.plot(np.clip(linear, None, 1e6), color=color, linestyle=":")
    axes.set(yscale="log", xlabel="updates", ylabel="max |Q|; dotted: linear TD-learning with K_0")
    axes.legend(frameon=False, fontsize="small")
    plots.dress(axes)


if __name__ == "__main__":
    command_line.run(main)
