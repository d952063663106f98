"""Replay of past transitions: a ring buffer of NumPy arrays on the host, or of arrays on the device.

For n-step targets (Sutton and Barto 2018, section 7.1) a sampled transition stands for up to n steps: its reward is
r_t + gamma r_(t+1) + ... + gamma^(m-1) r_(t+m-1), its next observation s_(t+m), and its discount gamma^(m-1) times that
of the last step, so that an agent's target r + gamma discount Q(s', a') is the m-step one. m is n, or less where the
episode ends before, or where nothing later has been collected yet. The actions in between are those of older policies,
which is not corrected for.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from preqn_jax.settings import SettingError
from preqn_jax.types import Array, Transition, transition_bytes, transition_shapes


class HostReplay:
    """Ring buffer of transitions, one row of it a seed.

    Attributes:
      data: a Transition of float32 arrays ``[S, capacity, ...]``.
      last: whether an episode ended with a transition, by termination or time limit, ``[S, capacity]`` bool.
      size: transitions held, the same for every seed.
      position: where the next one goes.
    """

    def __init__(self, num_seeds: int, capacity: int, observation_size: int, action_size: int):
        """Allocates the whole buffer.

        Raises:
          SettingError: if it cannot fit into memory.
        """
        self.capacity = capacity
        self.nbytes = num_seeds * capacity * transition_bytes(observation_size, action_size)
        available = psutil.virtual_memory().available
        if self.nbytes > available:
            fits = int(capacity * available / self.nbytes)
            raise SettingError(
                f"config.replay_capacity={capacity} needs {self.nbytes / 2**30:.1f} GiB for {num_seeds} seed(s), but "
                f"{available / 2**30:.1f} GiB of memory are available; at most {fits} transitions fit"
            )
        shapes = transition_shapes(observation_size, action_size)
        self.data = Transition(*(np.zeros((num_seeds, capacity, *shape), np.float32) for shape in shapes))
        self.last = np.zeros((num_seeds, capacity), bool)
        self.size = 0
        self.position = 0

    def add(self, transition: Transition, last: np.ndarray) -> None:
        """Stores one transition a seed, leaves ``[S, ...]``, over the oldest when full; ``last`` is ``[S]``."""
        self.last[:, self.position] = last
        for stored, new in zip(self.data, transition, strict=True):
            stored[:, self.position] = new
        self.position = (self.position + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(
        self, generators: list[np.random.Generator], shape: tuple[int, ...], n: int = 1, gamma: float = 1.0
    ) -> Transition:
        """Uniform draws with replacement, leaves ``[S, *shape, ...]``.

        Args:
          generators: one a seed.
          shape: of the draw.
          n: steps that a transition stands for, at most.
          gamma: the discount factor between them.
        """
        indices = [generator.integers(self.size, size=shape) for generator in generators]
        drawn = []
        for s, i in enumerate(indices):
            own = Transition(*(leaf[s] for leaf in self.data))
            age = (self.position - 1 - i) % self.capacity
            drawn.append(_n_step(own, self.last[s], i, age, n, gamma, np))
        return Transition(*map(np.stack, zip(*drawn, strict=True)))

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs: the filled part of every array, and where the next transition goes."""
        filled = {name: leaf[:, : self.size] for name, leaf in self.data._asdict().items()}
        return {**filled, "last": self.last[:, : self.size], "position": np.asarray(self.position)}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a :meth:`state` of a buffer with the same capacity."""
        self.size = state["reward"].shape[1]
        self.position = int(state["position"])
        for name, leaf in self.data._asdict().items():
            leaf[:, : self.size] = state[name]
        self.last[:, : self.size] = state["last"]


class Ring(NamedTuple):
    """A ring buffer on the device.

    Attributes:
      transitions: float32 arrays ``[capacity, ...]``.
      last: whether an episode ended with a transition, by termination or time limit, ``[capacity]`` bool.
    """

    transitions: Transition
    last: Array


def device_replay(capacity: int, observation_size: int, action_size: int) -> Ring:
    """An empty ring buffer."""
    shapes = transition_shapes(observation_size, action_size)
    empty = Transition(*(jnp.zeros((capacity, *shape), jnp.float32) for shape in shapes))
    return Ring(empty, jnp.zeros(capacity, bool))


def add(ring: Ring, new: Ring, total: Array) -> Ring:
    """Stores U transitions over the oldest, all at once.

    Args:
      ring: ``[capacity, ...]``, capacity a multiple of U, so that a block never wraps.
      new: ``[U, ...]``.
      total: transitions ever stored before, a multiple of U, which says where these go: scalar uint32.
    """
    # int32: JAX 0.7 writes nothing, and says nothing, where a slice's unsigned position is vmapped.
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
    """Uniform draws with replacement among the transitions held, ``[*shape, ...]``.

    Args:
      ring: the buffer.
      key: of the draw.
      total: transitions ever stored, scalar uint32.
      shape: of the draw.
      n: steps that a transition stands for, at most.
      gamma: the discount factor between them.
      num_envs: environments whose transitions take turns in the ring.
    """
    capacity = ring.last.shape[0]
    indices = jax.random.randint(key, shape, 0, jnp.minimum(total, capacity))
    age = ((total % capacity).astype(jnp.int32) - 1 - indices) % capacity
    return _n_step(ring.transitions, ring.last, indices, age, n, gamma, jnp, num_envs)


def _n_step(
    data: Transition, last: Any, indices: Any, age: Any, n: int, gamma: Any, xp: ModuleType, stride: int = 1
) -> Transition:
    """The transitions at ``indices``, each standing for up to ``n`` steps.

    Args:
      data: of one ring buffer, ``[capacity, ...]``.
      last: ``[capacity]``.
      indices: of the first steps, of any shape.
      age: how many transitions have been stored since each of them.
      n: steps, at most.
      gamma: the discount factor between them.
      xp: NumPy or JAX's NumPy, whose arrays these are.
      stride: between successive transitions of an episode.
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
