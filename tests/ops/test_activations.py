import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.ops.activations import ACTIVATIONS, sin
from tests.ops.jaxprs import primitives

FAST_RANGE = 1e4
ACCURACY = 2e-7  # as documented

jitted = jax.jit(sin)
with_derivative = jax.jit(lambda x: jax.jvp(sin, (x,), (jnp.ones_like(x),)))


def neighbours(x, steps=4):
    """The floats around each x, where the reduction changes branch or the result crosses zero."""
    x = below = above = np.asarray(x, np.float32)
    around = [x]
    for _ in range(steps):
        below, above = np.nextafter(below, np.float32(-np.inf)), np.nextafter(above, np.float32(np.inf))
        around += [below, above]
    return np.concatenate(around)


MULTIPLES = np.arange(int(FAST_RANGE / np.pi))
SAMPLES = {
    "dense": np.linspace(-FAST_RANGE, FAST_RANGE, 1_000_001),
    "densest_where_networks_are": np.linspace(-20, 20, 1_000_001),
    "small": np.logspace(-38, 0, 100_001),
    "multiples_of_pi": neighbours(MULTIPLES * np.pi),
    "odd_multiples_of_half_pi": neighbours((MULTIPLES + 0.5) * np.pi),
    "ends": np.asarray([-FAST_RANGE, FAST_RANGE]),
}


@pytest.mark.parametrize("x", SAMPLES.values(), ids=SAMPLES)
def test_sine_and_derivative_are_within_the_documented_accuracy(x):
    x = x.astype(np.float32)
    assert np.abs(x).max() <= FAST_RANGE
    exact = x.astype(np.float64)
    sine, cosine = with_derivative(x)
    np.testing.assert_allclose(jitted(x), np.sin(exact), rtol=0, atol=ACCURACY)
    np.testing.assert_allclose(sine, np.sin(exact), rtol=0, atol=ACCURACY)
    np.testing.assert_allclose(cosine, np.cos(exact), rtol=0, atol=ACCURACY)


def test_small_arguments_keep_their_relative_accuracy():
    x = np.logspace(-30, -4, 1001).astype(np.float32)
    np.testing.assert_allclose(jitted(x), x, rtol=1e-6)


def test_is_zero_at_zero_and_odd():
    x = SAMPLES["dense"][::7].astype(np.float32)
    assert jitted(jnp.zeros(3)).tolist() == [0, 0, 0]
    np.testing.assert_array_equal(jitted(-x), -jitted(x))


def test_one_entry_beyond_the_range_takes_the_whole_array_to_jnp_sin():
    x = np.linspace(-5, 5, 1001).astype(np.float32)
    beyond = np.append(x, np.nextafter(np.float32(FAST_RANGE), np.float32(np.inf)))
    np.testing.assert_array_equal(jitted(beyond), jax.jit(jnp.sin)(beyond))
    assert np.any(jitted(x) != jax.jit(jnp.sin)(x))  # else the line above would say nothing


@pytest.mark.parametrize("value", [1.5e4, 1e6, 1e30, -1e38])
def test_large_arguments_equal_jnp_sin(value):
    x = jnp.asarray([value])
    np.testing.assert_array_equal(jitted(x), jnp.sin(x))
    np.testing.assert_array_equal(with_derivative(x)[1], jnp.cos(x))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_entries_give_nan_and_leave_the_others_alone(value):
    x = jnp.asarray([0.5, value, -2.0])
    for result, exact in zip(with_derivative(x), (np.sin, np.cos), strict=True):
        assert np.isnan(result[1])
        np.testing.assert_allclose(result[::2], exact(np.asarray([0.5, -2.0])), atol=ACCURACY)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_take_jnp_sin(x64, dtype):
    x = jnp.linspace(-20, 20, 101).astype(dtype)
    sine, cosine = with_derivative(x)
    assert sine.dtype == cosine.dtype == dtype
    np.testing.assert_array_equal(sine, jax.jit(jnp.sin)(x))
    np.testing.assert_array_equal(cosine, jax.jit(jnp.cos)(x))


X = np.linspace(-9, 9, 24).astype(np.float32).reshape(2, 3, 4)
EXACT = X.astype(np.float64)
TRANSFORMED = {
    "grad": (jax.vmap(jax.grad(sin)), X.ravel(), np.cos(EXACT).ravel()),
    "second_grad": (jax.vmap(jax.grad(jax.grad(sin))), X.ravel(), -np.sin(EXACT).ravel()),
    "third_grad": (jax.vmap(jax.grad(jax.grad(jax.grad(sin)))), X.ravel(), -np.cos(EXACT).ravel()),
    "forward_over_reverse": (jax.vmap(jax.jacfwd(jax.grad(sin))), X.ravel(), -np.sin(EXACT).ravel()),
    "vmap": (jax.vmap(sin), X, np.sin(EXACT)),
    "vmap_over_a_later_axis": (jax.vmap(sin, in_axes=1, out_axes=1), X, np.sin(EXACT)),
    "vmap_of_vmap": (jax.vmap(jax.vmap(sin)), X, np.sin(EXACT)),
    "vmap_of_grad_of_sum": (jax.vmap(jax.grad(lambda x: sin(x).sum())), X, np.cos(EXACT)),
    "grad_of_vmap": (jax.grad(lambda x: jax.vmap(sin)(x).sum()), X, np.cos(EXACT)),
    "scan": (lambda x: jax.lax.scan(lambda carry, row: (carry, sin(row)), 0, x)[1], X, np.sin(EXACT)),
    "grad_of_scan": (
        jax.grad(lambda x: jax.lax.scan(lambda carry, row: (carry + sin(row).sum(), None), 0.0, x)[0]),
        X,
        np.cos(EXACT),
    ),
    "checkpoint": (jax.grad(lambda x: jax.checkpoint(sin)(x).sum()), X, np.cos(EXACT)),
}


@pytest.mark.parametrize(("function", "x", "expected"), TRANSFORMED.values(), ids=TRANSFORMED)
def test_transformed(function, x, expected):
    np.testing.assert_allclose(jax.jit(function)(x), expected, rtol=0, atol=ACCURACY)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 4)], ids=str)
def test_any_shape(shape):
    x = jnp.full(shape, 0.5)
    result = sin(x)
    assert result.shape == shape
    np.testing.assert_allclose(result, np.full(shape, np.sin(0.5)), atol=ACCURACY)
    np.testing.assert_allclose(jax.grad(lambda x: sin(x).sum())(x), np.full(shape, np.cos(0.5)), atol=ACCURACY)


@pytest.mark.parametrize("function", [sin, jax.grad(lambda x: sin(x).sum())], ids=["value", "derivative"])
def test_vmap_still_evaluates_one_branch(function):
    plain, mapped = primitives(function, X[0]), primitives(jax.vmap(function), X)
    assert plain["cond"] > 0
    assert mapped["cond"] == plain["cond"]
    assert mapped["select_n"] == plain["select_n"]  # a mapped condition would select between both branches


def test_table_holds_what_its_names_say():
    x = jnp.linspace(-2, 2, 9)
    for name, exact in {"sin": np.sin, "tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}.items():
        np.testing.assert_allclose(ACTIVATIONS[name](x), exact(np.asarray(x, np.float64)), atol=5e-7)
