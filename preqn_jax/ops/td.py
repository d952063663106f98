"""Temporal-difference targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from preqn_jax.ops.checks import check_shape, check_vectors
from preqn_jax.types import Array


def td_target(reward: Array, discount: Array, next_value: Array, gamma: float | Array) -> Array:
    """y = r + gamma discount Q(s', mu(s')), with stopped gradients (Achiam et al. 2019, Algorithm 1, line 10).

    Args:
      reward: ``[B]``.
      discount: ``[B]``, 0 only if the episode terminated in s'; 1 if a time limit truncated it.
      next_value: bootstrap value of s', ``[B]``, for example Q(s', mu(s')) in DDPG.
      gamma: discount factor per step, in [0, 1].

    Returns:
      y ``[B]``.

    Raises:
      ValueError: if the shapes of the arrays do not match (at trace time).
    """
    check_vectors(reward=reward, discount=discount, next_value=next_value)
    return jax.lax.stop_gradient(reward + gamma * discount * next_value)


def clipped_double_target(reward: Array, discount: Array, next_values: Array, gamma: float | Array) -> Array:
    """y = r + gamma discount min_i Q_i(s', a'), with stopped gradients (Fujimoto et al. 2018, Eq. 10).

    Args:
      reward: ``[B]``.
      discount: as in :func:`td_target`, ``[B]``.
      next_values: values of all N critics at the smoothed target action a', ``[N, B]``.
      gamma: discount factor per step, in [0, 1].

    Returns:
      y ``[B]``, one target for all critics.

    Raises:
      ValueError: if the shapes of the arrays do not match (at trace time).
    """
    check_shape("next_values", next_values, None, *reward.shape)
    return td_target(reward, discount, jnp.min(next_values, axis=0), gamma)


def pessimistic_target(
    reward: Array, discount: Array, next_values: Array, gamma: float | Array, pessimism: float | Array
) -> Array:
    """y = r + gamma discount ((1 - p) mean_i Q_i + p min_i Q_i)(s', a'), with stopped gradients.

    For two critics, the bracket is their mean minus p times half of their absolute difference. With p = 1, this is
    :func:`clipped_double_target`.

    Args:
      reward: ``[B]``.
      discount: as in :func:`td_target`, ``[B]``.
      next_values: values of all N critics at the target action a', ``[N, B]``.
      gamma: discount factor per step, in [0, 1].
      pessimism: p, in [0, 1].

    Returns:
      y ``[B]``, one target for all critics.

    Raises:
      ValueError: if the shapes of the arrays do not match (at trace time).
    """
    check_shape("next_values", next_values, None, *reward.shape)
    low = jnp.min(next_values, axis=0)
    value = low + (1.0 - pessimism) * (jnp.mean(next_values, axis=0) - low)
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
      discount: as in :func:`td_target`, ``[B]``.
      next_values: values of all N critics at an action a' sampled from the policy, ``[N, B]``.
      next_log_prob: log pi(a'|s'), ``[B]``.
      gamma: discount factor per step, in [0, 1].
      temperature: alpha, weight of the entropy [reward per nat].

    Returns:
      y ``[B]``, one target for all critics.

    Raises:
      ValueError: if the shapes of the arrays do not match (at trace time).
    """
    check_shape("next_values", next_values, None, *reward.shape)
    check_vectors(reward=reward, next_log_prob=next_log_prob)
    return td_target(reward, discount, jnp.min(next_values, axis=0) - temperature * next_log_prob, gamma)
