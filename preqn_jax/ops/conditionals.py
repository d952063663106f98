"""Work that is done only where it is due, under vmap too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from preqn_jax.types import Array

T = TypeVar("T")


@jax.custom_batching.custom_vmap
def any_in_vmap(condition: Array) -> Array:
    """The condition itself; under vmap, whether it holds for any member, one value for all of them."""
    return condition


@any_in_vmap.def_vmap
def _(axis_size: int, in_batched: list[bool], condition: Array) -> tuple[Array, bool]:
    del axis_size, in_batched  # the only argument: it is
    return any_in_vmap(jnp.any(condition, axis=0)), False


def update_if(due: Array, update: Callable[[T], T], state: T) -> T:
    """``update(state)`` where ``due``, else ``state``.

    Under vmap a plain cond becomes a select, and every member pays for the update every time. Here nobody does
    while it is due for none of them.

    Args:
      due: bool, scalar, or ``[N]`` for states whose leaves lead with N.
      update: state -> state.
      state: any pytree of arrays.
    """

    def update_due(state: T) -> T:
        return jax.tree.map(lambda new, old: jnp.where(_trailing(due, new), new, old), update(state), state)

    return jax.lax.cond(any_in_vmap(due.any()), update_due, lambda state: state, state)


def _trailing(mask: Array, like: Array) -> Array:
    """The mask with as many axes as ``like``, the new ones last, to be broadcast against it."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))
