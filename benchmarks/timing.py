"""Times compiled functions in turns within one process, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.types import Array

_SAMPLE_SECONDS = 0.05  # target duration of one timed call


class Candidate(NamedTuple):
    """A function to time.

    Attributes:
      name: name of its row in tables.
      run: evaluates it ``evaluations`` times and waits.
      evaluations: number of evaluations in one call of ``run``.
      compile_seconds: duration of its compilation [seconds].
      result: one of its results.
      memory: temporary arrays of the compiled program [bytes], as the compiler plans them; None if unknown.
    """

    name: str
    run: Callable[[], Any]
    evaluations: int
    compile_seconds: float
    result: Any
    memory: int | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds per evaluation: median and quartiles of wall time, median of processor time."""

    ms: float
    quartiles: tuple[float, float]
    cpu_ms: float
    evaluations: int
    compile_seconds: float


def in_loop(name: str, function: Callable[..., Any], *arguments: Any) -> Candidate:
    """Returns a candidate that evaluates ``function(*arguments)`` in a compiled loop, often enough to be timed.

    The loop carries the arguments and the last result. In each iteration, ``zero`` times the result is added to one
    entry of every argument. The compiler does not know that ``zero`` is 0, and can therefore neither hoist an
    evaluation out of the loop nor reorder evaluations.
    """

    def loop(count: Array, zero: Array, arguments: Any) -> Any:
        def evaluate(_: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            result = function(*carry[0])
            touch = zero * sum(_first_entry(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(result))
            return jax.tree.map(lambda leaf: _rewrite_first_entry(leaf, touch), carry[0]), result

        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arguments))
        return jax.lax.fori_loop(0, count, evaluate, (arguments, empty))[1]

    arguments = jax.tree.map(jnp.asarray, arguments)
    start = time.perf_counter()
    compiled = jax.jit(loop).lower(np.int32(1), np.float32(0), arguments).compile()
    seconds = time.perf_counter() - start

    def run(count: int) -> Any:
        return jax.block_until_ready(compiled(np.int32(count), np.float32(0), arguments))

    result, count = run(1), _enough(run)
    return Candidate(name, lambda: run(count), count, seconds, result, temporary_bytes(compiled))


def carried(name: str, function: Callable[[Any], Any], state: Any) -> Candidate:
    """A candidate that evaluates ``state = function(state)`` in a compiled loop; the state is donated, and kept."""
    start = time.perf_counter()
    compiled = lower_carried(function, state).compile()
    return run_carried(name, compiled, state, time.perf_counter() - start)


def lower_carried(function: Callable[[Any], Any], state: Any) -> Any:
    """The first half of :func:`carried`: the loop, lowered; several can be compiled at the same time."""

    def loop(count: Array, state: Any) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, state: function(state), state)

    return jax.jit(loop, donate_argnums=1).lower(np.int32(1), state)


def run_carried(name: str, compiled: Any, state: Any, seconds: float) -> Candidate:
    """The second half of :func:`carried`, with the loop compiled in so many seconds."""

    def run(count: int) -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(np.int32(count), state))

    run(1)
    count = _enough(run)
    return Candidate(name, lambda: run(count), count, seconds, None, temporary_bytes(compiled))


def temporary_bytes(compiled: Any) -> int | None:
    """Memory of the temporary arrays of a compiled program [bytes]; None where the compiler does not report it."""
    return getattr(compiled.memory_analysis(), "temp_size_in_bytes", None)


def _first_entry(leaf: Array) -> Array:
    return leaf[(0,) * leaf.ndim]


def _rewrite_first_entry(leaf: Array, touch: Array) -> Array:
    entry = (_first_entry(leaf) + touch.astype(leaf.dtype)).reshape((1,) * leaf.ndim)
    return jax.lax.dynamic_update_slice(leaf, entry, (0,) * leaf.ndim)


def _enough(run: Callable[[int], Any]) -> int:
    """The number of evaluations that take about ``_SAMPLE_SECONDS`` on an otherwise idle processor."""
    count = 1
    while True:
        clock, processor = time.perf_counter(), time.process_time()
        run(count)
        seconds = time.perf_counter() - clock
        if jax.default_backend() == "cpu":  # elsewhere the processor only waits
            seconds = min(seconds, time.process_time() - processor)
        wanted = max(1, round(count * _SAMPLE_SECONDS / max(seconds, 1e-6)))
        if wanted <= 2 * count:
            return wanted
        count = min(wanted, 20 * count)


class Ratio(NamedTuple):
    """Time of a candidate relative to a reference in the same round: median and quartiles of wall time, and the median
    of processor time.
    """

    clock: float
    quartiles: tuple[float, float]
    cpu: float


def measure(candidates: list[Candidate], repeats: int) -> dict[str, Timing]:
    """Times all candidates in turns; every round begins with a different candidate."""
    return _timings(candidates, _sample(candidates, repeats))


