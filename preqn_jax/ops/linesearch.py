"""Backtracking on the alignment of a step (Achiam et al. 2019, Eq. 24; line 13 of Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from preqn_jax.ops.alignment import all_finite, cosine
from preqn_jax.ops.precision import full_precision
from preqn_jax.ops.sharding import vary, varying_axes, whole
from preqn_jax.types import Array, Params


class SearchInfo(NamedTuple):
    """How a search ended.

    Attributes:
      accepted: whether a step size passed, or there was nothing to correct, bool [].
      alignment: cos(Q' - Q, delta) at the last step size tried; 1 for delta = 0, NaN where a parameter or value
        left the floating-point range, float [].
      step_size: the accepted step size, 0 if none was, float [].
      backtracks: how often the step was shortened, int32 [].
    """

    accepted: Array
    alignment: Array
    step_size: Array
    backtracks: Array


class _State(NamedTuple):
    step: Params
    step_size: Array
    alignment: Array
    backtracks: Array


def backtrack(
    value_fn: Callable[[Params], Array],
    params: Params,
    direction: Params,
    values: Array,
    td_error: Array,
    *,
    step_size: float | Array = 0.1,
    alignment: float | Array = 0.97,
    decay: float | Array = 0.8,
    max_backtracks: int | Array = 20,
) -> tuple[Params, SearchInfo]:
    """Moves the parameters by what :func:`search` finds; arguments and :class:`SearchInfo` are its.

    Returns:
      The new parameters, bit for bit the old ones unless a nonzero step was accepted, and a :class:`SearchInfo`.
    """
    step, info = search(
        value_fn,
        params,
        direction,
        values,
        td_error,
        step_size=step_size,
        alignment=alignment,
        decay=decay,
        max_backtracks=max_backtracks,
    )
    return jax.tree.map(lambda p, s: jnp.where(info.step_size > 0, p + s, p), params, step), info


def search(
    value_fn: Callable[[Params], Array],
    params: Params,
    direction: Params,
    values: Array,
    td_error: Array,
    *,
    step_size: float | Array = 0.1,
    alignment: float | Array = 0.97,
    decay: float | Array = 0.8,
    max_backtracks: int | Array = 20,
) -> tuple[Params, SearchInfo]:
    """Largest step_size decay^k, k = 0 .. max_backtracks, with cos(Q' - Q, delta) >= alignment.

    Q' = value_fn(params + step_size decay^k direction), as in Eq. 24 of Achiam et al. (2019). A direction that is
    zero or not finite, or a td_error that is not finite, is tried once: no shortening mends it.

    Args:
      value_fn: params -> Q-values ``[B]`` on the minibatch.
      params: where the search starts.
      direction: pytree like params.
      values: Q = value_fn(params), ``[B]``.
      td_error: delta ``[B]``, the change that is wanted.
      step_size: first and largest step size.
      alignment: eta, the cosine to reach.
      decay: factor between trials, in (0, 1).
      max_backtracks: after this many the step is rejected.

    Returns:
      The step, to be added to the parameters, and a :class:`SearchInfo`. Where no step is taken it is -0.0, which
      added to -0.0 leaves that as it is. A zero td_error is an accepted no-op; a non-finite one, or a non-finite
      direction, is never accepted.
    """
    values, td_error = whole((values, td_error))
    chex.assert_rank(td_error, 1)
    chex.assert_equal_shape([values, td_error])
    no_error = jnp.all(td_error == 0)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(direction)]))
    mendable = jnp.isfinite(largest) & (largest > 0) & all_finite(td_error)
    max_backtracks = jnp.where(mendable, max_backtracks, 0)
    decay = jnp.asarray(decay, values.dtype)

    def measure(step: Params) -> Array:
        candidate = jax.tree.map(jnp.add, params, step)
        with full_precision():
            change = whole(value_fn(candidate)) - values
        # A parameter may be off without showing in these values, and show in the next.
        finite = jnp.all(jnp.stack([all_finite(leaf) for leaf in jax.tree.leaves(candidate)]))
        return jnp.where(no_error, 1.0, jnp.where(finite, cosine(change, td_error), jnp.nan))

    # The loop carries the step itself: rounded there, it is the same whoever adds it to the parameters, while XLA
    # contracts a product and a sum that it finds side by side.
    def trial(step_size: Array, backtracks: Array) -> _State:
        step = jax.tree.map(lambda p, d: (step_size * d).astype(p.dtype), params, direction)
        return _State(step, step_size, measure(step), backtracks)

    def unaligned(state: _State) -> Array:
        return ~(state.alignment >= alignment) & (state.backtracks < max_backtracks)  # NaN is unaligned

    def shorten(state: _State) -> _State:
        return trial(state.step_size * decay, state.backtracks + 1)

    first = trial(jnp.asarray(step_size, values.dtype), jnp.zeros((), jnp.int32))
    axes = varying_axes(first, alignment, decay, max_backtracks)  # of whatever decides how long the loop runs
    last = jax.lax.while_loop(unaligned, shorten, vary(first, axes))

    accepted = last.alignment >= alignment
    takes_step = accepted & ~no_error
    step = jax.tree.map(lambda leaf: jnp.where(takes_step, leaf, jnp.asarray(-0.0, leaf.dtype)), last.step)
    return step, SearchInfo(accepted, last.alignment, jnp.where(takes_step, last.step_size, 0.0), last.backtracks)
