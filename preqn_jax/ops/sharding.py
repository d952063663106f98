"""Support for arrays that are distributed over devices, by ``jax.shard_map`` or over a mesh with Explicit axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def varying_axes(*trees: Any) -> frozenset[Any]:
    """The mesh axes of an enclosing ``jax.shard_map`` along which any leaf may differ between devices.

    The result is empty outside of ``jax.shard_map``, and with ``check_vma=False``, where JAX does not track these axes.
    """
    return frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(trees)))


def vary(tree: T, axes: frozenset[Any]) -> T:
    """Returns the same values, typed as varying along ``axes``.

    With ``check_vma=True``, this is needed in two cases. JAX sums the derivative with respect to a value that is equal
    on all devices over these devices; per-example gradients must therefore be taken with respect to parameters that
    vary as the Q-values do. And a loop whose condition varies must carry values that vary.
    """

    def vary_leaf(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _varying(leaf), key=str))
        if not missing:
            return leaf
        lax: Any = jax.lax  # the name of its function depends on the JAX version
        return lax.pcast(leaf, missing, to="varying") if hasattr(lax, "pcast") else lax.pvary(leaf, missing)

    return jax.tree.map(vary_leaf, tree) if axes else tree


def whole(tree: T) -> T:
    """Gathers leaves that are sharded over Explicit mesh axes on every device; other leaves remain unchanged.

    The kernel relates every example of a minibatch to every other example, which the sharding rules of Explicit axes
    cannot express.
    """

    def gather(leaf: Any) -> Any:
        sharding = jax.typeof(leaf).sharding if isinstance(leaf, jax.Array) else None
        if sharding is None or all(axes is None for axes in sharding.spec):
            return leaf
        return jax.sharding.reshard(leaf, jax.NamedSharding(sharding.mesh, jax.P()))

    return jax.tree.map(gather, tree)


def resized(tree: T, size: int) -> T:
    """Abstract leaves (shape and dtype) with ``size`` rows, which vary between devices as the given leaves do."""

    def resize(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = (size, *leaf.shape[1:])
        if not _varying(leaf) or leaf.shape[0] == 0:
            return jax.ShapeDtypeStruct(shape, leaf.dtype)
        return jax.eval_shape(lambda leaf: jnp.broadcast_to(leaf[:1], shape), leaf)

    return jax.tree.map(resize, tree)


def collectives(jaxpr: Any) -> Iterator[str]:
    """Names of the primitives in a jaxpr that communicate along a named axis of ``shard_map`` or ``vmap``."""
    for equation in jaxpr.eqns if _named_axes(jaxpr) else ():
        inner = [getattr(value, "jaxpr", value) for value in jax.tree.leaves(list(equation.params.values()))]
        nested = [value for value in inner if hasattr(value, "eqns")]
        for value in nested:
            yield from collectives(value)
        if not nested and _named_axes(equation) and equation.primitive.name != "axis_index":
            yield equation.primitive.name.removesuffix("_invariant")


def _named_axes(thing: Any) -> bool:
    return any(type(effect).__name__ == "NamedAxisEffect" for effect in thing.effects)


def _varying(leaf: Any) -> frozenset[Any]:
    kind: Any = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf  # the leaf may already be a type
    if hasattr(kind, "manual_axis_type"):  # since JAX 0.10
        return getattr(kind.manual_axis_type, "varying", frozenset())
    return getattr(kind, "vma", None) or frozenset()
