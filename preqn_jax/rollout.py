"""Evaluation of a policy on host environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from preqn_jax.envs.host import HostEnv


def evaluate(
    act: Callable[[np.ndarray], np.ndarray], envs: Sequence[Sequence[HostEnv]], first_episode: int
) -> tuple[np.ndarray, np.ndarray]:
    """One episode in each of S x E environments, all in step.

    Args:
      act: observations ``[S, E, O]`` -> actions ``[S, E, A]``; row s is acted on by policy s.
      envs: S rows of E environments.
      first_episode: number of the episode in each row's first environment; the others count on from it.

    Returns:
      Undiscounted returns and lengths in steps, both ``[S, E]``.
    """
    observation = np.stack([[env.reset(first_episode + e) for e, env in enumerate(row)] for row in envs])
    returns, lengths = np.zeros(observation.shape[:2]), np.zeros(observation.shape[:2], np.int64)
    running = np.ones(observation.shape[:2], bool)
    while running.any():
        action = np.asarray(act(observation))
        for s, e in zip(*np.nonzero(running), strict=True):
            step = envs[s][e].step(action[s, e])
            observation[s, e] = step.observation
            returns[s, e] += step.reward
            lengths[s, e] += 1
            running[s, e] = not (step.terminated or step.truncated)
    return returns, lengths
