"""Where the time of an agent's update goes: ``python -m benchmarks.profile --config=preqn_norm_halfcheetah``.

Runs the updates of a training iteration under JAX's profiler and assigns each operation of the compiled program to a
part of the update (the named scopes of the agents and of ``preqn_update``) and to a kind of operation. Run it pinned
to one otherwise idle core:

    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \
        taskset -c 0 python -m benchmarks.profile

The floating-point work of the matrix products is also read from the compiled program. Divided by the speed of one
matrix product, measured in the same process, it gives the time that the products alone would take. Observations and
actions have HalfCheetah's sizes, regardless of the environment of the configuration.
"""

from __future__ import annotations

import collections
import gzip
import json
import math
import pathlib
import re
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.problem import ACTION, OBSERVATION, make_problem
from benchmarks.timing import in_loop, measure
from preqn_jax.cli import command_line
from preqn_jax.ops.precision import full_precision
from preqn_jax.settings import SettingError
from preqn_jax.training import provenance
from preqn_jax.training.base import gradient_steps_of
from preqn_jax.training.config import Config

_REPEATS = flags.DEFINE_integer("repeats", 20, "iterations of training that are measured", lower_bound=1)

PARTS = ("target", "linearize", "gram", "solve", "pull_back", "line_search", "critics", "actor")  # named scopes
REST = "rest"
PRODUCTS, FACTORIZATIONS = "matrix products", "factorizations"
_KINDS = {  # pattern of an operation's name -> kind; the first that matches
    "LayerNorm": "LayerNorm",
    r"relu|tanh|\bsin\b|MLP_\d+/cond": "activations",  # the sine is a conditional
    r"choles|triangular_solve|eigh|svd": FACTORIZATIONS,
}
KINDS = (PRODUCTS, *_KINDS.values(), "other")


class Operation(NamedTuple):
    """An operation of a compiled program.

    Attributes:
      name: its origin in the Python program, with the named scopes around it.
      flops: floating-point operations of the matrix product in it, 0 if there is none.
    """

    name: str
    flops: float

    @property
    def part(self) -> str:
        """The part of the update to which the operation belongs."""
        found = [word for word in re.findall(r"\w+", self.name) if word in PARTS]
        return found[-1] if found else REST

    @property
    def kind(self) -> str:
        """The kind of the operation, one of :data:`KINDS`."""
        if self.flops:
            return PRODUCTS
        return next((kind for pattern, kind in _KINDS.items() if re.search(pattern, self.name)), "other")


def main(config: Config) -> int:
    """Measures and prints; returns the exit code."""
    if config.agent.discrete:
        raise SettingError(f"--config of {config.agent.name} is not supported: its actions are discrete")
    problem = make_problem(config.batch_size, config.agent.hidden_sizes)
    agent, _ = config.agent.make(OBSERVATION, ACTION)
    state = agent.observe(agent.init(jax.random.key(0)), problem.bursts.observation.reshape(-1, OBSERVATION))
    arguments = (state, problem.bursts, jax.random.key(1), np.uint32(0))
    compiled = jax.jit(gradient_steps_of(agent)).lower(*arguments).compile()
    updates = problem.bursts.reward.shape[0]

    seconds = _time(lambda: compiled(*arguments))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_REPEATS.value):
                jax.block_until_ready(compiled(*arguments))
        durations = read_durations(pathlib.Path(folder))
    operations = read_operations(compiled.as_text() or "")
    calls = updates * _REPEATS.value
    print(f"{config.agent.name}, device {provenance.device()}, B = {config.batch_size}, milliseconds per update\n")
    print("\n".join(table(durations, operations, calls)))
    print(f"\nan update without the profiler takes {1e3 * seconds / updates:.2f} ms")
    work = sum(operations[name].flops * len(times) for name, times in durations.items() if name in operations) / calls
    if work:  # on GPUs, products are calls of a library, which do not state their work
        ideal = work / _products_per_second()
        print(f"its matrix products are {work / 1e6:.0f} MFLOP, which take {1e3 * ideal:.2f} ms at the "
              f"{work / ideal / 1e9:.0f} GFLOP/s of one product of 256 x 256 matrices: "
              f"{seconds / updates / ideal:.2f} times as long")  # fmt: skip
    return 0


