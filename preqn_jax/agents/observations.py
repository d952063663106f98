"""Running normalization of observations, for any agent."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.agents.base import Agent, AgentState
from preqn_jax.types import Array, Transition


class Statistics(NamedTuple):
    """Of all observations so far, entry by entry.

    Attributes:
      total: how many there were, [].
      mean: ``[O]``.
      spread: (E |x - mean|^p)^(1/p) with the moment p of the configuration, ``[O]``; the standard deviation for p = 2.
    """

    total: Array
    mean: Array
    spread: Array


def no_statistics(size: int) -> Statistics:
    """Before the first observation."""
    return Statistics(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size))


def include(statistics: Statistics, observations: Array, moment: float | Array) -> Statistics:
    """The statistics with N more observations ``[N, O]``; deviations are from the mean of all up to these.

    Powers are taken of ratios to the largest deviation, so that no moment overflows, and averages are kept instead of
    sums, so that float32 does for any number of observations.
    """
    total = statistics.total + observations.shape[0]
    share = observations.shape[0] / total  # of the new ones
    mean = statistics.mean + share * (observations.mean(axis=0) - statistics.mean)
    deviations = jnp.abs(observations - jnp.broadcast_to(mean, observations.shape))
    largest = jnp.maximum(statistics.spread, deviations.max(axis=0))
    unit = jnp.where(largest > 0, largest, 1.0)
    new = ((deviations / jnp.broadcast_to(unit, observations.shape)) ** moment).mean(axis=0)
    power = (1.0 - share) * (statistics.spread / unit) ** moment + share * new
    return Statistics(total, mean, unit * power ** (1.0 / moment))


def normalize(
    statistics: Statistics,
    observation: Array,
    moment: float | Array,
    floor: float | Array,
    clip: float | Array,
    power: float | Array = 1.0,
) -> Array:
    """(observation - mean) / max(scale, floor), clipped to +-clip; observation is ``[..., O]``.

    With a power below 1 the result is multiplied by max(scale, floor)^(1 - power), so that entries of a larger scale
    keep a larger part: 1 standardizes, 0 only centres and clips.

    The scale is the spread over that of a standard normal variable, (E |z|^p)^(1/p): an entry that is normally
    distributed gets unit variance whatever p is. The larger p, the less is an entry magnified that is nearly always at
    rest and moves rarely but far, as contact forces do. Before the first observation nothing is changed.
    """
    scale = jnp.maximum(statistics.spread / _normal_spread(moment), floor)
    scale = jnp.where(statistics.total > 0, scale, 1.0)
    mean, scale = (jnp.broadcast_to(leaf, observation.shape) for leaf in (statistics.mean, scale))
    standardized = jnp.clip((observation - mean) / scale, -clip, clip)
    return jnp.where(statistics.total > 0, standardized * scale ** (1.0 - power), observation)


def _normal_spread(moment: float | Array) -> Array:
    """(E |z|^p)^(1/p) of a standard normal z: (2^(p/2) Gamma((p + 1) / 2) / sqrt(pi))^(1/p)."""
    p = jnp.asarray(moment, jnp.float32)
    log_moment = 0.5 * p * jnp.log(2.0) + jax.scipy.special.gammaln(0.5 * (p + 1.0)) - 0.5 * jnp.log(jnp.pi)
    return jnp.exp(log_moment / p)


class NormalizedState(NamedTuple):
    """An agent's state, and the statistics of the observations that it has met."""

    agent: AgentState
    statistics: Statistics


def normalized(agent: Agent, config: Any, observation_size: int) -> Agent:
    """The agent with observations normalized by running statistics, if its configuration says so.

    The statistics are part of the state. They change in ``observe`` alone, so that an update's targets, kernel and
    line search see one and the same normalization.

    Args:
      agent: any agent that has no statistics of its own.
      config: its :class:`~preqn_jax.agents.common.AgentConfig`.
      observation_size: O.
    """
    if not config.normalize_observations:
        return agent

    def preprocess(state: NormalizedState, observation: Array) -> Array:
        moment, floor, clip = config.observation_moment, config.observation_floor, config.observation_clip
        return normalize(state.statistics, observation, moment, floor, clip, config.observation_power)

    def observe(state: NormalizedState, observation: Array) -> NormalizedState:
        return state._replace(statistics=include(state.statistics, observation, config.observation_moment))

    def prepare(state: NormalizedState, batch: Transition) -> Transition:
        return batch._replace(
            observation=preprocess(state, batch.observation), next_observation=preprocess(state, batch.next_observation)
        )

    def update(state: NormalizedState, batch: Transition, key: Array) -> tuple[NormalizedState, dict[str, Array]]:
        inner, info = agent.update(state.agent, prepare(state, batch), key)
        return state._replace(agent=inner), info

    return agent._replace(
        init=lambda key: NormalizedState(agent.init(key), no_statistics(observation_size)),
        act=lambda state, observation: agent.act(state.agent, preprocess(state, observation)),
        explore=lambda state, observation, key: agent.explore(state.agent, preprocess(state, observation), key),
        update=update,
        critic=lambda state: agent.critic(state.agent),
        td_error=lambda state, batch, key: agent.td_error(state.agent, prepare(state, batch), key),
        observe=observe,
        preprocess=preprocess,
    )
