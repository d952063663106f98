"""The sections of the benchmark of an accelerator, one function each."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from benchmarks import buffers
from benchmarks.problem import ACTION, NO_BACKTRACKS, OBSERVATION, Problem, burst, burst_of_agent, make_problem
from benchmarks.steps import OURS, training
from benchmarks.timing import (
    Candidate,
    Section,
    Target,
    in_loop,
    lower_carried,
    measure,
    measure_relative,
    numbers,
    relative_table,
    run_carried,
    table,
)
from preqn_jax import ntk, preqn_update, solvers
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.envs import MJX_TASKS, device, make_mjx
from preqn_jax.envs.config import EnvConfig
from preqn_jax.ops import activations
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.settings import SettingError
from preqn_jax.training import presets
from preqn_jax.types import Array, Params

_STEP_SIZE = 1e-3  # small, so that nothing backtracks and all updates do the same work


class Sizes(NamedTuple):
    """The sizes of all measurements.

    Attributes:
      repeats: rounds that a median is taken over.
      batch_size: minibatch B [transitions].
      hidden_sizes: width of each hidden layer of critic and actor [units].
      tasks: Gymnasium ids of the MJX tasks.
      num_envs: parallel environments of a task.
      members: numbers of members; all are compared with the first.
      member_envs: environments of each member.
      updates: gradient steps of one call.
    """

    repeats: int = 7
    batch_size: int = 256
    hidden_sizes: tuple[int, ...] = (256, 256)
    tasks: tuple[str, ...] = tuple(MJX_TASKS)
    num_envs: int = 2048
    members: tuple[int, ...] = (1, 8, 64)
    member_envs: int = 10
    updates: int = 20


QUICK = Sizes(1, 8, (8,), ("InvertedPendulum-v5",), 2, (1, 2), 2, 2)


def precision_section(sizes: Sizes) -> Section:
    """Compares kernels of the device with the kernel in float64: a truncated product makes them indefinite."""
    problem = make_problem(sizes.batch_size, sizes.hidden_sizes)
    exact = _exact_gram(problem)
    arguments, q_fn = (problem.critic_params, problem.inputs), ntk.module_q_fn(problem.critic)
    forms: dict[str, Callable[..., Array]] = {
        "dense": lambda params, inputs: ntk.dense(problem.critic)(params, inputs).gram,
        "per_example": lambda params, inputs: ntk.per_example(q_fn)(params, inputs).gram,
        "the device's default precision": functools.partial(_default_gram, q_fn),
    }
    found = {name: np.asarray(jax.jit(form)(*arguments), np.float64) for name, form in forms.items()}
    scale, largest = np.abs(exact).max(), np.linalg.eigvalsh(exact)[-1]
    rows = {}
    for name, gram in {"float64": exact, **found}.items():
        smallest = float(np.linalg.eigvalsh(gram)[0] / largest)
        rows[name] = {"error": float(np.abs(gram - exact).max() / scale), "smallest_eigenvalue": smallest}
    info = jax.jit(_update(problem))(problem.critic_params, problem.inputs, problem.target)[1]
    lines = [
        f"{'kernel':36}{'largest error':>16}{'smallest eigenvalue':>22}",
        *(f"{name:36}{row['error']:>16.1e}{row['smallest_eigenvalue']:>22.1e}" for name, row in rows.items()),
        "errors are relative to the largest entry, eigenvalues to the largest eigenvalue in float64",
        f"ridge(1e-4) in an update: damping {float(info.solve.damping):.1e} of the mean diagonal (more than 1e-4 if a "
        f"factorization failed), cos(K z, delta) {float(info.solve.predicted_alignment):.4f}",
    ]
    figures = {"kernels": rows, "damping": float(info.solve.damping)}
    targets = [
        Target("largest error of the kernel (dense)", rows["dense"]["error"], 1e-5, at_least=False),
        Target("damping that ridge(1e-4) needed", float(info.solve.damping), 1.01e-4, at_least=False),
    ]
    return Section("Full float32 precision", lines, figures, targets)


def _exact_gram(problem: Problem) -> np.ndarray:
    """The kernel in float64, ``[B, B]``, computed on the CPU."""
    with _double_on_cpu():
        params, inputs = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (problem.critic_params, problem.inputs)
        )
        return np.asarray(ntk.per_example(ntk.module_q_fn(problem.critic))(params, inputs).gram)


@contextlib.contextmanager
def _double_on_cpu() -> Iterator[None]:
    try:
        (cpu, *_) = jax.devices("cpu")
    except RuntimeError:
        raise SettingError("JAX_PLATFORMS excludes the CPU, which computes the reference; append ,cpu to it") from None
    jax.config.update("jax_enable_x64", True)
    try:
        with jax.default_device(cpu):
            yield
    finally:
        jax.config.update("jax_enable_x64", False)


def _default_gram(q_fn: ntk.QFunction, params: Params, inputs: Any) -> Array:
    """The kernel with matrix products as they are unless a program asks for more precision."""

    def gradient(example: Any) -> Array:
        one = jax.tree.map(lambda leaf: leaf[None], example)
        return jax.flatten_util.ravel_pytree(jax.grad(lambda params: q_fn(params, one)[0])(params))[0]

    gradients = jax.vmap(gradient)(inputs)
    return gradients @ gradients.T


def _update(problem: Problem) -> Callable[..., Any]:
    q = ntk.dense(problem.critic)
    return functools.partial(preqn_update, q, solver=solvers.ridge(), linesearch=Linesearch(step_size=_STEP_SIZE))


def updates_section(sizes: Sizes) -> Section:
    """Measures time and memory of whole updates, critic and actor, of every agent, and of PreQN's critic update."""
    problem = make_problem(sizes.batch_size, sizes.hidden_sizes)
    batches = jax.tree.map(lambda leaf: leaf[: sizes.updates], problem.bursts)
    candidates = []
    for name in OURS:
        widths = ",".join(map(str, sizes.hidden_sizes))
        config = presets.override(presets.get_config(f"{name}_halfcheetah"), f"agent.hidden_sizes={widths}")
        if isinstance(config.agent, PreQNConfig):
            config = presets.override(config, f"agent.min_alignment={NO_BACKTRACKS}")
        agent, _ = config.agent.make(OBSERVATION, ACTION)
        candidates.append(burst_of_agent(name, agent, batches))
    arguments = (problem.critic_params, problem.inputs, problem.target)
    candidates.append(in_loop("critic update of PreQN", _update(problem), *arguments))
    timings, ratios = measure_relative(candidates, sizes.repeats, "sac")
    memory = {candidate.name: candidate.memory for candidate in candidates}
    lines = [*table(timings), "", "relative to sac in the same round", *relative_table(ratios), "", *_memory(memory)]
    relative = {name: ratio._asdict() for name, ratio in ratios.items()}
    title = f"Updates: B = {sizes.batch_size}, hidden sizes {sizes.hidden_sizes}"
    return Section(title, lines, {**numbers(timings), "relative": relative, "temporary_bytes": memory})


