"""Time and memory of PreQN's update, part by part: ``python -m benchmarks.update``.

The candidates of a comparison are measured in turns within one process, so that other load on the machine affects all
of them alike. On CPUs, XLA's threads make ratios less accurate; for results to report, run it pinned to one otherwise
idle core:

    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \
        taskset -c 0 python -m benchmarks.update

A target states what one CPU core should reach with the default settings. The tables are printed, and saved with
versions and hardware in the JSON file ``--out``.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from benchmarks import machine
from benchmarks.agents import agents_section
from benchmarks.problem import ACTION, BURST, OBSERVATION, Problem, burst, layers, make_problem, update_work
from benchmarks.timing import Candidate, Section, Target, Timing, in_loop, measure, numbers, table
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.cli import command_line, lists
from preqn_jax.envs.config import EnvConfig
from preqn_jax.ops import activations, linesearch, ntk, solvers
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.precision import full_precision
from preqn_jax.ops.preqn import preqn_update
from preqn_jax.settings import SettingError
from preqn_jax.training import memory, provenance
from preqn_jax.training.config import Config
from preqn_jax.training.host import HostTrainer
from preqn_jax.training.progress import message, track
from preqn_jax.types import Array, Params

_OUT = flags.DEFINE_string("out", "runs/benchmark_update.json", "path of the JSON file for the results")
_REPEATS = flags.DEFINE_integer("repeats", 7, "number of rounds over which medians are taken", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch-size", 256, "minibatch size B [transitions]", lower_bound=1)
_HIDDEN_SIZES = flags.DEFINE_string("hidden-sizes", "256,256", "width of each hidden layer of critic and actor [units]")

_SECTIONS = flags.DEFINE_list(
    "sections", None, "sections to measure, by the names that the progress shows (default: all)"
)

_STEP_SIZE = 1e-3  # of the line search: small, so that no update backtracks and all updates do the same work
_LINESEARCH = Linesearch(step_size=_STEP_SIZE)
_SEEDS_BURST = 10  # consecutive updates in the comparison of seeds
_ENV, _WARM_UP, _BURSTS = "HalfCheetah-v5", 200, 6  # whole loop: steps before the first update, iterations after it

_METHOD = """\
Each value is the median over {repeats} rounds. Every round runs all candidates of a section once, in rotating order,
and waits for the results. To exclude Python's dispatch, a call evaluates its candidate N times in one compiled loop,
and its time is divided by N. The inputs of each evaluation depend on the previous result: one entry of every input
array is rewritten, and the values include this. Nothing is subtracted, and compilation is listed separately. "cpu ms"
is the processor time of all threads: on a busy core, it is about what "ms", the wall time, would be on an idle core.
Targets are for one CPU core and the default sizes.
"""


class Options(NamedTuple):
    """The options given on the command line."""

    out: pathlib.Path
    repeats: int
    batch_size: int
    hidden_sizes: tuple[int, ...]
    sections: tuple[str, ...]


def main() -> int:
    """Measures, prints and saves; returns the exit code."""
    options = _read_options()
    threads = machine.threads()
    print(_METHOD.format(repeats=options.repeats))
    where = ", ".join(f"{name} {value}" for name, value in threads.items())
    print(f"device {provenance.device()}, B = {options.batch_size}, hidden sizes {_HIDDEN_SIZES.value}; {where}")
    start, processor = time.perf_counter(), time.process_time()
    problem = make_problem(options.batch_size, options.hidden_sizes)
    sections = []
    for name in track(options.sections, str, "section"):
        sections.append(SECTIONS[name](problem, options))
        message(str(sections[-1]), sys.stdout)

    wall, processor = time.perf_counter() - start, time.process_time() - processor
    print(f"\n{wall:.0f} s in all, {processor / wall:.2f} processors in use (1 on an otherwise idle core)")
    record = {
        "settings": {name: value for name, value in options._asdict().items() if name != "out"},
        "threads": threads,
        "seconds": wall,
        "processors_in_use": processor / wall,
    }
    machine.save(options.out, record, sections)
    print(f"saved {options.out}")
    return 0


def _read_options() -> Options:
    """Reads the options; raises SettingError for errors that the bounds of the flags do not detect."""
    try:
        hidden_sizes = tuple(int(size) for size in _HIDDEN_SIZES.value.split(","))
    except ValueError:
        hidden_sizes = ()
    if not hidden_sizes or min(hidden_sizes) < 1:
        raise SettingError(f"--hidden-sizes={_HIDDEN_SIZES.value} must be widths of at least 1, for example 256,256")
    sections = tuple(_SECTIONS.value or SECTIONS)
    lists.check_names("--sections", sections, list(SECTIONS))
    _check_memory(_BATCH_SIZE.value, hidden_sizes)
    out = machine.output_file("--out", _OUT.value)
    return Options(out, _REPEATS.value, _BATCH_SIZE.value, hidden_sizes, sections)


def _check_memory(batch_size: int, hidden_sizes: tuple[int, ...]) -> None:
    """Raises SettingError if memory is too small for the reference: per-example gradients, and some arrays like K."""
    parameters = sum((a + 1) * b for a, b in layers((OBSERVATION + ACTION, *hidden_sizes, 1)))
    what = f"--batch-size={batch_size} with --hidden-sizes={_HIDDEN_SIZES.value}"
    needed = 8 * batch_size * (parameters + 5 * batch_size)
    memory.check(needed, what, "per-example gradients", "choose smaller ones")


def _grams(problem: Problem) -> dict[str, Callable[[Params, Any], Array]]:
    linearizers = {
        "per_example": ntk.per_example(ntk.module_q_fn(problem.critic)),
        "dense": ntk.dense(problem.critic),
    }

    def gram_of(linearizer: ntk.Linearizer) -> Callable[[Params, Any], Array]:
        return lambda params, inputs: linearizer(params, inputs).gram

    return {name: gram_of(linearizer) for name, linearizer in linearizers.items()}


def _updates(problem: Problem) -> dict[str, Callable[[Params, Any, Array], tuple[Params, Any]]]:
    """Updates with the reference pair of linearizer and solver, which is the paper's, and with the default pair."""
    pairs = {
        "per_example, lstsq": (ntk.per_example(ntk.module_q_fn(problem.critic)), solvers.lstsq()),
        "dense, ridge": (ntk.dense(problem.critic), solvers.ridge()),
    }

    def update_of(q: ntk.Linearizer, solver: solvers.Solver) -> Callable[..., tuple[Params, Any]]:
        return functools.partial(preqn_update, q, solver=solver, linesearch=_LINESEARCH)

    return {name: update_of(*pair) for name, pair in pairs.items()}


