"""The cosine that PreQN's linesearch tests."""

from __future__ import annotations

import jax.numpy as jnp

from preqn_jax.ops.checks import check_vectors
from preqn_jax.types import Array


def cosine(a: Array, b: Array) -> Array:
    """cos(a, b) = <a, b> / (||a|| ||b||), safe at any scale.

    Args:
      a: ``[B]``.
      b: ``[B]``.

    Returns:
      A scalar in [-1, 1]; 0 where either vector is zero, NaN where either holds a NaN.

    Raises:
      ValueError: at trace time, unless both are vectors of one length.
    """
    check_vectors(a=a, b=b)
    a, b = _unit(a), _unit(b)
    return jnp.clip(jnp.sum(a * b), -1.0, 1.0)


def relative_norm(x: Array, reference: Array) -> Array:
    """||x|| / ||reference||, safe at any scale; 0 where the reference is zero. Both are ``[B]``."""
    largest = _largest(reference)
    norm = jnp.linalg.norm(reference / largest)
    return jnp.where(norm == 0, 0.0, jnp.linalg.norm(x / largest) / jnp.where(norm == 0, 1.0, norm))


def all_finite(x: Array) -> Array:
    """Whether no entry is infinite or NaN. A maximum vectorizes on CPU where a conjunction does not."""
    return jnp.isfinite(jnp.max(jnp.abs(x), initial=0.0))


def _unit(x: Array) -> Array:
    x = x / _largest(x)
    norm = jnp.linalg.norm(x)
    return x / jnp.where(norm == 0, 1.0, norm)


def _largest(x: Array) -> Array:
    """What to divide by before squaring: squares of float32 beyond 1e19, or below 1e-19, leave the range."""
    largest = jnp.max(jnp.abs(x))
    return jnp.where(largest == 0, 1.0, largest)
