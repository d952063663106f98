import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.ops import diagnostics
from preqn_jax.ops.diagnostics import FailureModes
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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [(0, 0), (2, 5)])
def test_effective_rank_of_a_broken_kernel_is_nan(bad, where):
    gram = gram_of_rank(4)
    gram[where] = gram[where[::-1]] = bad
    assert np.isnan(FUNCTIONS["effective_rank"](gram))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, N + 1), (2, N, N)])
def test_other_than_square_matrices_raise(function, shape):
    with pytest.raises(ValueError, match=r"gram must be a square matrix \[N, N\], got shape"):
        function(jnp.ones(shape))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_vmap_equals_a_loop(function):
    grams = np.stack([gram_of_rank(rank, seed=rank) for rank in (2, 20)])
    many = jax.vmap(function)(grams)
    for i, gram in enumerate(grams):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4), many, function(gram))


# ---------------------------------------------------------------------------------------------------------------------
# Failure modes
# ---------------------------------------------------------------------------------------------------------------------

GAMMA, STEP = 0.9, 0.1
SUPPORTED = np.zeros(N)
failure_modes = jax.jit(diagnostics.failure_modes)


def modes_of(kernel, rho, td_error=None, change=None, unsupported=SUPPORTED, step_size=STEP):
    td_error = np.random.default_rng(1).normal(size=N) if td_error is None else td_error
    change = step_size * kernel @ (rho * td_error) if change is None else change
    arrays = (np.asarray(x, np.float32) for x in (kernel, rho, td_error, change, unsupported))
    return failure_modes(*arrays, step_size=np.float32(step_size), gamma=np.float32(GAMMA))


def flags(modes):
    return [bool(flag) for flag in modes.present()]


def test_failure_modes_match_their_formulas():
    rng = np.random.default_rng(0)
    kernel, rho = gram_of_rank(20).astype(np.float64), rng.dirichlet(np.ones(N))
    td_error, change, unsupported = rng.normal(size=N), rng.normal(size=N), rng.uniform(size=N)
    predicted = [STEP * sum(kernel[i, j] * rho[j] * td_error[j] for j in range(N)) for i in range(N)]
    own = [kernel[i, i] * rho[i] for i in range(N)]
    others = [sum(abs(kernel[i, j]) * rho[j] for j in range(N) if j != i) for i in range(N)]
    modes = modes_of(kernel, rho, td_error, change, unsupported)
    expected = FailureModes(
        np.linalg.norm(change - predicted) / np.linalg.norm(predicted),
        STEP * max(own),
        max((1 + GAMMA) * o / ((1 - GAMMA) * d) for o, d in zip(others, own, strict=True)),
        unsupported.mean(),
    )
    np.testing.assert_allclose(modes, expected, rtol=1e-4)


def test_each_failure_mode_shows_alone():
    table, uniform = np.eye(N), np.full(N, 1 / N)
    assert flags(modes_of(table, uniform)) == [False] * 4
    assert flags(modes_of(table, uniform, change=np.ones(N))) == [True, False, False, False]
    assert flags(modes_of(table, uniform, step_size=N)) == [False, True, False, False]
    assert flags(modes_of(table + 0.01, uniform)) == [False, False, True, False]
    assert flags(modes_of(table, uniform, unsupported=np.ones(N))) == [False, False, False, True]


def test_over_generalization_begins_where_equation_17_ends():
    limit = (1 - GAMMA) / (1 + GAMMA) / (N - 1)
    for factor, broken in ((0.99, False), (1.01, True)):
        kernel = np.eye(N) + factor * limit * (1 - np.eye(N))
        assert flags(modes_of(kernel, np.full(N, 1 / N)))[2] == broken


def test_a_row_without_data_is_moved_by_others_alone():
    rho = np.full(N, 1 / N)
    rho[3] = 0
    assert modes_of(np.eye(N), rho).over_generalization == 0
    assert modes_of(np.eye(N) + 0.1, rho).over_generalization == np.inf


def test_linearization_of_no_change_at_all():
    zero = np.zeros(N)
    assert modes_of(np.eye(N), np.ones(N), td_error=zero, change=zero).linearization == 0
    assert modes_of(np.eye(N), np.ones(N), td_error=zero, change=np.ones(N)).linearization == np.inf


def test_modes_of_plain_numbers_are_told_as_well():
    assert [bool(mode) for mode in diagnostics.FailureModes(0.1, 2.0, 0.1, 0.6).present()] == [False, True, False, True]


def test_nan_counts_as_failure():
    kernel = np.eye(N)
    kernel[2, 3] = np.nan
    assert flags(modes_of(kernel, np.full(N, 1 / N), change=np.ones(N)))[0]
    assert flags(modes_of(kernel, np.full(N, 1 / N)))[2]
    assert flags(modes_of(np.eye(N), np.full(N, 1 / N), unsupported=np.full(N, np.nan)))[3]


unsupported_share = jax.jit(diagnostics.unsupported_share)


def test_unsupported_share_is_the_distance_to_the_span():
    rng = np.random.default_rng(0)
    data, rows = rng.normal(size=(4, 12)), rng.normal(size=(6, 12))
    rows[0] = data.T @ rng.normal(size=4)  # inside
    rows[1] -= data.T @ np.linalg.lstsq(data.T, rows[1], rcond=None)[0]  # orthogonal
    rows[2] = 0
    expected = []
    for row in rows:
        rest = row - data.T @ np.linalg.lstsq(data.T, row, rcond=None)[0]
        expected.append(rest @ rest / (row @ row) if row.any() else 0.0)
    # the data once more: a singular kernel spans the same
    for x in (data, np.concatenate([data, data])):
        shares = unsupported_share(*(np.float32(a) for a in (x @ x.T, rows @ x.T, (rows**2).sum(axis=1))))
        np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert expected[:3] == pytest.approx([0, 1, 0])


def test_unsupported_share_with_damping():
    # K = k = K(x', x') = 4, damped by half of 4: 1 - 4 * 4 / 6 / 4
    share = unsupported_share(np.float32([[4]]), np.float32([[4]]), np.float32([4]), np.float32(0.5))
    np.testing.assert_allclose(share, [1 / 3], rtol=1e-6)


def test_unsupported_share_of_nan_is_nan():
    share = unsupported_share(np.float32([[np.nan]]), np.float32([[1]]), np.float32([1]))
    assert np.isnan(share).all()


preconditioned_kernel = jax.jit(diagnostics.preconditioned_kernel, static_argnames="rcond")


def test_preconditioned_kernel_of_an_invertible_one_is_the_identity():
    np.testing.assert_allclose(preconditioned_kernel(gram_of_rank(20)), np.eye(N), atol=1e-4)


def test_preconditioned_kernel_matches_numpy():
    gram = gram_of_rank(4)
    projector = gram.astype(np.float64) @ np.linalg.pinv(gram.astype(np.float64), rcond=1e-6)
    np.testing.assert_allclose(preconditioned_kernel(gram, rcond=1e-6), projector, atol=1e-4)
    damped = gram @ np.linalg.inv(gram + 0.1 * np.trace(gram) / N * np.eye(N))
    np.testing.assert_allclose(preconditioned_kernel(gram, np.float32(0.1)), damped, atol=1e-5)


def test_contraction_bound_is_at_hand():
    kernel, rho = jnp.eye(N), jnp.full(N, 1 / N)
    assert diagnostics.contraction_bound(kernel, rho, 1.0, GAMMA) == pytest.approx(1 - (1 - GAMMA) / N)
