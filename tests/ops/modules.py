"""Flax modules for the tests of the kernel, most of them with their Q-function again in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.ops import ntk
from preqn_jax.ops.activations import ACTIVATIONS
from tests import oracles

B = 12
LINEARIZERS = {"per_example": lambda m: ntk.per_example(ntk.module_q_fn(m)), "dense": ntk.dense}
each_linearizer = pytest.mark.parametrize("make", LINEARIZERS.values(), ids=LINEARIZERS)


def initialize(module, inputs, seed=0):
    """Parameters of which none is zero, as initial biases are: a zero would hide its part in the kernel."""
    rng = np.random.default_rng(seed)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)


class Net(nn.Module):
    hidden_sizes: tuple[int, ...] = (16, 16)
    activation: str = "tanh"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_sizes:
            x = ACTIVATIONS[self.activation](nn.Dense(size, use_bias=self.use_bias)(x))
        return nn.Dense(1, use_bias=self.use_bias)(x)[..., 0]


def net_oracle(activation="tanh"):
    def q(params, x):
        layers = params["params"]
        return oracles.mlp([layers[f"Dense_{i}"] for i in range(len(layers))], x, activation)[..., 0]

    return q


class AppliedTwice(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(x.shape[-1])
        return nn.Dense(1)(jnp.tanh(layer(jnp.tanh(layer(x)))))[..., 0]


def applied_twice_oracle(params, x):
    layer, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    return oracles.mlp([layer, layer, last], x, "tanh")[..., 0]


class Tokens(nn.Module):
    """[B, T, n]: one layer sees every token."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(7)(x)).mean(axis=1)
        return nn.Dense(1)(x)[..., 0]


def tokens_oracle(params, x):
    first, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    return oracles.dense(last, np.tanh(oracles.dense(first, x)).mean(axis=1))[..., 0]


class TwiceOnTokens(nn.Module):
    """More rows per example from both causes at once: T in the first call, one in the second."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(x.shape[-1], use_bias=False)
        return nn.Dense(1)(jnp.tanh(layer(jnp.tanh(layer(x)).mean(axis=1))))[..., 0]


def twice_on_tokens_oracle(params, x):
    layer, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    return oracles.mlp([layer, last], np.tanh(oracles.dense(layer, x)).mean(axis=1), "tanh")[..., 0]


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.LayerNorm(use_bias=False)(nn.Dense(9, name="first")(x)))
        return nn.Dense(1, name="last")(x)[..., 0]


def normalized_oracle(params, x):
    layers = params["params"]
    hidden = oracles.layer_norm(layers["LayerNorm_0"]["scale"], oracles.dense(layers["first"], x))
    return oracles.dense(layers["last"], np.tanh(hidden))[..., 0]


class Tempered(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.exp(self.param("temperature", nn.initializers.zeros, ())) * Net((9,))(x)


def tempered_oracle(params, x):
    return np.exp(params["params"]["temperature"]) * net_oracle()({"params": params["params"]["Net_0"]}, x)


class Convolutional(nn.Module):
    """[B, 4, 4, 2]: pictures, whose convolution is none of the layers that are known."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Conv(3, (2, 2), padding="VALID")(x))
        return Net((4,))(x.reshape(x.shape[0], -1))


def convolutional_oracle(params, x):
    layers = params["params"]
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2))  # [B, 3, 3, 2, 2, 2]: in, then window
    hidden = np.einsum("bijcvw,vwco->bijo", windows, layers["Conv_0"]["kernel"]) + layers["Conv_0"]["bias"]
    return net_oracle()({"params": layers["Net_0"]}, np.tanh(hidden).reshape(len(x), -1))


class NoDense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(x @ self.param("w", nn.initializers.zeros, (x.shape[-1],)))


def no_dense_oracle(params, x):
    return np.tanh(x @ params["params"]["w"])


class KeywordCall(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(4)(inputs=x))
        return nn.Dense(1)(inputs=x)[..., 0]


class UnusedLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        if self.is_initializing():
            nn.Dense(3, name="unused")(x)
        return Net((4,))(x)


def unused_layer_oracle(params, x):
    return net_oracle()({"params": params["params"]["Net_0"]}, x)


class TwoInputs(nn.Module):
    """Called with two arguments (inputs is a tuple) or with one dict."""

    @nn.compact
    def __call__(self, x, y=None):
        x, y = (x["left"], x["right"]) if y is None else (x, y)
        x = jnp.tanh(nn.Dense(5, name="left")(x) + nn.Dense(5, use_bias=False, name="right")(y))
        return nn.Dense(1, name="last")(x)[..., 0]


def two_inputs_oracle(params, inputs):
    x, y = (inputs["left"], inputs["right"]) if isinstance(inputs, dict) else inputs
    layers = params["params"]
    hidden = np.tanh(oracles.dense(layers["left"], x) + oracles.dense(layers["right"], y))
    return oracles.dense(layers["last"], hidden)[..., 0]
