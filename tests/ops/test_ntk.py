import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.networks import Critic
from preqn_jax.ops import ntk
from tests import oracles
from tests.helpers import normal
from tests.ops.jaxprs import dot_precisions, largest_intermediate
from tests.ops.modules import (
    LINEARIZERS,
    AppliedTwice,
    B,
    Convolutional,
    KeywordCall,
    Net,
    NoDense,
    Normalized,
    Tempered,
    Tokens,
    TwiceOnTokens,
    TwoInputs,
    UnusedLayer,
    applied_twice_oracle,
    convolutional_oracle,
    each_linearizer,
    initialize,
    net_oracle,
    no_dense_oracle,
    normalized_oracle,
    tempered_oracle,
    tokens_oracle,
    twice_on_tokens_oracle,
    two_inputs_oracle,
    unused_layer_oracle,
)

FLOAT32 = 1e-5  # relative to the largest entry: some hundred float32 roundings add up in a kernel entry
FLOAT64 = 1e-12
REORDERED = 1e-6  # the same float32 computation, summed in another order


@functools.cache  # one compilation for all tests of a linearizer and module on one shape
def evaluation(make, module):
    """Compiled (params, inputs, z) -> values, kernel, pull-back of z."""
    return jax.jit(functools.partial(evaluate, make(module)))


def evaluate(linearize, params, inputs, z):
    linearization = linearize(params, inputs)
    return linearization.values, linearization.gram, linearization.pullback(z)


def oracle(q, params, inputs, z):
    params, inputs = oracles.float64(params), oracles.float64(inputs)
    jacobian = oracles.gradients(q, params, inputs)
    unflatten = oracles.flatten(params)[1]
    return q(params, inputs), jacobian @ jacobian.T, unflatten(np.asarray(z, np.float64) @ jacobian)


