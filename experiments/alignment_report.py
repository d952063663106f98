"""What experiments.alignment compares, and its report on the updates: alignment.csv and alignment.png."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments import plots, report, suite
from experiments.loggers import replace_file
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.settings import SettingError

MEASURING = ("measure_alignment", "record_updates")  # fields that every run has to have set
VARIANTS = {
    f"{agent}-{activation}": suite.Variant(
        f"{agent}-{activation}",
        agent,
        (f"agent.activation={activation}", *(f"{name}=true" for name in MEASURING)),
    )
    for agent in ("preqn", "td3")
    for activation in ("sin", "relu")
}
_COLUMNS = (
    "algo",
    "task",
    "seeds",
    "updates",
    "mean",
    "lowest_accepted",
    "below_eta",
    "accepted_below_eta",
    "accepted",
)
_BIN = 1000  # updates that a point of a curve averages over


class Alignments(NamedTuple):
    """What one run measured.

    Attributes:
      cosine: of every update, ``[updates]``.
      accepted: which updates moved the critic at all, ``[updates]``.
      eta: what the linesearch asked for, or would have where there is none.
    """

    cosine: np.ndarray
    accepted: np.ndarray
    eta: float


def write(jobs: Sequence[suite.Job], folder: pathlib.Path) -> str:
    """Writes alignment.csv and alignment.png; returns a table for the terminal."""
    cells = report.collect(jobs, folder)
    eta = {(job.variant.name, job.task): getattr(job.config().agent, "eta", PreQNConfig.eta) for job in jobs}
    measured = {
        name: [_read(folder, cell, seed, eta[name]) for seed in cell.seeds]
        for cell in cells
        for name in [(cell.variant, cell.task)]
    }
    rows = [_row(cell, measured[cell.variant, cell.task]) for cell in cells]
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(_COLUMNS)
    table.writerows(rows)
    replace_file(folder / "alignment.csv", buffer.getvalue())
    returns = report.panels(cells)
    cosines: dict[str, dict[str, report.Curve]] = {task: {} for task in returns}
    for cell in cells:
        cosines[cell.environment][cell.variant] = _curve(measured[cell.variant, cell.task])
    plots.rows_of_curves({"cos(Q' - Q, y - Q)": cosines, "return": returns}, folder / "alignment.png")
    lines = ["| agent | task | seeds | updates | mean cos(Q' - Q, y - Q) | lowest of an accepted step | "
             "below eta | accepted and below eta | accepted |", "| --- " * len(_COLUMNS) + "|"]  # fmt: skip
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""])


def _read(folder: pathlib.Path, cell: report.Cell, seed: int, eta: float) -> Alignments:
    """Of one run; raises SettingError where a file of it cannot be read."""
    workdir = folder / suite.work_folder(cell.variant, cell.task, seed)
    files = [file for file in suite.read_updates(workdir) if file["step"].max() <= cell.steps[-1]]
    if not files:
        raise SettingError(f"{workdir} has no record of its updates (updates/*.npz); move it away")
    cosine = np.concatenate([file["update_alignment"][0] for file in files])
    # Agents without a linesearch take every step.
    accepted = [file["accepted"][0] if "accepted" in file else np.ones_like(file["step"][0]) for file in files]
    return Alignments(cosine, np.concatenate(accepted).astype(bool), eta)


def _row(cell: report.Cell, runs: Sequence[Alignments]) -> list[str | int]:
    cosine, accepted = (np.concatenate([run[i] for run in runs]) for i in range(2))
    below = cosine < np.float32(runs[0].eta)
    return [
        cell.variant,
        cell.task,
        len(runs),
        len(cosine),
        f"{cosine.mean():.4f}",
        f"{cosine[accepted].min():.6f}",
        f"{below.mean():.4f}",
        int((below & accepted).sum()),
        f"{accepted.mean():.6f}",
    ]


def _curve(runs: Sequence[Alignments]) -> report.Curve:
    """Updates at the bins' ends, and the mean of each bin, ``[runs, bins]``."""
    bins = min(len(run.cosine) for run in runs) // _BIN
    values = [run.cosine[: bins * _BIN].reshape(bins, _BIN).mean(axis=1) for run in runs]
    return _BIN * np.arange(1, bins + 1), np.stack(values)
