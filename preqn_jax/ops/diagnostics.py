"""What the kernel says about an update: section 5.1 of Achiam et al. (2019), and failure modes of section 3.2."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from preqn_jax.ops.alignment import cosine, relative_norm
from preqn_jax.ops.checks import check_shape, check_square, check_vectors
from preqn_jax.ops.contraction import contraction_bound, contraction_conditions
from preqn_jax.ops.precision import full_precision
from preqn_jax.types import Array

__all__ = [
    "DiagonalStats",
    "FailureModes",
    "contraction_bound",
    "cosine",
    "diagonal_stats",
    "effective_rank",
    "failure_modes",
    "preconditioned_kernel",
    "row_ratio",
    "unsupported_share",
]


class DiagonalStats(NamedTuple):
    """Of K_ii over the minibatch: how strongly an input's own error moves its own value. All scalars."""

    mean: Array
    std: Array
    min: Array
    max: Array


def diagonal_stats(gram: Array) -> DiagonalStats:
    """Statistics of the kernel's diagonal; gram is ``[B, B]``."""
    check_square("gram", gram)
    diagonal = jnp.diagonal(gram)
    return DiagonalStats(diagonal.mean(), diagonal.std(), diagonal.min(), diagonal.max())


def row_ratio(gram: Array) -> Array:
    """Per row i, (1 / N) sum over j != i of |K_ij| / K_ii: how much of an update spills over (section 5.1).

    Args:
      gram: ``[N, N]``.

    Returns:
      ``[N]``; a row with K_ii = 0 has ratio 0 if it is all zero, else infinity.
    """
    check_square("gram", gram)
    diagonal = jnp.diagonal(gram)
    off_diagonal = jnp.sum(jnp.abs(gram), axis=1) - jnp.abs(diagonal)
    return jnp.where(off_diagonal == 0, 0.0, off_diagonal / diagonal) / gram.shape[0]


def effective_rank(gram: Array) -> Array:
    """exp of the entropy of the normalized eigenvalues, between 1 and N (Roy and Vetterli 2007).

    Args:
      gram: ``[N, N]``, symmetric; negative eigenvalues (rounding) count as zero.

    Returns:
      A scalar; 0 for K = 0, NaN where K is not finite.
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
    """The four ways in which an update of Q goes wrong (Achiam et al. 2019, section 3.2), each as one number [].

    The paper gives numbers for two of them, Eqs. 16 and 17; the measures and limits of the first and the last are ours.

    Attributes:
      linearization: ||actual - predicted|| / ||predicted|| change of Q (Failure Mode 1, Theorem 1); from 1 on the
        first order, and with it the whole analysis by K, says nothing about the step.
      overshooting: largest alpha K_ii rho_i; from 1 on an entry steps past its own target (Failure Mode 2, Eq. 16).
      over_generalization: largest (1 + gamma) sum_{j != i} |K_ij| rho_j / ((1 - gamma) K_ii rho_i); from 1 on others'
        errors may outweigh an entry's own (Failure Mode 3, Eq. 17, which still admits 1 itself).
      extrapolation: mean of :func:`unsupported_share` over the next pairs; from 1/2 on targets rest more on what
        the data leave open than on what they fix (Failure Mode 4, whose root is Lemma 2: pairs without data).
    """

    linearization: Array
    overshooting: Array
    over_generalization: Array
    extrapolation: Array

    def present(self) -> FailureModes:
        """Which of them are there, each bool []; NaN is."""
        limits = (1.0, 1.0, 1.0, 0.5)
        return FailureModes(*(~(value < limit) for value, limit in zip(self, limits, strict=True)))


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
    """Tells the failure modes of one update apart, on the inputs x_1 .. x_N that it was made from.

    The update is taken to be Q' = Q + alpha K D_rho delta: for a gradient step on a minibatch K is its kernel and
    rho = 1 / N; for PreQN, K is :func:`preconditioned_kernel` and rho = 1.

    Args:
      kernel: ``[N, N]``.
      rho: ``[N]``.
      td_error: delta ``[N]``.
      change: Q' - Q as it turned out, ``[N]``.
      unsupported: :func:`unsupported_share` of the next pairs, ``[M]``.
      step_size: alpha; for PreQN the one that the linesearch accepted.
      gamma: discount factor per step.

    Returns:
      :class:`FailureModes`; linearization is 0 where no change was predicted and none came.
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
    """Share of grad Q(x') that the gradients on the data do not span: where Q(x') is extrapolated.

        1 - K(x', X) K(X, X)^+ K(X, x') / K(x', x')

    0: whatever moves Q on X moves Q(x') in a known way; 1: the data say nothing about Q(x'). It is the posterior
    variance of a Gaussian process with covariance K, observed at X, in units of the prior's (Rasmussen and Williams
    2006, Eq. 2.26): a measurable stand-in for targets outside of the data's support (Fujimoto et al. 2019). The more
    of the data X holds, the nearer it comes; a minibatch alone overstates it.

    Args:
      gram: K(X, X) ``[N, N]``.
      cross: K(X', X) ``[M, N]``, between the next pairs and the data.
      next_diagonal: K(x', x') ``[M]``.
      damping: added to K's diagonal, in units of its mean.
      rcond: eigenvalues of K below rcond times the largest count as zero.

    Returns:
      ``[M]``, in [0, 1]; 0 where K(x', x') = 0, as nothing is to be learned there.
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
    """K (K + damping mean(diag K) I)^+, ``[N, N]``: what stands in K's place in PreQN's update; I if K is invertible.

    Args:
      gram: ``[N, N]``, symmetric.
      damping: as in ``SolveInfo.damping``.
      rcond: eigenvalues of K below rcond times the largest count as zero.
    """
    eigenvalues, inverse, vectors = _spectrum(gram, damping, rcond)
    with full_precision():
        return (vectors * (eigenvalues * inverse)[None, :]) @ vectors.T


def _spectrum(gram: Array, damping: float | Array, rcond: float | Array) -> tuple[Array, Array, Array]:
    """Eigenvalues of K, those of the damped pseudo-inverse, and the eigenvectors as columns."""
    check_square("gram", gram)
    with full_precision():
        eigenvalues, vectors = jnp.linalg.eigh(gram)
    kept = ~(eigenvalues <= rcond * jnp.max(eigenvalues))  # NaN is kept, to be seen
    damped = eigenvalues + damping * jnp.mean(jnp.diagonal(gram))
    return eigenvalues, jnp.where(kept, 1.0 / jnp.where(kept, damped, 1.0), 0.0), vectors