def assert_close(actual, expected, tolerance=FLOAT32):
    """Leaf by leaf, and the same tree, relative to each leaf's largest entry."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def assert_both_match(module, inputs, q):
    params, z = initialize(module, inputs), normal(B, seed=1)
    reference, fast = (evaluation(make, module)(params, inputs, z) for make in LINEARIZERS.values())
    expected = oracle(q, params, inputs, z)
    assert_close(reference, expected)
    assert_close(fast, expected)
    assert_close(fast, reference)


@pytest.mark.parametrize(
    ("hidden_sizes", "activation", "use_bias"),
    [
        ((16,), "sin", True),
        ((16,), "relu", False),
        ((5, 16), "tanh", True),
        ((5, 16), "sin", False),
        ((16, 3, 7), "relu", True),
        ((16, 3, 7), "tanh", False),
        ((8, 4, 4, 8), "sin", True),
        ((8, 4, 4, 8), "relu", False),
    ],
)
def test_both_match_the_oracle_on_mlps(hidden_sizes, activation, use_bias):
    assert_both_match(Net(hidden_sizes, activation, use_bias), normal(B, 3), net_oracle(activation))


class Promoted(nn.Module):
    """A layer whose ``promote_dtype`` does more than that."""

    @nn.compact
    def __call__(self, x):
        def doubled(x, kernel, bias, dtype):
            return x, 2.0 * kernel, bias

        x = jnp.tanh(nn.Dense(16, promote_dtype=doubled)(x))
        return nn.Dense(1)(x)[..., 0]


def promoted_oracle(params, x):
    first, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    return oracles.mlp([first | {"kernel": 2.0 * first["kernel"]}, last], x, "tanh")[..., 0]


def layer_normed_oracle(params, inputs):
    return oracles.layer_normed_mlp(params["params"]["MLP_0"], np.concatenate(inputs, axis=1), "relu")[..., 0]


OBSERVATION_AND_ACTION = (normal(B, 3), normal(B, 2, seed=5))
ARCHITECTURES = {
    **{
        f"critic_with_{kind}_layer_norm": (
            Critic((16, 8), "relu", layer_norm=kind),
            OBSERVATION_AND_ACTION,
            layer_normed_oracle,
        )
        for kind in ("fixed", "learned")
    },
    "linear": (Net(()), normal(B, 3), net_oracle()),
    "applied_twice": (AppliedTwice(), normal(B, 4), applied_twice_oracle),
    "applied_twice_on_many_features": (AppliedTwice(), 0.1 * normal(B, 20), applied_twice_oracle),
    "tokens": (Tokens(), normal(B, 5, 3), tokens_oracle),
    "twice_on_tokens": (TwiceOnTokens(), normal(B, 5, 3), twice_on_tokens_oracle),
    "layer_norm": (Normalized(), normal(B, 3), normalized_oracle),
    "temperature": (Tempered(), normal(B, 3), tempered_oracle),
    "convolution": (Convolutional(), normal(B, 4, 4, 2), convolutional_oracle),
    "no_dense": (NoDense(), normal(B, 3), no_dense_oracle),
    "promoted": (Promoted(), normal(B, 3), promoted_oracle),
    "keyword_call": (KeywordCall(), normal(B, 3), net_oracle()),
    "unused_layer": (UnusedLayer(), normal(B, 3), unused_layer_oracle),
    "tuple_inputs": (TwoInputs(), (normal(B, 3), normal(B, 2, seed=5)), two_inputs_oracle),
    "dict_inputs": (TwoInputs(), {"left": normal(B, 3), "right": normal(B, 2, seed=5)}, two_inputs_oracle),
}


@pytest.mark.parametrize(("module", "inputs", "q"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_both_match_the_oracle_on(module, inputs, q):
    assert_both_match(module, inputs, q)


@each_linearizer
@pytest.mark.parametrize("batch_size", [1, 2, 7])  # dense splits the batch into halves
def test_any_batch_size(make, batch_size):
    module, inputs, z = Net(()), normal(batch_size, 3), normal(batch_size, seed=1)
    params = initialize(module, inputs)
    assert_close(evaluation(make, module)(params, inputs, z), oracle(net_oracle(), params, inputs, z))


def test_per_example_takes_any_function_and_any_pytree_of_parameters():
    def q_fn(params, x):
        (w,), scale = params
        return scale * jnp.tanh(x @ w)

    def q(params, x):
        (w,), scale = params
        return scale * np.tanh(x @ w)

    params, inputs, z = ([normal(3)], jnp.float32(2.0)), normal(B, 3, seed=2), normal(B, seed=1)
    assert_close(evaluate(ntk.per_example(q_fn), params, inputs, z), oracle(q, params, inputs, z))


@pytest.mark.parametrize("name", ["linear", "applied_twice", "twice_on_tokens", "layer_norm", "temperature"])
def test_both_agree_in_float64(x64, name):
    module, inputs, _ = ARCHITECTURES[name]
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes float32 and float64
        arguments = oracles.float64((initialize(module, inputs), inputs, normal(B, seed=1)))
        reference, fast = (evaluation(make, module)(*arguments) for make in LINEARIZERS.values())
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(fast))
    assert_close(fast, reference, FLOAT64)


@pytest.fixture(scope="module")
def problem():
    module, inputs, _ = ARCHITECTURES["temperature"]  # layers and a parameter outside them
    return module, initialize(module, inputs), inputs, normal(B, seed=1)


@each_linearizer
def test_jit_changes_nothing(make, problem):
    module, *arguments = problem
    assert_close(evaluation(make, module)(*arguments), evaluate(make(module), *arguments), REORDERED)


@each_linearizer
def test_linearization_leaves_and_enters_jit(make, problem):
    module, params, inputs, z = problem
    linearization = jax.jit(make(module))(params, inputs)
    expected = evaluation(make, module)(params, inputs, z)[2]
    assert_close(linearization.pullback(z), expected, REORDERED)
    assert_close(jax.jit(lambda linearization, z: linearization.pullback(z))(linearization, z), expected, REORDERED)


@each_linearizer
def test_linearization_crosses_vmap_and_equals_a_loop(make, problem):
    module, _, inputs, z = problem
    many = [initialize(module, inputs, seed) for seed in range(3)]
    batches = [normal(B, 3, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    linearizations = jax.jit(jax.vmap(make(module)))(stacked, jnp.stack(batches))
    steps = jax.jit(jax.vmap(lambda linearization: linearization.pullback(z)))(linearizations)
    for i, (params, batch) in enumerate(zip(many, batches, strict=True)):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], (linearizations.values, linearizations.gram, steps))
        assert_close(one, evaluation(make, module)(params, batch, z), REORDERED)


@each_linearizer
def test_other_values_are_not_traced_again(make, problem):
    module, _, inputs, z = problem
    traces = 0

    @jax.jit
    def counted(params, inputs, z):
        nonlocal traces
        traces += 1
        return evaluate(make(module), params, inputs, z)

    for seed in range(2):
        counted(initialize(module, inputs, seed), inputs + seed, z)
    assert traces == 1


@each_linearizer
def test_permuting_the_batch_permutes_the_kernel(make, problem):
    module, params, inputs, z = problem
    order = np.random.default_rng(0).permutation(B)
    values, gram, step = evaluation(make, module)(params, inputs, z)
    permuted = evaluation(make, module)(params, inputs[order], z[order])
    assert_close(permuted, (values[order], gram[order][:, order], step), REORDERED)


@each_linearizer
def test_kernel_is_symmetric(make, problem):
    module, *arguments = problem
    gram = np.asarray(evaluation(make, module)(*arguments)[1])
    assert_close(gram.T, gram, REORDERED)


def test_dense_holds_no_per_example_gradients():
    module, inputs, z = Net((16, 16)), normal(B, 3), normal(B)
    params = initialize(module, inputs)

    def largest(make):
        return largest_intermediate(functools.partial(evaluate, make(module)), params, inputs, z)

    per_example_size = B * 16 * 16  # of the largest kernel
    assert largest(LINEARIZERS["dense"]) < per_example_size
    assert largest(LINEARIZERS["per_example"]) >= per_example_size  # else this test could not fail


@each_linearizer
def test_all_matrix_products_are_full_precision(make):
    module, inputs, z = Net((16, 16)), normal(B, 3), normal(B)
    params = initialize(module, inputs)
    linearize = make(module)

    forward = dot_precisions(module.apply, params, inputs)
    forward_and_backward = dot_precisions(lambda *arguments: linearize(*arguments).pullback, params, inputs)
    pulled_back = dot_precisions(functools.partial(evaluate, linearize), params, inputs, z)
    blocks = dot_precisions(lambda *arguments: ntk.kernel(linearize, *arguments), params, inputs)

    assert len(forward_and_backward) > len(forward) == 3  # so the backward pass is among them
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert {*forward_and_backward, *pulled_back, *blocks} == {highest}


N, M = 13, 7


@pytest.fixture(scope="module", params=LINEARIZERS.values(), ids=LINEARIZERS)
def two_sets(request):
    """Linearizer, parameters, N and M inputs, and the kernel of all N + M at once."""
    module, both = TwoInputs(), (normal(N + M, 3), normal(N + M, 2, seed=5))
    params = initialize(module, both)
    left, right = (jax.tree.map(lambda leaf, rows=rows: leaf[rows], both) for rows in (slice(N), slice(N, None)))
    whole = evaluation(request.param, module)(params, both, normal(N + M))[1]
    return request.param(module), params, left, right, whole


@pytest.mark.parametrize("block_size", [1, 4, N, 100])
def test_kernel_in_blocks_equals_the_whole_at_once(two_sets, block_size):
    linearize, params, left, right, whole = two_sets
    blocked = jax.jit(lambda params, left, right: ntk.kernel(linearize, params, left, right, block_size=block_size))
    assert_close(blocked(params, left, right), whole[:N, N:], REORDERED)


def test_kernel_of_one_set_is_with_itself(two_sets):
    linearize, params, left, _, whole = two_sets
    kernel = jax.jit(lambda params, left: ntk.kernel(linearize, params, left))
    assert_close(kernel(params, left), whole[:N, :N], REORDERED)


@pytest.mark.parametrize("block_size", [0, -1])
def test_kernel_refuses_a_block_size_below_one(two_sets, block_size):
    linearize, params, left, _, _ = two_sets
    with pytest.raises(ValueError, match="block_size"):
        ntk.kernel(linearize, params, left, block_size=block_size)


def test_kernel_with_an_empty_set_is_empty(two_sets):
    linearize, params, left, right, _ = two_sets
    nothing = jax.tree.map(lambda leaf: leaf[:0], right)
    assert ntk.kernel(linearize, params, left, nothing).shape == (N, 0)
    assert ntk.kernel(linearize, params, nothing, left).shape == (0, N)


@each_linearizer
def test_memory_of_kernel_is_bounded_by_the_block_size(make):
    module, rows = Net((16, 16)), 32
    params, linearize = initialize(module, normal(1, 3)), make(module)

    def temporary_bytes(function, n):
        inputs = jax.ShapeDtypeStruct((n, 3), jnp.float32)
        return jax.jit(function).lower(params, inputs).compile().memory_analysis().temp_size_in_bytes

    def in_blocks(params, inputs):
        return ntk.kernel(linearize, params, inputs, block_size=rows)

    def at_once(params, inputs):
        return linearize(params, inputs).gram

    small, large = temporary_bytes(in_blocks, 64), temporary_bytes(in_blocks, 512)
    one_row_of_blocks = 4 * rows * 512
    assert large - small <= 2 * one_row_of_blocks
    assert temporary_bytes(at_once, 512) > 10 * large  # else this test could not fail