def gram_section(problem: Problem, options: Options) -> Section:
    """Measures the computation of K, from per-example gradients and layer by layer."""
    arguments = (problem.critic_params, problem.inputs)
    candidates = [in_loop(name, gram, *arguments) for name, gram in _grams(problem).items()]
    timings = measure(candidates, options.repeats)
    reference, fast = (candidate.result for candidate in candidates)
    difference = float(jnp.max(jnp.abs(fast - reference)) / jnp.max(jnp.abs(reference)))
    ratio = timings["per_example"].ms / timings["dense"].ms
    lines = [*table(timings), f"largest difference of the two, relative to the largest entry: {difference:.0e}"]
    target = Target("time of per_example / time of dense", ratio, 25, at_least=True)
    return Section("1. Gram matrix of the critic", lines, {**numbers(timings), "difference": difference}, [target])


def solver_section(problem: Problem, options: Options) -> Section:
    """Measures every solver with K and delta of a replayed minibatch."""
    gram = jax.jit(_grams(problem)["dense"])(problem.critic_params, problem.inputs)
    candidates = [
        in_loop(name, functools.partial(solvers.solve, constructor()), gram, problem.td_error)
        for name, constructor in solvers.SOLVERS.items()
    ]
    timings = measure(candidates, options.repeats)
    predicted = {candidate.name: float(candidate.result[1].predicted_alignment) for candidate in candidates}
    rows = np.asarray(jnp.concatenate(problem.inputs, axis=1))
    repeated = len(rows) - len(np.unique(rows, axis=0))
    eigenvalues = np.linalg.eigvalsh(np.asarray(gram, np.float64))
    rank = int((eigenvalues > 3e-5 * eigenvalues[-1]).sum())
    lines = [
        *table(timings),
        f"{repeated} of {len(rows)} rows repeat another; {rank} eigenvalues of K exceed 3e-5 of the largest",
        "cos(K z, delta): " + ", ".join(f"{name} {value:.4f}" for name, value in predicted.items()),
    ]
    return Section("2. Solving K z = delta", lines, {**numbers(timings), "predicted_alignment": predicted})


