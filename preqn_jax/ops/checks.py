"""Checks of options and arguments while tracing."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from preqn_jax.types import Array


def known(value: float | Array) -> float | None:
    """The number that an option holds, of whatever kind; None if it is traced and so not known yet."""
    try:
        return float(value)
    except jax.errors.ConcretizationTypeError:
        return None


def td_error_of(td_error: Array, values: Array) -> Array:
    """The TD error as everything behind it takes it: ``[B]`` like the values, and a constant to differentiation.

    Raises:
      ValueError: if it is not floating-point, or not one error per value.
    """
    td_error = jnp.asarray(td_error)
    if td_error.shape != values.shape or not jnp.issubdtype(td_error.dtype, jnp.floating):
        raise ValueError(
            f"td_error must have shape [B] = {values.shape} and be floating-point, got shape {td_error.shape} "
            f"of {td_error.dtype}"
        )
    return jax.lax.stop_gradient(td_error.astype(values.dtype))