def _memory(memory: dict[str, int | None]) -> list[str]:
    return [f"{name:36}{bytes_ / 1e6:>10.1f} MB of temporary arrays" for name, bytes_ in memory.items() if bytes_]


def environments_section(sizes: Sizes) -> Section:
    """Measures steps of the MJX tasks beside MuJoCo's test-speed loop, which calls ``mjx.step`` and nothing else."""
    loops = {name: loop for task in sizes.tasks for name, loop in _loops_of(task, sizes.num_envs).items()}
    start = time.perf_counter()
    lowered = {name: lower_carried(*loop) for name, loop in loops.items()}
    with concurrent.futures.ThreadPoolExecutor() as pool:  # compilers of different programs run side by side
        compiled = dict(zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True))
    seconds = time.perf_counter() - start
    candidates = [run_carried(name, compiled[name], state, seconds) for name, (_, state) in loops.items()]
    timings = measure(candidates, sizes.repeats)
    rates = {}
    lines = [f"{'environment steps per second':36}{'task':>12}{'mjx.step alone':>18}{'task / mjx.step':>18}"]
    for task in sizes.tasks:
        own, bare = (1e3 * sizes.num_envs / timings[f"{task}{suffix}"].ms for suffix in ("", _BARE))
        rates[task] = {"steps_per_second": own, "mjx_step_alone": bare}
        lines.append(f"{task:36}{own:>12.0f}{bare:>18.0f}{own / bare:>18.2f}")
    lines += [
        f"{sizes.num_envs} environments side by side; all compiled together in {seconds:.0f} s",
        "a task adds observation, reward and resets, takes random actions and uses full precision; mjx.step alone runs "
        "as in mjx-testspeed, without actions and with the device's default precision, on the same model",
    ]
    return Section("Environments on the device", lines, {**numbers(timings), "rates": rates})


_BARE = ", mjx.step alone"


