"""The interface between an agent, the training loop and the diagnostics."""

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

    Continuous actions are in [-1, 1], discrete actions are one-hot vectors. All functions expect observations as the
    environment returns them.

    Attributes:
      init: key -> state.
      act: (state, observation [..., O]) -> deterministic action [..., A].
      explore: (state, observation [..., O], key) -> action [..., A] with exploration noise.
      update: (state, transitions [B, ...], key) -> (state, metrics by name); one gradient step.
      observe: (state, newly collected observations [N, O]) -> state; called once per iteration, before the gradient
        steps of that iteration. Running statistics of observations change only here; all other functions treat them
        as constants. By default the state does not change.
    """

    init: Callable[[Array], AgentState]
    act: Callable[[AgentState, Array], Array]
    explore: Callable[[AgentState, Array, Array], Array]
    update: Callable[[AgentState, Transition, Array], tuple[AgentState, dict[str, Array]]]
    observe: Callable[[AgentState, Array], AgentState] = _same_state


class CriticView(NamedTuple):
    """The critic of an agent as diagnostics see it; training does not need it. Of several critics, it is the first.

    Attributes:
      q_fn: (parameters, (observation [B, O], action [B, A])) -> Q [B].
      params: state -> parameters of the critic.
      td_error: (state, transitions [B, ...], key) -> TD errors [B], target minus Q; equal to those that the agent's
        ``update`` computes from the same arguments.
      operator: (kernel [B, B], metrics of the update) -> (K, rho [B], alpha), such that the update is approximately
        Q' = Q + alpha K D_rho delta; Adam is treated as plain gradient descent. If an agent has several critics, alpha
        and damping are the means of theirs, as in the metrics. The analysis of Achiam et al. (2019) omits target
        networks: for an agent with target networks, delta is the error to its own targets, not T* Q - Q.
      gamma: discount factor per step.
      preprocess: (state, observation [..., O]) -> observation [..., O] in the form that ``q_fn`` expects; by default
        the observation itself.
      rows: B -> number of leading rows of a minibatch that the critic is trained on; by default B.
    """

    q_fn: QFunction
    params: Callable[[AgentState], Params]
    td_error: Callable[[AgentState, Transition, Array], Array]
    operator: Callable[[Array, dict[str, Array]], tuple[Array, Array, Array]]
    gamma: float
    preprocess: Callable[[AgentState, Array], Array] = _same_observation
    rows: Callable[[int], int] = _all_rows

    def value(self, state: AgentState, observation: Array, action: Array) -> Array:
        """Q ``[B]`` for observations ``[B, O]`` as the environment returns them, and actions ``[B, A]``."""
        return self.q_fn(self.params(state), (self.preprocess(state, observation), action))
