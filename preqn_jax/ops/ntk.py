"""The neural tangent kernel of a Q-function on a minibatch.

With g_i = grad_theta Q(x_i), the kernel is K_ij = <g_i, g_j> (Achiam et al. 2019, Eq. 9). The pull-back of dual
coefficients z is sum_i z_i g_i, PreQN's direction (Eq. 23). Two implementations of the interface :class:`Linearizer`
compute them:

* :func:`per_example` stores every g_i; it works for any differentiable Q-function and is the reference;
* :func:`dense` never forms a [B, d] array; it works for Flax modules that consist of Dense layers, and is some tens of
  times faster.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from preqn_jax.ops import dense_layers, example_gradients
from preqn_jax.ops.checks import batch_size, check_arguments, check_interval, check_whole, kind, misfit_of_two
from preqn_jax.ops.precision import full_precision
from preqn_jax.ops.q_functions import QFunction as QFunction  # part of the interface of this module, like the next two
from preqn_jax.ops.q_functions import merge, split, unmoved
from preqn_jax.ops.q_functions import module_q_fn as module_q_fn
from preqn_jax.ops.q_functions import nnx_q_fn as nnx_q_fn
from preqn_jax.ops.sharding import resized, whole
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
      ValueError: if ``q_fn`` is not such a function, for example a module; or if parameters or inputs have the wrong
        type, or Q-values do not have shape [B] (at trace time).
    """
    _check_q_fn(q_fn)

    def tangents(params: Params, inputs: Inputs) -> tuple[Array, Params]:
        check_arguments(q_fn, params, inputs)
        free, q_of_free = _of_free(q_fn, params)
        return example_gradients.gradients(q_of_free, free, inputs)

    def gram(gradients: Params) -> Array:
        return example_gradients.inner(gradients, gradients)

    return Linearizer(q_fn, tangents, gram, example_gradients.inner, example_gradients.pull_back)


def linearizer_of(q: Linearizer | QFunction) -> Linearizer:
    """Returns ``q`` itself if it is a Linearizer, or :func:`per_example` of a plain Q-function.

    Raises:
      ValueError: if ``q`` is neither, for example a module.
    """
    return q if isinstance(q, Linearizer) else per_example(q)


def _check_q_fn(q: Any) -> None:
    nnx = sys.modules.get("flax.nnx")  # takes half a second to import, and is imported already if q is of NNX
    if isinstance(q, type):
        found: str | None = kind(q)
    elif isinstance(q, nn.Module):
        found = f"the Linen module {type(q).__name__}: pass ntk.dense(module)"
    elif nnx and isinstance(q, nnx.Module):
        found = f"the NNX module {type(q).__name__}: pass the q_fn of q_fn, params = ntk.nnx_q_fn(module)"
    else:
        found = misfit_of_two(q)
    if found is not None:
        raise ValueError(
            "q must be a Linearizer, such as ntk.dense(module), or a function (params, inputs) -> Q-values [B]; "
            f"got {found}"
        )


def _of_free(q_fn: QFunction, params: Params) -> tuple[Params, QFunction]:
    """The parameters that updates move, and Q as a function of them."""
    free, fixed = split(q_fn, params)
    return free, (lambda free, inputs: q_fn(merge(free, fixed), inputs)) if fixed else q_fn


