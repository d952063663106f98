"""The cost of the members of a population on one device: ``python -m benchmarks.population``.

Measures PreQN's updates alone, at Ant's sizes, one member after the other as on a CPU and vmapped as on an accelerator;
and, if the environment of the configuration runs on the device, training as a whole. For results to report, run it
pinned to one otherwise idle core:

    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" taskset -c 0 \
        python -m benchmarks.population --config=preqn_invertedpendulum --config.env.backend=mjx
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags

from benchmarks.buffers import ACTION, OBSERVATION
from benchmarks.problem import OverSeeds, burst, make_problem, update_work
from benchmarks.steps import training
from benchmarks.timing import Section, Timing, measure, numbers, table
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.cli import command_line, compilation
from preqn_jax.settings import SettingError
from preqn_jax.training import provenance
from preqn_jax.training.config import Config
from preqn_jax.types import transition_bytes

_MEMBERS = flags.DEFINE_list("members", "1,2,4,8,16,32", "numbers of members; all are compared with the first")
_REPEATS = flags.DEFINE_integer("repeats", 5, "number of rounds over which medians are taken", lower_bound=1)

_UPDATES = 5  # of each member in one call
_STEP_SIZE = 1e-3  # small, so that nothing backtracks and all updates do the same work
_MEMORIES = (16, 80, 139)  # of devices [GB]
_SPEED = 32e12  # of a hypothetical device [FLOP/s in float32]


def main(config: Config) -> int:
    """Measures and prints; returns the exit code."""
    counts = _counts()
    compilation.keep()
    print(f"device {provenance.device()}, JAX {jax.__version__}, medians of {_REPEATS.value} interleaved rounds")
    print(updates_section(counts, config), flush=True)
    if config.env.facts.on_device:
        print(training_section(counts, config), flush=True)
    print(arithmetic_section(config))
    return 0


def _counts() -> list[int]:
    """The values of ``--members``; raises SettingError if they are not positive whole numbers."""
    if not all(text.isdecimal() and int(text) for text in _MEMBERS.value) or not _MEMBERS.value:
        raise SettingError(f"--members={','.join(_MEMBERS.value)} must be numbers of at least 1, for example 1,2,4")
    return [int(text) for text in _MEMBERS.value]


def updates_section(counts: Sequence[int], config: Config) -> Section:
    """Consecutive updates, without anything else; times are those of one update of all members."""
    agent = _agent(config)
    batches = make_problem(config.batch_size, agent.hidden_sizes, OBSERVATION, ACTION).bursts
    batches = jax.tree.map(lambda leaf: leaf[:_UPDATES], batches)
    ways: dict[str, OverSeeds] = {"one by one": _one_by_one, "vmapped": jax.vmap}
    candidates = [
        burst(_label(count, way), agent, batches, count, over) for way, over in ways.items() for count in counts
    ]
    title = f"PreQN's updates at Ant's sizes: B = {config.batch_size}, hidden sizes {agent.hidden_sizes}"
    return _section(title, counts, list(ways), measure(candidates, _REPEATS.value))


def training_section(counts: Sequence[int], config: Config) -> Section:
    """Whole training; times are those of one environment step of all members, with the corresponding update."""
    candidates = [training(_label(count, "training"), count, config) for count in counts]
    title = f"Training on {config.env.id} ({config.env.backend}), {config.env.num_envs} environments a member"
    return _section(title, counts, ["training"], measure(candidates, _REPEATS.value))


def arithmetic_section(config: Config) -> Section:
    """Requirements of a member at Ant's sizes, and capacities of devices, by arithmetic; nothing is measured."""
    agent = _agent(config)
    state = jax.eval_shape(agent.make(OBSERVATION, ACTION)[0].init, jax.random.key(0))
    network = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    transition = transition_bytes(OBSERVATION, ACTION)
    replay = transition * config.replay_capacity
    work = sum(update_work(config.batch_size, agent.hidden_sizes, OBSERVATION, ACTION).values())
    # All minibatches of an iteration are in memory at once, and K with arrays of its size, of one member or of all.
    batches = transition * config.batch_size * config.updates_per_iteration
    gram = 4 * config.batch_size**2
    member = replay + network + batches + gram
    lines = [
        f"a member: replay {replay / 1e6:.1f} MB ({config.replay_capacity} transitions), parameters and optimizer "
        f"{network / 1e6:.2f} MB, minibatches of an iteration {batches / 1e6:.1f} MB, K {gram / 1e6:.2f} MB",
        f"an update: {work / 1e6:.0f} MFLOP in products and the factorization",
        *(f"{memory} GB hold {int(0.9 * memory * 1e9 / member)} members in 90%" for memory in _MEMORIES),
        f"a device at {_SPEED / 1e12:.0f} TFLOP/s, doing nothing else: {_SPEED / work:.0f} updates/s of all members",
    ]
    figures = {"replay": replay, "network": network, "batches": batches, "gram": gram, "operations": work}
    return Section("Arithmetic, not measurement: Ant's sizes", lines, figures)


def _agent(config: Config) -> PreQNConfig:
    return PreQNConfig(hidden_sizes=config.agent.hidden_sizes, step_size=_STEP_SIZE)


def _label(count: int, way: str) -> str:
    return f"{count} member{'s' * (count > 1)}, {way}"


def _one_by_one(function: Callable[..., Any], in_axes: Any) -> Callable[..., Any]:
    """Maps over members one after the other, like the trainer on a CPU; they share the last argument."""
    del in_axes
    return lambda *arguments: jax.lax.map(lambda one: function(*one, arguments[-1]), arguments[:-1])


def _section(title: str, counts: Sequence[int], ways: Sequence[str], timings: dict[str, Timing]) -> Section:
    """The table of times, and comparisons with the first; on a CPU, which may be shared, they use processor time."""

    def cost(count: int, way: str) -> float:
        timing = timings[_label(count, way)]
        return timing.cpu_ms if jax.default_backend() == "cpu" else timing.ms

    unit = "cpu ms" if jax.default_backend() == "cpu" else "ms"
    one = cost(counts[0], ways[0])
    lines = [*table(timings), "", f"{'':36}{unit + ' a member':>18}{'all, relative to the first':>30}"]
    for way in ways:
        for count in counts:
            relative = f"{cost(count, way) / one:.2f}"
            lines.append(f"{_label(count, way):36}{cost(count, way) / count:>18.3f}{relative:>30}")
    return Section(title, lines, numbers(timings))


if __name__ == "__main__":
    command_line.run_with_config(main)
