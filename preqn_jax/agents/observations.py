"""Running normalization of observations, for any agent."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.agents.base import Agent, AgentState, CriticView
from preqn_jax.types import Array, Transition


class Statistics(NamedTuple):
    """Running statistics of all observations so far, for each entry of the observation vector.

    Attributes:
      total: number of observations, [].
      mean: mean, ``[O]``.
      spread: (E |x - mean|^p)^(1/p) with the moment p of the configuration, ``[O]``; the standard deviation for p = 2.
      absolute: E |x - mean|, the mean absolute deviation, ``[O]``.
    """

    total: Array
    mean: Array
    spread: Array
    absolute: Array


def no_statistics(size: int) -> Statistics:
    """The statistics before the first observation."""
    return Statistics(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size), jnp.zeros(size))


def include(statistics: Statistics, observations: Array, moment: float | Array) -> Statistics:
    """Updates the statistics with N observations ``[N, O]``; deviations are measured from the updated mean.

    Deviations are divided by the largest one before powers are taken, so that no moment overflows. Averages are stored
    instead of sums, so that float32 is sufficient for any number of observations.
    """
    total = statistics.total + observations.shape[0]
    share = observations.shape[0] / total  # share of the new observations
    mean = statistics.mean + share * (observations.mean(axis=0) - statistics.mean)
    deviations = jnp.abs(observations - jnp.broadcast_to(mean, observations.shape))
    largest = jnp.maximum(statistics.spread, deviations.max(axis=0))
    unit = jnp.where(largest > 0, largest, 1.0)
    new = ((deviations / jnp.broadcast_to(unit, observations.shape)) ** moment).mean(axis=0)
    power = (1.0 - share) * (statistics.spread / unit) ** moment + share * new
    absolute = statistics.absolute + share * (deviations.mean(axis=0) - statistics.absolute)
    return Statistics(total, mean, unit * power ** (1.0 / moment), absolute)


def normalize(
    statistics: Statistics,
    observation: Array,
    moment: float | Array,
    floor: float | Array,
    clip: float | Array,
    power: float | Array = 1.0,
    tail: float | Array = 0.0,
) -> Array:
    """Normalizes observations ``[..., O]``: (observation - mean) / max(scale, floor), clipped to +-clip.

    The result is multiplied by max(scale, floor)^(1 - power). With power 1 the entries are standardized; with a smaller
    power, entries with a larger scale remain larger; with power 0 the entries are only centered and clipped.

    The scale is the spread divided by that of a standard normal variable, (E |z|^p)^(1/p), so a normally distributed
    entry gets unit variance for any p. A larger p magnifies entries less that are almost always zero and rarely have
    large values, such as contact forces. So does a larger ``tail``: the scale is multiplied by rarity^tail, where
    rarity is the ratio of the scales of moments p and 1, if it is above 1, and 1 else. The rarity of a normally
    distributed entry is 1; that of an entry that differs from 0 in a small share s of all observations is about
    0.8 / sqrt(s) for p = 2. Before the first observation, the input is returned unchanged.
    """
    scale = statistics.spread / _normal_spread(moment)
    absolute = statistics.absolute / _normal_spread(1.0)
    rarity = jnp.maximum(scale / jnp.where(absolute > 0, absolute, 1.0), 1.0)
    scale = jnp.maximum(scale * rarity**tail, floor)
    scale = jnp.where(statistics.total > 0, scale, 1.0)
    mean, scale = (jnp.broadcast_to(leaf, observation.shape) for leaf in (statistics.mean, scale))
    standardized = jnp.clip((observation - mean) / scale, -clip, clip)
    return jnp.where(statistics.total > 0, standardized * scale ** (1.0 - power), observation)


def _normal_spread(moment: float | Array) -> Array:
    """(E |z|^p)^(1/p) for a standard normal z, equal to (2^(p/2) Gamma((p + 1) / 2) / sqrt(pi))^(1/p)."""
    p = jnp.asarray(moment, jnp.float32)
    log_moment = 0.5 * p * jnp.log(2.0) + jax.scipy.special.gammaln(0.5 * (p + 1.0)) - 0.5 * jnp.log(jnp.pi)
    return jnp.exp(log_moment / p)


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
        moment, floor, clip = config.observation_moment, config.observation_floor, config.observation_clip
        power, tail = config.observation_power, config.observation_tail
        return normalize(state.statistics, observation, moment, floor, clip, power, tail)

    def observe(state: NormalizedState, observation: Array) -> NormalizedState:
        return state._replace(statistics=include(state.statistics, observation, config.observation_moment))

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
