"""The interface between an agent and the training loop."""

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
    """An agent: pure functions of one learner, which the caller jits and vmaps.

    Continuous actions are in [-1, 1], discrete actions are one-hot vectors.

    Attributes:
      init: key -> state.
      act: (state, observation [..., O]) -> deterministic action [..., A].
      explore: (state, observation [..., O], key) -> action [..., A] with exploration noise.
      update: (state, transitions [B, ...], key) -> (state, metrics by name); one gradient step.
      q_fn: (critic parameters, (observation [B, O], action [B, A])) -> Q [B].
      critic: state -> parameters of the critic; of the first critic if there are several.
      td_error: (state, transitions [B, ...], key) -> TD errors [B], target minus Q of that critic; equal to those that
        ``update`` computes from the same arguments.
      operator: (kernel [B, B], metrics of the update) -> (K, rho [B], alpha), such that the update is approximately
        Q' = Q + alpha K D_rho delta; Adam is treated as plain gradient descent. The analysis of Achiam et al. (2019)
        omits target networks: for an agent with target networks, delta is the error to its own targets, not T* Q - Q.
      gamma: discount factor per step.
      observe: (state, newly collected observations [N, O]) -> state; called once per iteration, before the updates.
        Running statistics of observations change only here; all other functions treat them as constants.
      preprocess: (state, observation [..., O]) -> observation [..., O] in the form that ``q_fn`` expects. All other
        functions expect observations as the environment returns them.
      critic_rows: B -> number of leading rows of a minibatch that the critic is trained on.
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
