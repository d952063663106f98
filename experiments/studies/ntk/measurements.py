"""The kernel of newly initialized Q-networks on state-action pairs of a task: mean diagonal and mean row ratio."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from preqn_jax.envs.host import HostEnv
from preqn_jax.networks import Critic
from preqn_jax.ops import diagnostics, ntk
from preqn_jax.types import Array, Params


class Architecture(NamedTuple):
    """The hidden layers: number of units in each layer, and number of layers."""

    width: int
    depth: int

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """The widths of all hidden layers, for the networks."""
        return (self.width,) * self.depth


class Measurement(NamedTuple):
    """A measurement of the kernel of one network.

    Attributes:
      task: Gymnasium id.
      init: kernel initializer, a name in ``KERNEL_INITS``.
      activation: a name in ``ACTIVATIONS``.
      width: units of each hidden layer.
      depth: number of hidden layers.
      trial: seed of the network's parameters.
      diagonal: mean over i of K_ii.
      row_ratio: mean over i of (1 / N) sum over j != i of |K_ij| / K_ii.
    """

    task: str
    init: str
    activation: str
    width: int
    depth: int
    trial: int
    diagonal: float
    row_ratio: float

    @property
    def architecture(self) -> Architecture:
        """The architecture of the network."""
        return Architecture(self.width, self.depth)


TASKS = {"halfcheetah": "HalfCheetah", "walker2d": "Walker2d", "ant": "Ant"}
VERSIONS = ("v4", "v5")
ACTIVATIONS = ("tanh", "relu", "sin")
BY_WIDTH = tuple(Architecture(width, 2) for width in (32, 64, 128, 256))
BY_DEPTH = tuple(Architecture(64, depth) for depth in (1, 2, 3, 4))
ARCHITECTURES = tuple(dict.fromkeys((*BY_WIDTH, *BY_DEPTH)))  # 64 x 2 is in both

# Like v2, v5 includes the contact forces in Ant's observations by default; v4 needs this option.
_OPTIONS: Mapping[str, Mapping[str, Any]] = {"Ant-v4": {"use_contact_forces": True}}
_DATA_SEED = 0
_BLOCK_SIZE = 500  # rows of a block of K

Inputs = tuple[np.ndarray, np.ndarray]


def collect(env_id: str, pairs: int) -> Inputs:
    """Collects state-action pairs of the rails-random policy, a = sgn(u) with u uniform in [-1, 1]^A.

    Returns:
      Observations ``[pairs, O]`` and actions ``[pairs, A]``, float32, from the first reset; the same at every call.
    """
    env = HostEnv(env_id, [_DATA_SEED], kwargs=_OPTIONS.get(env_id))
    generator = np.random.default_rng(_DATA_SEED)
    observation, observations, actions = env.reset(), [], []
    for _ in range(pairs):
        action = np.sign(generator.uniform(-1.0, 1.0, env.action_size)).astype(np.float32)
        observations.append(observation)
        actions.append(action)
        step = env.step(action)
        observation = env.reset() if step.terminated or step.truncated else step.observation
    env.close()
    return np.stack(observations), np.stack(actions)


def kernel_statistics(critic: Critic) -> Callable[[Params, Inputs], tuple[Array, Array]]:
    """Returns a function (parameters, N pairs) -> mean diagonal and mean row ratio of K ``[N, N]``, both scalars."""
    linearizer = ntk.dense(critic)

    def statistics(params: Params, inputs: Inputs) -> tuple[Array, Array]:
        gram = ntk.kernel(linearizer, params, inputs, block_size=_BLOCK_SIZE)
        return diagnostics.diagonal_stats(gram).mean, diagnostics.row_ratio(gram).mean()

    return statistics


def measure(
    task: str, inputs: Inputs, inits: Sequence[str], trials: int, architectures: Sequence[Architecture] = ARCHITECTURES
) -> Iterator[list[Measurement]]:
    """Yields the measurements of all initializers and trials, for one activation and architecture after the other.

    Each activation and architecture is compiled once, since the initializer is not part of the compiled program, and
    the program is released before the next one is compiled.
    """
    one = tuple(column[:1] for column in inputs)
    for activation, architecture in itertools.product(ACTIVATIONS, architectures):
        statistics = jax.jit(kernel_statistics(Critic(architecture.hidden_sizes, activation)))
        rows = []
        for init, trial in itertools.product(inits, range(trials)):
            params = Critic(architecture.hidden_sizes, activation, init).init(jax.random.key(trial), *one)
            diagonal, row_ratio = map(float, statistics(params, inputs))
            rows.append(Measurement(task, init, activation, *architecture, trial, diagonal, row_ratio))
        yield rows