def _sines(x: Array) -> list[Candidate]:
    """Candidates for the sine alone and with its derivative, JAX's and the library's."""

    def with_derivative(sine: Callable[[Array], Array]) -> Callable[[Array], tuple[Array, Array]]:
        return lambda x: jax.jvp(sine, (x,), (jnp.ones_like(x),))

    functions: dict[str, Callable[[Array], Any]] = {
        "jnp.sin": jnp.sin,
        "activations.sin": activations.sin,
        "jnp.sin and derivative": with_derivative(jnp.sin),
        "activations.sin and derivative": with_derivative(activations.sin),
    }
    return [in_loop(name, function, x) for name, function in functions.items()]


def _preactivations(problem: Problem, options: Options) -> Array:
    """Inputs of the sine ``[B, width]`` that resemble those in a hidden layer of a newly initialized network."""
    return jax.random.normal(jax.random.key(2), (options.batch_size, max(options.hidden_sizes)))


def sin_section(problem: Problem, options: Options) -> Section:
    """Compares the library's sine with JAX's."""
    x = _preactivations(problem, options)
    timings = measure(_sines(x), options.repeats)
    forward = timings["jnp.sin"].ms / timings["activations.sin"].ms
    both = timings["jnp.sin and derivative"].ms / timings["activations.sin and derivative"].ms
    lines = [*table(timings), f"with the derivative: {both:.1f} times as fast"]
    target = Target("time of jnp.sin / time of activations.sin", forward, 5, at_least=True)
    title = f"3. Sine of [{x.shape[0]}, {x.shape[1]}]"
    return Section(title, lines, {**numbers(timings), "ratio_with_derivative": both}, [target])


def update_section(problem: Problem, options: Options) -> Section:
    """Measures one whole critic update, with the reference pair and with the default pair."""
    arguments = (problem.critic_params, problem.inputs, problem.target)
    candidates = [in_loop(name, update, *arguments) for name, update in _updates(problem).items()]
    timings = measure(candidates, options.repeats)
    lines, infos = table(timings), {}
    for candidate in candidates:
        info = candidate.result[1].search
        infos[candidate.name] = {"backtracks": int(info.backtracks), "alignment": float(info.alignment)}
        lines.append(f"{candidate.name}: {int(info.backtracks)} backtracks, alignment {float(info.alignment):.4f}")
    reference, fast = timings.values()
    target = Target("time of the reference / time of dense, ridge", reference.ms / fast.ms, 12, at_least=True)
    return Section("4. Critic update", lines, {**numbers(timings), "infos": infos}, [target])


def memory_section(problem: Problem, options: Options) -> Section:
    """Working memory of both Gram matrices and both updates, as planned by the compiler."""
    del options
    arguments = (problem.critic_params, problem.inputs, problem.target)
    functions: dict[str, tuple[Callable[..., Any], int]] = {
        **{f"Gram ({name})": (gram, 2) for name, gram in _grams(problem).items()},
        **{f"critic update ({name})": (update, 3) for name, update in _updates(problem).items()},
    }
    temporary = {}
    for name, (function, arity) in functions.items():
        analysis: Any = jax.jit(function).lower(*arguments[:arity]).compile().memory_analysis()
        temporary[name] = analysis.temp_size_in_bytes / 1e6
    lines = [f"{name:44}{megabytes:>10.1f} MB" for name, megabytes in temporary.items()]
    shipped = temporary["critic update (dense, ridge)"]
    target = Target("MB of the shipped critic update", shipped, 20, at_least=False)
    return Section("5. Working memory", lines, {"temporary_megabytes": temporary}, [target])


