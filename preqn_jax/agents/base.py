"""What an agent is to the training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from preqn_jax.types import Array, Transition

AgentState = Any  # a pytree of arrays


class Agent(NamedTuple):
    """Pure functions for one learner; the caller jits and vmaps. Actions are in [-1, 1].

    Attributes:
      init: key -> state.
      act: (state, observation [..., O]) -> deterministic action [..., A].
      explore: (state, observation [..., O], key) -> action [..., A] with exploration noise.
      update: (state, transitions [B, ...], key) -> (state, scalars by name); one gradient step.
    """

    init: Callable[[Array], AgentState]
    act: Callable[[AgentState, Array], Array]
    explore: Callable[[AgentState, Array, Array], Array]
    update: Callable[[AgentState, Transition, Array], tuple[AgentState, dict[str, Array]]]
