"""Replay of past transitions: a ring buffer of NumPy arrays on the host, or of arrays on the device."""

from __future__ import annotations

from typing import Any

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
        self.size = 0
        self.position = 0

    def add(self, transition: Transition) -> None:
        """Stores one transition a seed, leaves ``[S, ...]``, over the oldest when full."""
        for stored, new in zip(self.data, transition, strict=True):
            stored[:, self.position] = new
        self.position = (self.position + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(self, generators: list[np.random.Generator], shape: tuple[int, ...]) -> Transition:
        """Uniform draws with replacement, leaves ``[S, *shape, ...]``; one generator a seed."""
        indices = [generator.integers(self.size, size=shape) for generator in generators]
        return Transition(*(np.stack([row[i] for row, i in zip(leaf, indices, strict=True)]) for leaf in self.data))

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs: the filled part of every array, and where the next transition goes."""
        filled = {name: leaf[:, : self.size] for name, leaf in self.data._asdict().items()}
        return {**filled, "position": np.asarray(self.position)}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a :meth:`state` of a buffer with the same capacity."""
        self.size = state["reward"].shape[1]
        self.position = int(state["position"])
        for name, leaf in self.data._asdict().items():
            leaf[:, : self.size] = state[name]


def device_replay(capacity: int, observation_size: int, action_size: int) -> Transition:
    """A ring buffer on the device: an empty Transition of float32 arrays ``[capacity, ...]``."""
    shapes = transition_shapes(observation_size, action_size)
    return Transition(*(jnp.zeros((capacity, *shape), jnp.float32) for shape in shapes))


def add(replay: Transition, transitions: Transition, total: Array) -> Transition:
    """Stores U transitions over the oldest, all at once.

    Args:
      replay: ``[capacity, ...]``, capacity a multiple of U, so that a block never wraps.
      transitions: ``[U, ...]``.
      total: transitions ever stored before, a multiple of U, which says where these go: scalar uint32.
    """
    # int32: JAX 0.7 writes nothing, and says nothing, where a slice's unsigned position is vmapped.
    position = (total % replay.reward.shape[0]).astype(jnp.int32)
    return jax.tree.map(
        lambda ring, new: jax.lax.dynamic_update_slice_in_dim(ring, new, position, 0), replay, transitions
    )


def sample(replay: Transition, key: Array, total: Array, shape: tuple[int, ...]) -> Transition:
    """Uniform draws with replacement among the transitions held, ``[*shape, ...]``, ``total`` having been stored."""
    held = jnp.minimum(total, replay.reward.shape[0])
    indices = jax.random.randint(key, shape, 0, held)
    return jax.tree.map(lambda ring: ring[indices], replay)
