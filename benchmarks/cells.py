"""The sizes that the benchmark of growth measures, one at a time, and the table and figure of all."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.problem import ACTION, NO_BACKTRACKS, OBSERVATION, burst_of_agent, layers, make_problem, update_work
from benchmarks.timing import Section, in_loop, measure, numbers, table
from preqn_jax import ntk
from preqn_jax.agents.base import Agent
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.agents.sac import SACConfig
from preqn_jax.training.memory import GIB
from preqn_jax.training.tables import to_markdown

BATCH_SIZES, WIDTHS, DEPTHS = (64, 128, 256, 512, 1024), (256, 512, 1024, 2048), (2, 3, 4)
PREQN, SAC, PER_EXAMPLE, GRAM = "PreQN", "SAC", "PreQN, per-example gradients", "Gram matrix alone"
_BASE = 256  # minibatch at which the width and the depth vary in the figure
# The first step of the line search is always accepted, so that all sizes do the same work: for wide networks, the
# alignment that the ridge leaves on these minibatches is below PreQN's default minimum, and every step is rejected.
_one_trial = functools.partial(PreQNConfig, step_size=1e-3, min_alignment=NO_BACKTRACKS)
_RUN = 2e10  # floating-point operations that one timed run makes at least, unless a burst is shorter
_LONGEST = 2e11  # floating-point operations of an update, above which the reference is skipped
_REFERENCE_COPIES = 3  # arrays of the size of all per-example gradients


class Cell(NamedTuple):
    """Minibatch B, width of the hidden layers, and their number, of critic and actor."""

    batch_size: int
    width: int
    depth: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"batch{self.batch_size}_width{self.width}_depth{self.depth}"

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Widths of the hidden layers, a field of the agents' configurations."""
        return (self.width,) * self.depth

    def parameters(self) -> int:
        """Number of parameters of the critic."""
        return sum((a + 1) * b for a, b in layers((OBSERVATION + ACTION, *self.hidden_sizes, 1)))

    def work(self) -> dict[str, float]:
        """Floating-point operations of PreQN's update by part."""
        return update_work(self.batch_size, self.hidden_sizes)

    def reference_work(self) -> float:
        """Floating-point operations of an update with the kernel from per-example gradients."""
        return sum(self.work().values()) + 2.0 * self.batch_size**2 * self.parameters()

    def memory(self) -> dict[str, int]:
        """An estimate of the largest memory of an update, with and without per-example gradients [bytes]."""
        activations = self.batch_size * self.width * self.depth
        usual = 4 * (20 * self.parameters() + 8 * self.batch_size**2 + 12 * activations)
        return {PREQN: usual, PER_EXAMPLE: usual + 4 * _REFERENCE_COPIES * self.batch_size * self.parameters()}


def cells(max_batch_size: int, max_width: int, max_depth: int) -> list[Cell]:
    """All minibatches with all widths at the smallest depth, then the other depths at the smallest width."""
    grid = [Cell(size, width, DEPTHS[0]) for width in WIDTHS for size in BATCH_SIZES]
    deep = [Cell(_BASE, WIDTHS[0], depth) for depth in DEPTHS[1:]]
    return [c for c in grid + deep if c.batch_size <= max_batch_size and c.width <= max_width and c.depth <= max_depth]


def measure_cell(cell: Cell, repeats: int, available: int) -> Section:
    """Measures one size; programs that need more than ``available`` bytes are skipped, and a line states it."""
    title, skipped = f"B = {cell.batch_size}, width {cell.width}, depth {cell.depth}", skipped_of(cell, available)
    lines = [f"skipped: {name}, which {reason}" for name, reason in skipped.items()]
    wanted = [name for name in (PREQN, SAC, PER_EXAMPLE, GRAM) if name not in skipped]
    if not wanted:
        return Section(title, lines, {"skipped": skipped})
    problem = make_problem(cell.batch_size, cell.hidden_sizes)
    updates = int(np.clip(_RUN / sum(cell.work().values()), 1, len(problem.bursts.reward)))
    candidates = []
    for name, agent in _agents(cell).items():
        if name in wanted:
            count = 1 if name == PER_EXAMPLE else updates
            candidates.append(burst_of_agent(name, agent, jax.tree.map(lambda leaf, n=count: leaf[:n], problem.bursts)))
    linearizer = ntk.dense(problem.critic)
    tangents = jax.jit(linearizer.tangents)(problem.critic_params, problem.inputs)[1]
    candidates.append(in_loop(GRAM, linearizer.gram, tangents))
    timings = measure(candidates, repeats)
    share = timings[GRAM].ms / timings[PREQN].ms
    memory = {candidate.name: candidate.memory for candidate in candidates}
    operations = cell.work()
    lines += [*table(timings), f"the Gram matrix takes {share:.0%} of PreQN's update"]
    figures = {"temporary_bytes": memory, "gram_share": share, "operations": operations, "skipped": skipped}
    return Section(title, lines, {**numbers(timings), **figures})


def skipped_of(cell: Cell, available: int) -> dict[str, str]:
    """The programs that cannot be measured with ``available`` bytes of memory, each with the reason."""
    needed = cell.memory()

    def too_large(name: str) -> str:
        return f"needs about {needed[name] / GIB:.1f} GiB, but {available / GIB:.1f} GiB are available"

    if needed[PREQN] > available:
        return dict.fromkeys((PREQN, SAC, PER_EXAMPLE, GRAM), too_large(PREQN))
    if needed[PER_EXAMPLE] > available:
        return {PER_EXAMPLE: too_large(PER_EXAMPLE)}
    if cell.reference_work() > _LONGEST:
        return {PER_EXAMPLE: f"takes {cell.reference_work() / 1e9:.0f} GFLOP per update"}
    return {}


