"""The cosine that PreQN's line search tests."""

from __future__ import annotations

import jax.numpy as jnp

from preqn_jax.ops.checks import check_vectors
from preqn_jax.types import Array


def cosine(a: Array, b: Array) -> Array:
    """cos(a, b) = <a, b> / (||a|| ||b||), without overflow or underflow at any scale.

    Args:
      a: a vector ``[B]``.
      b: a vector ``[B]``.

    Returns:
      A scalar in [-1, 1]; 0 if either vector is zero, NaN if either contains a NaN.

    Raises:
      ValueError: if a and b are not vectors of one length (at trace time).
    """
    check_vectors(a=a, b=b)
    a, b = _unit(a), _unit(b)
    return jnp.clip(jnp.sum(a * b), -1.0, 1.0)


def relative_norm(x: Array, reference: Array) -> Array:
    """||x|| / ||reference|| of two vectors ``[B]``, at any scale; 0 if the reference is zero."""
    largest = _largest(reference)
    norm = jnp.linalg.norm(reference / largest)
    return jnp.where(norm == 0, 0.0, jnp.linalg.norm(x / largest) / jnp.where(norm == 0, 1.0, norm))


def root_mean_square(x: Array) -> Array:
    """The root mean square of a vector ``[B]``, at any scale."""
    largest = _largest(x)
    return jnp.where(jnp.isfinite(largest), largest * jnp.sqrt(jnp.mean((x / largest) ** 2)), largest)


def all_finite(x: Array) -> Array:
    """Whether no entry is infinite or NaN, bool []. XLA vectorizes a maximum on CPU, but not a conjunction."""
    return jnp.isfinite(jnp.max(jnp.abs(x), initial=0.0))


def _unit(x: Array) -> Array:
    x = x / _largest(x)
    norm = jnp.linalg.norm(x)
    return x / jnp.where(norm == 0, 1.0, norm)


def _largest(x: Array) -> Array:
    """The divisor to apply before squaring: squares of float32 above 1e19 overflow, those below 1e-19 underflow."""
    largest = jnp.max(jnp.abs(x))
    return jnp.where(largest == 0, 1.0, largest)
