"""PreQN's critic update as one pure function (Achiam et al. 2019, section 4, Eqs. 22-24)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.ops import ntk, solvers
from preqn_jax.ops.alignment import root_mean_square
from preqn_jax.ops.checks import td_error_of
from preqn_jax.ops.linesearch import Linesearch, SearchInfo, search
from preqn_jax.ops.precision import moved
from preqn_jax.ops.q_functions import merge, split
from preqn_jax.ops.sharding import whole
from preqn_jax.ops.solvers import SolveInfo
from preqn_jax.ops.status import Status as Status
from preqn_jax.types import Array, Inputs, Params


class PreQNInfo(NamedTuple):
    """Diagnostics of one update; all scalars. :func:`describe` formats them as text.

    Attributes:
      accepted: whether a step was accepted, or all TD errors were zero, bool.
      status: the value of a :class:`Status`, int32.
      q: mean of Q before the step.
      td_error: root mean square of delta.
      solve: diagnostics of the solution of K z = delta, a ``SolveInfo``: predicted alignment, residual, damping, mean
        of K_ii.
      search: diagnostics of the line search, a ``SearchInfo``: alignment, accepted step size, backtracks.
    """

    accepted: Array
    status: Array
    q: Array
    td_error: Array
    solve: SolveInfo
    search: SearchInfo


def preqn_update(
    q: ntk.Linearizer | ntk.QFunction,
    params: Params,
    inputs: Inputs,
    target: Array,
    *,
    solver: solvers.Solver = solvers.ridge(),
    linesearch: Linesearch = Linesearch(),
) -> tuple[Params, PreQNInfo]:
    """Moves Q towards its targets on a minibatch; to first order, the TD error of each row changes Q of this row only.

        delta = target - Q,   K z = delta,   theta' = theta + step_size sum_i z_i grad Q(x_i)

    The step size is reduced until cos(Q' - Q, delta) reaches ``linesearch.min_alignment``; if it never does, no step is
    taken. These are Eqs. 22-24 of Achiam et al. (2019), and lines 11 to 13 of their Algorithm 1.

    The defaults are the recommended values. The step size and the minimum alignment are those of the paper; the paper's
    solver is ``solvers.lstsq()``.

    Examples:
      >>> q_fn = lambda params, x: x @ params
      >>> params, x, target = jnp.zeros(3), jnp.eye(3), jnp.array([1.0, 2.0, 3.0])
      >>> linesearch = Linesearch(step_size=1.0)
      >>> params, info = preqn_update(q_fn, params, x, target, solver=solvers.lstsq(), linesearch=linesearch)
      >>> [round(float(p), 3) for p in params], bool(info.accepted)
      ([1.0, 2.0, 3.0], True)

    Args:
      q: the network: a ``Linearizer`` such as ``ntk.dense(module)``, which is fast; or a plain Q-function (params,
        inputs) -> Q-values ``[B]``, which is wrapped by ``ntk.per_example``. Each Q-value must depend on its own row of
        the inputs only.
      params: pytree of floating-point arrays.
      inputs: pytree whose leaves have the leading axis B.
      target: targets of Q, ``[B]``, for example r + discount * Q(s', a'); not differentiated.
      solver: solver for K z = delta: one of ``solvers``, or any function (gram ``[B, B]``, delta ``[B]``) -> z ``[B]``.
      linesearch: hyperparameters of the line search.

    Returns:
      The new parameters and :class:`PreQNInfo`. A rejected or failed step leaves all parameters unchanged.

    Raises:
      ValueError: if a number is out of range, q or solver is not a suitable function, or an argument has the wrong
        shape or type (at trace time).

    References:
      Achiam, Knight and Abbeel (2019). Towards Characterizing Divergence in Deep Q-Learning.
      https://arxiv.org/abs/1903.08894
    """
    linearizer, inputs = ntk.linearizer_of(q), whole(inputs)
    linearization = linearizer(params, inputs)
    td_error = td_error_of(target, linearization.values)
    direction, solved = preqn_direction(linearization, td_error, solver)

    free, fixed = split(linearizer.q_fn, params)
    with jax.named_scope("line_search"):
        step, searched = search(
            lambda free: linearizer.q_fn(whole(merge(free, fixed)), inputs),
            free,
            split(linearizer.q_fn, direction)[0],
            linearization.values,
            td_error,
            linesearch,
        )
        candidate = moved(free, step)
        new = jax.tree.map(lambda p, c: jnp.where(searched.step_size > 0, c, p), free, candidate)
    return merge(new, fixed), info_of(*magnitudes(linearization.values, td_error), solved, searched)


def preqn_direction(
    linearization: ntk.Linearization, td_error: Array, solver: solvers.Solver
) -> tuple[Params, SolveInfo]:
    """The direction sum_i z_i grad Q(x_i) with K z = delta, along which Q moves towards its targets.

    Args:
      linearization: linearization of Q on the minibatch.
      td_error: delta ``[B]``.
      solver: see :func:`preqn_update`.

    Returns:
      The direction, a pytree like the parameters, and a ``SolveInfo``. If the solve failed, the direction is zero.
    """
    with jax.named_scope("solve"):
        z, solved = solvers.solve(solver, linearization.gram, td_error)
    with jax.named_scope("pull_back"):
        direction = linearization.pullback(z)
        return jax.tree.map(lambda leaf: jnp.where(solved.finite, leaf, jnp.zeros_like(leaf)), direction), solved


def magnitudes(values: Array, td_error: Array) -> tuple[Array, Array]:
    """The mean of Q, and the root mean square of delta."""
    return values.mean(), root_mean_square(td_error)


def info_of(q: Array, td_error: Array, solved: SolveInfo, searched: SearchInfo) -> PreQNInfo:
    """Assembles a :class:`PreQNInfo` from its parts."""
    unaligned = solved.finite & ~searched.accepted
    status = jnp.where(unaligned, jnp.asarray(Status.NOT_ALIGNED, jnp.int32), solved.status)
    return PreQNInfo(searched.accepted & solved.finite, status, q, td_error, solved, searched)


_IN_WORDS = {
    Status.ACCEPTED: "accepted",
    Status.NO_TD_ERROR: "nothing to correct: every TD error is zero",
    Status.NOT_ALIGNED: "rejected: no step size reached the line search's min_alignment",
    Status.NON_FINITE_TD_ERROR: "no step: target or Q contains a NaN or an infinity",
    Status.NON_FINITE_KERNEL: "no step: the kernel contains a NaN or an infinity, from a gradient of Q or its square",
    Status.NON_FINITE_SOLUTION: "no step: the solver returned no finite solution",
}


def describe(info: PreQNInfo) -> str:
    """Describes the outcome of an update in one line; call it outside of jit.

    Examples:
      >>> _, info = preqn_update(lambda params, x: x @ params, jnp.zeros(2), jnp.eye(2), jnp.array([1.0, 2.0]))
      >>> describe(info)
      'accepted: step size 0.1 after 0 backtracks, alignment 1.000 (predicted 1.000), residual 0.0001'

    Args:
      info: the info of one update, not of a batch of updates.

    Raises:
      ValueError: if ``info`` describes several updates, or is traced.
    """
    if jnp.ndim(info.status) != 0:
        raise ValueError(f"info must be of one update, got {jnp.ndim(info.status)} batch axes: select one update")
    try:
        status = Status(int(info.status))
    except jax.errors.ConcretizationTypeError:
        raise ValueError("describe formats numbers: call it outside of jit, on the info that is returned") from None
    solved, searched = info.solve, info.search
    if status not in (Status.ACCEPTED, Status.NOT_ALIGNED):
        return _IN_WORDS[status]
    step = f"step size {float(searched.step_size):.3g} after " if status == Status.ACCEPTED else ""
    hint = "" if status == Status.ACCEPTED else "; if most steps are rejected, call ntk.check_example_by_example once"
    return (
        f"{_IN_WORDS[status]}: {step}{int(searched.backtracks)} backtracks, alignment {float(searched.alignment):.3f} "
        f"(predicted {float(solved.predicted_alignment):.3f}), residual {float(solved.residual):.2g}"
        f"{hint}"
    )
