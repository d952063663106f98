"""The cosine that PreQN's linesearch tests."""

from __future__ import annotations

import jax.numpy as jnp

from preqn_jax.types import Array


def cosine(a: Array, b: Array) -> Array:
    """cos(a, b) = <a, b> / (||a|| ||b||), safe at any scale.

    Args:
      a: ``[B]``.
      b: ``[B]``.

    Returns:
      A scalar in [-1, 1]; 0 where either vector is zero, NaN where either holds a NaN.
    """
    a, b = _unit(a), _unit(b)
    return jnp.clip(jnp.vdot(a, b), -1.0, 1.0)


def _unit(x: Array) -> Array:
    # First to a largest entry of 1: squares of float32 beyond 1e19, or below 1e-19, leave the range.
    largest = jnp.max(jnp.abs(x))
    x = x / jnp.where(largest == 0, 1.0, largest)
    norm = jnp.linalg.norm(x)
    return x / jnp.where(norm == 0, 1.0, norm)
