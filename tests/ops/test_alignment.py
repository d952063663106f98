import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preqn_jax.ops.alignment import cosine
from tests import oracles

jitted = jax.jit(cosine)


def random(n, seed):
    return np.random.default_rng(seed).normal(size=n).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 12, 256])
def test_matches_the_oracle(n):
    a, b = random(n, 0), random(n, 1)
    assert jitted(a, b) == pytest.approx(oracles.cosine(a, b), abs=1e-6)


@pytest.mark.parametrize("scales", [(1e-35, 1e-35), (1e35, 1e35), (1e-35, 1e35), (1e-20, 1.0), (1.0, -1e20)])
def test_does_not_depend_on_scale(scales):  # squares of most of these leave float32's range
    a, b = random(12, 0), random(12, 1)
    scaled = jitted(np.float32(scales[0]) * a, np.float32(scales[1]) * b)
    assert scaled == pytest.approx(np.sign(scales[1]) * oracles.cosine(a, b), abs=1e-6)


def test_of_parallel_opposite_and_orthogonal_vectors():
    a = random(12, 0)
    assert jitted(a, 3 * a) == pytest.approx(1, abs=1e-6)
    assert jitted(a, -a) == pytest.approx(-1, abs=1e-6)
    assert jitted(np.float32([1, 0]), np.float32([0, 2])) == 0


def test_a_zero_vector_is_aligned_with_nothing():
    zero = jnp.zeros(12)
    assert [float(jitted(*pair)) for pair in ((zero, random(12, 0)), (random(12, 0), zero), (zero, zero))] == [0, 0, 0]


@pytest.mark.parametrize("other", [random(12, 0), np.zeros(12, np.float32)], ids=["random", "zero"])
def test_nan_is_not_hidden(other):
    broken = random(12, 1)
    broken[3] = np.nan
    assert np.isnan(jitted(broken, other))
    assert np.isnan(jitted(other, broken))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3), st.floats(2**-20, 2**20, width=32))
def test_never_leaves_its_range(entries, factor):
    a = np.asarray(entries, np.float32)
    assert -1 <= jitted(a, np.float32(factor) * a) <= 1


@pytest.mark.parametrize(
    "shapes", [((3, 1), (3,)), ((3,), (3, 1)), ((3, 1), (3, 1)), ((3,), (4,))], ids=["left", "right", "both", "lengths"]
)
def test_other_than_two_vectors_of_one_length_raise(shapes):
    with pytest.raises(ValueError, match="a and b must be vectors of one length, got shapes a"):
        cosine(*(jnp.ones(shape) for shape in shapes))
