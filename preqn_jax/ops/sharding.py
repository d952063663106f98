"""Arrays that are spread over devices: inside ``jax.shard_map``, and over a mesh with Explicit axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def varying_axes(*trees: Any) -> frozenset[Any]:
    """Mesh axes of an enclosing ``jax.shard_map`` along which any leaf may differ between devices.

    None outside of it, and none with ``check_vma=False``, where JAX does not track them.
    """
    return frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(trees)))


def vary(tree: T, axes: frozenset[Any]) -> T:
    """The same values, typed as varying along ``axes``.

    Two things need it with ``check_vma=True``. A derivative by what is equal on all devices is summed over them, so
    per-example gradients are taken by parameters that vary as the Q-values do. And a loop whose condition varies has to
    carry what varies.
    """

    def vary_leaf(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _varying(leaf), key=str))
        if not missing:
            return leaf
        lax: Any = jax.lax  # whose function for it has changed its name
        return lax.pcast(leaf, missing, to="varying") if hasattr(lax, "pcast") else lax.pvary(leaf, missing)

    return jax.tree.map(vary_leaf, tree) if axes else tree


def whole(tree: T) -> T:
    """Leaves that are sharded over Explicit mesh axes gathered on every device; all others as they are.

    The kernel relates every example of a minibatch with every other, which the sharding rules of Explicit axes cannot
    express.
    """

    def gather(leaf: Any) -> Any:
        sharding = jax.typeof(leaf).sharding if isinstance(leaf, jax.Array) else None
        if sharding is None or all(axes is None for axes in sharding.spec):
            return leaf
        return jax.sharding.reshard(leaf, jax.NamedSharding(sharding.mesh, jax.P()))

    return jax.tree.map(gather, tree)


def resized(tree: T, size: int) -> T:
    """Shapes of the leaves with ``size`` rows, which vary between devices as the leaves do."""

    def resize(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = (size, *leaf.shape[1:])
        if not _varying(leaf) or leaf.shape[0] == 0:
            return jax.ShapeDtypeStruct(shape, leaf.dtype)
        return jax.eval_shape(lambda leaf: jnp.broadcast_to(leaf[:1], shape), leaf)

    return jax.tree.map(resize, tree)


def collectives(jaxpr: Any) -> Iterator[str]:
    """Names of the primitives in a jaxpr that communicate along a named axis, of ``shard_map`` or ``vmap``."""
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
    kind: Any = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf  # which may be a type itself
    if hasattr(kind, "manual_axis_type"):  # since JAX 0.10
        return getattr(kind.manual_axis_type, "varying", frozenset())
    return getattr(kind, "vma", None) or frozenset()
