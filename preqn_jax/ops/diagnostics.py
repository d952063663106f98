"""Diagnostics of an update, computed from its kernel: sections 5.1 and 3.2 (failure modes) of Achiam et al. (2019)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from preqn_jax.ops.alignment import cosine, relative_norm
from preqn_jax.ops.checks import check_shape, check_square, check_vectors
from preqn_jax.ops.contraction import ContractionConditions, contraction_bound, contraction_conditions
from preqn_jax.ops.precision import full_precision
from preqn_jax.types import Array

__all__ = [
    "ContractionConditions",
    "DiagonalStats",
    "FailureModes",
    "contraction_bound",
    "contraction_conditions",
    "cosine",
    "diagonal_stats",
    "effective_rank",
    "failure_modes",
    "preconditioned_kernel",
    "row_ratio",
    "unsupported_share",
]


class DiagonalStats(NamedTuple):
    """Statistics of K_ii, the influence of an example's error on its own value, over a minibatch. All scalars."""

    mean: Array
    std: Array
    min: Array
    max: Array


def diagonal_stats(gram: Array) -> DiagonalStats:
    """Statistics of the diagonal of the kernel ``gram``, ``[B, B]``."""
    check_square("gram", gram)
    diagonal = jnp.diagonal(gram)
    return DiagonalStats(diagonal.mean(), diagonal.std(), diagonal.min(), diagonal.max())


def row_ratio(gram: Array) -> Array:
    """(1 / N) sum over j != i of |K_ij| / K_ii for each row i: the relative influence of other examples' errors.

    This is the row ratio of section 5.1 of Achiam et al. (2019).

    Args:
      gram: the kernel K, ``[N, N]``.

    Returns:
      The ratios ``[N]``. If K_ii = 0, the ratio is 0 for a row of zeros, else infinity.
    """
    check_square("gram", gram)
    diagonal = jnp.diagonal(gram)
    off_diagonal = jnp.sum(jnp.abs(gram), axis=1) - jnp.abs(diagonal)
    return jnp.where(off_diagonal == 0, 0.0, off_diagonal / diagonal) / gram.shape[0]


def effective_rank(gram: Array) -> Array:
    """The exponential of the entropy of the normalized eigenvalues, between 1 and N (Roy and Vetterli 2007).

    Args:
      gram: the kernel K, symmetric, ``[N, N]``; negative eigenvalues, which are due to rounding, count as zero.

    Returns:
      A scalar; 0 for K = 0, NaN if K is not finite.
    """
    check_square("gram", gram)
    with full_precision():
        eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(gram), 0.0)
    total = eigenvalues.sum()
    p = eigenvalues / jnp.where(total > 0, total, 1.0)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    rank = jnp.where(total > 0, jnp.exp(entropy), 0.0)
    return jnp.where(jnp.all(jnp.isfinite(gram)), rank, jnp.nan)


class FailureModes(NamedTuple):
    """The four failure modes of an update of Q (Achiam et al. 2019, section 3.2), each measured by a scalar.

    The paper quantifies two of them, in Eqs. 16 and 17; the measures and limits of the first and the last are ours.

    Attributes:
      linearization: ||actual - predicted|| / ||predicted||, of the change of Q (Failure Mode 1, Theorem 1). At 1 or
        above, the first-order model, and with it the whole analysis by K, does not describe the step.
      overshooting: largest alpha K_ii rho_i (Failure Mode 2, Eq. 16). At 1 or above, an entry moves past its own
        target.
      over_generalization: largest (1 + gamma) sum_{j != i} |K_ij| rho_j / ((1 - gamma) K_ii rho_i) (Failure Mode 3,
        Eq. 17, which still permits 1 itself). At 1 or above, the errors of other entries may outweigh an entry's own.
      extrapolation: mean of :func:`unsupported_share` over the next pairs (Failure Mode 4, which is rooted in Lemma 2:
        pairs without data). At 1/2 or above, targets depend more on values that the data leave open than on values that
        they determine.
    """

    linearization: Array
    overshooting: Array
    over_generalization: Array
    extrapolation: Array

    def present(self) -> FailureModes:
        """Which failure modes are present, each bool []; a NaN counts as present."""
        limits = (1.0, 1.0, 1.0, 0.5)
        return FailureModes(*(jnp.logical_not(value < limit) for value, limit in zip(self, limits, strict=True)))