def dense(module: nn.Module) -> Linearizer:
    """Layer-by-layer linearizer of a Linen module whose parameters belong to ``nn.Dense`` layers.

    One forward and one backward pass compute the inputs A of each layer and the gradients D at its outputs. Then

        K = sum over layers of (A A^T + [bias]) * (D D^T),    pull-back of z = A^T (z D),

    where * is the elementwise product, [bias] is 1 for a layer with a bias and else 0, and z D scales row i of D by
    z_i. No array of size B x parameters is formed. Per-example gradients are computed for parameters outside of Dense
    layers (for example the scale of a LayerNorm, or a learned temperature), and for layers that are applied to many
    rows of each example, such as tokens, where they are smaller than the products.

    The parameters are ``{"params": ...}``, as ``module.init`` returns them, with the other collections of the module if
    it has any. :func:`module_q_fn` describes how the module is called.

    Args:
      module: Linen module that returns Q-values ``[B]``, each of which depends on its own example only. In the inputs
        of each Dense layer, row i must belong to example i: a module that sorts or permutes the minibatch needs
        :func:`per_example`. :func:`check_example_by_example` detects it.

    Raises:
      ValueError: if a Dense layer has inputs without a batch axis, has parameters that are also used outside of the
        layer (tied weights), or is inside a lifted transform (``nn.vmap``, ``nn.scan``, ``nn.remat``,
        ``nn.WeightNorm``). The error is raised at trace time and names the parameter; use :func:`per_example` then.
    """
    q_fn = module_q_fn(module)

    def tangents(params: Params, inputs: Inputs) -> tuple[Array, dense_layers.Factors]:
        dense_layers.check_variables(params)
        value = check_arguments(q_fn, params, inputs)
        free, q_of_free = _of_free(q_fn, params)
        return dense_layers.factors(q_of_free, free, inputs, value)

    return Linearizer(q_fn, tangents, dense_layers.gram, dense_layers.inner, dense_layers.pull_back)


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
      ValueError: if block_size is not a positive whole number, or params, inputs or others are invalid.
    """
    check_interval("block_size", block_size, "[1, inf)")
    check_whole("block_size", block_size)
    linearizer = linearizer_of(q)
    others = inputs if others is None else others
    params, inputs, others = whole((params, inputs, others))
    shape = (batch_size(inputs), batch_size(others, "others"))
    if (one := _row_shapes(inputs)) != (other := _row_shapes(others)):
        raise ValueError(f"rows of others must have the shapes of those of inputs, {one}, got {other}")
    # Check the whole arrays here: the error for a block would state sizes unknown to the caller.
    examples = inputs if 0 not in shape else resized(inputs, 1)
    values, _ = jax.eval_shape(linearizer.tangents, params, examples)
    if 0 in shape:
        return jnp.zeros(shape, values.dtype)
    (n, rows), (m, columns) = _blocks(inputs, int(block_size)), _blocks(others, int(block_size))

    def row_of_blocks(row: Inputs) -> Array:
        _, left = linearizer.tangents(params, row)
        blocks = jax.lax.map(lambda column: linearizer.inner(left, linearizer.tangents(params, column)[1]), columns)
        return jnp.moveaxis(blocks, 0, 1).reshape(blocks.shape[1], -1)

    with full_precision():
        result = jax.lax.map(row_of_blocks, rows)
    return result.reshape(-1, result.shape[-1])[:n, :m]


def _row_shapes(inputs: Inputs) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(inputs)
    return [f"{jax.tree_util.keystr(path)}{list(jnp.shape(leaf)[1:])}" for path, leaf in leaves]


def check_example_by_example(
    q: Linearizer | QFunction, params: Params, inputs: Inputs, *, tolerance: float = 1e-3
) -> None:
    """Raises an error if a Q-value depends on other rows of the minibatch, since no kernel describes such a Q-function.

    K is computed from each example alone. With a BatchNorm or Dropout in training mode, a mean over the minibatch or
    attention between its rows, the value of an example alone differs from its value in the minibatch, and every step is
    rejected, however small it is. This function compares both values, and the gradients of one weighted sum of them.
    For a :class:`Linearizer`, it also compares its kernel with that of per-example gradients. It computes per-example
    gradients, and compares numbers: call it once, with real inputs, outside of jit.

    Examples:
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
      ValueError: if a value depends on other rows, the kernel of the linearizer is not that of its Q-function, or
        params or inputs are invalid.
    """
    linearizer = linearizer_of(q)
    by_rows = per_example(linearizer.q_fn)(params, inputs)
    own = linearizer(params, inputs) if linearizer is q else by_rows
    together, alone = _together_and_alone(linearizer.q_fn, params, inputs, by_rows)
    if jnp.size(together[0]) < 2:
        raise ValueError("inputs must hold at least two examples to compare, got B = 1")
    try:
        off, off_gradient = (float(_relative_difference(*pair)) for pair in zip(together, alone, strict=True))
        off_kernel = float(_relative_difference(own.gram, by_rows.gram))
    except jax.errors.ConcretizationTypeError:
        raise ValueError("check_example_by_example compares numbers: call it outside of jit and vmap") from None
    found = ""
    if off > tolerance:
        row = int(jnp.argmax(_difference(together[0], alone[0])))
        found = f"that of row {row} is {together[0][row]:.6g} in the batch and {alone[0][row]:.6g} by itself"
    elif off_gradient > tolerance:
        found = f"their gradients in the batch differ from those of single rows by {off_gradient:.1%}"
    if found:
        raise ValueError(
            f"q_fn must compute each value from its own row alone, but {found}: put BatchNorm and Dropout into "
            "evaluation mode, and let no row depend on another"
        )
    if off_kernel > tolerance:
        raise ValueError(
            f"the kernel of this linearizer differs from that of per-example gradients by {off_kernel:.1%}: row i "
            "of the input of every layer must belong to example i; otherwise use ntk.per_example"
        )


def _together_and_alone(q_fn: QFunction, params: Params, inputs: Inputs, by_rows: Linearization) -> Any:
    """Values, and the gradient of a weighted sum of them, for the whole minibatch and for each example alone."""
    free, q_of_free = _of_free(q_fn, whole(params))
    weights = jax.random.normal(jax.random.key(0), by_rows.values.shape, by_rows.values.dtype)
    with full_precision():
        values, backward = jax.vjp(lambda free: whole(q_of_free(free, whole(inputs))), free)
        (gradient,) = backward(weights)
    gradient_by_rows = split(q_fn, by_rows.pullback(weights))[0]
    return (values, gradient), (by_rows.values, gradient_by_rows)


def _relative_difference(tree: Any, other: Any) -> Array:
    """Largest difference of any entry, relative to the largest finite entry.

    A NaN is equal to another NaN only, and the difference between a finite and a non-finite entry is infinite.
    """
    a, b = (jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(t)]) for t in (tree, other))
    largest = jnp.max(_difference(a, b))
    scale = jnp.max(jnp.where(jnp.isfinite(a) & jnp.isfinite(b), jnp.maximum(jnp.abs(a), jnp.abs(b)), 0.0))
    return jnp.where(largest == 0, 0.0, largest / scale)


def _difference(a: Array, b: Array) -> Array:
    off = jnp.abs(a - b)
    same = (a == b) | (jnp.isnan(a) & jnp.isnan(b))
    return jnp.where(same, 0.0, jnp.where(jnp.isfinite(off), off, jnp.inf))


def _blocks(inputs: Inputs, block_size: int) -> tuple[int, Inputs]:
    """Number of examples, and the inputs as [blocks, block_size, ...], with the last block padded with row 0."""
    n = batch_size(inputs)
    block_size = min(block_size, n)
    blocks = -(-n // block_size)

    def split(leaf: Array) -> Array:
        fill = jnp.broadcast_to(leaf[:1], (blocks * block_size - n, *leaf.shape[1:]))
        return jnp.concatenate([leaf, fill]).reshape(blocks, block_size, *leaf.shape[1:])

    return n, jax.tree.map(split, inputs)
