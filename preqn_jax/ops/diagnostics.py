"""What the kernel says about an update, before or without taking it (Achiam et al. 2019, section 5.1)."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax.numpy as jnp

from preqn_jax.ops.alignment import cosine
from preqn_jax.ops.precision import full_precision
from preqn_jax.types import Array

__all__ = ["DiagonalStats", "cosine", "diagonal_stats", "effective_rank", "row_ratio"]


class DiagonalStats(NamedTuple):
    """Of K_ii over the minibatch: how strongly an input's own error moves its own value. All scalars."""

    mean: Array
    std: Array
    min: Array
    max: Array


def diagonal_stats(gram: Array) -> DiagonalStats:
    """Statistics of the kernel's diagonal; gram is ``[B, B]``."""
    _check_square(gram)
    diagonal = jnp.diagonal(gram)
    return DiagonalStats(diagonal.mean(), diagonal.std(), diagonal.min(), diagonal.max())


def row_ratio(gram: Array) -> Array:
    """Per row i, (1 / N) sum over j != i of |K_ij| / K_ii: how much of an update spills over (section 5.1).

    Args:
      gram: ``[N, N]``.

    Returns:
      ``[N]``; a row with K_ii = 0 has ratio 0 if it is all zero, else infinity.
    """
    _check_square(gram)
    diagonal = jnp.diagonal(gram)
    off_diagonal = jnp.sum(jnp.abs(gram), axis=1) - jnp.abs(diagonal)
    return jnp.where(off_diagonal == 0, 0.0, off_diagonal / diagonal) / gram.shape[0]


def effective_rank(gram: Array) -> Array:
    """exp of the entropy of the normalized eigenvalues, between 1 and N (Roy and Vetterli 2007).

    Args:
      gram: ``[N, N]``, symmetric; negative eigenvalues (rounding) count as zero.

    Returns:
      A scalar; 0 for K = 0.
    """
    _check_square(gram)
    with full_precision():
        eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(gram), 0.0)
    total = eigenvalues.sum()
    p = eigenvalues / jnp.where(total > 0, total, 1.0)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    return jnp.where(total > 0, jnp.exp(entropy), 0.0)


def _check_square(gram: Array) -> None:
    chex.assert_rank(gram, 2)
    chex.assert_shape(gram, (gram.shape[0], gram.shape[0]))
