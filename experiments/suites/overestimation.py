"""Q estimate of the critic versus realized return: overestimation.csv and overestimation.png of a suite.

Every evaluation reports the Q estimate at the first state (``first_q``) and the realized discounted return from there.
Their difference is the overestimation, which the actor exploits; a large mean absolute action indicates to which
extent. The step of the largest difference shows whether overestimation occurs mainly at the beginning of training.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.suites import report
from preqn_jax.training import plots, statistics
from preqn_jax.training.files import replace_file
from preqn_jax.training.tables import to_csv, to_markdown

_ROWS = {
    "return": "return_mean",
    "Q of the first state": "first_q",
    "discounted return from there": "discounted_return",
    "mean abs(action)": "action_abs",
}
_ENTROPY = "Q of an agent with an entropy bonus, such as SAC, includes the bonus, and the discounted return does not."
_COLUMNS = ("algo", "task", "seeds", "steps", "return", "largest_q", "q", "discounted_return", "action_abs",
            "largest_excess", "at_step")  # fmt: skip


def write(cells: Sequence[report.Cell], folder: pathlib.Path) -> str:
    """Writes overestimation.csv and overestimation.png; returns a table for the terminal."""
    cells = [_measured(cell) for cell in cells]
    cells = [cell for cell in cells if cell.seeds]
    if not cells:
        return ""
    rows = [_row(cell) for cell in cells]
    replace_file(folder / "overestimation.csv", to_csv(rows, _COLUMNS))
    plots.rows_of_curves({title: report.panels(cells, name) for title, name in _ROWS.items()},
                         folder / "overestimation.png")  # fmt: skip
    titles = ("agent", "task", "runs", "steps", "return", "largest Q of the first state", "Q of the first state",
              "discounted return", "mean abs(action)", "largest excess of Q", "at step (median)")  # fmt: skip
    return "\n".join([*to_markdown(titles, rows), "", _ENTROPY, ""])


def _measured(cell: report.Cell) -> report.Cell:
    """The cell with only the runs that report Q estimates, which older runs do not."""
    kept = np.nonzero(np.isfinite(cell.metric("first_q")).all(axis=1))[0]
    return cell._replace(seeds=tuple(cell.seeds[i] for i in kept), tables=tuple(cell.tables[i] for i in kept))


def _row(cell: report.Cell) -> list[str | int]:
    """Means over runs: of the last three evaluations, the largest Q estimate, and its largest excess."""
    final = {name: statistics.final(cell.metric(name)).mean() for name in _ROWS.values()}
    largest = cell.metric("first_q").max(axis=1).mean()
    excess = cell.metric("first_q") - cell.metric("discounted_return")
    at = int(np.median(np.asarray(cell.steps)[excess.argmax(axis=1)]))
    numbers = (final["return_mean"], largest, final["first_q"], final["discounted_return"], final["action_abs"],
               excess.max(axis=1).mean())  # fmt: skip
    return [cell.variant, cell.task, len(cell.seeds), cell.steps[-1], *(f"{number:.4g}" for number in numbers), at]
