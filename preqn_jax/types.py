"""The few types that several parts of the library share."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

Array = jax.Array
Params = Any  # any pytree of floating-point arrays
Inputs = Any  # any pytree whose leaves lead with the batch axis


class NonFiniteError(RuntimeError):
    """A NaN, an infinity or an overflow of float32 arose in training or came from an environment; one line."""


class Transition(NamedTuple):
    """One environment step, or a batch of them (every leaf then leads with the batch axes).

    The leaves are arrays of JAX or NumPy, or what describes such arrays.

    Attributes:
      observation: what the agent saw, ``[..., O]`` float32.
      action: what it did, ``[..., A]`` float32 in [-1, 1]; one-hot if it is one of A.
      reward: what it got, ``[...]`` float32.
      discount: 0 where the episode terminated in ``next_observation``, else 1, ``[...]`` float32. A time
        limit does not terminate: a truncated step keeps discount 1.
      next_observation: the true successor, never the first observation of the next episode, ``[..., O]``.
    """

    observation: Any
    action: Any
    reward: Any
    discount: Any
    next_observation: Any


def transition_shapes(observation_size: int, action_size: int) -> Transition:
    """The shape of each leaf of one transition."""
    return Transition((observation_size,), (action_size,), (), (), (observation_size,))


def transition_bytes(observation_size: int, action_size: int) -> int:
    """Memory of one stored transition: float32 numbers, and a byte for whether its episode ended."""
    return 4 * sum(map(math.prod, transition_shapes(observation_size, action_size))) + 1
