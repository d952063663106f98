"""Evaluation of a policy, on the host or on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.envs.device import DeviceEnv, EnvState
from preqn_jax.envs.host import HostEnv
from preqn_jax.types import Array


class Evaluation(NamedTuple):
    """One episode in each of S x E environments.

    Attributes:
      returns: undiscounted, ``[S, E]``.
      discounted_returns: from the first step on, ``[S, E]``: what Q there should be, but for what a time limit cut off.
      lengths: in steps, ``[S, E]``.
      first_observation: of each episode, ``[S, E, O]``.
    """

    returns: Any
    discounted_returns: Any
    lengths: Any
    first_observation: Any


def evaluate(
    act: Callable[[np.ndarray], np.ndarray],
    envs: Sequence[Sequence[HostEnv]],
    first_episode: int,
    gamma: float,
    should_stop: Callable[[], bool] = lambda: False,
    playing: np.ndarray | None = None,
) -> Evaluation | None:
    """One episode in each of S x E environments, all in step.

    Args:
      act: observations ``[S, E, O]`` -> actions ``[S, E, A]``; row s is acted on by policy s.
      envs: S rows of E environments.
      first_episode: number of the episode in each row's first environment; the others count on from it.
      gamma: the discount factor per step.
      should_stop: asked before every step.
      playing: false for rows whose episodes are not played, ``[S]`` bool; all are if left out.

    Returns:
      The episodes; None if they were stopped.
    """
    first = np.stack([[env.reset(first_episode + e) for e, env in enumerate(row)] for row in envs])
    observation, shape = first.copy(), first.shape[:2]
    returns, discounted, lengths = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    running = np.broadcast_to(True if playing is None else playing[:, None], shape).copy()
    while running.any():
        if should_stop():
            return None
        action = np.asarray(act(observation))
        for s, e in zip(*np.nonzero(running), strict=True):
            step = envs[s][e].step(action[s, e])
            observation[s, e] = step.observation
            returns[s, e] += step.reward
            discounted[s, e] += gamma ** lengths[s, e] * step.reward
            lengths[s, e] += 1
            running[s, e] = not (step.terminated or step.truncated)
    return Evaluation(returns, discounted, lengths, first)


class _Episodes(NamedTuple):
    """E episodes under way, all at step ``time``; ``running`` is false where one has ended, ``[E]``."""

    state: EnvState
    running: Array
    returns: Array
    discounted_returns: Array
    lengths: Array
    time: Array


def evaluate_on_device(act: Callable[[Array], Array], env: DeviceEnv, keys: Array, gamma: float | Array) -> Evaluation:
    """One episode in each of E environments of one learner, all in step, compiled with its caller.

    Args:
      act: observations ``[E, O]`` -> actions ``[E, A]``.
      env: pure functions.
      keys: of the resets, ``[E]``.
      gamma: the discount factor per step.

    Returns:
      Its leaves without the leading S.
    """

    def step(episodes: _Episodes) -> _Episodes:
        state, outcome = env.step(episodes.state, act(episodes.state.observation))
        reward = jnp.where(episodes.running, outcome.reward, 0.0)
        return _Episodes(
            state,
            episodes.running & ~(outcome.terminated | outcome.truncated),
            episodes.returns + reward,
            episodes.discounted_returns + gamma**episodes.time * reward,
            episodes.lengths + episodes.running,
            episodes.time + 1,
        )

    first = env.reset(keys)
    zeros = jnp.zeros(keys.shape)
    start = _Episodes(first, zeros == 0, zeros, zeros, zeros.astype(jnp.int32), jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(lambda episodes: episodes.running.any(), step, start)
    return Evaluation(end.returns, end.discounted_returns, end.lengths, first.observation)
