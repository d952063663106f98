"""What an agent is to the training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from preqn_jax.ops.ntk import QFunction
from preqn_jax.types import Array, Params, Transition

AgentState = Any  # a pytree of arrays


def _same_state(state: AgentState, observation: Array) -> AgentState:
    del observation
    return state


def _same_observation(state: AgentState, observation: Array) -> Array:
    del state
    return observation


def _all_rows(batch_size: int) -> int:
    return batch_size


class Agent(NamedTuple):
    """Pure functions for one learner; the caller jits and vmaps. Actions are in [-1, 1], discrete ones one-hot.

    Attributes:
      init: key -> state.
      act: (state, observation [..., O]) -> deterministic action [..., A].
      explore: (state, observation [..., O], key) -> action [..., A] with exploration noise.
      update: (state, transitions [B, ...], key) -> (state, scalars by name); one gradient step.
      q_fn: (critic's parameters, (observation [B, O], action [B, A])) -> Q [B].
      critic: state -> parameters of the critic, of the first where there are two.
      td_error: (state, transitions [B, ...], key) -> [B], target minus Q of that critic, as ``update`` with the same
        arguments takes it.
      operator: (kernel [B, B], the update's scalars) -> (K, rho [B], alpha), with which the update is about
        Q' = Q + alpha K D_rho delta; Adam counts as plain gradient descent. The analysis of Achiam et al. (2019)
        omits target networks: for an agent that has them, delta is the error to its own targets, not T* Q - Q.
      gamma: the discount factor per step.
      observe: (state, observations [N, O] newly collected) -> state; called once an iteration, before the updates.
        It is where running statistics of observations change; everywhere else they are constants.
      preprocess: (state, observation [..., O]) -> observation [..., O] as ``q_fn`` takes it. All other functions take
        observations as the environment gives them.
      critic_rows: B -> how many rows of a minibatch, the first ones, that critic is trained on.
    """

    init: Callable[[Array], AgentState]
    act: Callable[[AgentState, Array], Array]
    explore: Callable[[AgentState, Array, Array], Array]
    update: Callable[[AgentState, Transition, Array], tuple[AgentState, dict[str, Array]]]
    q_fn: QFunction
    critic: Callable[[AgentState], Params]
    td_error: Callable[[AgentState, Transition, Array], Array]
    operator: Callable[[Array, dict[str, Array]], tuple[Array, Array, Array]]
    gamma: float
    observe: Callable[[AgentState, Array], AgentState] = _same_state
    preprocess: Callable[[AgentState, Array], Array] = _same_observation
    critic_rows: Callable[[int], int] = _all_rows
