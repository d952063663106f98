"""Conditional updates that are skipped under vmap, too, if no member needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from preqn_jax.types import Array

T = TypeVar("T")


@jax.custom_batching.custom_vmap
def any_in_vmap(condition: Array) -> Array:
    """Returns the condition; under vmap, a single value for all members: whether it holds for any of them."""
    return condition


@any_in_vmap.def_vmap
def _(axis_size: int, in_batched: list[bool], condition: Array) -> tuple[Array, bool]:
    del axis_size, in_batched  # there is only one argument, which is batched
    return any_in_vmap(jnp.any(condition, axis=0)), False


def update_if(due: Array, update: Callable[[T], T], state: T) -> T:
    """Returns ``update(state)`` where ``due`` is true, else ``state``.

    Under vmap, ``jax.lax.cond`` becomes a select, which evaluates the update of every member every time. Here the
    update is skipped whenever no member needs it.

    Args:
      due: bool, a scalar, or ``[N]`` for states whose leaves have the leading axis N.
      update: state -> state.
      state: any pytree of arrays.
    """

    def update_due(state: T) -> T:
        return jax.tree.map(lambda new, old: jnp.where(_trailing(due, new), new, old), update(state), state)

    return jax.lax.cond(any_in_vmap(due.any()), update_due, lambda state: state, state)


def _trailing(mask: Array, like: Array) -> Array:
    """Appends axes to the mask, so that it broadcasts against ``like``."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))
