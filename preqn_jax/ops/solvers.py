"""Solvers of K Z = delta, the system behind PreQN's update (Achiam et al. 2019, Eq. 22).

Each public function but the table makes a solver: ``solve(gram [B, B], td_error [B]) -> (z [B], SolveInfo)``.
A minibatch drawn with replacement repeats rows, so K is singular as a rule; how a solver regularizes decides
whether K Z can still point along delta, which ``SolveInfo.predicted_alignment`` tells before any step is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from preqn_jax.ops.alignment import all_finite, cosine, relative_norm
from preqn_jax.ops.checks import known
from preqn_jax.ops.precision import full_precision
from preqn_jax.ops.sharding import vary, varying_axes, whole
from preqn_jax.types import Array


class SolveInfo(NamedTuple):
    """How well a solver did.

    Attributes:
      predicted_alignment: cos(K z, delta), the alignment that a step would have were Q linear; 1 for delta = 0,
        float [].
      residual: ||K z - delta|| / ||delta||, 0 for delta = 0, float [].
      damping: what was added to K's diagonal, in units of its mean, float [].
      finite: whether the input and the solution were finite; if not, z is zero, bool [].
    """

    predicted_alignment: Array
    residual: Array
    damping: Array
    finite: Array


_TINY = float(jnp.finfo(jnp.float32).tiny)  # no range here includes zero

Solver = Callable[[Array, Array], tuple[Array, SolveInfo]]
_Method = Callable[[Array, Array], tuple[Array, Array]]  # (gram, td_error) -> (z, damping)


def lstsq(rcond: float = 1e-7) -> Solver:
    """Minimum-norm least squares by ``jnp.linalg.lstsq``: the paper's Eq. 22, with a cut-off that it does not state.

    Args:
      rcond: singular values below rcond times the largest count as zero. JAX's float32 default, 3e-5 at B = 256,
        discards so much of a sin network's kernel that no step can reach the paper's eta.

    Raises:
      ValueError: if rcond is not in [0, 1).
    """
    _check_range("rcond", rcond, 0.0, 1.0)

    def method(gram: Array, td_error: Array) -> tuple[Array, Array]:
        return jnp.linalg.lstsq(gram, td_error, rcond=rcond)[0], jnp.zeros((), gram.dtype)

    return _guarded(method)


def ridge(damping: float = 1e-4) -> Solver:
    """(K + damping mean(diag K) I) z = delta by Cholesky: the fast one.

    Where rounding makes even the damped K indefinite, damping grows tenfold until the factorization succeeds.

    Args:
      damping: in units of K's mean diagonal.

    Raises:
      ValueError: if damping is not in (0, inf).
    """
    _check_range("damping", damping, _TINY, jnp.inf)

    def method(gram: Array, td_error: Array) -> tuple[Array, Array]:
        mean_diagonal = jnp.mean(jnp.diagonal(gram))
        identity = jnp.eye(gram.shape[0], dtype=gram.dtype)

        def attempt(damping: Array) -> Array:
            factor = jax.scipy.linalg.cho_factor(gram + damping * mean_diagonal * identity, lower=True)
            return jax.scipy.linalg.cho_solve(factor, td_error)

        def grow(state: tuple[Array, Array]) -> tuple[Array, Array]:
            larger = 10.0 * state[1]
            return attempt(larger), larger

        # Diagonally dominant, and so certainly solvable, before damping reaches B.
        def failed(state: tuple[Array, Array]) -> Array:
            return ~all_finite(state[0]) & (state[1] < 10.0 * gram.shape[0])

        smallest = jnp.asarray(damping, gram.dtype)
        first = (attempt(smallest), smallest)
        return jax.lax.while_loop(failed, grow, vary(first, varying_axes(first)))

    return _guarded(method)


def eigh(rcond: float = 1e-7) -> Solver:
    """Pseudo-inverse from an eigendecomposition, which uses K's symmetry; else as :func:`lstsq`.

    Args:
      rcond: eigenvalues below rcond times the largest, and negative ones, count as zero.

    Raises:
      ValueError: if rcond is not in [0, 1).
    """
    _check_range("rcond", rcond, 0.0, 1.0)

    def method(gram: Array, td_error: Array) -> tuple[Array, Array]:
        eigenvalues, vectors = jnp.linalg.eigh(gram)
        kept = (eigenvalues > rcond * eigenvalues[-1]) & (eigenvalues > 0)
        inverse = jnp.where(kept, 1.0 / jnp.where(kept, eigenvalues, 1.0), 0.0)
        return vectors @ (inverse * (vectors.T @ td_error)), jnp.zeros((), gram.dtype)

    return _guarded(method)


def aligned(target: float = 0.985) -> Solver:
    """The largest ridge whose predicted alignment reaches ``target``: as little amplification as eta allows.

    With K = U diag(s) U^T the predicted alignment falls monotonically as the ridge grows (by Cauchy-Schwarz), so
    bisection over log damping between 1e-9 and 1 finds it from one eigendecomposition. If no ridge in that range
    reaches the target the smallest is taken. A ridge above 1, which a kernel near the identity would bear, would only
    shorten the step.

    Args:
      target: wanted cos(K z, delta), a little above the linesearch's eta.

    Raises:
      ValueError: if target is not in (0, 1).
    """
    _check_range("target", target, _TINY, 1.0)

    def method(gram: Array, td_error: Array) -> tuple[Array, Array]:
        eigenvalues, vectors = jnp.linalg.eigh(gram)
        # Below float rounding of the largest an eigenvalue is noise: no ridge, however small, is to divide by it.
        kept = eigenvalues > jnp.finfo(gram.dtype).eps * eigenvalues[-1]
        eigenvalues = jnp.where(kept, eigenvalues, 0.0)
        mean_diagonal = jnp.mean(jnp.diagonal(gram))
        coefficients = vectors.T @ td_error

        def solution(log_damping: Array) -> Array:  # in the eigenbasis
            return jnp.where(kept, coefficients / (eigenvalues + jnp.exp(log_damping) * mean_diagonal), 0.0)

        def bisect(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            reaches = cosine(eigenvalues * solution(middle), coefficients) >= target
            return jnp.where(reaches, middle, low), jnp.where(reaches, high, middle)

        bounds = jnp.log(jnp.asarray([1e-9, 1.0], gram.dtype))
        bracket = vary((bounds[0], bounds[1]), varying_axes(gram, td_error, target))
        low, _ = jax.lax.fori_loop(0, 30, bisect, bracket)
        return vectors @ solution(low), jnp.exp(low)

    return _guarded(method)


SOLVERS: dict[str, Callable[..., Solver]] = {"lstsq": lstsq, "ridge": ridge, "eigh": eigh, "aligned": aligned}


def _guarded(method: _Method) -> Solver:
    """What all solvers share: shapes, full precision, K = 0, non-finite input, and the SolveInfo."""

    def solve(gram: Array, td_error: Array) -> tuple[Array, SolveInfo]:
        gram, td_error = whole((gram, td_error))
        chex.assert_rank(td_error, 1)
        chex.assert_shape(gram, (td_error.shape[0], td_error.shape[0]))
        with full_precision():
            finite_input = all_finite(gram) & all_finite(td_error)
            # A factorization of NaN, or of K = 0, is undefined or endless; such input never reaches one.
            solvable = finite_input & (jnp.max(jnp.diagonal(gram)) > 0)
            safe_gram = jnp.where(solvable, gram, jnp.eye(gram.shape[0], dtype=gram.dtype))
            safe_error = jnp.where(finite_input, td_error, 0.0)

            z, damping = method(safe_gram, safe_error)
            finite = finite_input & all_finite(z)
            z = jnp.where(finite & solvable, z, 0.0)
            predicted = safe_gram @ z  # 0 where not solvable, as z is
            residual = relative_norm(predicted - safe_error, safe_error)
            nothing_wanted = finite & jnp.all(td_error == 0)
            predicted_alignment = jnp.where(nothing_wanted, 1.0, cosine(predicted, safe_error))
        return z, SolveInfo(predicted_alignment, residual, damping, finite)

    return solve


def _check_range(name: str, value: float | Array, low: float, high: float) -> None:
    number = known(name, value)
    if number is not None and not low <= number < high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}), got {number:g}")
