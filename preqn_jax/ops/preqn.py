"""PreQN's critic update as one pure function (Achiam et al. 2019, section 4, Eqs. 22-24)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.ops import linesearch, ntk, solvers
from preqn_jax.ops.checks import check_arguments, known, td_error_of
from preqn_jax.ops.q_functions import merge, split
from preqn_jax.ops.sharding import whole
from preqn_jax.ops.status import Status as Status
from preqn_jax.types import Array, Inputs, Params


class PreQNInfo(NamedTuple):
    """Diagnostics of one update; all scalars.

    Attributes:
      accepted: whether the step was taken, or there was nothing to correct, bool.
      status: a :class:`Status`, int32.
      predicted_alignment: cos(K z, delta), before any step; 1 for delta = 0.
      alignment: cos(Q' - Q, delta) at the last step size tried.
      residual: ||K z - delta|| / ||delta||.
      damping: the solver's, in units of K's mean diagonal.
      step_size: the accepted step size; 0 if none was.
      backtracks: how often the step was shortened, int32.
      kernel_diagonal: mean of K_ii.
    """

    accepted: Array
    status: Array
    predicted_alignment: Array
    alignment: Array
    residual: Array
    damping: Array
    step_size: Array
    backtracks: Array
    kernel_diagonal: Array


def preqn_update(
    q_fn: ntk.QFunction,
    params: Params,
    inputs: Inputs,
    td_error: Array,
    *,
    linearize: ntk.Linearizer | None = None,
    solve: solvers.Solver | None = None,
    step_size: float | Array = 0.1,
    alignment: float | Array = 0.97,
    decay: float | Array = 0.8,
    max_backtracks: int | Array = 20,
) -> tuple[Params, PreQNInfo]:
    """Moves Q towards its targets on a minibatch, with the kernel's cross-talk cancelled.

        K Z = delta,   theta' = theta + step_size sum_i Z_i grad Q(x_i),

    the step shortened by ``decay`` until cos(Q' - Q, delta) >= ``alignment``, else not taken: Eqs. 22-24 of Achiam et
    al. (2019), lines 11 to 13 of their Algorithm 1.

    Example:
      >>> q_fn = lambda params, x: x @ params
      >>> params, x = jnp.zeros(3), jnp.eye(3)
      >>> params, info = preqn_update(q_fn, params, x, jnp.array([1.0, 2.0, 3.0]), step_size=1.0)
      >>> [round(float(p), 3) for p in params], bool(info.accepted)
      ([1.0, 2.0, 3.0], True)

    Args:
      q_fn: (params, inputs) -> Q-values ``[B]``, example by example.
      params: pytree of floating-point arrays.
      inputs: pytree whose leaves lead with B.
      td_error: delta = target - Q, ``[B]``; not differentiated.
      linearize: how K is formed; ``ntk.per_example(q_fn)`` if left out, ``ntk.dense(module)`` for speed.
      solve: how K Z = delta is solved; ``solvers.lstsq()`` if left out, ``solvers.ridge()`` for speed.
      step_size: the paper's alpha, first and largest step size of the search.
      alignment: the paper's eta, in (0, 1].
      decay: backtracking factor, in (0, 1).
      max_backtracks: shortenings after which the step is rejected.

    Returns:
      New parameters and :class:`PreQNInfo`. A rejected or failed step leaves every parameter bit for bit as it was.

    Raises:
      ValueError: at trace time, on an option out of range or arguments of the wrong shape or kind.
    """
    linearize = ntk.per_example(q_fn) if linearize is None else linearize
    return step_linearized(
        q_fn,
        params,
        inputs,
        td_error,
        linearize(params, inputs),
        solve=solve,
        step_size=step_size,
        alignment=alignment,
        decay=decay,
        max_backtracks=max_backtracks,
    )


def step_linearized(
    q_fn: ntk.QFunction,
    params: Params,
    inputs: Inputs,
    td_error: Array,
    linearization: ntk.Linearization,
    *,
    solve: solvers.Solver | None = None,
    step_size: float | Array = 0.1,
    alignment: float | Array = 0.97,
    decay: float | Array = 0.8,
    max_backtracks: int | Array = 20,
) -> tuple[Params, PreQNInfo]:
    """:func:`preqn_update` from a linearization at hand, whose ``values`` the TD error may be made from.

    Args:
      q_fn: as :func:`preqn_update` takes it, and so all that is not named here.
      params: the same.
      inputs: the same.
      td_error: the same, ``[B]``.
      linearization: of ``q_fn`` at ``params`` on ``inputs``.
      solve: the same, and so the rest.
      step_size: the same.
      alignment: the same.
      decay: the same.
      max_backtracks: the same.

    Returns:
      As :func:`preqn_update`.

    Raises:
      ValueError: as :func:`preqn_update`.
    """
    check_options(step_size=step_size, alignment=alignment, decay=decay, max_backtracks=max_backtracks)
    inputs = whole(inputs)
    check_arguments(q_fn, whole(params), inputs)
    direction, found = preqn_direction(linearization, td_error, solve)
    free, fixed = split(q_fn, params)
    new_params, search = linesearch.backtrack(
        lambda free: q_fn(whole(merge(free, fixed)), inputs),
        free,
        split(q_fn, direction)[0],
        linearization.values,
        td_error_of(td_error, linearization.values),
        step_size=step_size,
        alignment=alignment,
        decay=decay,
        max_backtracks=max_backtracks,
    )
    return merge(new_params, fixed), join(found, search)


def preqn_direction(
    linearization: ntk.Linearization, td_error: Array, solve: solvers.Solver | None = None
) -> tuple[Params, solvers.SolveInfo]:
    """sum_i z_i grad Q(x_i) with K z = delta, along which Q moves towards its targets.

    Args:
      linearization: of Q on the minibatch.
      td_error: delta ``[B]``; not differentiated.
      solve: as :func:`preqn_update` takes it.

    Returns:
      The direction, like the parameters, and a ``SolveInfo``. A failed solve asks for no step: zeros.
    """
    values, gram, pullback = linearization
    z, solved = solvers.solve(solve or solvers.lstsq(), gram, td_error_of(td_error, values))
    direction = jax.tree.map(lambda leaf: jnp.where(solved.finite, leaf, jnp.zeros_like(leaf)), pullback(z))
    return direction, solved


def join(solved: solvers.SolveInfo, search: linesearch.SearchInfo) -> PreQNInfo:
    """What is known after the search: both parts of a :class:`PreQNInfo`."""
    unaligned = solved.finite & ~search.accepted
    return PreQNInfo(
        accepted=search.accepted & solved.finite,
        status=jnp.where(unaligned, jnp.asarray(Status.NOT_ALIGNED, jnp.int32), solved.status),
        predicted_alignment=solved.predicted_alignment,
        alignment=search.alignment,
        residual=solved.residual,
        damping=solved.damping,
        step_size=search.step_size,
        backtracks=search.backtracks,
        kernel_diagonal=solved.kernel_diagonal,
    )


def check_options(**options: float | Array) -> None:
    """Refuses numbers out of range; traced values pass unchecked.

    Raises:
      ValueError: naming the option and what is allowed.
    """
    allowed = {
        "step_size": ("> 0", lambda x: x > 0),
        "gamma": ("in [0, 1]", lambda x: 0 <= x <= 1),
        "alignment": ("in (0, 1]", lambda x: 0 < x <= 1),
        "decay": ("in (0, 1)", lambda x: 0 < x < 1),
        "max_backtracks": (">= 0", lambda x: x >= 0),
    }
    for name, value in options.items():
        rule, holds = allowed[name]
        number = known(name, value)
        if number is not None and not holds(number):
            raise ValueError(f"{name} must be {rule}, got {number:g}")