def _parts(problem: Problem) -> list[Candidate]:
    """Candidates for each part of an update alone, with the names of :func:`update_work`."""
    linearizer, solve = ntk.dense(problem.critic), functools.partial(solvers.solve, solvers.ridge())
    q_fn = linearizer.q_fn
    adam = optax.adam(PreQNConfig().actor_learning_rate)
    critic, actor, inputs, batch = problem.critic_params, problem.actor_params, problem.inputs, problem.batch

    def next_value(critic: Params, actor: Params, observation: Array) -> Array:
        return q_fn(critic, (observation, problem.actor.apply(actor, observation)))

    def search(params: Params, direction: Params, values: Array, td_error: Array) -> tuple[Params, Any]:
        def value_fn(params: Params) -> Array:
            return q_fn(params, inputs)

        return linesearch.search(value_fn, params, direction, values, td_error, _LINESEARCH)

    def gradient(actor: Params, critic: Params, observation: Array) -> Params:
        return jax.grad(lambda actor: -jnp.mean(next_value(critic, actor, observation)))(actor)

    def adam_step(gradient: Params, optimizer: optax.OptState, actor: Params) -> tuple[Params, optax.OptState]:
        updates, optimizer = adam.update(gradient, optimizer, actor)
        return optax.apply_updates(actor, updates), optimizer

    with full_precision():
        values, tangents = jax.jit(linearizer.tangents)(critic, inputs)
        gram = jax.jit(linearizer.gram)(tangents)
        z, _ = jax.jit(solve)(gram, problem.td_error)
        direction = jax.jit(linearizer.pullback)(tangents, z)
        return [
            in_loop("critic forward and backward", linearizer.tangents, critic, inputs),
            in_loop("Gram", linearizer.gram, tangents),
            in_loop("TD target", next_value, critic, actor, batch.next_observation),
            in_loop("solve", solve, gram, problem.td_error),
            in_loop("pull-back", linearizer.pullback, tangents, z),
            in_loop("linesearch", search, critic, direction, values, problem.td_error),
            in_loop("actor's gradient", gradient, actor, critic, batch.observation),
            in_loop("Adam", adam_step, actor, adam.init(actor), actor),
        ]


def _products(x: Array) -> list[Candidate]:
    """Candidates for matrix products of the hidden layers' size: a forward pass, and the gradient of a kernel."""
    kernel = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (x.shape[1], x.shape[1])))[0]  # keeps x's norm
    with full_precision():
        return [
            in_loop("one product A W", lambda a, w: a @ w, x, kernel),
            in_loop("one product A^T D", lambda a, d: a.T @ d, x, x),
        ]


def whole_section(problem: Problem, options: Options) -> Section:
    """Compares PreQN's whole update, critic and actor, with the time of its products at the rate of one product."""
    config = PreQNConfig(hidden_sizes=options.hidden_sizes, step_size=_STEP_SIZE)
    x, whole = _preactivations(problem, options), "whole update, as in training"
    candidates = [burst(whole, config, problem.bursts), *_parts(problem), *_products(x), *_sines(x)[1::2]]
    timings = measure(candidates, options.repeats)
    backtracks = int(candidates[0].result[1]["backtracks"].sum())
    work = update_work(options.batch_size, options.hidden_sizes)
    rate = 2.0 * x.shape[0] * x.shape[1] ** 2 / timings["one product A W"].ms  # per ms
    ideal, without_symmetry = sum(work.values()) / rate, (sum(work.values()) - work["Gram"] / 4) / rate
    lines = [
        *table(timings),
        "",
        *_accounts(timings, work, rate, whole),
        *_remarks(timings, len(options.hidden_sizes)),
        f"{backtracks} backtracks in {BURST} updates; a product A W runs at {rate / 1e6:.1f} GFLOP/s",
        "without the quarter of the Gram matrix that symmetry saves, an update takes "
        f"{timings[whole].ms / without_symmetry:.2f} times the ideal",
    ]
    figures = {"operations": work, "gflops": rate / 1e6, "ideal_ms": ideal, "backtracks": backtracks}
    target = Target("time of an update / its operations at that rate", timings[whole].ms / ideal, 1.3, at_least=False)
    return Section("6. PreQN's whole update", lines, {**numbers(timings), **figures}, [target])


def _accounts(timings: dict[str, Timing], work: dict[str, float], rate: float, whole: str) -> list[str]:
    """A table of the parts of an update: operations, ideal time at the rate of a product, and measured time."""
    total = sum(work.values())
    rows = [(name, work[name], timings[name].ms) for name in work]
    rows += [("all parts alone", total, sum(timings[name].ms for name in work)), (whole, total, timings[whole].ms)]
    lines = [f"{'part, measured alone':36}{'MFLOP':>10}{'ideal ms':>10}{'ms':>10}{'beyond ideal':>14}"]
    for name, operations, ms in rows:
        ideal = operations / rate
        lines.append(f"{name:36}{operations / 1e6:>10.1f}{ideal:>10.3f}{ms:>10.3f}{ms - ideal:>14.3f}")
    return lines


