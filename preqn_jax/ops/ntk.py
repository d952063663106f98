"""The neural tangent kernel of a Q-function on a minibatch.

With g_i = grad_theta Q(x_i), the kernel is K_ij = <g_i, g_j> (Achiam et al. 2019, Eq. 9). The pull-back of dual
coefficients z is sum_i z_i g_i, PreQN's direction (Eq. 23). Two implementations of the interface :class:`Linearizer`
compute them:

* :func:`per_example` stores every g_i; it works for any differentiable Q-function and is the reference;
* :func:`dense` never forms a [B, d] array; it works for Flax modules that consist of Dense layers, and is some tens of
  times faster.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from preqn_jax.ops.checks import batch_size, check_arguments, check_one_example
from preqn_jax.ops.precision import full_precision
from preqn_jax.ops.q_functions import QFunction as QFunction  # part of the interface of this module, like the next two
from preqn_jax.ops.q_functions import merge, split, unmoved
from preqn_jax.ops.q_functions import module_q_fn as module_q_fn
from preqn_jax.ops.q_functions import nnx_q_fn as nnx_q_fn
from preqn_jax.ops.sharding import resized, vary, varying_axes, whole
from preqn_jax.types import Array, Inputs, Params


class Linearization(NamedTuple):
    """First-order model of a Q-function on a minibatch of B inputs.

    Attributes:
      values: Q(x_i), ``[B]``.
      gram: the kernel K, ``[B, B]``, symmetric and positive semi-definite up to rounding.
      pullback: maps dual coefficients z ``[B]`` to sum_i z_i grad Q(x_i), a pytree like the parameters. The function
        is itself a pytree, so a linearization can be passed through jit and vmap.
    """

    values: Array
    gram: Array
    pullback: Callable[[Array], Params]


@dataclasses.dataclass(frozen=True)
class Linearizer:
    """A Q-function with four pure functions of its gradients g_i; calling it returns a :class:`Linearization`.

    Attributes:
      q_fn: (params, inputs) -> Q-values ``[B]``; see :func:`module_q_fn` for parameters that it holds fixed.
      tangents: (params, inputs) -> (values [B], tangents), where tangents is any representation of g_1 .. g_B.
      gram: tangents -> K(X, X) ``[B, B]``, which is symmetric.
      inner: (tangents, tangents') -> K(X, X') ``[B, B']``.
      pullback: (tangents, z [B]) -> sum_i z_i g_i, a pytree like the parameters that are not held fixed.
    """

    q_fn: QFunction
    tangents: Callable[[Params, Inputs], tuple[Array, Any]]
    gram: Callable[[Any], Array]
    inner: Callable[[Any, Any], Array]
    pullback: Callable[[Any, Array], Params]

    def __call__(self, params: Params, inputs: Inputs) -> Linearization:
        """Linearizes at ``params`` on ``inputs``, in full float32 precision on every backend.

        Args:
          params: pytree of floating-point arrays.
          inputs: pytree whose leaves have the leading batch axis B.

        Returns:
          The :class:`Linearization`.

        Raises:
          ValueError: if parameters or inputs have the wrong type, or Q-values do not have shape [B] (at trace time).
        """
        still = unmoved(split(self.q_fn, params)[1])
        with full_precision():
            with jax.named_scope("linearize"):
                values, tangents = whole(self.tangents(whole(params), whole(inputs)))
            with jax.named_scope("gram"):
                gram = self.gram(tangents)
        return Linearization(values, gram, jax.tree_util.Partial(self._pullback, tangents, still))

    def _pullback(self, tangents: Any, still: dict[str, Any], z: Array) -> Params:
        with full_precision():
            return merge(self.pullback(tangents, z), still)


def per_example(q_fn: QFunction) -> Linearizer:
    """Linearizer of any differentiable Q-function by ``jax.vmap(jax.grad)``: the definition of K.

    It stores B gradients of the size of the parameters; the pull-back needs no second backward pass.

    Args:
      q_fn: (params, inputs) -> Q-values ``[B]``, where entry i depends on row i of the inputs only.

    Raises:
      ValueError: if parameters or inputs have the wrong type, or Q-values do not have shape [B] (at trace time).
    """

    def tangents(params: Params, inputs: Inputs) -> tuple[Array, Params]:
        check_arguments(q_fn, params, inputs)
        free, q_of_free = _of_free(q_fn, params)
        return _per_example_gradients(q_of_free, free, inputs)

    def gram(gradients: Params) -> Array:
        return _inner_of_gradients(gradients, gradients)

    return Linearizer(q_fn, tangents, gram, _inner_of_gradients, _pull_back_gradients)


def linearizer_of(q: Linearizer | QFunction) -> Linearizer:
    """Returns ``q`` itself if it is a Linearizer, or :func:`per_example` of a plain Q-function.

    Raises:
      ValueError: if ``q`` is neither, for example a module.
    """
    if isinstance(q, Linearizer):
        return q
    if isinstance(q, nn.Module | type) or not callable(q):
        found = f"the class {q.__name__}" if isinstance(q, type) else type(q).__name__
        raise ValueError(
            "q must be a Linearizer, such as ntk.dense(module), or a function (params, inputs) -> Q-values [B]; "
            f"got {found}"
        )
    return per_example(q)


def _of_free(q_fn: QFunction, params: Params) -> tuple[Params, QFunction]:
    """The parameters that updates move, and Q as a function of them."""
    free, fixed = split(q_fn, params)
    return free, (lambda free, inputs: q_fn(merge(free, fixed), inputs)) if fixed else q_fn


def _per_example_gradients(q_fn: QFunction, params: Params, inputs: Inputs) -> tuple[Array, Params]:
    """Values ``[B]``, and gradients with the dtype of the values, each leaf ``[B, *leaf.shape]``."""
    # JAX would sum the gradients of parameters that do not vary between devices as the values do; see vary.
    params = vary(params, varying_axes(check_one_example(q_fn, params, inputs)))

    def q_of_one(params: Params, example: Inputs) -> Array:
        return q_fn(params, jax.tree.map(lambda leaf: leaf[None], example))[0]

    values, gradients = jax.vmap(jax.value_and_grad(q_of_one), in_axes=(None, 0))(params, inputs)
    return values, jax.tree.map(lambda leaf: leaf.astype(values.dtype), gradients)


def _inner_of_gradients(left: Params, right: Params) -> Array:
    def of_leaf(a: Array, b: Array) -> Array:
        size = math.prod(a.shape[1:])  # not -1, which is ambiguous for zero examples (half of a single example)
        return a.reshape(a.shape[0], size) @ b.reshape(b.shape[0], size).T

    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(of_leaf, left, right)))


def _pull_back_gradients(gradients: Params, z: Array) -> Params:
    return jax.tree.map(lambda leaf: jnp.tensordot(z, leaf, axes=1), gradients)


class _DenseCall(NamedTuple):
    """One call of a Dense layer, with the shape of its output [B, ..., out]."""

    path: tuple[str, ...]
    has_bias: bool
    output: jax.ShapeDtypeStruct


class _DenseTangents(NamedTuple):
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


def dense(module: nn.Module) -> Linearizer:
    """Layer-by-layer linearizer of a Linen module whose parameters belong to ``nn.Dense`` layers.

    One forward and one backward pass compute the inputs A of each layer and the gradients D at its outputs. Then

        K = sum over layers of (A A^T + [bias]) * (D D^T),    pull-back of z = A^T (z D),

    where * is the elementwise product, [bias] is 1 for a layer with a bias and else 0, and z D scales row i of D by
    z_i. No array of size B x parameters is formed. For parameters outside of Dense layers (for example the scale of a
    LayerNorm, or a learned temperature), per-example gradients are computed.

    The parameters are ``{"params": ...}``, as ``module.init`` returns them, with the other collections of the module if
    it has any. :func:`module_q_fn` describes how the module is called.

    Args:
      module: Linen module that returns Q-values ``[B]``, each of which depends on its own example only.

    Raises:
      ValueError: if a Dense layer has inputs without a batch axis, has parameters that are also used outside of the
        layer (tied weights), or is inside a lifted transform (``nn.vmap``, ``nn.scan``, ``nn.remat``,
        ``nn.WeightNorm``). The error is raised at trace time and names the parameter; use :func:`per_example` then.
    """
    q_fn = module_q_fn(module)

    def tangents(params: Params, inputs: Inputs) -> tuple[Array, _DenseTangents]:
        _check_variables(params)
        value = check_arguments(q_fn, params, inputs)
        size = value.shape[0]
        free, q_of_free = _of_free(q_fn, params)
        calls = _dense_calls(q_of_free, free, inputs, size)
        # The zeros must vary between devices as the values do, or JAX would sum their gradients over devices.
        zeros = vary([jnp.zeros(call.output.shape, call.output.dtype) for call in calls], varying_axes(value))
        values, layer_inputs, output_gradients = _forward_and_backward(q_of_free, free, inputs, zeros)

        factors: dict[bool, dict[tuple[str, ...], tuple[Array, Array]]] = {True: {}, False: {}}
        for call, a, d in zip(calls, layer_inputs, output_gradients, strict=True):
            a, d = (x.reshape(size, -1, x.shape[-1]).astype(values.dtype) for x in (a, d))
            layers = factors[call.has_bias]
            if call.path in layers:  # the layer is called repeatedly: append its rows
                a, d = (jnp.concatenate(pair, axis=1) for pair in zip(layers[call.path], (a, d), strict=True))
            layers[call.path] = (a, d)

        others = _gradients_outside_dense(q_of_free, free, inputs, calls)
        return values, _DenseTangents(factors[True], factors[False], others)

    return Linearizer(q_fn, tangents, _gram_of_dense, _inner_of_dense, _pull_back_dense)


def _intercept_dense(q_fn: QFunction, params: Params, inputs: Inputs, on_call: Callable[..., Array]) -> Array:
    """Q-values, with the output of every Dense call replaced by ``on_call(layer, layer_input, output)``."""

    def interceptor(next_function: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        output = next_function(*arguments, **keywords)
        layer = context.module
        # Subclasses, and layers with their own product, may not be linear: they need per-example gradients.
        plain = type(layer) is nn.Dense and layer.dot_general is None and layer.dot_general_cls is None
        if not plain or context.method_name != "__call__":
            return output
        return on_call(layer, arguments[0] if arguments else keywords["inputs"], output)

    with nn.intercept_methods(interceptor):
        return q_fn(params, inputs)


def _dense_calls(q_fn: QFunction, params: Params, inputs: Inputs, size: int) -> list[_DenseCall]:
    """Every Dense call of one evaluation, in order, with shapes instead of arrays (nothing is computed)."""
    # The trace with one more example detects inputs with an axis that has B entries by chance, and is not the batch.
    _trace_dense_calls(q_fn, params, inputs, size + 1)
    return _trace_dense_calls(q_fn, params, inputs, size)


def _trace_dense_calls(q_fn: QFunction, params: Params, inputs: Inputs, size: int) -> list[_DenseCall]:
    inputs = resized(inputs, size)
    calls: list[_DenseCall] = []

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
            calls.append(_DenseCall(layer.path, layer.use_bias, shape))
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


def _check_sole_use(params: Params, jaxpr: Any, calls: list[_DenseCall]) -> None:
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
    q_fn: QFunction, params: Params, inputs: Inputs, calls: list[_DenseCall]
) -> dict[tuple[str, ...], Array]:
    """Per-example gradients of the parameters outside of Dense layers, by path; usually empty."""
    covered = {("params", *call.path, name) for call in calls for name in ("kernel", "bias")}
    leaves = dict(_flatten(params))
    others = {path: leaf for path, leaf in leaves.items() if path not in covered}
    if not others:
        return {}

    def q_of_others(others: dict[tuple[str, ...], Array], inputs: Inputs) -> Array:
        return q_fn(flax.traverse_util.unflatten_dict(leaves | others), inputs)

    return _per_example_gradients(q_of_others, others, inputs)[1]


def _gram_of_dense(tangents: _DenseTangents) -> Array:
    """K(X, X) with three quarters of the work: the upper right block is the transpose of the lower left block."""
    half = jax.tree.leaves(tangents)[0].shape[0] // 2
    upper = jax.tree.map(lambda leaf: leaf[:half], tangents)
    lower = jax.tree.map(lambda leaf: leaf[half:], tangents)
    corner = _inner_of_dense(lower, upper)
    return jnp.block([[_inner_of_dense(upper, upper), corner.T], [corner, _inner_of_dense(lower, lower)]])


def _inner_of_dense(left: _DenseTangents, right: _DenseTangents) -> Array:
    terms = [_inner_of_gradients(left.others, right.others)] if left.others else []
    for layers, others, bias in ((left.biased, right.biased, 1.0), (left.unbiased, right.unbiased, 0.0)):
        for path, (a, d) in layers.items():
            a_other, d_other = others[path]
            terms.append(_sum_over_rows((_products(a, a_other) + bias) * _products(d, d_other), a.shape[1]))
    return functools.reduce(jnp.add, terms)


def _products(a: Array, b: Array) -> Array:
    """Inner products of all rows of a ``[B, T, n]`` with all rows of b ``[B', T, n]``, ``[B T, B' T]``."""
    return a.reshape(-1, a.shape[-1]) @ b.reshape(-1, b.shape[-1]).T


def _sum_over_rows(products: Array, rows: int) -> Array:
    """``[B T, B' T]`` -> ``[B, B']``, summed over both T."""
    if rows == 1:
        return products
    split = (products.shape[0] // rows, rows, products.shape[1] // rows, rows)
    return products.reshape(split).sum(axis=(1, 3))


def _pull_back_dense(tangents: _DenseTangents, z: Array) -> Params:
    flat = {}
    for layers, biased in ((tangents.biased, True), (tangents.unbiased, False)):
        for path, (a, d) in layers.items():
            weighted = (d * z[:, None, None]).reshape(-1, d.shape[-1])
            flat["params", *path, "kernel"] = _transposed_product(a.reshape(-1, a.shape[-1]), weighted)
            if biased:
                flat["params", *path, "bias"] = weighted.sum(axis=0)
    return flax.traverse_util.unflatten_dict(flat | _pull_back_gradients(tangents.others, z))


def _transposed_product(a: Array, b: Array) -> Array:
    """a.T @ b, in a form that is fast on XLA's CPU backend, where products with a transposed left factor are slow."""
    if b.shape[1] == 1:
        return (b.T @ a).T
    return jax.lax.optimization_barrier(a.T) @ b  # the barrier makes XLA transpose first


def kernel(
    q: Linearizer | QFunction, params: Params, inputs: Inputs, others: Inputs | None = None, *, block_size: int = 128
) -> Array:
    """Kernel K(X, X') between two sets of any size, computed in blocks.

    Apart from the result, memory is needed for the tangents of two blocks only, independently of N and M.

    Args:
      q: a :class:`Linearizer`, for example :func:`dense` of a module, or a plain Q-function.
      params: pytree of floating-point arrays.
      inputs: X, a pytree whose leaves have the leading axis N.
      others: X', a pytree whose leaves have the leading axis M; None for X itself.
      block_size: number of rows of X, and of X', in one block.

    Returns:
      The kernel ``[N, M]``.

    Raises:
      ValueError: if block_size is not positive, or params or inputs are invalid.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    linearizer = linearizer_of(q)
    others = inputs if others is None else others
    params, inputs, others = whole((params, inputs, others))
    shape = (batch_size(inputs), batch_size(others, "others"))
    # Check the whole arrays here: the error for a block would state sizes unknown to the caller.
    examples = inputs if 0 not in shape else resized(inputs, 1)
    values, _ = jax.eval_shape(linearizer.tangents, params, examples)
    if 0 in shape:
        return jnp.zeros(shape, values.dtype)
    (n, rows), (m, columns) = _blocks(inputs, block_size), _blocks(others, block_size)

    def row_of_blocks(row: Inputs) -> Array:
        _, left = linearizer.tangents(params, row)
        blocks = jax.lax.map(lambda column: linearizer.inner(left, linearizer.tangents(params, column)[1]), columns)
        return jnp.moveaxis(blocks, 0, 1).reshape(blocks.shape[1], -1)

    with full_precision():
        result = jax.lax.map(row_of_blocks, rows)
    return result.reshape(-1, result.shape[-1])[:n, :m]


def check_example_by_example(
    q: Linearizer | QFunction, params: Params, inputs: Inputs, *, tolerance: float = 1e-3
) -> None:
    """Raises an error if a Q-value depends on other rows of the minibatch, since no kernel describes such a Q-function.

    K is computed from each example alone. With a BatchNorm or Dropout in training mode, a mean over the minibatch or
    attention between its rows, the value of an example alone differs from its value in the minibatch, and every step is
    rejected, however small it is. This function compares both values, and the gradients of one weighted sum of them. It
    takes as long as an update with per-example gradients: call it once, with real inputs, outside of jit.

    Example:
      >>> check_example_by_example(lambda params, x: x @ params, jnp.ones(3), jnp.eye(3))
      >>> check_example_by_example(
      ...     lambda params, x: (x - x.mean(axis=0)) @ params, jnp.arange(3.0), jnp.eye(3)
      ... )  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: q_fn must compute each value from its own row alone, but ...

    Args:
      q: a Q-function, (params, inputs) -> Q-values ``[B]``, or a :class:`Linearizer` of one.
      params: pytree of floating-point arrays.
      inputs: pytree whose leaves have the leading axis B, with at least two examples.
      tolerance: difference that is attributed to rounding [largest value, or largest entry of the gradient].

    Raises:
      ValueError: if a value depends on other rows, or params or inputs are invalid.
    """
    together, alone = _together_and_alone(linearizer_of(q).q_fn, params, inputs)
    if jnp.size(together[0]) < 2:
        raise ValueError("inputs must hold at least two examples to compare, got B = 1")
    try:
        off, off_gradient = (float(_relative_difference(*pair)) for pair in zip(together, alone, strict=True))
    except jax.errors.ConcretizationTypeError:
        raise ValueError("check_example_by_example compares numbers: call it outside of jit and vmap") from None
    if off > tolerance:
        row = int(jnp.argmax(jnp.abs(together[0] - alone[0])))
        found = f"that of row {row} is {together[0][row]:.6g} in the batch and {alone[0][row]:.6g} by itself"
    elif off_gradient > tolerance:
        found = f"their gradients in the batch differ from those of single rows by {off_gradient:.1%}"
    else:
        return
    raise ValueError(
        f"q_fn must compute each value from its own row alone, but {found}: put BatchNorm and Dropout into evaluation "
        "mode, and let no row depend on another"
    )


def _together_and_alone(q_fn: QFunction, params: Params, inputs: Inputs) -> Any:
    """Values, and the gradient of a weighted sum of them, for the whole minibatch and for each example alone."""
    by_rows = per_example(q_fn)(params, inputs)
    free, q_of_free = _of_free(q_fn, whole(params))
    weights = jax.random.normal(jax.random.key(0), by_rows.values.shape, by_rows.values.dtype)
    with full_precision():
        values, backward = jax.vjp(lambda free: whole(q_of_free(free, whole(inputs))), free)
        (gradient,) = backward(weights)
    gradient_by_rows = split(q_fn, by_rows.pullback(weights))[0]
    return (values, gradient), (by_rows.values, gradient_by_rows)


def _relative_difference(tree: Any, other: Any) -> Array:
    """Largest difference of any entry, relative to the largest entry; a NaN is equal to another NaN only."""
    a, b = (jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(t)]) for t in (tree, other))
    differ = ~((a == b) | (jnp.isnan(a) & jnp.isnan(b)))
    largest = jnp.max(jnp.where(differ, jnp.abs(a - b), 0.0))
    return jnp.nan_to_num(largest / jnp.maximum(jnp.max(jnp.abs(b)), jnp.max(jnp.abs(a))), nan=0.0)


def _blocks(inputs: Inputs, block_size: int) -> tuple[int, Inputs]:
    """Number of examples, and the inputs as [blocks, block_size, ...], with the last block padded with row 0."""
    n = batch_size(inputs)
    block_size = min(block_size, n)
    blocks = -(-n // block_size)

    def split(leaf: Array) -> Array:
        fill = jnp.broadcast_to(leaf[:1], (blocks * block_size - n, *leaf.shape[1:]))
        return jnp.concatenate([leaf, fill]).reshape(blocks, block_size, *leaf.shape[1:])

    return n, jax.tree.map(split, inputs)


def _flatten(params: Params) -> list[tuple[tuple[str, ...], Array]]:
    return list(flax.traverse_util.flatten_dict(params).items())


def _check_variables(params: Params) -> None:
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