def failure_modes(
    kernel: Array,
    rho: Array,
    td_error: Array,
    change: Array,
    unsupported: Array,
    *,
    step_size: float | Array,
    gamma: float | Array,
) -> FailureModes:
    """Measures the failure modes of one update on its inputs x_1 .. x_N.

    The update is modelled as Q' = Q + alpha K D_rho delta. For a gradient step on a minibatch, K is the kernel of the
    minibatch, and rho = 1 / N. For PreQN, K is the result of :func:`preconditioned_kernel`, and rho = 1.

    Args:
      kernel: K, ``[N, N]``.
      rho: share of each row in the data, ``[N]``.
      td_error: delta ``[N]``.
      change: the actual change Q' - Q, ``[N]``.
      unsupported: :func:`unsupported_share` of the next pairs, ``[M]``.
      step_size: alpha; for PreQN, the step size that the line search accepted.
      gamma: discount factor per step.

    Returns:
      :class:`FailureModes`; ``linearization`` is 0 if both the predicted and the actual change are zero.
    """
    check_shape("unsupported", unsupported, None)
    check_vectors(rho=rho, td_error=td_error, change=change)
    conditions = contraction_conditions(kernel, rho, step_size, gamma)
    with full_precision():
        predicted = step_size * (kernel @ (rho * td_error))
    missed = change - predicted
    unforeseen = jnp.any(missed != 0) & ~jnp.any(predicted != 0)
    return FailureModes(
        linearization=jnp.where(unforeseen, jnp.inf, relative_norm(missed, predicted)),
        overshooting=jnp.max(conditions.overshoot),
        over_generalization=jnp.max(
            jnp.where(conditions.spill == 0, 0.0, conditions.spill / jnp.maximum(conditions.pull, 0.0))
        ),
        extrapolation=jnp.mean(unsupported),
    )


def unsupported_share(
    gram: Array, cross: Array, next_diagonal: Array, damping: float | Array = 0.0, rcond: float = 1e-6
) -> Array:
    """Share of grad Q(x') that the gradients on the data do not span: the degree to which Q(x') is extrapolated.

        1 - K(x', X) K(X, X)^+ K(X, x') / K(x', x')

    If it is 0, a change of Q on X determines the change of Q(x'); if it is 1, the data do not affect Q(x'). The share
    is the posterior variance of a Gaussian process with covariance K, observed at X, in units of the prior variance
    (Rasmussen and Williams 2006, Eq. 2.26). It is a measurable proxy for targets outside of the support of the data
    (Fujimoto et al. 2019). The larger the part of the data that X contains, the more accurate it is; a single minibatch
    overestimates the share.

    Args:
      gram: K(X, X) ``[N, N]``.
      cross: K(X', X) ``[M, N]``, between the next pairs and the data.
      next_diagonal: K(x', x') ``[M]``.
      damping: added to the diagonal of K, in units of the mean of the diagonal.
      rcond: eigenvalues of K below rcond times the largest count as zero.

    Returns:
      ``[M]``, in [0, 1]; 0 if K(x', x') = 0, since no update can change Q(x') then.
    """
    check_square("gram", gram)
    check_shape("cross", cross, *next_diagonal.shape, gram.shape[0])
    _, inverse, vectors = _spectrum(gram, damping, rcond)
    with full_precision():
        explained = ((cross @ vectors) ** 2) @ inverse
    empty = next_diagonal == 0
    share = 1.0 - explained / jnp.where(empty, 1.0, next_diagonal)
    return jnp.where(empty, 0.0, jnp.clip(share, 0.0, 1.0))


def preconditioned_kernel(gram: Array, damping: float | Array = 0.0, rcond: float | Array = 1e-7) -> Array:
    """K (K + damping mean(diag K) I)^+, ``[N, N]``, which replaces K in PreQN's update.

    Without damping, it is the identity if K is invertible.

    Args:
      gram: the kernel K, symmetric, ``[N, N]``.
      damping: see ``SolveInfo.damping``.
      rcond: eigenvalues of K below rcond times the largest count as zero.
    """
    eigenvalues, inverse, vectors = _spectrum(gram, damping, rcond)
    with full_precision():
        return (vectors * (eigenvalues * inverse)[None, :]) @ vectors.T


def _spectrum(gram: Array, damping: float | Array, rcond: float | Array) -> tuple[Array, Array, Array]:
    """Eigenvalues of K, eigenvalues of the damped pseudo-inverse, and the eigenvectors as columns."""
    check_square("gram", gram)
    with full_precision():
        eigenvalues, vectors = jnp.linalg.eigh(gram)
    kept = ~(eigenvalues <= rcond * jnp.max(eigenvalues))  # NaN is kept, so that the result shows it
    damped = eigenvalues + damping * jnp.mean(jnp.diagonal(gram))
    return eigenvalues, jnp.where(kept, 1.0 / jnp.where(kept, damped, 1.0), 0.0), vectors
