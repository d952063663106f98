"""Replay buffers: a ring buffer of NumPy arrays on the CPU, and one of JAX arrays on the device.

For n-step targets (Sutton and Barto 2018, section 7.1) a sampled transition covers up to n steps: its reward is
r_t + gamma r_(t+1) + ... + gamma^(m-1) r_(t+m-1), its next observation is s_(t+m), and its discount is gamma^(m-1)
times that of the last step, so that an agent's target r + gamma discount Q(s', a') is the m-step target. m equals n, or
less if the episode ends earlier or later steps have not been collected yet. The intermediate actions were chosen by
older policies; there is no off-policy correction. Agents with an entropy bonus (SAC) add it for a' only, not for the
intermediate actions.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.training import memory
from preqn_jax.types import Array, Transition, transition_bytes, transition_shapes


class HostReplay:
    """Ring buffer of transitions, with one row per seed.

    Attributes:
      data: a Transition of float32 arrays ``[S, capacity, ...]``.
      last: whether the episode ended with this transition, by termination or time limit, ``[S, capacity]`` bool.
      size: number of stored transitions, the same for every seed.
      position: index at which the next transition is stored.
    """

    def __init__(self, num_seeds: int, capacity: int, observation_size: int, action_size: int):
        """Allocates the buffer.

        Raises:
          SettingError: if it does not fit into memory.
        """
        self.capacity = capacity
        self.nbytes = num_seeds * capacity * transition_bytes(observation_size, action_size)
        available = memory.of_machine()
        remedy = f"at most {int(capacity * available / self.nbytes)} transitions fit"
        memory.check(self.nbytes, f"config.replay_capacity={capacity}", f"{num_seeds} seed(s)", remedy, available)
        shapes = transition_shapes(observation_size, action_size)
        self.data = Transition(*(np.zeros((num_seeds, capacity, *shape), np.float32) for shape in shapes))
        self.last = np.zeros((num_seeds, capacity), bool)
        self.size = 0
        self.position = 0

    def add(self, transition: Transition, last: np.ndarray) -> None:
        """Stores one transition per seed, leaves ``[S, ...]``; overwrites the oldest when full. ``last`` is ``[S]``."""
        self.last[:, self.position] = last
        for stored, new in zip(self.data, transition, strict=True):
            stored[:, self.position] = new
        self.position = (self.position + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def end_episode(self, s: int) -> None:
        """Marks the newest transition of seed number s as the last of its episode."""
        self.last[s, self.position - 1] = True

    def sample(
        self, generators: list[np.random.Generator], shape: tuple[int, ...], n: int = 1, gamma: float = 1.0
    ) -> Transition:
        """Samples transitions uniformly with replacement, leaves ``[S, *shape, ...]``.

        Args:
          generators: one random generator per seed.
          shape: shape of the sample.
          n: maximum number of steps that a sampled transition covers.
          gamma: discount factor per step.
        """
        indices = [generator.integers(self.size, size=shape) for generator in generators]
        drawn = []
        for s, i in enumerate(indices):
            own = Transition(*(leaf[s] for leaf in self.data))
            age = (self.position - 1 - i) % self.capacity
            drawn.append(_n_step(own, self.last[s], i, age, n, gamma, np))
        return Transition(*map(np.stack, zip(*drawn, strict=True)))

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint: the filled part of every array and the write position."""
        filled = {name: leaf[:, : self.size] for name, leaf in self.data._asdict().items()}
        return {**filled, "last": self.last[:, : self.size], "position": np.asarray(self.position)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the :meth:`state` of a buffer with the same capacity."""
        self.size = state["reward"].shape[1]
        self.position = int(state["position"])
        for name, leaf in self.data._asdict().items():
            leaf[:, : self.size] = state[name]
        self.last[:, : self.size] = state["last"]


class Ring(NamedTuple):
    """A ring buffer on the device.

    Attributes:
      transitions: float32 arrays ``[capacity, ...]``.
      last: whether the episode ended with this transition, by termination or time limit, ``[capacity]`` bool.
    """

    transitions: Transition
    last: Array


def device_replay(capacity: int, observation_size: int, action_size: int) -> Ring:
    """An empty ring buffer."""
    shapes = transition_shapes(observation_size, action_size)
    empty = Transition(*(jnp.zeros((capacity, *shape), jnp.float32) for shape in shapes))
    return Ring(empty, jnp.zeros(capacity, bool))


def add(ring: Ring, new: Ring, total: Array) -> Ring:
    """Stores a block of U transitions in place of the oldest ones.

    Args:
      ring: the buffer, ``[capacity, ...]``; the capacity must be a multiple of U, so that a block never wraps around.
      new: the new transitions, ``[U, ...]``.
      total: number of transitions stored before, a multiple of U, which determines the write position; scalar uint32.
    """
    # int32: with a vmapped unsigned start index, JAX 0.7 silently writes nothing.
    position = (total % ring.last.shape[0]).astype(jnp.int32)
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, position, 0), ring, new)


def sample(
    ring: Ring,
    key: Array,
    total: Array,
    shape: tuple[int, ...],
    n: int = 1,
    gamma: float | Array = 1.0,
    num_envs: int = 1,
) -> Transition:
    """Samples stored transitions uniformly with replacement, leaves ``[*shape, ...]``.

    Args:
      ring: the buffer.
      key: PRNG key of the sample.
      total: number of transitions stored so far, including overwritten ones; scalar uint32.
      shape: shape of the sample.
      n: maximum number of steps that a sampled transition covers.
      gamma: discount factor per step.
      num_envs: number of environments whose transitions are interleaved in the ring.
    """
    capacity = ring.last.shape[0]
    indices = jax.random.randint(key, shape, 0, jnp.minimum(total, capacity))
    age = ((total % capacity).astype(jnp.int32) - 1 - indices) % capacity
    return _n_step(ring.transitions, ring.last, indices, age, n, gamma, jnp, num_envs)


def _n_step(
    data: Transition, last: Any, indices: Any, age: Any, n: int, gamma: Any, xp: ModuleType, stride: int = 1
) -> Transition:
    """Returns the n-step transitions that begin at ``indices``.

    Args:
      data: transitions of one ring buffer, ``[capacity, ...]``.
      last: whether the episode ended with each transition, ``[capacity]``.
      indices: indices of the first steps, of any shape.
      age: number of transitions that were stored after each of them.
      n: maximum number of steps.
      gamma: discount factor per step.
      xp: ``numpy`` or ``jax.numpy``, matching the arrays.
      stride: distance in the buffer between successive transitions of an episode.
    """
    first = Transition(*(leaf[indices] for leaf in data))
    if n == 1:
        return first
    reward, end, going = first.reward, indices, xp.ones(indices.shape, bool)
    factor = xp.ones(indices.shape, xp.float32)
    for k in range(1, n):
        going = going & ~last[end] & (age >= k * stride)
        end = xp.where(going, (end + stride) % last.shape[0], end)
        factor = xp.where(going, xp.asarray(gamma, xp.float32) * factor, factor)
        reward = xp.where(going, reward + factor * data.reward[end], reward)
    return first._replace(
        reward=reward, discount=factor * data.discount[end], next_observation=data.next_observation[end]
    )
