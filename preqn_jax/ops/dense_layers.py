"""Gradients of a Flax module in the factored form of its ``nn.Dense`` layers, for :func:`preqn_jax.ops.ntk.dense`."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from preqn_jax.ops import example_gradients
from preqn_jax.ops.q_functions import QFunction
from preqn_jax.ops.sharding import resized, vary, varying_axes
from preqn_jax.types import Array, Inputs, Params

# The functions of a Dense layer that a user may replace, with their defaults.
_HOOKS = {name: getattr(nn.Dense, name) for name in ("dot_general", "dot_general_cls", "promote_dtype")}


class _Call(NamedTuple):
    """One call of a Dense layer, with the shape of its output [B, ..., out]."""

    path: tuple[str, ...]
    has_bias: bool
    output: jax.ShapeDtypeStruct


class Factors(NamedTuple):
    """Gradients in factored form: for the kernel of a layer, g_i = A_i^T D_i with A_i [T, in] and D_i [T, out].

    T is the number of rows per example on which the layer is applied, for example over tokens or repeated calls.

    Attributes:
      biased: path of a layer with bias -> (A [B, T, in], D [B, T, out]).
      unbiased: path of a layer without bias -> (A [B, T, in], D [B, T, out]).
      others: path of any other parameter -> its per-example gradients [B, ...].
    """

    biased: dict[tuple[str, ...], tuple[Array, Array]]
    unbiased: dict[tuple[str, ...], tuple[Array, Array]]
    others: dict[tuple[str, ...], Array]


def factors(q_fn: QFunction, params: Params, inputs: Inputs, value: jax.ShapeDtypeStruct) -> tuple[Array, Factors]:
    """Values ``[B]`` and the factored gradients; ``value`` has the shape and the dtype of the values."""
    size = value.shape[0]
    calls = _dense_calls(q_fn, params, inputs, size)
    # The zeros must vary between devices as the values do, or JAX would sum their gradients over devices.
    zeros = vary([jnp.zeros(call.output.shape, call.output.dtype) for call in calls], varying_axes(value))
    values, layer_inputs, output_gradients = _forward_and_backward(q_fn, params, inputs, zeros)

    found: dict[bool, dict[tuple[str, ...], tuple[Array, Array]]] = {True: {}, False: {}}
    for call, a, d in zip(calls, layer_inputs, output_gradients, strict=True):
        a, d = (x.reshape(size, -1, x.shape[-1]).astype(values.dtype) for x in (a, d))
        layers = found[call.has_bias]
        if call.path in layers:  # the layer is called repeatedly: append its rows
            a, d = (jnp.concatenate(pair, axis=1) for pair in zip(layers[call.path], (a, d), strict=True))
        layers[call.path] = (a, d)

    others = _gradients_outside_dense(q_fn, params, inputs, calls)
    return values, Factors(found[True], found[False], others)


def _intercept_dense(q_fn: QFunction, params: Params, inputs: Inputs, on_call: Callable[..., Array]) -> Array:
    """Q-values, with the output of every Dense call replaced by ``on_call(layer, layer_input, output)``."""

    def interceptor(next_function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        output = next_function(*arguments, **keywords)
        layer = context.module
        # Subclasses, and layers with their own product, may not be linear: they need per-example gradients.
        plain = type(layer) is nn.Dense and all(getattr(layer, name) == default for name, default in _HOOKS.items())
        if not plain or context.method_name != "__call__":
            return output
        return on_call(layer, arguments[0] if arguments else keywords["inputs"], output)

    with nn.intercept_methods(interceptor):
        return q_fn(params, inputs)


def _dense_calls(q_fn: QFunction, params: Params, inputs: Inputs, size: int) -> list[_Call]:
    """Every Dense call of one evaluation, in order, with shapes instead of arrays (nothing is computed)."""
    # The trace with one more example detects inputs with an axis that has B entries by chance, and is not the batch.
    _trace_dense_calls(q_fn, params, inputs, size + 1)
    return _trace_dense_calls(q_fn, params, inputs, size)


def _trace_dense_calls(q_fn: QFunction, params: Params, inputs: Inputs, size: int) -> list[_Call]:
    inputs = resized(inputs, size)
    calls: list[_Call] = []

    def trace(params: Params, inputs: Inputs) -> tuple[list[Array], Array]:
        leaves, layer_inputs = dict(_flatten(params)), []

        def on_call(layer: nn.Dense, layer_input: Array, output: Array) -> Array:
            if layer.get_variable("params", "kernel") is not leaves.get(("params", *layer.path, "kernel")):
                raise _refusal((*layer.path, "kernel"), _LIFTED)
            if layer_input.ndim < 2 or layer_input.shape[0] != size:
                raise _refusal(
                    (*layer.path, "kernel"), f"for {size} examples its layer's input has shape {layer_input.shape}"
                )
            shape = jax.ShapeDtypeStruct(output.shape, output.dtype)
            calls.append(_Call(layer.path, layer.use_bias, shape))
            layer_inputs.append(layer_input)
            return output

        values = _intercept_dense(q_fn, params, inputs, on_call)
        return layer_inputs, values

    jaxpr = jax.make_jaxpr(trace)(params, inputs).jaxpr
    known = {id(v) for v in jaxpr.invars} | {id(v) for equation in jaxpr.eqns for v in equation.outvars}
    for call, layer_input in zip(calls, jaxpr.outvars, strict=False):  # the values come last
        if id(layer_input) not in known:
            raise _refusal((*call.path, "kernel"), _LIFTED)
    _check_sole_use(params, jaxpr, calls)
    return calls


_LIFTED = "it reaches its layer through a lifted transform (nn.vmap, nn.scan, nn.remat, nn.WeightNorm, ...)"


def _refusal(path: tuple[str, ...], reason: str) -> ValueError:
    return ValueError(
        f"ntk.dense cannot handle parameter {'/'.join(path)!r}: {reason}; use ntk.per_example for this module"
    )


def _check_sole_use(params: Params, jaxpr: Any, calls: list[_Call]) -> None:
    """Raises ValueError if Dense parameters are used outside of calls of their layer (tied weights, penalties)."""
    allowed = collections.Counter(("params", *call.path, name) for call in calls for name in ("kernel", "bias"))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, _), variable in zip(leaves, jaxpr.invars, strict=False):  # the inputs' variables come after
        uses = sum(used is variable for equation in jaxpr.eqns for used in equation.invars)
        key = tuple(entry.key for entry in path)
        if key in allowed and uses > allowed[key]:
            raise _refusal(key[1:], "it is also used outside of its layer")


def _forward_and_backward(
    q_fn: QFunction, params: Params, inputs: Inputs, zeros: list[Array]
) -> tuple[Array, list[Array], list[Array]]:
    """Values, and for each Dense call the input A of the layer and the gradient D with respect to its output.

    ``zeros`` are added to the outputs; D is the gradient with respect to them.
    """

    def perturbed(perturbations: list[Array]) -> tuple[Array, list[Array]]:
        layer_inputs: list[Array] = []

        def on_call(layer: nn.Dense, layer_input: Array, output: Array) -> Array:
            del layer
            layer_inputs.append(layer_input)
            return output + perturbations[len(layer_inputs) - 1]

        values = _intercept_dense(q_fn, params, inputs, on_call)
        return values, layer_inputs

    values, backward, layer_inputs = jax.vjp(perturbed, zeros, has_aux=True)
    (output_gradients,) = backward(jnp.ones_like(values))
    return values, layer_inputs, output_gradients


def _gradients_outside_dense(
    q_fn: QFunction, params: Params, inputs: Inputs, calls: list[_Call]
) -> dict[tuple[str, ...], Array]:
    """Per-example gradients of the parameters outside of Dense layers, by path; usually empty."""
    covered = {("params", *call.path, name) for call in calls for name in ("kernel", "bias")}
    leaves = dict(_flatten(params))
    others = {path: leaf for path, leaf in leaves.items() if path not in covered}
    if not others:
        return {}

    def q_of_others(others: dict[tuple[str, ...], Array], inputs: Inputs) -> Array:
        return q_fn(flax.traverse_util.unflatten_dict(leaves | others), inputs)

    return example_gradients.gradients(q_of_others, others, inputs)[1]


def gram(tangents: Factors) -> Array:
    """K(X, X) with three quarters of the work: the upper right block is the transpose of the lower left block."""
    half = jax.tree.leaves(tangents)[0].shape[0] // 2
    upper = jax.tree.map(lambda leaf: leaf[:half], tangents)
    lower = jax.tree.map(lambda leaf: leaf[half:], tangents)
    corner = inner(lower, upper)
    return jnp.block([[inner(upper, upper), corner.T], [corner, inner(lower, lower)]])


def inner(left: Factors, right: Factors) -> Array:
    """Inner products ``[B, B']`` of all gradients of two minibatches."""
    terms = [example_gradients.inner(left.others, right.others)] if left.others else []
    for layers, others, bias in ((left.biased, right.biased, 1.0), (left.unbiased, right.unbiased, 0.0)):
        for path, (a, d) in layers.items():
            a_other, d_other = others[path]
            terms.append(_inner_of_layer(a, d, a_other, d_other, bias))
    return functools.reduce(jnp.add, terms)


def _inner_of_layer(a: Array, d: Array, a_other: Array, d_other: Array, bias: float) -> Array:
    """Inner products ``[B, B']`` of the gradients A_i^T D_i of one layer, and D_i^T 1 if ``bias`` is 1."""
    rows, size_in, size_out = a.shape[1], a.shape[2], d.shape[2]
    if rows == 1 or size_in * size_out >= rows**2 * (size_in + size_out):
        return _sum_over_rows((_products(a, a_other) + bias) * _products(d, d_other), rows)
    # With many rows per example, for example tokens, the gradients themselves are smaller than all products of rows.
    left, right = ((jnp.einsum("bti,bto->bio", *pair), pair[1].sum(axis=1)) for pair in ((a, d), (a_other, d_other)))
    kernels = example_gradients.inner(left[0], right[0])
    return kernels + left[1] @ right[1].T if bias else kernels


def _products(a: Array, b: Array) -> Array:
    """Inner products of all rows of a ``[B, T, n]`` with all rows of b ``[B', T, n]``, ``[B T, B' T]``."""
    return a.reshape(-1, a.shape[-1]) @ b.reshape(-1, b.shape[-1]).T


def _sum_over_rows(products: Array, rows: int) -> Array:
    """``[B T, B' T]`` -> ``[B, B']``, summed over both T."""
    if rows == 1:
        return products
    split = (products.shape[0] // rows, rows, products.shape[1] // rows, rows)
    return products.reshape(split).sum(axis=(1, 3))


def pull_back(tangents: Factors, z: Array) -> Params:
    """sum_i z_i g_i, as parameters."""
    flat = {}
    for layers, biased in ((tangents.biased, True), (tangents.unbiased, False)):
        for path, (a, d) in layers.items():
            weighted = (d * z[:, None, None]).reshape(-1, d.shape[-1])
            flat["params", *path, "kernel"] = _transposed_product(a.reshape(-1, a.shape[-1]), weighted)
            if biased:
                flat["params", *path, "bias"] = weighted.sum(axis=0)
    return flax.traverse_util.unflatten_dict(flat | example_gradients.pull_back(tangents.others, z))


def _transposed_product(a: Array, b: Array) -> Array:
    """a.T @ b, in a form that is fast on XLA's CPU backend, where products with a transposed left factor are slow."""
    if b.shape[1] == 1:
        return (b.T @ a).T
    return jax.lax.optimization_barrier(a.T) @ b  # the barrier makes XLA transpose first


def _flatten(params: Params) -> list[tuple[tuple[str, ...], Array]]:
    return list(flax.traverse_util.flatten_dict(params).items())


def check_variables(params: Params) -> None:
    """Raises ValueError unless these are the parameters of a Linen module, without boxes."""
    if type(params) is not dict or "params" not in params:
        found = sorted(params) if hasattr(params, "keys") else type(params).__name__
        raise ValueError(
            f"ntk.dense takes params as module.init returns them, a dict {{'params': ...}}; got "
            f"{type(params).__name__} with {found}"
        )
    boxes = jax.tree.leaves(params["params"], is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))
    if any(isinstance(leaf, nn.meta.AxisMetadata) for leaf in boxes):
        raise ValueError(
            "ntk.dense takes params without boxes (nn.Partitioned): call flax.linen.meta.unbox(params) first"
        )