def _time(run: Any) -> float:
    """Median seconds of a call, after the first."""
    samples = []
    for _ in range(_REPEATS.value + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        samples.append(time.perf_counter() - start)
    return float(np.median(samples[1:]))


def _products_per_second() -> float:
    """Floating-point operations per second of one product of float32 matrices."""
    x = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (256, 256)))[0]
    with full_precision():
        timing = measure([in_loop("product", lambda a, w: a @ w, x, x)], _REPEATS.value)["product"]
    return 2.0 * 256**3 / (1e-3 * timing.ms)


def read_durations(folder: pathlib.Path) -> dict[str, list[float]]:
    """Microseconds of each execution of each operation, from the newest trace under ``folder``."""
    newest = max(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    durations = collections.defaultdict(list)
    for event in json.loads(gzip.decompress(newest.read_bytes()))["traceEvents"]:
        if event.get("ph") == "X" and (name := event.get("args", {}).get("hlo_op")):
            durations[name].append(float(event["dur"]))
    return dict(durations)


_COMPUTATION = re.compile(r"(?m)^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"(?m)^ *(?:ROOT )?%([\w.\-]+) = (?:\w+\[([\d,]*)\]|\().*$")
_CONTROL_FLOW = re.compile(r" (while|conditional|call)\(")
_DOT = re.compile(r" dot\((?:\S+ )?%([\w.\-]+), .*lhs_contracting_dims=\{([\d,]*)\}")


def read_operations(program: str) -> dict[str, Operation]:
    """The operations of a compiled program by name, from its text, without control flow, which only contains others."""
    shapes = {name: _integers(shape) for name, shape in _INSTRUCTION.findall(program)}
    _, *parts = _COMPUTATION.split(program)
    bodies = {name: list(_INSTRUCTION.finditer(body)) for name, body in zip(parts[::2], parts[1::2], strict=True)}
    within = {name: sum(_flops(found[0], shapes) for found in body) for name, body in bodies.items()}
    operations = {}
    for found in (found for body in bodies.values() for found in body):
        if _CONTROL_FLOW.search(found[0]):
            continue
        origin = re.search(r'op_name="([^"]*)"', found[0])
        fused = re.search(r" fusion\(.*calls=%([\w.\-]+)", found[0])
        flops = within[fused[1]] if fused else _flops(found[0], shapes)
        operations[found[1]] = Operation(origin[1] if origin else "", flops)
    return operations


def _flops(line: str, shapes: dict[str, tuple[int, ...]]) -> float:
    """Twice the multiply-adds of a matrix product, 0 for any other instruction."""
    if not (dot := _DOT.search(line)):
        return 0.0
    result, left = _INSTRUCTION.search(line), shapes[dot[1]]
    assert result
    return 2.0 * math.prod(_integers(result[2])) * math.prod(left[axis] for axis in _integers(dot[2]))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


def table(durations: dict[str, list[float]], operations: dict[str, Operation], updates: int) -> list[str]:
    """Lines of a table: milliseconds per update of each part, by kind of operation."""
    total: dict[tuple[str, str], float] = collections.defaultdict(float)
    for name, times in durations.items():
        if name not in operations:
            continue
        operation = operations[name]
        # The median: a single interruption may take longer than all executions together.
        total[operation.part, operation.kind] += float(np.median(times)) * len(times) / updates / 1e3
    parts = [part for part in (*PARTS, REST) if any(total[part, kind] for kind in KINDS)]
    lines = [f"{'':12}" + "".join(f"{kind:>17}" for kind in (*KINDS, "all"))]
    for part in (*parts, "all"):
        row = [sum(total[p, kind] for p in (parts if part == "all" else [part])) for kind in KINDS]
        lines.append(f"{part:12}" + "".join(f"{ms:>17.3f}" for ms in (*row, sum(row))))
    return lines


if __name__ == "__main__":
    command_line.run_with_config(main)
