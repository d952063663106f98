"""Evaluation of a policy on host environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from preqn_jax.envs.host import HostEnv


class Evaluation(NamedTuple):
    """One episode in each of S x E environments.

    Attributes:
      returns: undiscounted, ``[S, E]``.
      discounted_returns: from the first step on, ``[S, E]``: what Q there should be, but for what a time limit cut off.
      lengths: in steps, ``[S, E]``.
      first_observation: of each episode, ``[S, E, O]``.
    """

    returns: np.ndarray
    discounted_returns: np.ndarray
    lengths: np.ndarray
    first_observation: np.ndarray


def evaluate(
    act: Callable[[np.ndarray], np.ndarray], envs: Sequence[Sequence[HostEnv]], first_episode: int, gamma: float
) -> Evaluation:
    """One episode in each of S x E environments, all in step.

    Args:
      act: observations ``[S, E, O]`` -> actions ``[S, E, A]``; row s is acted on by policy s.
      envs: S rows of E environments.
      first_episode: number of the episode in each row's first environment; the others count on from it.
      gamma: the discount factor per step.
    """
    first = np.stack([[env.reset(first_episode + e) for e, env in enumerate(row)] for row in envs])
    observation, shape = first.copy(), first.shape[:2]
    returns, discounted, lengths = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    running = np.ones(shape, bool)
    while running.any():
        action = np.asarray(act(observation))
        for s, e in zip(*np.nonzero(running), strict=True):
            step = envs[s][e].step(action[s, e])
            observation[s, e] = step.observation
            returns[s, e] += step.reward
            discounted[s, e] += gamma ** lengths[s, e] * step.reward
            lengths[s, e] += 1
            running[s, e] = not (step.terminated or step.truncated)
    return Evaluation(returns, discounted, lengths, first)