def _remarks(timings: dict[str, Timing], depth: int) -> list[str]:
    """The contributions of sines, and of gradients of kernels, which occur in several parts, to an update."""
    plain, both = timings["activations.sin"].ms, timings["activations.sin and derivative"].ms
    product, transposed = timings["one product A W"].ms, timings["one product A^T D"].ms
    # Sines per hidden layer: alone in the TD target (critic and actor) and the line search; with the derivative in the
    # critic's linearization and the actor's gradient (critic and actor). Gradients of kernels: of critic and actor.
    sines, kernels = 3 * depth, 2 * (depth - 1)
    return [
        f"sines: about {sines * (plain + both):.3f} ms of an update ({sines} alone and {sines} with the derivative)",
        f"gradients of kernels: A^T D takes {transposed / product:.2f} times as long as A W, "
        f"about {kernels * (transposed - product):.3f} ms more over {kernels} of them",
    ]


def loop_section(problem: Problem, options: Options) -> Section:
    """Measures whole training on the CPU: environment, replay and updates."""
    del problem
    config = Config(
        agent=PreQNConfig(hidden_sizes=options.hidden_sizes),
        env=EnvConfig(_ENV),
        start_steps=_WARM_UP,
        update_after=_WARM_UP,
        batch_size=options.batch_size,
        replay_capacity=max(10_000, options.batch_size),
    )
    trainer = HostTrainer(config)
    compile_seconds = trainer.compile()
    for _ in range(_WARM_UP):
        trainer.collect()
    collect, learn, backtracks = [], [], []
    for _ in range(_BURSTS + 1):
        start = time.perf_counter()
        for _ in range(config.update_every):
            trainer.collect()
        middle = time.perf_counter()
        info = trainer.learn()
        collect.append(1e3 * (middle - start) / config.update_every)
        learn.append(1e3 * (time.perf_counter() - middle) / config.update_every)
        backtracks.append(info["backtracks"].mean())
    collect_ms, learn_ms, mean_backtracks = (float(np.median(values[1:])) for values in (collect, learn, backtracks))
    rate = 1e3 / (collect_ms + learn_ms)
    lines = [
        f"{rate:.0f} environment steps per second, one update each, in {_BURSTS} iterations of {config.update_every}:",
        f"per step, {collect_ms:.3f} ms for collecting (action, environment, replay), {learn_ms:.3f} ms for learning "
        "(sampling, update)",
        f"{mean_backtracks:.1f} backtracks per update; updates of the first iteration took {learn[0]:.3f} ms each; "
        f"compiled in {compile_seconds:.1f} s",
    ]
    figures = {"steps_per_second": rate, "collect_ms": collect_ms, "learn_ms": learn_ms}
    more = {"backtracks": mean_backtracks, "compile_seconds": compile_seconds}
    return Section(f"7. Whole loop on {_ENV}", lines, {**figures, **more})


def seeds_section(problem: Problem, options: Options) -> Section:
    """Measures updates of several learners in one vmapped program."""
    config = PreQNConfig(hidden_sizes=options.hidden_sizes, step_size=_STEP_SIZE)
    batches = jax.tree.map(lambda leaf: leaf[:_SEEDS_BURST], problem.bursts)
    candidates = {n: burst(f"update of {n} seed{'s' * (n > 1)}", config, batches, n) for n in (1, 2, 4)}
    timings = measure(list(candidates.values()), options.repeats)
    one = timings[candidates[1].name].ms
    relative = {n: timings[candidate.name].ms / one for n, candidate in candidates.items()}
    lines = [*table(timings)]
    lines += [f"{n} seeds take {ratio:.2f} times as long as one" for n, ratio in relative.items() if n > 1]
    return Section("8. Seeds side by side", lines, {**numbers(timings), "relative_to_one": relative})


def _agents_section(problem: Problem, options: Options) -> Section:
    return agents_section(problem, options.hidden_sizes, _STEP_SIZE, options.repeats)


SECTIONS: dict[str, Callable[[Problem, Options], Section]] = {
    "Gram matrix": gram_section,
    "solvers": solver_section,
    "sine": sin_section,
    "critic update": update_section,
    "memory": memory_section,
    "whole update": whole_section,
    "whole loop": loop_section,
    "seeds": seeds_section,
    "agents": _agents_section,
}

if __name__ == "__main__":
    command_line.run(main)
