"""The replay buffers that are compared by ``benchmarks.replay``, with a common interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.training import replay
from preqn_jax.types import Array, Transition

OBSERVATION, ACTION = 105, 8  # sizes of Ant
INSERTED, SAMPLED = 10, 256  # numbers of transitions per evaluation


class Buffer(NamedTuple):
    """A replay buffer.

    Attributes:
      state: state of the empty buffer.
      step: (state, transitions ``[U, ...]``, key, transitions held) -> (state, minibatch ``[B, ...]``).
    """

    state: Any
    step: Callable[[Any, Transition, Array, int], tuple[Any, Transition]]


def _ring(capacity: int) -> Buffer:
    def step(state: replay.Ring, new: Transition, key: Array, held: int) -> tuple[replay.Ring, Transition]:
        state = replay.add(state, replay.Ring(new, jnp.zeros(INSERTED, bool)), jnp.uint32(held))
        return state, replay.sample(state, key, jnp.uint32(held + INSERTED), (SAMPLED,))

    return Buffer(replay.device_replay(capacity, OBSERVATION, ACTION), step)


def _one() -> Transition:
    return jax.tree.map(lambda leaf: leaf[0], replay.device_replay(1, OBSERVATION, ACTION).transitions)


def _queue(capacity: int) -> Buffer:
    """Brax's queue, without its checks, which do not work in compiled code."""
    queue = importlib.import_module("brax.training.replay_buffers").UniformSamplingQueue(capacity, _one(), SAMPLED)

    def step(state: Any, new: Transition, key: Array, held: int) -> tuple[Any, Transition]:
        state = state.replace(insert_position=jnp.int32(held), sample_position=jnp.int32(0), key=key)
        return queue.sample_internal(queue.insert_internal(state, new))

    return Buffer(queue.init(jax.random.key(0)), step)


def _item_buffer(capacity: int) -> Buffer:
    buffer = importlib.import_module("flashbax").make_item_buffer(capacity, SAMPLED, SAMPLED, add_batches=True)

    def step(state: Any, new: Transition, key: Array, held: int) -> tuple[Any, Transition]:
        state = state.replace(current_index=jnp.int32(held % capacity), is_full=jnp.bool_(held == capacity))
        state = buffer.add(state, new)
        return state, buffer.sample(state, key).experience

    return Buffer(buffer.init(_one()), step)


BUFFERS: dict[str, Callable[[int], Buffer]] = {  # by the name of the package
    "preqn_jax": _ring,
    "brax": _queue,
    "flashbax": _item_buffer,
}