def measure_relative(
    candidates: list[Candidate], repeats: int, reference: str
) -> tuple[dict[str, Timing], dict[str, Ratio]]:
    """Like :func:`measure`, and also computes times relative to the candidate ``reference``, round by round."""
    timings, ratios = measure_against(candidates, repeats, [reference])
    return timings, ratios[reference]


def measure_against(
    candidates: list[Candidate], repeats: int, references: Sequence[str], after_run: Callable[[], Any] = lambda: None
) -> tuple[dict[str, Timing], dict[str, dict[str, Ratio]]]:
    """Like :func:`measure_relative` for several references; ``after_run`` is called after every run of a candidate.

    Returns:
      The timings by name, and the ratios by the name of the reference and the name of the candidate.
    """
    samples = _sample(candidates, repeats, after_run)
    ratios = {
        reference: {name: _ratio(times, samples[reference]) for name, times in samples.items()}
        for reference in references
    }
    return _timings(candidates, samples), ratios


def _ratio(times: np.ndarray, reference: np.ndarray) -> Ratio:
    clocks, processors = (times / reference).T
    low, middle, high = np.percentile(clocks, [25, 50, 75]).tolist()
    return Ratio(middle, (low, high), float(np.median(processors)))


def _sample(
    candidates: list[Candidate], repeats: int, after_run: Callable[[], Any] = lambda: None
) -> dict[str, np.ndarray]:
    """Wall time and processor time of each candidate [ms per evaluation], ``[repeats, 2]``."""
    samples: dict[str, list[tuple[float, float]]] = {candidate.name: [] for candidate in candidates}
    for i in range(repeats):
        turn = i % len(candidates)
        for candidate in candidates[turn:] + candidates[:turn]:
            clock, processor = time.perf_counter(), time.process_time()
            candidate.run()
            samples[candidate.name].append((time.perf_counter() - clock, time.process_time() - processor))
            after_run()
    return {candidate.name: 1e3 * np.array(samples[candidate.name]) / candidate.evaluations for candidate in candidates}


def _timings(candidates: list[Candidate], samples: dict[str, np.ndarray]) -> dict[str, Timing]:
    timings = {}
    for candidate in candidates:
        clocks, processors = samples[candidate.name].T
        low, middle, high = np.percentile(clocks, [25, 50, 75]).tolist()
        cpu_ms = float(np.median(processors))
        timings[candidate.name] = Timing(middle, (low, high), cpu_ms, candidate.evaluations, candidate.compile_seconds)
    return timings


def relative_table(ratios: dict[str, Ratio]) -> list[str]:
    """The lines of a table with one row per candidate."""
    lines = [f"{'':36}{'clock':>10}{'quartiles':>20}{'cpu':>10}"]
    for name, ratio in ratios.items():
        low, high = (f"{value:.2f}" for value in ratio.quartiles)
        lines.append(f"{name:36}{ratio.clock:>10.2f}{low + ' - ' + high:>20}{ratio.cpu:>10.2f}")
    return lines


def table(timings: dict[str, Timing]) -> list[str]:
    """The lines of a table with one row per candidate."""
    lines = [f"{'':36}{'ms':>10}{'quartiles':>20}{'cpu ms':>10}{'N':>7}{'compile s':>11}"]
    for name, timing in timings.items():
        low, high = (f"{value:.3f}" for value in timing.quartiles)
        times = f"{timing.ms:>10.3f}{low + ' - ' + high:>20}{timing.cpu_ms:>10.3f}"
        lines.append(f"{name:36}{times}{timing.evaluations:>7}{timing.compile_seconds:>11.1f}")
    return lines


def numbers(timings: dict[str, Timing]) -> dict[str, Any]:
    """Converts the timings to values for JSON."""
    return {"timings": {name: dataclasses.asdict(timing) for name, timing in timings.items()}}


@dataclasses.dataclass(frozen=True)
class Target:
    """A bound that a measurement should satisfy."""

    text: str
    measured: float
    bound: float
    at_least: bool

    @property
    def reached(self) -> bool:
        """Whether the measurement satisfies the bound."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def __str__(self) -> str:
        relation, verdict = ">=" if self.at_least else "<=", "yes" if self.reached else "no"
        return f"target: {self.text} {relation} {self.bound:g}   measured: {self.measured:.3g}   reached: {verdict}"


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of a benchmark: its printed lines, and its numbers for JSON."""

    title: str
    lines: list[str]
    numbers: dict[str, Any]
    targets: list[Target] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        body = [*self.lines, *map(str, self.targets)]
        return "\n".join(["", self.title, "-" * len(self.title), *body])

    def to_dict(self) -> dict[str, Any]:
        """Converts the section to values for JSON."""
        targets = [{**dataclasses.asdict(target), "reached": target.reached} for target in self.targets]
        return {"title": self.title, **self.numbers, "targets": targets}