def _agents(cell: Cell) -> dict[str, Agent]:
    sizes = cell.hidden_sizes
    configs = {
        PREQN: _one_trial(hidden_sizes=sizes),
        SAC: SACConfig(hidden_sizes=sizes),
        PER_EXAMPLE: _one_trial(hidden_sizes=sizes, linearizer="per_example"),
    }
    return {name: config.make(OBSERVATION, ACTION)[0] for name, config in configs.items()}


def document(found: Mapping[Cell, Mapping[str, Any]]) -> str:
    """The table of all sizes in Markdown, and where the Gram matrix is the larger part of an update."""
    columns = [
        *("B", "width", "depth"),
        *(f"{name}, ms" for name in (PREQN, SAC, PER_EXAMPLE, GRAM)),
        *("share of Gram in ms", "in operations"),
        *(f"{name}, MB" for name in (PREQN, SAC, PER_EXAMPLE)),
    ]
    rows = []
    for cell, record in found.items():
        times, memory = record.get("timings", {}), record.get("temporary_bytes", {})
        row = [str(number) for number in cell]
        row += [f"{times[name]['ms']:.2f}" if name in times else "skipped" for name in (PREQN, SAC, PER_EXAMPLE, GRAM)]
        row.append(f"{record['gram_share']:.0%}" if "gram_share" in record else "")
        row.append(f"{cell.work()['Gram'] / sum(cell.work().values()):.0%}")
        row += [f"{memory[name] / 1e6:.1f}" if memory.get(name) else "" for name in (PREQN, SAC, PER_EXAMPLE)]
        rows.append(row)
    larger = [cell for cell, record in found.items() if record.get("gram_share", 0.0) > 0.5]
    where = ", ".join(f"B = {cell.batch_size} with width {cell.width} and depth {cell.depth}" for cell in larger)
    sentence = f"The Gram matrix takes more than half of PreQN's update at: {where or 'none of these sizes'}."
    return "\n".join([*to_markdown(columns, rows), "", sentence, ""])


def draw(found: Mapping[Cell, Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws time and memory over B, width and depth, and the share of the Gram matrix over B and width."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    base = Cell(_BASE, WIDTHS[0], DEPTHS[0])
    for column, (field, label) in enumerate({"batch_size": "minibatch B", "width": "width", "depth": "depth"}.items()):
        along = {
            getattr(cell, field): record
            for cell, record in found.items()
            if cell._replace(**{field: getattr(base, field)}) == base
        }
        _curves(axes[0, column], along, _milliseconds)
        axes[0, column].set(xlabel=label, ylabel="ms per update")
        if field != "depth":  # where the map is
            _curves(axes[1, column], along, _megabytes)
            axes[1, column].set(xlabel=label, ylabel="MB of temporary arrays")
    figure.legend(handles=axes[0, 0].lines, loc="outside lower center", ncols=4)
    _map(figure, axes[1, 2], found)
    fixed = f"B = {base.batch_size}, width {base.width}, depth {base.depth}"
    figure.suptitle(f"Cost of an update, critic and actor, at {fixed} except along the axis")
    figure.savefig(path, dpi=120)


def _milliseconds(record: Mapping[str, Any], name: str) -> float | None:
    return record.get("timings", {}).get(name, {}).get("ms")


def _megabytes(record: Mapping[str, Any], name: str) -> float | None:
    return 1e-6 * (record.get("temporary_bytes", {}).get(name) or 0) or None


def _curves(axes: Any, along: Mapping[int, Mapping[str, Any]], value: Callable[..., float | None]) -> None:
    """Draws a curve per candidate, ``value(record, candidate)`` over the position; there is none where it is None."""
    for name in (PREQN, SAC, PER_EXAMPLE, GRAM):
        points = {position: value(record, name) for position, record in sorted(along.items())}
        points = {position: number for position, number in points.items() if number is not None}
        axes.plot(list(points), list(points.values()), marker="o", label=name)
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(along), [str(position) for position in sorted(along)])
    axes.minorticks_off()


def _map(figure: Figure, axes: Any, found: Mapping[Cell, Mapping[str, Any]]) -> None:
    """The share of the Gram matrix in PreQN's update, of every B and width."""
    share = np.full((len(WIDTHS), len(BATCH_SIZES)), np.nan)
    for cell, record in found.items():
        if cell.depth == DEPTHS[0] and "gram_share" in record:
            share[WIDTHS.index(cell.width), BATCH_SIZES.index(cell.batch_size)] = record["gram_share"]
    picture = axes.imshow(share, vmin=0, vmax=1, origin="lower", cmap="coolwarm", aspect="auto")
    for (row, column), number in np.ndenumerate(share):
        if np.isfinite(number):
            axes.text(column, row, f"{number:.0%}", ha="center", va="center")
    axes.set_xticks(range(len(BATCH_SIZES)), [str(size) for size in BATCH_SIZES])
    axes.set_yticks(range(len(WIDTHS)), [str(width) for width in WIDTHS])
    axes.set(xlabel="minibatch B", ylabel="width", title="share of the Gram matrix in the time of PreQN")
    figure.colorbar(picture, ax=axes)
