"""Q-functions whose rows see each other are told from those that work example by example."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from preqn_jax import ntk, preqn_update
from tests.helpers import normal
from tests.ops.modules import B, Convolutional, Net, Normalized, Tokens, initialize

pytestmark = pytest.mark.slow

X, W = normal(B, 3), normal(3, seed=1)


class Trained(nnx.Module):
    def __init__(self, kind, zero=False):
        rngs = nnx.Rngs(0)
        start = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
        self.first, self.last = nnx.Linear(3, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs, kernel_init=start)
        self.between = nnx.BatchNorm(16, rngs=rngs) if kind == "batch_norm" else nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.between(self.first(x))))[..., 0]


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.SelfAttention(1)(nn.Dense(8)(x)))[..., 0]  # over the first axis, the batch


def split_by_hand(module):
    """The Q-function of an NNX module in any mode, without the check of ``ntk.nnx_q_fn``."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def q_fn(params, x):
        return nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf, rest))(x)

    return q_fn, params


def linen(module):
    return ntk.module_q_fn(module), initialize(module, X)


COUPLED = {
    "batch_norm": split_by_hand(Trained("batch_norm")),
    "batch_norm_before_zeros": split_by_hand(Trained("batch_norm", zero=True)),
    "dropout": split_by_hand(Trained("dropout")),
    "attention": linen(Attention()),
    "layer_norm_over_the_batch": linen(nn.Sequential([nn.Dense(4), nn.LayerNorm(reduction_axes=0, feature_axes=1),
                                                      jnp.tanh, nn.Dense(1), lambda x: x[:, 0]])),
    "mean": (lambda w, x: x @ w - 0.1 * (x @ w).mean(), W),
    "next_row": (lambda w, x: x @ w + 0.1 * jnp.roll(jnp.tanh(x @ w), 1), W),
    "position": (lambda w, x: jnp.tanh(x @ w) * (1 + 0.1 * jnp.arange(x.shape[0])), W),
    "size": (lambda w, x: jnp.tanh(x @ w) / x.shape[0], W),
    "not_a_number_alone": (lambda w, x: ((x - x.mean(0, keepdims=True)) / x.std(0, keepdims=True)) @ w, W),
    "infinite_alone": (lambda w, x: x @ w + 1 / (x[:, 0].std()), W),
    "gradient_only": (lambda w, x: x @ w + (x @ (w - jax.lax.stop_gradient(w))).mean(), W),
}  # fmt: skip


@pytest.mark.parametrize(("q_fn", "params"), COUPLED.values(), ids=COUPLED)
def test_rows_that_see_each_other_are_refused(q_fn, params):
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match="from its own row alone, but th"):
        ntk.check_example_by_example(q_fn, params, X)


SEPARATE = {
    "net": (Net((16, 16), "sin"), X),
    "layer_norm": (Normalized(), X),
    "tokens": (Tokens(), normal(B, 5, 3)),
    "convolution": (Convolutional(), normal(B, 4, 4, 2)),
    "large": (Net((16,), "relu"), 1e6 * X),
    "tiny": (Net((16,), "tanh"), 1e-6 * X),
}


@pytest.mark.parametrize(("module", "inputs"), SEPARATE.values(), ids=SEPARATE)
def test_rows_that_do_not_pass(module, inputs):
    ntk.check_example_by_example(ntk.module_q_fn(module), initialize(module, inputs), inputs)
    ntk.check_example_by_example(ntk.dense(module), initialize(module, inputs), inputs)


def test_the_same_module_in_evaluation_mode_passes_and_its_steps_are_accepted():
    module = Trained("batch_norm")
    q_fn, params = split_by_hand(module)
    target = q_fn(params, X) + normal(B, seed=2)
    assert not preqn_update(q_fn, params, X, target)[1].accepted
    module(X)
    module.eval()
    q_fn, params = ntk.nnx_q_fn(module)
    ntk.check_example_by_example(q_fn, params, X)
    assert preqn_update(q_fn, params, X, q_fn(params, X) + normal(B, seed=2))[1].accepted


def test_a_value_of_nan_is_not_taken_for_a_coupling():
    ntk.check_example_by_example(lambda w, x: x @ w, W, X.at[2].set(jnp.nan))


class Reversed(nn.Module):
    """Each value depends on its own row, but row i of a layer's input belongs to another example."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(16)(x[::-1])))[::-1, 0]


def test_a_kernel_of_other_rows_is_refused():
    module = Reversed()
    params = initialize(module, X)
    ntk.check_example_by_example(ntk.module_q_fn(module), params, X)
    with pytest.raises(ValueError, match="the kernel of this linearizer differs from that of per-example gradients by"):
        ntk.check_example_by_example(ntk.dense(module), params, X)


def test_one_example_and_traced_arrays_are_refused():
    with pytest.raises(ValueError, match="at least two examples"):
        ntk.check_example_by_example(lambda w, x: x @ w, W, X[:1])
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda w: ntk.check_example_by_example(lambda w, x: x @ w, w, X))(W)
