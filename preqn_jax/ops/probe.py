"""Diagnostics of any agent's critic on a minibatch, without changing the agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.ops import diagnostics, ntk
from preqn_jax.ops.alignment import cosine
from preqn_jax.ops.checks import check_interval, td_error_of
from preqn_jax.ops.precision import full_precision, moved
from preqn_jax.ops.q_functions import merge, split
from preqn_jax.ops.sharding import whole
from preqn_jax.types import Array, Inputs, Params


class NTKProbe(NamedTuple):
    """Properties of the kernel K on a minibatch, and the effect of a gradient step on it; all scalars.

    The step is theta' = theta + alpha / B sum_i delta_i grad Q(x_i): gradient descent on half the mean squared delta.

    Attributes:
      diagonal_mean: mean of K_ii.
      diagonal_std: standard deviation of K_ii.
      diagonal_min: minimum of K_ii.
      diagonal_max: maximum of K_ii.
      row_ratio: mean of ``diagnostics.row_ratio``, the relative effect of an update on the values of other examples.
      effective_rank: ``diagnostics.effective_rank``, between 1 and B.
      predicted_alignment: cos(K delta, delta), the alignment of the step to first order; 0 for delta = 0.
      alignment: cos(Q' - Q, delta), the alignment of the actual step; 0 for delta = 0.
      linearization: see ``diagnostics.FailureModes.linearization``.
      overshooting: see ``diagnostics.FailureModes.overshooting``.
      over_generalization: see ``diagnostics.FailureModes.over_generalization``.
      linearization_broken: whether failure mode 1 is present (``linearization`` is not below 1), bool.
      overshoots: whether failure mode 2 is present (``overshooting`` is not below 1), bool.
      over_generalizes: whether failure mode 3 is present (``over_generalization`` is not below 1), bool.
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
    """Returns a pure function ``probe(params, inputs, target) -> NTKProbe``, which the caller may jit.

    For B = 256 and hidden layers [256, 256], one probe takes as long on a CPU core as 4 gradient steps on the critic
    with ``ntk.dense``, and as long as 113 with ``ntk.per_example`` (docs/composing.md states the conditions). It is
    therefore best logged only about every thousand updates.

    The fourth failure mode, extrapolation, depends on the next state-action pairs: see
    ``diagnostics.unsupported_share``. Non-finite values do not raise an error; the result then contains NaN, and the
    affected failure modes count as present.

    Examples:
      >>> probe = ntk_probe(lambda params, x: x @ params, step_size=0.1)
      >>> found = probe(jnp.zeros(2), jnp.eye(2), jnp.array([1.0, -1.0]))
      >>> float(found.row_ratio), round(float(found.effective_rank), 3), bool(found.overshoots)
      (0.0, 2.0, False)

    Args:
      q: the network, as in :func:`preqn_jax.preqn_update`: a ``Linearizer`` such as ``ntk.dense(module)``, or a plain
        Q-function.
      step_size: alpha of the gradient step.
      gamma: discount factor per step.

    Raises:
      ValueError: if a number is out of range. The probe raises it if an argument has the wrong shape or type (at trace
        time).
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
        step = jax.tree.map(lambda p, d: (step_size * d).astype(p.dtype), free, direction)
        new_params = merge(moved(free, step), fixed)
        with full_precision():
            # If no parameter moves, Q does not change; two evaluations of Q may still differ by rounding.
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
