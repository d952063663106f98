"""The variants of ``experiments.alignment``, and its report on their updates: alignment.csv and the figures."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.suites import report, suite
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.settings import SettingError
from preqn_jax.training import plots, statistics
from preqn_jax.training.files import replace_file
from preqn_jax.training.tables import to_csv, to_markdown

MEASURING = ("measure_alignment", "record_updates")  # fields that are set in every run


def _variant(name: str, agent: str, activation: str, *overrides: str) -> suite.Variant:
    measuring = tuple(f"{field}=true" for field in MEASURING)
    return suite.Variant(name, agent, (f"agent.activation={activation}", *overrides, *measuring))


PAPER = tuple(f"{agent}-{activation}" for agent in ("preqn", "td3") for activation in ("sin", "relu"))
VARIANTS = {name: _variant(name, *name.split("-")) for name in PAPER} | {
    variant.name: variant
    for variant in (
        # Section 5.2: a smaller learning rate "straightforwardly" resolves the divergence of PreQN with relu.
        _variant("preqn-relu-step0.03", "preqn", "relu", "agent.step_size=0.03"),
        _variant("preqn-relu-step0.01", "preqn", "relu", "agent.step_size=0.01"),
        # Section 5.2 speculates that TD3 with sin is better with target networks that update more quickly.
        _variant("td3-sin-polyak0.98", "td3", "sin", "agent.polyak=0.98"),
        _variant("td3-sin-polyak0.95", "td3", "sin", "agent.polyak=0.95"),
    )
}
_FIGURES = {"HalfCheetah": 10, "Hopper": 11, "Walker2d": 12, "Swimmer": 13, "Ant": 14}  # of the paper, by task
_COSINE = "cos(Q' - Q, y - Q)"
_COLUMNS = (
    "algo",
    "task",
    "seeds",
    "updates",
    "mean",
    "heldout",
    "lowest_accepted",
    "below_min_alignment",
    "accepted_below_min_alignment",
    "accepted",
)
_BIN = 1000  # updates that are averaged for each point of a curve


class Alignments(NamedTuple):
    """The alignments of one run.

    Attributes:
      cosine: alignment of every update on its own minibatch, ``[updates]``.
      heldout: alignment of every update on a second minibatch, ``[updates]``; NaN if the run did not measure it.
      step: environment steps before each update, ``[updates]``.
      accepted: whether each update changed the critic, ``[updates]``.
      min_alignment: the minimum alignment of the line search; PreQN's default for agents without a line search.
    """

    cosine: np.ndarray
    heldout: np.ndarray
    step: np.ndarray
    accepted: np.ndarray
    min_alignment: float


def write(jobs: Sequence[suite.Job], folder: pathlib.Path) -> str:
    """Writes alignment.csv and the figures; returns a table for the terminal."""
    cells = report.collect(jobs, folder)
    default = PreQNConfig.min_alignment
    least = {(job.variant.name, job.task): getattr(job.config().agent, "min_alignment", default) for job in jobs}
    measured = {
        name: [_read(folder, cell, seed, least[name]) for seed in cell.seeds]
        for cell in cells
        for name in [(cell.variant, cell.task)]
    }
    rows = [_row(cell, measured[cell.variant, cell.task]) for cell in cells]
    replace_file(folder / "alignment.csv", to_csv(rows, _COLUMNS))
    cosines = {name: _curve(runs) for name, runs in measured.items()}
    draw(cells, [cosines[cell.variant, cell.task] for cell in cells], folder)
    titles = ("agent", "task", "seeds", "updates", f"mean {_COSINE}", "on a second minibatch",
              "lowest of an accepted step", "below min_alignment", "accepted and below it", "accepted")  # fmt: skip
    return "\n".join([*to_markdown(titles, rows), ""])


def _read(folder: pathlib.Path, cell: report.Cell, seed: int, min_alignment: float) -> Alignments:
    """Reads the alignments of one run; raises SettingError if a file cannot be read."""
    workdir = folder / suite.work_folder(cell.variant, cell.task, seed)
    files = [file for file in suite.read_updates(workdir) if file["step"].max() <= cell.steps[-1]]
    if not files:
        raise SettingError(f"{workdir} has no record of its updates (updates/*.npz); move it away")
    cosine = np.concatenate([file["update_alignment"][0] for file in files])
    unmeasured = [np.full(len(file["update_alignment"][0]), np.nan) for file in files]
    heldout = [file.get("heldout_alignment", [nan])[0] for file, nan in zip(files, unmeasured, strict=True)]
    # Agents without a line search accept every step.
    accepted = [file["accepted"][0] if "accepted" in file else np.ones_like(file["step"][0]) for file in files]
    step = np.concatenate([file["step"][0] for file in files])
    return Alignments(cosine, np.concatenate(heldout), step, np.concatenate(accepted).astype(bool), min_alignment)


def _row(cell: report.Cell, runs: Sequence[Alignments]) -> list[str | int]:
    cosine, heldout, accepted = (np.concatenate([getattr(run, name) for run in runs])
                                 for name in ("cosine", "heldout", "accepted"))  # fmt: skip
    below = cosine < np.float32(runs[0].min_alignment)
    return [
        cell.variant,
        cell.task,
        len(runs),
        len(cosine),
        f"{cosine.mean():.4f}",
        _known(heldout.mean()),
        f"{cosine[accepted].min():.6f}" if accepted.any() else "",
        f"{below.mean():.4f}",
        int((below & accepted).sum()),
        f"{accepted.mean():.6f}",
    ]


def _known(value: float) -> str:
    """Formats a number with four decimals; an empty string for NaN, if the runs did not measure it."""
    return "" if np.isnan(value) else f"{value:.4f}"


def _curve(runs: Sequence[Alignments]) -> report.Curve:
    """Environment step at the end of each bin, and mean of each bin, ``[runs, bins]``."""
    bins = min(len(run.cosine) for run in runs) // _BIN
    values = [run.cosine[: bins * _BIN].reshape(bins, _BIN).mean(axis=1) for run in runs]
    return runs[0].step[_BIN - 1 : bins * _BIN : _BIN], np.stack(values)


def draw(cells: Sequence[report.Cell], cosines: Sequence[report.Curve], folder: pathlib.Path) -> bool:
    """Draws figure3.png, the alignment on every task, and one figure per task; returns False without matplotlib.

    The figures of the paper's tasks are named like figure10_HalfCheetah-v5.png, the others alignment_<task>.png. They
    show the alignment of all variants, the alignment of PreQN's variants only (which are too close to 1 to be
    distinguished in a panel with TD3), and the returns.

    Args:
      cells: runs of each variant on each task.
      cosines: alignment over environment steps of each cell.
      folder: directory for the figures.
    """
    returns = report.panels(cells)
    curves: dict[str, dict[str, report.Curve]] = {environment: {} for environment in returns}
    for cell, curve in zip(cells, cosines, strict=True):
        curves[cell.environment][cell.variant] = curve
    panels = [plots.Panel(environment, _COSINE, lines) for environment, lines in curves.items()]
    drawn = plots.row_of_panels(panels, folder / "figure3.png")
    for environment, lines in curves.items():
        near = {name: line for name, line in lines.items() if name.startswith("preqn")}
        row = [
            plots.Panel("alignment", _COSINE, lines),
            *([plots.Panel("alignment of PreQN", _COSINE, near)] if near and near != lines else []),
            plots.Panel("return", "return of the deterministic policy", returns[environment]),
        ]
        number = _FIGURES.get(environment.rpartition("-")[0])
        name = f"alignment_{environment}.png" if number is None else f"figure{number}_{environment}.png"
        plots.row_of_panels(row, folder / name, environment)
    return drawn


def write_stored(cells: Sequence[report.Cell], folder: pathlib.Path) -> str:
    """Writes pooled.csv and the figures of stored runs into ``folder``; returns a table for the terminal.

    The metrics of each evaluation contain the mean alignment since the previous evaluation. The figures show this mean
    at the step of the evaluation, and pooled.csv contains alignment and return of each cell.
    """
    rows = [_pooled(cell) for cell in cells]
    header = ("algo", "task", "seeds", "alignment", "alignment_by_seed", "heldout_alignment", "final", "final_low",
              "final_high", "final_by_seed")  # fmt: skip
    replace_file(folder / "pooled.csv", to_csv(rows, header))
    draw(cells, [(cell.steps, cell.metric("update_alignment")) for cell in cells], folder)
    return "\n".join([*to_markdown([name.replace("_", " ") for name in header], rows), ""])


def _pooled(cell: report.Cell) -> list[str | int]:
    """A row of pooled.csv, with the mean alignment of all updates and the return of the last evaluations."""
    by_seed = _mean_of_updates(cell, "update_alignment")
    final = statistics.estimate(np.mean, cell.final)
    return [
        cell.variant,
        cell.task,
        len(cell.seeds),
        f"{by_seed.mean():.4f}",
        ", ".join(f"{value:.4f}" for value in by_seed),
        _known(_mean_of_updates(cell, "heldout_alignment").mean()),
        *(f"{value:.1f}" for value in final),
        ", ".join(f"{value:.1f}" for value in cell.final),
    ]


def _mean_of_updates(cell: report.Cell, name: str) -> np.ndarray:
    """Mean of a metric over all updates of each run, ``[seeds]``; NaN for runs that did not measure it."""
    updates, values = cell.metric("updates"), cell.metric(name)
    means = np.nansum(updates * values, axis=1) / updates.sum(axis=1)
    return np.where(np.isnan(values).all(axis=1), np.nan, means)
