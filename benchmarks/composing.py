"""The cost of the kernel in other agents: ``python -m benchmarks.composing``.

Measures the probe and one gradient step on the critic; and, for a network with a convolution, kernel and pull-back,
layer by layer and from per-example gradients. For results to report, run it pinned to one otherwise idle core:

    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \
        taskset -c 0 python -m benchmarks.composing
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import flags

from benchmarks.problem import make_problem
from benchmarks.timing import Section, in_loop, measure, numbers, table
from preqn_jax import ntk, ntk_probe
from preqn_jax.cli import command_line
from preqn_jax.training import provenance
from preqn_jax.types import Array, Params

_REPEATS = flags.DEFINE_integer("repeats", 7, "number of rounds over which medians are taken", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch-size", 256, "minibatch size B [transitions]", lower_bound=1)

_HIDDEN_SIZES, _LEARNING_RATE = (256, 256), 1e-3
_PICTURE, _CHANNELS, _WIDTH = (10, 10, 4), 16, 128  # sizes of MinAtar's images and its usual network


class PictureCritic(nn.Module):
    """A critic with one convolution and one hidden layer."""

    @nn.compact
    def __call__(self, picture: Array) -> Array:
        """Returns the values ``[B]`` of images ``[B, H, W, C]``."""
        x = nn.relu(nn.Conv(_CHANNELS, (3, 3), padding="VALID")(picture))
        x = nn.relu(nn.Dense(_WIDTH)(x.reshape(len(x), -1)))
        return nn.Dense(1)(x)[:, 0]


def main() -> int:
    """Measures and prints; returns the exit code."""
    print(f"device {provenance.device()}, JAX {jax.__version__}, medians of {_REPEATS.value} interleaved rounds")
    for section in (probe_section, convolution_section):
        print(section(_BATCH_SIZE.value, _REPEATS.value), flush=True)
    return 0


def probe_section(batch_size: int, repeats: int) -> Section:
    """Measures the probe with both linearizers, and a gradient step for comparison."""
    problem = make_problem(batch_size, _HIDDEN_SIZES)
    q_fn, adam = ntk.module_q_fn(problem.critic), optax.adam(_LEARNING_RATE)
    networks = {"dense": ntk.dense(problem.critic), "per_example": ntk.per_example(q_fn)}

    def gradient_step(params: Params, state: Any, inputs: Any, target: Array) -> tuple[Params, Any]:
        gradient = jax.grad(lambda params: jnp.mean((q_fn(params, inputs) - target) ** 2))(params)
        updates, state = adam.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    arguments = (problem.critic_params, problem.inputs, problem.target)
    step = "gradient step with Adam"
    candidates = [
        in_loop(step, gradient_step, problem.critic_params, adam.init(problem.critic_params), *arguments[1:]),
        *(in_loop(f"probe, {name}", ntk_probe(q), *arguments) for name, q in networks.items()),
    ]
    timings = measure(candidates, repeats)
    lines = table(timings)
    for name in networks:
        share = timings[f"probe, {name}"].cpu_ms / timings[step].cpu_ms / 1000
        lines.append(f"once in a thousand steps, the probe ({name}) adds {share:.2%} to their time")
    return Section(f"The probe at B = {batch_size}, hidden sizes {_HIDDEN_SIZES}", lines, numbers(timings))


def convolution_section(batch_size: int, repeats: int) -> Section:
    """Measures kernel and pull-back of a network with a convolution."""
    module = PictureCritic()
    pictures = jax.random.normal(jax.random.key(0), (batch_size, *_PICTURE))
    params, cotangent = module.init(jax.random.key(1), pictures), jnp.ones(batch_size)

    def update_of(linearizer: ntk.Linearizer) -> Callable[..., Any]:
        def update(params: Params, pictures: Array, cotangent: Array) -> tuple[Array, Params]:
            linearized = linearizer(params, pictures)
            return linearized.gram, linearized.pullback(cotangent)

        return update

    linearizers = {"dense": ntk.dense(module), "per_example": ntk.per_example(ntk.module_q_fn(module))}
    timings = measure(
        [in_loop(name, update_of(each), params, pictures, cotangent) for name, each in linearizers.items()], repeats
    )
    ratio = timings["per_example"].cpu_ms / timings["dense"].cpu_ms
    lines = [*table(timings), f"per_example takes {ratio:.1f} times as long as dense"]
    title = f"Kernel and pull-back of a convolution and two Dense layers, images {(batch_size, *_PICTURE)}"
    return Section(title, lines, numbers(timings))


if __name__ == "__main__":
    command_line.run(main)
