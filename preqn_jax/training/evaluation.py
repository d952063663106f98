"""Evaluation of a policy in environments on the CPU or on the device."""

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
    """Results of one episode in each of S x E environments (S seeds, E episodes per seed).

    Attributes:
      returns: undiscounted returns, ``[S, E]``.
      discounted_returns: discounted returns of the whole episodes, ``[S, E]``: Monte Carlo estimates of Q at the
        initial states (biased if a time limit truncates the episode).
      lengths: lengths of the episodes [steps], ``[S, E]``.
      first_observation: first observation of each episode, ``[S, E, O]``.
      broken: whether the simulation diverged, which ends the episode, ``[S, E]`` bool; always False on the CPU.
    """

    returns: Any
    discounted_returns: Any
    lengths: Any
    first_observation: Any
    broken: Any


def evaluate(
    act: Callable[[np.ndarray], np.ndarray],
    envs: Sequence[Sequence[HostEnv]],
    first_episode: int,
    gamma: float,
    should_stop: Callable[[], bool] = lambda: False,
    playing: np.ndarray | None = None,
) -> Evaluation | None:
    """Runs one episode in each of S x E environments, stepping all of them together.

    Args:
      act: function from observations ``[S, E, O]`` to actions ``[S, E, A]``; row s uses policy s.
      envs: S rows of E environments.
      first_episode: episode number e0 (see :class:`HostEnv`); environment e of each row runs episode e0 + e.
      gamma: discount factor per step.
      should_stop: called before every step; the evaluation is abandoned once it returns True.
      playing: False for rows to skip, ``[S]`` bool; by default all rows are run.

    Returns:
      The results; None if the evaluation was abandoned.
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
    return Evaluation(returns, discounted, lengths, first, np.zeros(shape, bool))


class _Episodes(NamedTuple):
    """E episodes in progress, all at step ``time``; ``running`` is False for those that have ended, ``[E]``."""

    state: EnvState
    running: Array
    returns: Array
    discounted_returns: Array
    lengths: Array
    broken: Array
    time: Array


def evaluate_on_device(act: Callable[[Array], Array], env: DeviceEnv, keys: Array, gamma: float | Array) -> Evaluation:
    """Runs one episode in each of E environments of one learner; the caller jits.

    Args:
      act: function from observations ``[E, O]`` to actions ``[E, A]``.
      env: the environment.
      keys: PRNG keys of the resets, ``[E]``.
      gamma: discount factor per step.

    Returns:
      The results, without the leading axis S.
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
            episodes.broken | (episodes.running & outcome.broken),
            episodes.time + 1,
        )

    first = env.reset(keys)
    zeros = jnp.zeros(keys.shape)
    start = _Episodes(first, zeros == 0, zeros, zeros, zeros.astype(jnp.int32), zeros != 0, jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(lambda episodes: episodes.running.any(), step, start)
    return Evaluation(end.returns, end.discounted_returns, end.lengths, first.observation, end.broken)
