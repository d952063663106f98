"""Diagnostics of any agent's critic on a minibatch, without changing the agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.ops import diagnostics, ntk
from preqn_jax.ops.alignment import cosine
from preqn_jax.ops.checks import check_interval, td_error_of
from preqn_jax.ops.precision import full_precision
from preqn_jax.ops.q_functions import merge, split
from preqn_jax.ops.sharding import whole
from preqn_jax.types import Array, Inputs, Params


class NTKProbe(NamedTuple):
    """The kernel K on a minibatch, and what a gradient step there would do; all scalars.

    The step is theta' = theta + alpha / B sum_i delta_i grad Q(x_i): gradient descent on half the mean squared delta.

    Attributes:
      diagonal_mean: of K_ii.
      diagonal_std: of K_ii.
      diagonal_min: of K_ii.
      diagonal_max: of K_ii.
      row_ratio: mean of ``diagnostics.row_ratio``: how much of an update spills over.
      effective_rank: ``diagnostics.effective_rank``, between 1 and B.
      predicted_alignment: cos(K delta, delta), the step's to first order; 0 for delta = 0.
      alignment: cos(Q' - Q, delta) as it turns out; 0 for delta = 0.
      linearization: as in ``diagnostics.FailureModes``, and so the next two.
      overshooting: the same.
      over_generalization: the same.
      linearization_broken: whether that failure mode is there, bool, and so the next two.
      overshoots: the same.
      over_generalizes: the same.
    """

    diagonal_mean: Array
    diagonal_std: Array
    diagonal_min: Array
    diagonal_max: Array
    row_ratio: Array
    effective_rank: Array
    predicted_alignment: Array
    alignment: Array
    linearization: Array
    overshooting: Array
    over_generalization: Array
    linearization_broken: Array
    overshoots: Array
    over_generalizes: Array


def ntk_probe(
    q: ntk.Linearizer | ntk.QFunction, *, step_size: float | Array = 1e-3, gamma: float | Array = 0.99
) -> Callable[[Params, Inputs, Array], NTKProbe]:
    """Makes ``probe(params, inputs, target) -> NTKProbe``, pure and to be jitted by the caller.

    At B = 256 and [256, 256] on a CPU core it takes as long as 4 gradient steps of the critic with ``ntk.dense``, as
    long as 113 with ``ntk.per_example`` (docs/composing.md has the conditions): log it every thousand updates.

    The fourth failure mode, extrapolation, asks for the next pairs: ``diagnostics.unsupported_share``. What is not
    finite shows as NaN and as failure modes that are there; it raises nothing.

    Example:
      >>> probe = ntk_probe(lambda params, x: x @ params, step_size=0.1)
      >>> found = probe(jnp.zeros(2), jnp.eye(2), jnp.array([1.0, -1.0]))
      >>> float(found.row_ratio), round(float(found.effective_rank), 3), bool(found.overshoots)
      (0.0, 2.0, False)

    Args:
      q: the network, as :func:`preqn_jax.preqn_update` takes it: ``ntk.dense(module)``, or a plain Q-function.
      step_size: alpha of the gradient step.
      gamma: discount factor per step.

    Raises:
      ValueError: on a number out of range; by the probe at trace time, on arguments of the wrong shape or kind.
    """
    check_interval("step_size", step_size, "(0, inf)")
    check_interval("gamma", gamma, "[0, 1]")
    linearizer = ntk.linearizer_of(q)
    q_fn = linearizer.q_fn

    def probe(params: Params, inputs: Inputs, target: Array) -> NTKProbe:
        params, inputs = whole((params, inputs))
        values, gram, pullback = linearizer(params, inputs)
        td_error = td_error_of(target, values)
        rho = jnp.full_like(values, 1.0 / values.shape[0])
        free, fixed = split(q_fn, params)
        direction = split(q_fn, pullback(rho * td_error))[0]
        new_params = merge(jax.tree.map(lambda p, d: p + (step_size * d).astype(p.dtype), free, direction), fixed)
        with full_precision():
            # Where no parameter moves Q does not, whatever the rounding of its two evaluations says.
            change = jnp.where(jnp.all(td_error == 0), 0.0, whole(q_fn(new_params, inputs)) - values)
            predicted_alignment = cosine(gram @ td_error, td_error)
        modes = diagnostics.failure_modes(
            gram, rho, td_error, change, unsupported=jnp.zeros(1), step_size=step_size, gamma=gamma
        )
        return NTKProbe(
            *diagnostics.diagonal_stats(gram),
            diagnostics.row_ratio(gram).mean(),
            diagnostics.effective_rank(gram),
            predicted_alignment,
            cosine(change, td_error),
            *modes[:3],
            *modes.present()[:3],
        )

    return probe
