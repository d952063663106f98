"""Finite Markov decision processes: random MDPs, and two on which Q-learning with linear features diverges."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.types import Array


class FiniteMDP(NamedTuple):
    """A Markov decision process with S states and A actions.

    Attributes:
      transition: P(s' | s, a), ``[S, A, S]``; each ``transition[s, a]`` sums to 1.
      reward: expected reward r(s, a), ``[S, A]``.
      gamma: discount factor per step, in [0, 1), a scalar.
    """

    transition: Array
    reward: Array
    gamma: float | Array


class LinearProblem(NamedTuple):
    """An MDP with features for Q(s, a) = <features[s A + a], weights>, and initial weights.

    Attributes:
      mdp: the :class:`FiniteMDP`.
      features: features of all state-action pairs, ``[S A, d]``.
      weights: initial weights, ``[d]``.
    """

    mdp: FiniteMDP
    features: Array
    weights: Array


def garnet(key: Array, states: int, actions: int, branching: int, gamma: float | Array) -> FiniteMDP:
    """A random MDP in which every pair (s, a) has ``branching`` different successors (Bhatnagar et al. 2009).

    The transition probabilities are the lengths of the intervals into which ``branching - 1`` uniformly distributed
    points divide [0, 1]; rewards are N(0, 1).

    Args:
      key: random key.
      states: S.
      actions: A.
      branching: number of successors of each pair.
      gamma: discount factor per step.

    Raises:
      ValueError: if branching is not in [1, S].
    """
    if not 1 <= branching <= states:
        raise ValueError(f"branching must be in [1, {states}], the number of states, got {branching}")
    order_key, cut_key, reward_key = jax.random.split(key, 3)
    cuts = jnp.sort(jax.random.uniform(cut_key, (states, actions, branching - 1)), axis=-1)
    end = jnp.ones((states, actions, 1), cuts.dtype)
    probabilities = jnp.diff(jnp.concatenate([0.0 * end, cuts, end], axis=-1), axis=-1)
    padded = jnp.pad(probabilities, ((0, 0), (0, 0), (0, states - branching)))
    order = jnp.argsort(jax.random.uniform(order_key, padded.shape), axis=-1)
    transition = jnp.take_along_axis(padded, order, axis=-1)
    return FiniteMDP(transition, jax.random.normal(reward_key, (states, actions)), gamma)


def baird(gamma: float = 0.99) -> LinearProblem:
    """Baird's star: seven states with one action, which leads to the seventh state; rewards are zero (Baird 1995).

    Therefore Q* = 0. Q(i) = 2 w_i + w_8 in the first six states, and w_7 + 2 w_8 in the seventh. The initial weights
    are those of Sutton and Barto (2018, section 11.2), w = (1, 1, 1, 1, 1, 1, 10, 1). The seven feature vectors are
    linearly independent: every Q is representable, and K is invertible.
    """
    features = jnp.zeros((7, 8)).at[jnp.arange(6), jnp.arange(6)].set(2.0).at[:6, 7].set(1.0)
    features = features.at[6, 6].set(1.0).at[6, 7].set(2.0)
    return LinearProblem(_all_to_last(7, gamma), features, jnp.ones(8).at[6].set(10.0))


def tsitsiklis_van_roy(gamma: float = 0.99) -> LinearProblem:
    """Two states with one action, which leads to the second state; rewards are zero (Tsitsiklis and Van Roy 1996).

    Therefore Q* = 0. Q = (w, 2 w) has one feature for two states, so K has rank 1, and only values of Q on a line are
    representable. With uniformly distributed data, both gradient steps and least-squares fits to the targets expand w
    if gamma > 5 / 6.
    """
    return LinearProblem(_all_to_last(2, gamma), jnp.asarray([[1.0], [2.0]]), jnp.ones(1))


def _all_to_last(states: int, gamma: float) -> FiniteMDP:
    transition = jnp.zeros((states, 1, states)).at[:, :, -1].set(1.0)
    return FiniteMDP(transition, jnp.zeros((states, 1)), gamma)
