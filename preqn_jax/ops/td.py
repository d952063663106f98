"""Temporal-difference targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from preqn_jax.ops.checks import check_shape, check_vectors
from preqn_jax.types import Array


def td_target(reward: Array, discount: Array, next_value: Array, gamma: float | Array) -> Array:
    """y = r + gamma discount Q(s', mu(s')), a constant to differentiation (Achiam et al. 2019, Algorithm 1, line 10).

    Args:
      reward: ``[B]``.
      discount: ``[B]``, 0 only where the episode terminated in s'; 1 where a time limit cut it.
      next_value: bootstrap value of s', ``[B]``: Q(s', mu(s')) for DDPG.
      gamma: discount factor per step, in [0, 1].

    Returns:
      y ``[B]``.

    Raises:
      ValueError: at trace time, on arrays of other shapes.
    """
    check_vectors(reward=reward, discount=discount, next_value=next_value)
    return jax.lax.stop_gradient(reward + gamma * discount * next_value)


def clipped_double_target(reward: Array, discount: Array, next_values: Array, gamma: float | Array) -> Array:
    """y = r + gamma discount min_i Q_i(s', a') (Fujimoto et al. 2018, Eq. 10), a constant to differentiation.

    Args:
      reward: ``[B]``.
      discount: ``[B]``.
      next_values: of every critic at the smoothed target action a', ``[N, B]``.
      gamma: discount factor per step, in [0, 1].

    Returns:
      y ``[B]``, one target for all critics.

    Raises:
      ValueError: at trace time, on arrays of other shapes.
    """
    check_shape("next_values", next_values, None, *reward.shape)
    return td_target(reward, discount, jnp.min(next_values, axis=0), gamma)


def pessimistic_target(
    reward: Array, discount: Array, next_values: Array, gamma: float | Array, pessimism: float | Array
) -> Array:
    """y = r + gamma discount ((1 - p) mean_i Q_i + p min_i Q_i)(s', a'), a constant to differentiation.

    Of two critics that is their mean less p times half their difference: p = 1 is :func:`clipped_double_target`.

    Args:
      reward: ``[B]``.
      discount: ``[B]``.
      next_values: of every critic at the target action a', ``[N, B]``.
      gamma: discount factor per step, in [0, 1].
      pessimism: p, in [0, 1].

    Returns:
      y ``[B]``, one target for all critics.

    Raises:
      ValueError: at trace time, on arrays of other shapes.
    """
    check_shape("next_values", next_values, None, *reward.shape)
    mean = jnp.mean(next_values, axis=0)
    value = mean - pessimism * (mean - jnp.min(next_values, axis=0))
    return td_target(reward, discount, value, gamma)


def soft_target(
    reward: Array,
    discount: Array,
    next_values: Array,
    next_log_prob: Array,
    gamma: float | Array,
    temperature: float | Array,
) -> Array:
    """y = r + gamma discount (min_i Q_i(s', a') - alpha log pi(a'|s')) (Haarnoja et al. 2018, Eqs. 3 and 8).

    Args:
      reward: ``[B]``.
      discount: ``[B]``.
      next_values: of every critic at an action a' drawn from the policy, ``[N, B]``.
      next_log_prob: log pi(a'|s'), ``[B]``.
      gamma: discount factor per step, in [0, 1].
      temperature: alpha, what a nat of entropy is worth [reward].

    Returns:
      y ``[B]``, one target for all critics.

    Raises:
      ValueError: at trace time, on arrays of other shapes.
    """
    check_shape("next_values", next_values, None, *reward.shape)
    check_vectors(reward=reward, next_log_prob=next_log_prob)
    return td_target(reward, discount, jnp.min(next_values, axis=0) - temperature * next_log_prob, gamma)