def _loops_of(task: str, num_envs: int) -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """(function state -> state, first state) of one environment step of a task, and of MuJoCo's steps in it."""
    from mujoco import mjx

    env, raw = device.make(EnvConfig(task, backend="mjx", num_envs=num_envs)), make_mjx(task)

    def step(state: tuple[Any, Array]) -> tuple[Any, Array]:
        envs, key = state
        key, act, reset = jax.random.split(key, 3)
        action = jax.random.uniform(act, (num_envs, env.action_size), minval=-1.0)
        envs, _ = device.step_and_restart(env, envs, action, jax.random.split(reset, num_envs))
        return envs, key

    substeps = round(raw.dt / float(raw.mj_model.opt.timestep))

    def bare(data: Any) -> Any:
        advance = jax.vmap(functools.partial(mjx.step, raw.model))
        with jax.numpy_rank_promotion("allow"):
            return jax.lax.fori_loop(0, substeps, lambda _, data: advance(data), data)

    def start(key: Array) -> Any:
        data = mjx.make_data(raw.mj_model)
        return data.replace(qvel=0.01 * jax.random.normal(key, (raw.mj_model.nv,)))

    keys = jax.random.split(jax.random.key(0), num_envs)
    first = (jax.jit(env.reset)(keys), jax.random.key(1))
    return {task: (step, first), f"{task}{_BARE}": (bare, jax.jit(jax.vmap(start))(keys))}


def members_section(sizes: Sizes) -> Section:
    """Measures what several members cost relative to one: their updates at Ant's sizes, and training as a whole."""
    batches = make_problem(sizes.batch_size, sizes.hidden_sizes, buffers.OBSERVATION, buffers.ACTION).bursts
    batches = jax.tree.map(lambda leaf: leaf[: min(5, sizes.updates)], batches)
    agent = PreQNConfig(hidden_sizes=sizes.hidden_sizes, step_size=_STEP_SIZE)
    config = presets.get_config("preqn_invertedpendulum")
    for assignment in (
        "env.backend=mjx",
        f"env.num_envs={sizes.member_envs}",
        "replay_capacity=20000",
        f"batch_size={sizes.batch_size}",
        f"agent.hidden_sizes={','.join(map(str, sizes.hidden_sizes))}",
    ):
        config = presets.override(config, assignment)
    ways: dict[str, Callable[[str, int], Candidate]] = {
        "updates": lambda name, count: burst(name, agent, batches, count),
        "training": lambda name, count: training(name, count, config),
    }
    lines, figures = [], {}
    for way, make in ways.items():
        candidates = [make(f"{way}, {count} member{'s' * (count > 1)}", count) for count in sizes.members]
        timings, ratios = measure_relative(candidates, sizes.repeats, candidates[0].name)
        lines += [*table(timings), "", f"relative to {candidates[0].name}", *relative_table(ratios), ""]
        relative = {name: ratio._asdict() for name, ratio in ratios.items()}
        figures[way] = {**numbers(timings), "relative": relative}
    lines.append(f"updates at Ant's sizes; training on {config.env.id}, {sizes.member_envs} environments a member")
    return Section("Members of a population", lines, figures)


def sine_section(sizes: Sizes) -> Section:
    """Compares the polynomial, which the library uses on CPUs only, with the device's own sine."""
    x = 3.0 * jax.random.normal(jax.random.key(0), (max(sizes.members) * sizes.batch_size, max(sizes.hidden_sizes)))
    functions: dict[str, Callable[[Array], Any]] = {
        "the device's own sine": jnp.sin,
        "polynomial": activations.polynomial_sin,
        "the device's own sine and cosine": lambda x: (jnp.sin(x), jnp.cos(x)),
        "polynomials for both": activations.polynomial_sin_cos,
    }
    candidates = [in_loop(name, function, x) for name, function in functions.items()]
    timings = measure(candidates, sizes.repeats)
    exact, errors = np.sin(np.asarray(x, np.float64)), {}
    for name in list(functions)[:2]:
        errors[name] = float(np.abs(np.asarray(jax.jit(functions[name])(x), np.float64) - exact).max())
    own, polynomial, both, polynomials = (timings[name].ms for name in functions)
    lines = [
        *table(timings),
        "largest error: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()),
        f"the polynomial takes {polynomial / own:.2f} times as long as the device's sine, with the cosine "
        f"{polynomials / both:.2f} times",
    ]
    return Section(f"Sine of [{x.shape[0]}, {x.shape[1]}]", lines, {**numbers(timings), "errors": errors})


SECTIONS: dict[str, Callable[[Sizes], Section]] = {
    "precision": precision_section,
    "updates": updates_section,
    "sine": sine_section,
    "environments": environments_section,
    "members": members_section,
}
