"""Temporal-difference targets and errors."""

from __future__ import annotations

import chex
import jax

from preqn_jax.types import Array


def td_target(reward: Array, discount: Array, next_value: Array, gamma: float | Array) -> Array:
    """y = r + gamma discount Q(s', mu(s')), a constant to differentiation (Achiam et al. 2019, Algorithm 1).

    Args:
      reward: ``[B]``.
      discount: ``[B]``, 0 only where the episode terminated in s'; 1 where a time limit cut it.
      next_value: bootstrap value of s', ``[B]``: Q(s', mu(s')) for DDPG.
      gamma: discount factor per step, in [0, 1].

    Returns:
      y ``[B]``.
    """
    chex.assert_rank([reward, discount, next_value], 1)
    chex.assert_equal_shape([reward, discount, next_value])
    return jax.lax.stop_gradient(reward + gamma * discount * next_value)


def td_error(value: Array, reward: Array, discount: Array, next_value: Array, gamma: float | Array) -> Array:
    """delta = y - Q(s, a) with y from :func:`td_target`; ``value`` is Q(s, a) ``[B]``. Returns ``[B]``."""
    chex.assert_equal_shape([value, reward])
    return td_target(reward, discount, next_value, gamma) - value
