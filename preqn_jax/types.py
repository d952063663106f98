"""Types that several parts of the library share."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

Array = jax.Array
Params = Any  # any pytree of floating-point arrays
Inputs = Any  # any pytree of arrays with the leading axis B


class NonFiniteError(RuntimeError):
    """Training or an environment produced a NaN, an infinity or a number beyond float32; the message is one line."""


class Transition(NamedTuple):
    """One environment step, or a batch of steps (all leaves then have the same leading batch axes).

    The leaves are JAX or NumPy arrays, or descriptions of such arrays, for example their shapes.

    Attributes:
      observation: observation before the action, ``[..., O]`` float32.
      action: ``[..., A]`` float32, in [-1, 1]; a one-hot vector if there are A discrete actions.
      reward: ``[...]`` float32.
      discount: 0 if the episode terminated in ``next_observation``, else 1, ``[...]`` float32. A time limit is not a
        termination: a truncated step has discount 1.
      next_observation: observation after the action, ``[..., O]`` float32; never the first observation of the next
        episode.
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
    """Memory of one stored transition [bytes]: float32 entries, and one byte that marks the end of an episode."""
    return 4 * sum(map(math.prod, transition_shapes(observation_size, action_size))) + 1
