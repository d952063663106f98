"""Replay buffers on the device side by side: ``python -m benchmarks.replay``.

The library's ring, Brax's queue and flashbax's item buffer (``pip install flashbax``; left out where it is missing)
insert transitions of Ant's sizes and sample a minibatch, half full and full: a full queue moves all that it holds. For
numbers to quote, run pinned to one otherwise idle core:

    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \
        taskset -c 0 python -m benchmarks.replay
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import psutil
from absl import flags

from benchmarks.buffers import ACTION, BUFFERS, INSERTED, OBSERVATION, SAMPLED, Buffer
from benchmarks.timing import Candidate, Section, carried, measure, numbers, table
from preqn_jax.cli import command_line
from preqn_jax.settings import SettingError
from preqn_jax.training import provenance, replay
from preqn_jax.types import Array, Transition, transition_bytes

_REPEATS = flags.DEFINE_integer("repeats", 7, "rounds that a median is taken over", lower_bound=1)
_CAPACITIES = flags.DEFINE_list("capacities", "100000,1000000", "of the buffers [transitions]")

_METHOD = """\
Each figure is the median over {repeats} rounds; every round runs all buffers once, in rotating order, and waits for the
result. One evaluation inserts {inserted} transitions and samples {sampled}; a call makes N of them in one compiled loop
that is given the buffer (donated), and is divided by N. What is inserted was sampled before, so nothing can be left
out. Before each insertion the counters are put back, so that a buffer stays as full as it is.
"""


def main() -> int:
    """Measures and prints; returns the exit code."""
    capacities = [_capacity(text) for text in _CAPACITIES.value]
    print(_METHOD.format(repeats=_REPEATS.value, inserted=INSERTED, sampled=SAMPLED))
    missing = [name for name in BUFFERS if importlib.util.find_spec(name) is None]
    others = [f"{name} {'not installed' if name in missing else version(name)}" for name in ("brax", "flashbax")]
    print(f"device {provenance.device()}, JAX {jax.__version__}, {', '.join(others)}")
    for capacity in capacities:
        for held in (capacity // 2, capacity):
            print(section(capacity, held, [name for name in BUFFERS if name not in missing]), flush=True)
    return 0


def section(capacity: int, held: int, names: Sequence[str]) -> Section:
    """All buffers, with so many transitions in them."""
    timings = measure([_candidate(name, BUFFERS[name](capacity), held) for name in names], _REPEATS.value)
    lines = table(timings)
    for name in names[1:]:
        lines.append(f"{name} takes {timings[name].ms / timings[names[0]].ms:.2f} times as long as {names[0]}")
    title = f"{held} of {capacity} transitions, {_bytes(capacity) / 1e6:.0f} MB"
    return Section(title, lines, numbers(timings))


def _candidate(name: str, buffer: Buffer, held: int) -> Candidate:
    def evaluate(carry: tuple[Any, Transition, Array]) -> tuple[Any, Transition, Array]:
        state, batch, count = carry
        key = jax.random.fold_in(jax.random.key(0), count)
        state, batch = buffer.step(state, jax.tree.map(lambda leaf: leaf[:INSERTED], batch), key, held)
        return state, batch, count + 1

    batch = replay.device_replay(SAMPLED, OBSERVATION, ACTION).transitions
    return carried(name, evaluate, (buffer.state, batch, jnp.uint32(0)))


def _bytes(capacity: int) -> int:
    return capacity * transition_bytes(OBSERVATION, ACTION)


def _capacity(text: str) -> int:
    """Raises SettingError unless it can be measured."""
    if not text.isdecimal() or int(text) < 2 * SAMPLED or int(text) % (2 * INSERTED):
        raise SettingError(
            f"--capacities={text} must be a multiple of {2 * INSERTED} from {2 * SAMPLED} on, 100000 for example"
        )
    # All buffers lie side by side, and a full queue is copied when it moves.
    needed, available = (len(BUFFERS) + 1) * _bytes(int(text)), psutil.virtual_memory().available
    if needed > available:
        gib = f"{needed / 2**30:.1f} GiB, but {available / 2**30:.1f} GiB"
        raise SettingError(f"--capacities={text} needs {gib} of memory are available")
    return int(text)


if __name__ == "__main__":
    command_line.run(main)
