"""Checks of options and arguments at trace time."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from preqn_jax.ops.q_functions import split
from preqn_jax.ops.sharding import collectives, resized, whole
from preqn_jax.types import Array, Inputs, Params


def known(name: str, value: float | Array) -> float | None:
    """Returns the value of an option as a float; None if it is traced, and therefore unknown.

    Raises:
      ValueError: if the value is not a number; the message names the option.
    """
    if callable(value):
        raise ValueError(f"{name} must be one number, got {kind(value)}: pass the value of a schedule at each step")
    if isinstance(value, str | bool | None) or jnp.ndim(value) != 0:
        raise ValueError(f"{name} must be one number, got {value!r}")
    try:
        return float(value)
    except jax.errors.ConcretizationTypeError:
        return None


def check_interval(name: str, value: float | Array, interval: str) -> None:
    """Checks a number against an interval in mathematical notation, ``"(0, 1]"``; a traced number is not checked.

    Raises:
      ValueError: if the number is outside of the interval; the message states both.
    """
    number = known(name, value)
    if number is None:
        return
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    below = number < high if interval[-1] == ")" else number <= high
    if not (above and below):
        raise ValueError(f"{name} must be in {interval}, got {number:g}")


def check_whole(name: str, value: float | Array) -> None:
    """Raises ValueError unless the number is whole; a traced number is not checked."""
    number = known(name, value)
    if number is not None and not number.is_integer():
        raise ValueError(f"{name} must be a whole number, got {number:g}")


def kind(thing: Any) -> str:
    """Names the type of an unsuitable argument for an error message, or the class itself if it is one."""
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__


def misfit_of_two(function: Any) -> str | None:
    """Describes why ``function`` does not take two positional arguments; None if it does, or may do."""
    if not callable(function):
        return kind(function)
    try:
        signature = inspect.signature(function, follow_wrapped=False)  # a decorator may change the arguments
    except (TypeError, ValueError):  # some builtin functions do not state theirs
        return None
    try:
        signature.bind(None, None)
    except TypeError:
        return f"a function of ({', '.join(signature.parameters)})"
    return None


def check_vectors(**arrays: Array) -> None:
    """Raises ValueError unless all arrays are vectors of one length."""
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{' and '.join(shapes)} must be vectors of one length, got shapes {found}")


def check_shape(name: str, array: Array, *expected: int | None) -> None:
    """Raises ValueError unless the array has the expected shape; None stands for any length."""
    shape = jnp.shape(array)
    if len(shape) != len(expected) or any(want not in (None, got) for want, got in zip(expected, shape, strict=True)):
        wanted = ", ".join("*" if length is None else str(length) for length in expected)
        raise ValueError(f"{name} must have shape [{wanted}], got {shape}")


def check_square(name: str, matrix: Array) -> None:
    """Raises ValueError unless the matrix is ``[N, N]``."""
    shape = jnp.shape(matrix)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{name} must be a square matrix [N, N], got shape {shape}")


def td_error_of(target: Array, values: Array) -> Array:
    """delta = target - Q ``[B]``, with stopped gradients.

    Args:
      target: ``[B]``.
      values: Q, ``[B]``.

    Raises:
      ValueError: if the target is not floating-point, or does not have the shape of the values.
    """
    try:
        target = whole(jnp.asarray(target))
    except (TypeError, ValueError):
        raise ValueError(f"target must be an array [B] = {values.shape}, got {type(target).__name__}") from None
    if target.shape != values.shape or not jnp.issubdtype(target.dtype, jnp.floating):
        raise ValueError(
            f"target must have shape [B] = {values.shape} and be floating-point, got shape {target.shape} "
            f"of {target.dtype}"
        )
    return jax.lax.stop_gradient(target.astype(values.dtype) - values)


def check_arguments(q_fn: Callable[[Params, Inputs], Array], params: Params, inputs: Inputs) -> Any:
    """Checks shapes and dtypes, since errors in them would otherwise broadcast silently into a wrong kernel.

    Only shapes are computed.

    Returns:
      The abstract Q-values (shape ``[B]`` and dtype).

    Raises:
      ValueError: if parameters or inputs have the wrong type, or Q-values do not have shape [B].
    """
    _check_params(split(q_fn, params)[0])
    size = batch_size(inputs)
    if size == 0:
        raise ValueError("inputs must hold at least one example, got B = 0")
    jaxpr, values = jax.make_jaxpr(q_fn, return_shape=True)(params, inputs)
    for name in collectives(jaxpr.jaxpr):
        raise ValueError(
            f"q_fn must not communicate along a mapped axis, got {name}, which would mix gradients of several devices "
            "in one kernel: apply it to the parameters or inputs before they are passed to q_fn"
        )
    found = getattr(values, "shape", type(values).__name__)
    if found != (size,):
        raise ValueError(f"q_fn must return one value per example, shape [B] = {(size,)}, got {found}")
    if values.dtype not in (jnp.float32, jnp.float64):  # a lower precision does not suffice to solve for z
        raise ValueError(f"q_fn must return float32 or float64 (cast its values to float32), got {values.dtype}")
    return jaxpr.out_avals[0]  # unlike ``values`` before JAX 0.8, this contains the axes along which they vary


def check_one_example(q_fn: Callable[[Params, Inputs], Array], params: Params, inputs: Inputs) -> jax.ShapeDtypeStruct:
    """Checks that a Q-function keeps the batch axis for a single example, which a ``squeeze`` would remove.

    Returns:
      The abstract Q-value (shape ``[1]`` and dtype).

    Raises:
      ValueError: if the Q-value of a single example does not have shape [1].
    """
    value = jax.eval_shape(q_fn, params, resized(inputs, 1))
    if value.shape != (1,):
        raise ValueError(
            f"q_fn must return one value per example, shape [B] = (1,) for a single one, got {value.shape}"
        )
    return value


def batch_size(inputs: Inputs, name: str = "inputs") -> int:
    """Returns the length B of the leading axis of all leaves.

    Raises:
      ValueError: if there are no leaves, or their leading axes differ.
    """
    leaves = jax.tree_util.tree_leaves_with_path(inputs)
    if not leaves:
        raise ValueError(f"{name} has no arrays: expected a pytree whose leaves have the leading batch axis B")
    shapes = {f"{name}{jax.tree_util.keystr(path)}": jnp.shape(leaf) for path, leaf in leaves}
    if any(not shape for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(f"the arrays in {name} must have the same leading batch axis B, got shapes {shapes}")
    return next(iter(shapes.values()))[0]


def _check_params(params: Params) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"params must hold floating-point arrays, got none in {type(params).__name__}")
    for path, leaf in leaves:
        found: Any = getattr(leaf, "dtype", type(leaf).__name__)
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(found, jnp.floating):
            raise ValueError(f"params must be floating-point arrays, got {found} in params{jax.tree_util.keystr(path)}")
