"""Solvers of K z = delta, the system behind PreQN's update (Achiam et al. 2019, Eq. 22).

A solver is any function ``(gram [B, B], delta [B]) -> z [B]``, or ``-> (z, damping)`` if it reports what it added to
the diagonal. :func:`solve` calls it, checks its result, handles non-finite values and computes diagnostics.
:func:`lstsq`, :func:`ridge`, :func:`eigh` and :func:`aligned` each return a solver.

A minibatch drawn with replacement contains repeated rows, so K is usually singular. The regularization of the solver
then determines whether K z can still point along delta; ``SolveInfo.predicted_alignment`` reports it before any step is
taken.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.ops.alignment import all_finite, cosine, relative_norm
from preqn_jax.ops.checks import check_interval, misfit_of_two
from preqn_jax.ops.precision import full_precision
from preqn_jax.ops.sharding import vary, varying_axes, whole
from preqn_jax.ops.status import Status, failed
from preqn_jax.types import Array

Solver = Callable[[Array, Array], Array | tuple[Array, Array]]

_TINY = float(jnp.finfo(jnp.float32).tiny)  # some devices round smaller numbers to zero


class SolveInfo(NamedTuple):
    """Diagnostics of a solution of K z = delta; all scalars.

    Attributes:
      status: ``Status.ACCEPTED`` if z gives a search direction, else the reason why it does not, int32.
      predicted_alignment: cos(K z, delta), the alignment of a step if Q were linear; 1 for delta = 0.
      residual: ||K z - delta|| / ||delta||; 0 for delta = 0.
      damping: the number that the solver added to the diagonal of K, in units of ``kernel_diagonal``.
      kernel_diagonal: mean of K_ii.
    """

    status: Array
    predicted_alignment: Array
    residual: Array
    damping: Array
    kernel_diagonal: Array

    @property
    def finite(self) -> Array:
        """Whether kernel, delta and solution are finite, bool []; otherwise z is zero."""
        return jnp.logical_not(failed(self.status))


def solve(solver: Solver, gram: Array, td_error: Array) -> tuple[Array, SolveInfo]:
    """Solves K z = delta with any solver, in full float32 precision, and computes diagnostics of the solution.

    The solver is never called with a NaN, an infinity or K = 0, for which a factorization may be undefined or not
    terminate. It is then called with the identity instead of K, or zeros instead of delta, and z is zero. z is also
    zero if the solution is not finite.

    Examples:
      >>> z, info = solve(lambda gram, delta: jnp.linalg.solve(gram, delta), 2.0 * jnp.eye(2), jnp.array([1.0, 3.0]))
      >>> z.tolist(), float(info.residual)
      ([0.5, 1.5], 0.0)

    Args:
      solver: (gram ``[B, B]``, delta ``[B]``) -> z ``[B]``, or (z, damping []).
      gram: the kernel K, ``[B, B]``.
      td_error: delta, ``[B]``.

    Returns:
      z ``[B]`` and a :class:`SolveInfo`.

    Raises:
      ValueError: if ``solver`` is not a solver, or the shapes of the arguments, or of the solver's result, do not match
        (at trace time).
    """
    check_solver(solver)
    gram, td_error = whole((gram, td_error))
    if td_error.ndim != 1 or gram.shape != td_error.shape * 2:
        raise ValueError(f"gram and td_error must have shapes [B, B] and [B], got {gram.shape} and {td_error.shape}")
    with full_precision():
        finite_gram, finite_error = all_finite(gram), all_finite(td_error)
        finite_input = finite_gram & finite_error
        solvable = finite_input & (jnp.max(jnp.diagonal(gram)) > 0)
        safe_gram = jnp.where(solvable, gram, jnp.eye(gram.shape[0], dtype=gram.dtype))
        safe_error = jnp.where(finite_input, td_error, 0.0)

        z, damping = _solution(solver(safe_gram, safe_error), safe_error)
        finite = finite_input & all_finite(z)
        z = jnp.where(finite & solvable, z, 0.0)
        predicted = safe_gram @ z  # 0 if not solvable, since z is 0
        residual = relative_norm(predicted - safe_error, safe_error)
        no_error = jnp.all(td_error == 0)
        predicted_alignment = jnp.where(finite & no_error, 1.0, cosine(predicted, safe_error))
    reasons = {
        Status.NON_FINITE_TD_ERROR: ~finite_error,
        Status.NON_FINITE_KERNEL: ~finite_gram,
        Status.NON_FINITE_SOLUTION: ~finite,
        Status.NO_TD_ERROR: no_error,
    }
    status = jnp.asarray(Status.ACCEPTED, jnp.int32)
    for reason, holds in reversed(reasons.items()):  # the first reason that applies causes those after it
        status = jnp.where(holds, jnp.asarray(reason, jnp.int32), status)
    return z, SolveInfo(status, predicted_alignment, residual, damping, jnp.mean(jnp.diagonal(gram)))


def _solution(found: Any, td_error: Array) -> tuple[Array, Array]:
    """z and damping from the result of a solver."""
    z, damping = found if isinstance(found, tuple) and len(found) == 2 else (found, 0.0)
    if _shape(z) != td_error.shape or _shape(damping) != ():
        shapes = jax.tree.map(_shape, found, is_leaf=lambda leaf: leaf is None)
        raise ValueError(f"solver must return z of shape [B] = {td_error.shape}, or (z, damping []), got {shapes}")
    return jnp.asarray(z, td_error.dtype), jnp.asarray(damping, td_error.dtype)


def _shape(found: Any) -> tuple[int, ...] | None:
    """The shape of an array or a number; None for anything else that a solver may return, a tuple or None."""
    return None if found is None or isinstance(found, tuple) else jnp.shape(found)


@dataclasses.dataclass(frozen=True)
class PseudoInverse:
    """A solver that states its cut-off, for :func:`cut_off`.

    Attributes:
      solver: (gram ``[B, B]``, delta ``[B]``) -> z ``[B]``.
      rcond: the solver treats eigenvalues below rcond times the largest as zero.
    """

    solver: Solver
    rcond: float | Array

    def __call__(self, gram: Array, td_error: Array) -> Array | tuple[Array, Array]:
        """Calls the solver."""
        return self.solver(gram, td_error)


def cut_off(solver: Solver) -> float | Array:
    """The ``rcond`` of a solver, for :func:`preqn_jax.diagnostics.preconditioned_kernel`; 0 if it has none.

    The solver treats eigenvalues below rcond times the largest as zero.

    Raises:
      ValueError: if ``solver`` is not a solver.
    """
    check_solver(solver)
    return getattr(solver, "rcond", 0.0)


def lstsq(rcond: float = 1e-7) -> Solver:
    """Minimum-norm least squares by ``jnp.linalg.lstsq``: Eq. 22 of the paper, which does not state the cut-off.

    Args:
      rcond: singular values below rcond times the largest count as zero. JAX's default for float32, 3e-5 at B = 256,
        discards so much of the kernel of a sin network that no step can reach the paper's eta.

    Raises:
      ValueError: if rcond is not in [0, 1).
    """
    check_interval("rcond", rcond, "[0, 1)")

    return PseudoInverse(lambda gram, td_error: jnp.linalg.lstsq(gram, td_error, rcond=rcond)[0], rcond)


def ridge(damping: float = 1e-4) -> Solver:
    """(K + damping mean(diag K) I) z = delta by a Cholesky factorization: the fastest solver.

    If rounding makes even the damped K indefinite, damping is multiplied by 10 until the factorization succeeds.

    Args:
      damping: number added to the diagonal of K, in units of the mean of the diagonal.

    Raises:
      ValueError: if damping is not in [1.2e-38, inf), the positive normal numbers of float32.
    """
    check_interval("damping", damping, f"[{_TINY:g}, inf)")

    def solver(gram: Array, td_error: Array) -> tuple[Array, Array]:
        mean_diagonal = jnp.mean(jnp.diagonal(gram))
        identity = jnp.eye(gram.shape[0], dtype=gram.dtype)

        def attempt(damping: Array) -> Array:
            factor = jax.scipy.linalg.cho_factor(gram + damping * mean_diagonal * identity, lower=True)
            return jax.scipy.linalg.cho_solve(factor, td_error)

        def grow(state: tuple[Array, Array]) -> tuple[Array, Array]:
            larger = 10.0 * state[1]
            return attempt(larger), larger

        # The matrix is diagonally dominant, and therefore certainly solvable, before damping reaches B.
        def failed(state: tuple[Array, Array]) -> Array:
            return ~all_finite(state[0]) & (state[1] < 10.0 * gram.shape[0])

        smallest = jnp.asarray(damping, gram.dtype)
        first = (attempt(smallest), smallest)
        return jax.lax.while_loop(failed, grow, vary(first, varying_axes(first)))

    return solver


def eigh(rcond: float = 1e-7) -> Solver:
    """Like :func:`lstsq`, but by an eigendecomposition, which uses the symmetry of K.

    Args:
      rcond: eigenvalues below rcond times the largest, and negative eigenvalues, count as zero.

    Raises:
      ValueError: if rcond is not in [0, 1).
    """
    check_interval("rcond", rcond, "[0, 1)")

    def solver(gram: Array, td_error: Array) -> Array:
        eigenvalues, vectors = jnp.linalg.eigh(gram)
        kept = (eigenvalues > rcond * eigenvalues[-1]) & (eigenvalues > 0)
        inverse = jnp.where(kept, 1.0 / jnp.where(kept, eigenvalues, 1.0), 0.0)
        return vectors @ (inverse * (vectors.T @ td_error))

    return PseudoInverse(solver, rcond)


def aligned(min_predicted_alignment: float = 0.985) -> Solver:
    """Ridge with the largest damping of sufficient predicted alignment, which amplifies delta as little as possible.

    With K = U diag(s) U^T, the predicted alignment decreases monotonically with the damping (by Cauchy-Schwarz).
    Bisection over log damping between 1e-9 and 1 therefore finds the largest damping from one eigendecomposition. If no
    damping in this range is sufficient, the smallest is used. Damping above 1, which would suffice for a kernel close
    to the identity, would only shorten the step.

    Args:
      min_predicted_alignment: required cos(K z, delta), slightly above ``Linesearch.min_alignment``.

    Raises:
      ValueError: if min_predicted_alignment is not in (0, 1).
    """
    check_interval("min_predicted_alignment", min_predicted_alignment, "(0, 1)")

    def solver(gram: Array, td_error: Array) -> tuple[Array, Array]:
        eigenvalues, vectors = jnp.linalg.eigh(gram)
        # An eigenvalue below the rounding error of the largest is noise, and must not be divided by.
        kept = eigenvalues > jnp.finfo(gram.dtype).eps * eigenvalues[-1]
        eigenvalues = jnp.where(kept, eigenvalues, 0.0)
        mean_diagonal = jnp.mean(jnp.diagonal(gram))
        coefficients = vectors.T @ td_error

        def solution(log_damping: Array) -> Array:  # in the eigenbasis
            return jnp.where(kept, coefficients / (eigenvalues + jnp.exp(log_damping) * mean_diagonal), 0.0)

        def bisect(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            reaches = cosine(eigenvalues * solution(middle), coefficients) >= min_predicted_alignment
            return jnp.where(reaches, middle, low), jnp.where(reaches, high, middle)

        bounds = jnp.log(jnp.asarray([1e-9, 1.0], gram.dtype))
        bracket = vary((bounds[0], bounds[1]), varying_axes(gram, td_error, min_predicted_alignment))
        low, _ = jax.lax.fori_loop(0, 30, bisect, bracket)
        return vectors @ solution(low), jnp.exp(low)

    return solver


SOLVERS: dict[str, Callable[..., Solver]] = {"lstsq": lstsq, "ridge": ridge, "eigh": eigh, "aligned": aligned}


def check_solver(solver: Any) -> None:
    """Checks that a solver takes the arguments (gram, delta).

    Raises:
      ValueError: if it does not, for example if it is ``"lstsq"`` or :func:`lstsq` instead of ``lstsq()``.
    """
    uncalled = [name for name, constructor in SOLVERS.items() if constructor is solver]
    if isinstance(solver, str):
        meant, found = difflib.get_close_matches(solver, SOLVERS, n=1), f"the string {solver!r}"
    elif uncalled:
        meant, found = uncalled, f"solvers.{uncalled[0]} itself"
    elif misfit := misfit_of_two(solver):
        meant, found = [], misfit
    else:
        return
    remedy = f"did you mean solvers.{meant[0]}()?" if meant else "pass one of solvers, such as solvers.ridge()"
    raise ValueError(f"solver must be a function (gram, delta) -> z, got {found}; {remedy}")
