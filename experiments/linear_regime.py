"""Do wide networks learn like linear TD-learning?: ``python -m experiments.linear_regime``.

In the limit of wide networks the neural tangent kernel is constant, and through Lemma 3 deep Q-learning "should behave
quite closely to linear TD-learning" (Achiam et al. 2019, section 7). For networks with two hidden layers of increasing
width, on Garnet MDPs with all state-action pairs in every update, this program measures the deviation of Q-learning's
values from those of U3 with the network's initial kernel K_0, the deviation of PreQN's values from those of U1, and the
change of the kernel. On Baird's star, with his features as observations, linear TD-learning with K_0 may diverge; the
network should then diverge as well.

The program prints a table, and writes linear_regime.csv (one row per network), linear_regime_baird.csv (the values on
the star after each update), linear_regime.png and linear_regime.json (options, versions, hardware) to ``--out``.
"""

from __future__ import annotations

import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.studies.linear_regime.measurements import Problem, Trajectory, baird, follow, garnet
from experiments.studies.linear_regime.report import STUDIES, TITLES, Row, picture, row_of, star_rows, summary
from preqn_jax.cli import command_line, lists
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.settings import SettingError
from preqn_jax.training import provenance
from preqn_jax.training.files import replace_file
from preqn_jax.training.progress import track
from preqn_jax.training.tables import to_csv
from preqn_jax.training.workdir import results_folder

_WIDTHS = flags.DEFINE_list(
    "widths", ["32", "64", "128", "256", "512", "1024", "2048"], "widths of the hidden layers [units]"
)
_ACTIVATIONS = flags.DEFINE_list(
    "activations", ["relu", "sin"], f"activation functions; allowed: {', '.join(ACTIVATIONS)}"
)
_SEEDS = flags.DEFINE_integer("num-seeds", 3, "number of seeds for MDP and network", lower_bound=1)
_UPDATES = flags.DEFINE_integer("updates", 100, "number of updates of each network", lower_bound=1)
_GAMMA = flags.DEFINE_float("gamma", 0.9, "discount factor of the Garnet MDPs", lower_bound=0.0)
_OUT = flags.DEFINE_string("out", "runs/linear_regime", "directory for the results")


class Options(NamedTuple):
    """The options given on the command line."""

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
    _save_rows(("activation", "width", "seed", "update", "network", "linear"), star_rows(star),
               out / "linear_regime_baird.csv")  # fmt: skip
    record = {
        **provenance.collect(),
        "settings": options._asdict(),
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
    }
    replace_file(out / "linear_regime.json", json.dumps(record, indent=2) + "\n")
    drawn = picture(rows, star, out / "linear_regime.png")
    print("\n".join(summary(rows)))
    print(f"saved in {out}" + ("" if drawn else ", without a figure: matplotlib is not installed"))
    return 0


def _read_options() -> Options:
    """Reads the options; raises SettingError for errors that the bounds of the flags do not detect."""
    try:
        widths = tuple(sorted({int(width) for width in _WIDTHS.value}))
    except ValueError:
        widths = ()
    if not widths or widths[0] < 1:
        raise SettingError(f"--widths={','.join(_WIDTHS.value)} must be whole numbers of at least 1, for example 32,64")
    lists.check_names("--activations", _ACTIVATIONS.value, sorted(ACTIVATIONS))
    if not _GAMMA.value < 1:
        raise SettingError(f"--gamma={_GAMMA.value:g} must be below 1")
    return Options(widths, tuple(_ACTIVATIONS.value), _SEEDS.value, _UPDATES.value, _GAMMA.value)


def _with_progress(options: Options) -> Iterator[tuple[Row, Trajectory]]:
    """Measures all networks and shows progress: a bar in a terminal, else one line per width."""
    kinds = [(a, study, width) for a in options.activations for study in STUDIES for width in options.widths]
    name = lambda kind: f"{kind[0]}, {TITLES[kind[1]]}, width {kind[2]}"  # noqa: E731
    for activation, study, width in track(kinds, name, "width"):
        yield from measure(activation, study, width, options)


def measure(activation: str, study: tuple[str, str], width: int, options: Options) -> Iterator[tuple[Row, Trajectory]]:
    """Measures the networks of one kind, one seed after the other, with one compiled program."""
    problem, method = study
    draw: Callable[[jax.Array], Problem] = functools.partial(garnet, gamma=options.gamma)
    run = jax.jit(follow(draw if problem == "garnet" else baird, activation, (width, width), method, options.updates))
    for seed in range(options.num_seeds):
        trajectory = jax.tree.map(np.asarray, run(jax.random.key(seed)))
        yield row_of(activation, study, width, seed, trajectory), trajectory


def _save_rows(header: Sequence[str], rows: Sequence[Sequence[Any]], path: pathlib.Path) -> None:
    replace_file(path, to_csv(rows, header))


if __name__ == "__main__":
    command_line.run(main)
