"""Activation functions, including a sine that takes no longer than the matrix product before it.

PreQN's networks use sin (Achiam et al. 2019, sections 5.1 and 5.2). On CPUs, XLA's sine takes longer than a 256 x 256
matrix product, and one update evaluates it and its derivative a dozen times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from preqn_jax.types import Array

_FAST_RANGE = 1e4  # |x| up to which the three-part reduction below stays exact to float32
# pi in three parts (Cody and Waite 1980, chapter 8). The first two have so few bits that their products with
# an integer below 2**12 are exact.
_PI_PARTS = (3.140625, 9.67502593994140625e-4, 1.509957990978376432e-7)
# Minimax coefficients on [-pi/2, pi/2] for sin(r) = r + r^3 P(r^2) and cos(r) = 1 + r^2 P(r^2), lowest first.
_SIN_COEFFICIENTS = (-1.6666656732559204e-1, 8.333016186952591e-3, -1.9806546331711594e-4, 2.599902700239909e-6)
_COS_COEFFICIENTS = (-0.5, 4.166664183139801e-2, -1.3888402609154582e-3, 2.476180816302076e-5, -2.607565932066791e-7)


def _reduce(x: Array) -> tuple[Array, Array]:
    """Returns r in [-pi/2, pi/2] and sign, with sin(x) = sign sin(r) and cos(x) = sign cos(r)."""
    n = jnp.round(x * (1.0 / jnp.pi))
    r = x
    for part in _PI_PARTS:
        r = r - n * part
    sign = 1.0 - 2.0 * (n.astype(jnp.int32) & 1).astype(x.dtype)
    return r, sign


def _polynomial(square: Array, coefficients: tuple[float, ...]) -> Array:
    value = jnp.full_like(square, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * square + coefficient
    return value


def polynomial_sin(x: Array) -> Array:
    """The sine of float32 numbers in the range of the polynomial, elementwise."""
    r, sign = _reduce(x)
    square = r * r
    return sign * (r + r * square * _polynomial(square, _SIN_COEFFICIENTS))


def polynomial_sin_cos(x: Array) -> tuple[Array, Array]:
    """Sine and cosine of float32 numbers in the range of the polynomials, elementwise."""
    r, sign = _reduce(x)
    square = r * r
    sine = r + r * square * _polynomial(square, _SIN_COEFFICIENTS)
    return sign * sine, sign * (1.0 + square * _polynomial(square, _COS_COEFFICIENTS))


def _plain_sin_cos(x: Array) -> tuple[Array, Array]:
    return jnp.sin(x), jnp.cos(x)


def _fast_on_cpu(fast: Callable[[Array], Any], plain: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Uses ``fast`` for float32 on CPU if every |x| is in its range, else ``plain``; both are elementwise."""

    def on_cpu(x: Array) -> Any:
        # False for NaN and infinity too. XLA vectorizes a maximum, but not a conjunction of comparisons.
        in_range = jnp.max(jnp.abs(x), initial=0.0) <= _FAST_RANGE
        return jax.lax.cond(in_range, fast, plain, x)

    @jax.custom_batching.custom_vmap
    def function(x: Array) -> Any:
        if x.dtype != jnp.float32:
            return plain(x)
        return jax.lax.platform_dependent(x, cpu=on_cpu, default=plain)

    # An elementwise function handles a batch without change. Without this rule, vmap would turn the cond into a
    # select, and evaluate both branches.
    @function.def_vmap
    def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Any, Any]:
        del axis_size
        result = function(x)
        return result, jax.tree.map(lambda _: in_batched[0], result)

    return function


_sin = _fast_on_cpu(polynomial_sin, jnp.sin)
_sin_cos = _fast_on_cpu(polynomial_sin_cos, _plain_sin_cos)


@jax.custom_jvp
def sin(x: Array) -> Array:
    """Sine, elementwise, with cos(x) as its exact derivative.

    For float32 on CPU, the absolute error is within 2e-7 for |x| <= 1e4, by a three-part Cody-Waite reduction and a
    polynomial; an array with any larger, infinite or NaN entry is passed to ``jnp.sin``. On other platforms, and for
    other dtypes, this is ``jnp.sin``.

    Args:
      x: floating-point array of any shape, radians.

    Returns:
      An array of x's shape and dtype.
    """
    return _sin(x)


_Pair = tuple[Array, Array]


@jax.custom_jvp
def _sin_and_cos(x: Array) -> _Pair:
    return _sin_cos(x)


@sin.defjvp
def _sin_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    sine, cosine = _sin_and_cos(*primals)
    return sine, tangents[0] * cosine


@_sin_and_cos.defjvp
def _sin_and_cos_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[_Pair, _Pair]:
    sine, cosine = _sin_and_cos(*primals)
    return (sine, cosine), (tangents[0] * cosine, -tangents[0] * sine)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"sin": sin, "relu": jax.nn.relu, "tanh": jnp.tanh}
