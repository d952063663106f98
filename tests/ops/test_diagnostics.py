import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.ops import diagnostics
from tests import oracles

FUNCTIONS = {name: jax.jit(getattr(diagnostics, name)) for name in ("diagonal_stats", "row_ratio", "effective_rank")}
N = 9


def gram_of_rank(rank, seed=0):
    features = np.random.default_rng(seed).normal(size=(N, rank))
    return (features @ features.T).astype(np.float32)


def test_diagonal_stats_match_numpy():
    gram = gram_of_rank(20)
    diagonal = np.diag(gram).astype(np.float64)
    expected = diagonal.mean(), diagonal.std(), diagonal.min(), diagonal.max()
    np.testing.assert_allclose(FUNCTIONS["diagonal_stats"](gram), expected, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 20])
def test_row_ratio_matches_the_oracle(rank):
    gram = gram_of_rank(rank)
    np.testing.assert_allclose(FUNCTIONS["row_ratio"](gram), oracles.row_ratio(gram.astype(np.float64)), rtol=1e-5)


def test_row_ratio_of_known_kernels():
    ratio = FUNCTIONS["row_ratio"]
    np.testing.assert_allclose(ratio(jnp.eye(4)), np.zeros(4))
    np.testing.assert_allclose(ratio(jnp.ones((4, 4))), np.full(4, 3 / 4))
    np.testing.assert_allclose(ratio(jnp.asarray([[2.0, -1.0], [-1.0, 4.0]])), [1 / 4, 1 / 8])  # signs do not matter


def test_row_ratio_of_a_row_without_diagonal():
    gram = jnp.asarray([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    np.testing.assert_array_equal(FUNCTIONS["row_ratio"](gram), np.float32([0, np.inf, 1 / 3]))


@pytest.mark.parametrize("rank", [1, 2, 4, 20])
def test_effective_rank_matches_the_oracle(rank):
    gram = gram_of_rank(rank)
    # Eigenvalues that should be zero are some 1e-7 of the largest and add some 1e-7 log(1e7) each.
    expected = oracles.effective_rank(gram_of_rank(rank).astype(np.float64))
    assert FUNCTIONS["effective_rank"](gram) == pytest.approx(expected, rel=1e-4)
    assert FUNCTIONS["effective_rank"](gram) <= min(rank, N) * (1 + 1e-4)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_effective_rank_of_known_kernels(scale):
    scale = jnp.float32(scale)
    rank = FUNCTIONS["effective_rank"]
    assert rank(scale * jnp.eye(N)) == pytest.approx(N, rel=1e-5)
    assert rank(scale * jnp.ones((N, N))) == pytest.approx(1, rel=1e-4)
    assert rank(scale * jnp.diag(jnp.asarray([1.0, 1.0] + [0.0] * (N - 2)))) == pytest.approx(2, rel=1e-5)


def test_effective_rank_of_nothing_is_zero():
    assert FUNCTIONS["effective_rank"](jnp.zeros((N, N))) == 0


def test_effective_rank_counts_negative_eigenvalues_as_zero():
    assert FUNCTIONS["effective_rank"](jnp.diag(jnp.asarray([1.0, 1.0, -1e-3]))) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, N + 1), (2, N, N)])
def test_other_than_square_matrices_raise(function, shape):
    with pytest.raises(AssertionError):
        function(jnp.ones(shape))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_vmap_equals_a_loop(function):
    grams = np.stack([gram_of_rank(rank, seed=rank) for rank in (2, 20)])
    many = jax.vmap(function)(grams)
    for i, gram in enumerate(grams):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4), many, function(gram))
