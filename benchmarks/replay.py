"""Compares replay buffers on the device: ``python -m benchmarks.replay``.

The library's ring buffer, Brax's queue and flashbax's item buffer (``pip install flashbax``; omitted if it is not
installed) insert transitions of Ant's sizes and sample a minibatch, half full and full, since a full queue moves all of
its data. For results to report, run it pinned to one otherwise idle core:

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
from absl import flags

from benchmarks.buffers import ACTION, BUFFERS, INSERTED, OBSERVATION, SAMPLED, Buffer
from benchmarks.timing import Candidate, Section, carried, measure, numbers, table
from preqn_jax.cli import command_line
from preqn_jax.settings import SettingError
from preqn_jax.training import memory, provenance, replay
from preqn_jax.types import Array, Transition, transition_bytes

_REPEATS = flags.DEFINE_integer("repeats", 7, "number of rounds over which medians are taken", lower_bound=1)
_CAPACITIES = flags.DEFINE_list("capacities", "100000,1000000", "capacities of the buffers [transitions]")

_METHOD = """\
Each value is the median over {repeats} rounds. Every round runs all buffers once, in rotating order, and waits for the
results. One evaluation inserts {inserted} transitions and samples {sampled}. A call runs N evaluations in one compiled
loop, to which the buffer is donated, and its time is divided by N. The inserted transitions were sampled before, so
that the compiler cannot eliminate any work. The counters are reset before each insertion, so that the number of
transitions in a buffer remains the same.
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
    """Measures all buffers with ``held`` transitions in them."""
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
    """Parses a capacity; raises SettingError if it is invalid, or needs more memory than is available."""
    if not text.isdecimal() or int(text) < 2 * SAMPLED or int(text) % (2 * INSERTED):
        raise SettingError(
            f"--capacities={text} must be a multiple of {2 * INSERTED} of at least {2 * SAMPLED}, for example 100000"
        )
    # All buffers are in memory at the same time, and a full queue is copied when it moves its data.
    memory.check((len(BUFFERS) + 1) * _bytes(int(text)), f"--capacities={text}", "all buffers", "choose fewer")
    return int(text)


if __name__ == "__main__":
    command_line.run(main)
