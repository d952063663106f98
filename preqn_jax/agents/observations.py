"""Running normalization of observations, for any agent."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from preqn_jax.agents.base import Agent, AgentState, CriticView
from preqn_jax.types import Array, Transition


class Statistics(NamedTuple):
    """Running statistics of all observations so far, for each entry of the observation vector.

    Attributes:
      total: number of observations, [].
      mean: mean, ``[O]``.
      deviation: standard deviation (E (x - mean)^2)^(1/2), ``[O]``.
      absolute: mean absolute deviation E |x - mean|, ``[O]``.
    """

    total: Array
    mean: Array
    deviation: Array
    absolute: Array


def no_statistics(size: int) -> Statistics:
    """The statistics before the first observation."""
    return Statistics(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size), jnp.zeros(size))


def include(statistics: Statistics, observations: Array) -> Statistics:
    """Updates the statistics with N observations ``[N, O]``; deviations are measured from the updated mean.

    Averages are stored instead of sums, so that float32 is sufficient for any number of observations.
    """
    total = statistics.total + observations.shape[0]
    share = observations.shape[0] / total  # share of the new observations
    mean = statistics.mean + share * (observations.mean(axis=0) - statistics.mean)
    distance = jnp.abs(observations - jnp.broadcast_to(mean, observations.shape))
    variance = (1.0 - share) * statistics.deviation**2 + share * (distance**2).mean(axis=0)
    absolute = (1.0 - share) * statistics.absolute + share * distance.mean(axis=0)
    return Statistics(total, mean, jnp.sqrt(variance), absolute)


def normalize(
    statistics: Statistics, observation: Array, floor: float | Array, clip: float | Array, tail: float | Array = 0.0
) -> Array:
    """Normalizes observations ``[..., O]``: (observation - mean) / max(scale, floor), clipped to +-clip.

    The scale is the standard deviation times rarity^tail. The rarity of an entry is the ratio of its standard deviation
    to its mean absolute deviation, divided by the same ratio of a normal distribution, sqrt(pi / 2), and at least 1. It
    is about 1 for positions and velocities, and about 0.4 / sqrt(s) for an entry that is 1 in a small share s of all
    observations and 0 in the others, similar to a contact force. With tail = 2, the variance of such an entry becomes
    about 39 s^2; with tail = 0, it is 1 as for every entry. Before the first observation, the input is returned
    unchanged.
    """
    normal = statistics.absolute * math.sqrt(math.pi / 2.0)  # the standard deviation, if the entry is normal
    rarity = jnp.maximum(statistics.deviation / jnp.where(normal > 0, normal, 1.0), 1.0)
    scale = jnp.maximum(statistics.deviation * rarity**tail, floor)
    mean, scale = (jnp.broadcast_to(leaf, observation.shape) for leaf in (statistics.mean, scale))
    return jnp.where(statistics.total > 0, jnp.clip((observation - mean) / scale, -clip, clip), observation)


class NormalizedState(NamedTuple):
    """The state of an agent and the running statistics of its observations."""

    agent: AgentState
    statistics: Statistics


def normalized(agent: Agent, critic: CriticView, config: Any, observation_size: int) -> tuple[Agent, CriticView]:
    """Wraps an agent so that observations are normalized by running statistics, if its configuration enables this.

    The statistics are part of the state and change only in ``observe``, so that targets, kernel and line search of an
    update use the same normalization.

    Args:
      agent: an agent without running statistics.
      critic: the view of its critic.
      config: configuration of the agent, a :class:`~preqn_jax.agents.common.AgentConfig`.
      observation_size: O.
    """
    if not config.normalize_observations:
        return agent, critic

    def preprocess(state: NormalizedState, observation: Array) -> Array:
        floor, clip, tail = config.observation_floor, config.observation_clip, config.observation_tail
        return normalize(state.statistics, observation, floor, clip, tail)

    def observe(state: NormalizedState, observation: Array) -> NormalizedState:
        return state._replace(statistics=include(state.statistics, observation))

    def prepare(state: NormalizedState, batch: Transition) -> Transition:
        return batch._replace(
            observation=preprocess(state, batch.observation), next_observation=preprocess(state, batch.next_observation)
        )

    def update(state: NormalizedState, batch: Transition, key: Array) -> tuple[NormalizedState, dict[str, Array]]:
        inner, info = agent.update(state.agent, prepare(state, batch), key)
        return state._replace(agent=inner), info

    normalized_agent = Agent(
        init=lambda key: NormalizedState(agent.init(key), no_statistics(observation_size)),
        act=lambda state, observation: agent.act(state.agent, preprocess(state, observation)),
        explore=lambda state, observation, key: agent.explore(state.agent, preprocess(state, observation), key),
        update=update,
        observe=observe,
    )
    view = critic._replace(
        params=lambda state: critic.params(state.agent),
        td_error=lambda state, batch, key: critic.td_error(state.agent, prepare(state, batch), key),
        preprocess=preprocess,
    )
    return normalized_agent, view
