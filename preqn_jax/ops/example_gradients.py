"""Gradients of a Q-function for each example of a minibatch, and their products."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from preqn_jax.ops.checks import check_one_example
from preqn_jax.ops.q_functions import QFunction
from preqn_jax.ops.sharding import vary, varying_axes
from preqn_jax.types import Array, Inputs, Params


def gradients(q_fn: QFunction, params: Params, inputs: Inputs) -> tuple[Array, Params]:
    """Values ``[B]``, and gradients with the dtype of the values, each leaf ``[B, *leaf.shape]``."""
    # JAX would sum the gradients of parameters that do not vary between devices as the values do; see vary.
    params = vary(params, varying_axes(check_one_example(q_fn, params, inputs)))

    def q_of_one(params: Params, example: Inputs) -> Array:
        return q_fn(params, jax.tree.map(lambda leaf: leaf[None], example))[0]

    values, gradients = jax.vmap(jax.value_and_grad(q_of_one), in_axes=(None, 0))(params, inputs)
    return values, jax.tree.map(lambda leaf: leaf.astype(values.dtype), gradients)


def inner(left: Params, right: Params) -> Array:
    """Inner products ``[B, B']`` of all gradients of two minibatches."""

    def of_leaf(a: Array, b: Array) -> Array:
        size = math.prod(a.shape[1:])  # not -1, which is ambiguous for zero examples (half of a single example)
        return a.reshape(a.shape[0], size) @ b.reshape(b.shape[0], size).T

    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(of_leaf, left, right)))


def pull_back(gradients: Params, z: Array) -> Params:
    """sum_i z_i g_i."""
    return jax.tree.map(lambda leaf: jnp.tensordot(z, leaf, axes=1), gradients)
