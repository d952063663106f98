"""Backtracking on the alignment of a step (Achiam et al. 2019, Eq. 24; line 13 of Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.ops.alignment import all_finite, cosine
from preqn_jax.ops.checks import check_interval, check_vectors, check_whole, kind
from preqn_jax.ops.precision import full_precision, moved
from preqn_jax.ops.sharding import vary, varying_axes, whole
from preqn_jax.types import Array, Params


class Linesearch(NamedTuple):
    """Hyperparameters of a backtracking line search; a pytree, so that they may be traced, vmapped or scheduled.

    Attributes:
      step_size: the paper's alpha, the first and largest step size that is evaluated, > 0.
      min_alignment: the paper's eta, the cosine cos(Q' - Q, delta) that a step must reach, in (0, 1].
      decay: factor between step sizes, in (0, 1). The paper does not state it.
      max_backtracks: reductions of the step size after which the step is rejected, a whole number >= 0. The paper does
        not state it.
    """

    step_size: float | Array = 0.1
    min_alignment: float | Array = 0.97
    decay: float | Array = 0.8
    max_backtracks: int | Array = 20


_ALLOWED = {"step_size": "(0, inf)", "min_alignment": "(0, 1]", "decay": "(0, 1)", "max_backtracks": "[0, inf)"}


def check_linesearch(linesearch: Linesearch) -> None:
    """Checks the hyperparameters of a line search; traced values are not checked.

    Raises:
      ValueError: if a value is out of range (the message states its name and the allowed range), or ``linesearch`` is
        not a :class:`Linesearch`.
    """
    if not isinstance(linesearch, Linesearch):
        raise ValueError(f"linesearch must be a Linesearch, got {kind(linesearch)}")
    for name, interval in _ALLOWED.items():
        check_interval(f"linesearch.{name}", getattr(linesearch, name), interval)
    check_whole("linesearch.max_backtracks", linesearch.max_backtracks)


class SearchInfo(NamedTuple):
    """The outcome of a line search; all scalars.

    Attributes:
      accepted: whether a step size reached ``min_alignment``, or delta = 0, bool.
      alignment: cos(Q' - Q, delta) at the last step size evaluated; 1 for delta = 0, NaN if a parameter or a Q-value
        became non-finite.
      step_size: the accepted step size, 0 if no step was taken.
      backtracks: number of reductions of the step size, int32.
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


def search(
    value_fn: Callable[[Params], Array],
    params: Params,
    direction: Params,
    values: Array,
    td_error: Array,
    linesearch: Linesearch = Linesearch(),
) -> tuple[Params, SearchInfo]:
    """Finds the largest step_size decay^k, k = 0 .. max_backtracks, with cos(Q' - Q, delta) >= min_alignment.

    Q' = value_fn(params + step_size decay^k direction), as in Eq. 24 of Achiam et al. (2019). A direction that is
    zero or not finite, or a td_error that is not finite, is evaluated at the first step size only, since a shorter
    step cannot help.

    Args:
      value_fn: params -> Q-values ``[B]`` on the minibatch.
      params: parameters at which the search starts.
      direction: direction of the step, a pytree like params.
      values: Q = value_fn(params), ``[B]``.
      td_error: delta ``[B]``, the desired change of Q.
      linesearch: hyperparameters of the line search.

    Returns:
      The step, to be added to the parameters, and a :class:`SearchInfo`. If no step is taken, all entries of the step
      are -0.0, which leaves every parameter, -0.0 included, bitwise unchanged. A zero td_error is an accepted no-op;
      with a non-finite td_error or direction, no step is accepted.

    Raises:
      ValueError: if a hyperparameter is out of range, or values and td_error do not have shape ``[B]`` (at trace time).
    """
    check_linesearch(linesearch)
    step_size, min_alignment, decay, max_backtracks = linesearch
    values, td_error = whole((values, td_error))
    check_vectors(values=values, td_error=td_error)
    no_error = jnp.all(td_error == 0)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(direction)]))
    shorter_may_help = jnp.isfinite(largest) & (largest > 0) & all_finite(td_error)
    max_backtracks = jnp.where(shorter_may_help, max_backtracks, 0)
    decay = jnp.asarray(decay, values.dtype)

    def measure(step: Params) -> Array:
        candidate = moved(params, step)
        with full_precision():
            change = whole(value_fn(candidate)) - values
        # A parameter that becomes non-finite may leave these values finite, and not those of the next minibatch.
        finite = jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(_stays_finite, params, candidate))))
        return jnp.where(no_error, 1.0, jnp.where(finite, cosine(change, td_error), jnp.nan))

    # The loop carries the step itself, so that it is rounded there and does not depend on who adds it to the
    # parameters: XLA would contract a product and the sum that follows into one operation.
    def trial(step_size: Array, backtracks: Array) -> _State:
        step = jax.tree.map(lambda p, d: (step_size * d).astype(p.dtype), params, direction)
        return _State(step, step_size, measure(step), backtracks)

    def unaligned(state: _State) -> Array:
        aligned = state.alignment >= min_alignment  # false for NaN
        return ~aligned & (state.backtracks < max_backtracks) & (state.step_size > 0)  # it may underflow

    def backtrack(state: _State) -> _State:
        return trial(state.step_size * decay, state.backtracks + 1)

    first = trial(jnp.asarray(step_size, values.dtype), jnp.zeros((), jnp.int32))
    axes = varying_axes(first, min_alignment, decay, max_backtracks)  # of all that the loop's condition depends on
    last = jax.lax.while_loop(unaligned, backtrack, vary(first, axes))

    accepted = last.alignment >= min_alignment
    takes_step = accepted & ~no_error
    step = jax.tree.map(lambda leaf: jnp.where(takes_step, leaf, jnp.asarray(-0.0, leaf.dtype)), last.step)
    return step, SearchInfo(accepted, last.alignment, jnp.where(takes_step, last.step_size, 0.0), last.backtracks)


def _stays_finite(before: Array, after: Array) -> Array:
    """Whether every entry that is finite before is finite after; a constant such as a mask may contain infinities."""
    return all_finite(jnp.where(jnp.isfinite(before), after, 0.0))
