import doctest
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preqn_jax.ops import diagnostics, solvers
from preqn_jax.ops.solvers import SOLVERS
from preqn_jax.ops.status import Status
from tests import oracles

B = 12
each_solver = pytest.mark.parametrize("name", SOLVERS)
# What makes each kind of solver all but exact, by the name of its parameter.
NEARLY_EXACT = {"rcond": 1e-14, "damping": 1e-13, "min_predicted_alignment": 1 - 1e-13}


def solved_by(solver):
    return functools.partial(solvers.solve, solver)


@functools.cache
def jitted(name, *arguments):
    return jax.jit(solved_by(SOLVERS[name](*arguments)))


def nearly_exact(name):
    (parameter,) = inspect.signature(SOLVERS[name]).parameters
    return jitted(name, NEARLY_EXACT[parameter])


def gram_of(spectrum, seed=0, dtype=np.float32):
    """A kernel with these eigenvalues."""
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))[0]
    return jnp.asarray(vectors * spectrum @ vectors.T, dtype)


def errors(n=B, seed=1, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=n), dtype)


WELL_CONDITIONED = np.linspace(1.0, 3.0, B)
SINGULAR = np.concatenate([np.linspace(1.0, 3.0, B // 2), np.zeros(B // 2)])
# As rounding leaves a repeated row: rank one, and an eigenvalue below zero where there should be a zero.
INDEFINITE = np.ones((B, B)) - 1e-3 * np.eye(B)


@each_solver
def test_invertible_kernel_is_solved_exactly(x64, name):
    gram, td_error = gram_of(WELL_CONDITIONED, dtype=np.float64), errors(dtype=np.float64)
    z, info = nearly_exact(name)(gram, td_error)
    # 1e-5: the aligned solver stops at an angle of sqrt(2e-13).
    np.testing.assert_allclose(z, np.linalg.solve(gram, td_error), rtol=0, atol=1e-5 * np.abs(z).max())
    assert info.finite
    assert info.residual < 1e-5
    assert info.predicted_alignment > 1 - 1e-10


@each_solver
def test_default_reaches_the_papers_alignment(name):
    _, info = jitted(name)(gram_of(np.logspace(-2, 0, B)), errors())
    assert info.predicted_alignment >= 0.97


@each_solver
@pytest.mark.parametrize("spectrum", [WELL_CONDITIONED, SINGULAR], ids=["well_conditioned", "singular"])
def test_info_is_what_z_achieves(x64, name, spectrum):
    gram, td_error = gram_of(spectrum, dtype=np.float64), errors(dtype=np.float64)
    z, info = jitted(name)(gram, td_error)
    # 1e-7: at its smallest ridge the aligned solver's z is 1e9 times delta, and K z loses as many digits.
    assert info.predicted_alignment == pytest.approx(oracles.cosine(gram @ z, td_error), abs=1e-7)
    assert info.residual == pytest.approx(oracles.residual(gram, z, td_error), abs=1e-7)
    assert info.residual > 0  # so that a residual of zero could not pass
    assert info.finite


# Half of the spectrum is cut off; no eigenvalue is near enough to the cut for rounding to decide.
@pytest.mark.parametrize("name", ["lstsq", "eigh"])
@pytest.mark.parametrize("rcond", [0.0, 1e-7, 0.1])
def test_pseudo_inverses_match_the_oracle(x64, name, rcond):
    gram, td_error = (
        gram_of(np.array([1e-9] * 4 + [0.01] * 2 + [1, 2, 3]), dtype=np.float64),
        errors(9, dtype=np.float64),
    )
    z, info = jitted(name, rcond)(gram, td_error)
    expected = oracles.lstsq(gram, td_error, rcond)
    # At rcond 0 the condition number 3e9 leaves seven of float64's sixteen digits.
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert info.damping == 0


@pytest.mark.parametrize("damping", [1e-6, 1e-4, 1.0])
def test_ridge_matches_the_oracle(x64, damping):
    gram, td_error = gram_of(SINGULAR, dtype=np.float64), errors(dtype=np.float64)
    z, info = jitted("ridge", damping)(gram, td_error)
    np.testing.assert_allclose(z, oracles.ridge(gram, td_error, damping), rtol=1e-8)
    assert info.damping == pytest.approx(damping)


def test_ridge_grows_its_damping_until_the_factorization_succeeds(x64):
    td_error = errors(dtype=np.float64)
    z, info = jitted("ridge", 1e-5)(jnp.asarray(INDEFINITE), td_error)
    # Three times tenfold: the eigenvalue is -1e-3 and the mean diagonal 0.999, for which 1e-3 is just too little.
    assert info.damping == pytest.approx(1e-2)
    np.testing.assert_allclose(z, oracles.ridge(INDEFINITE, td_error, 1e-2), rtol=1e-8)


def test_ridge_grows_its_damping_where_float32_rounding_demands_it():
    features = np.random.default_rng(0).normal(size=(B, 2)).astype(np.float32)
    gram = jnp.asarray(features @ features.T)
    td_error = jnp.asarray(features[:, 0])
    z, info = jitted("ridge", 1e-12)(gram, td_error)
    assert 1e-12 < info.damping < 1e-4
    assert info.finite
    assert oracles.cosine(gram @ z, td_error) > 0.99  # reachable: td_error is in the kernel's range


@pytest.mark.parametrize("target", [0.9, 0.985, 0.9999])
def test_aligned_takes_the_largest_ridge_that_reaches_its_target(x64, target):
    gram, td_error = gram_of(np.logspace(-3, 0, B), dtype=np.float64), errors(dtype=np.float64)
    z, info = jitted("aligned", target)(gram, td_error)

    def alignment(damping):
        return oracles.cosine(np.asarray(gram) @ oracles.ridge(gram, td_error, damping), td_error)

    np.testing.assert_allclose(z, oracles.ridge(gram, td_error, float(info.damping)), rtol=1e-6)
    assert alignment(float(info.damping)) >= target - 1e-9
    assert alignment(1.01 * float(info.damping)) < target


def test_aligned_takes_the_smallest_ridge_where_the_target_is_out_of_reach(x64):
    gram, td_error = gram_of(SINGULAR, dtype=np.float64), errors(dtype=np.float64)
    z, info = jitted("aligned", 0.999999)(gram, td_error)
    assert info.damping == pytest.approx(1e-9)
    assert info.predicted_alignment < 0.999999
    assert info.finite
    assert np.isfinite(z).all()


def test_aligned_does_not_shrink_a_step_for_nothing():
    z, info = jitted("aligned", 0.985)(jnp.eye(B), errors())  # every ridge is aligned with the identity
    assert info.damping == pytest.approx(1.0)
    np.testing.assert_allclose(z, 0.5 * errors(), rtol=1e-5)


def duplicated(gram):
    rows = np.arange(B) // 2
    return gram[rows][:, rows]


FEATURES = np.random.default_rng(3).normal(size=B).astype(np.float32)
DEGENERATE = {
    "duplicated_rows": (duplicated(gram_of(WELL_CONDITIONED)), duplicated(gram_of(WELL_CONDITIONED))[0]),
    "contradicting_duplicates": (duplicated(gram_of(WELL_CONDITIONED)), errors()),
    "rank_one": (jnp.outer(FEATURES, FEATURES), errors()),
    "all_ones": (jnp.ones((B, B)), errors()),
    "indefinite": (jnp.asarray(INDEFINITE, jnp.float32), errors()),
    "zero_kernel": (jnp.zeros((B, B)), errors()),
    "zero_error": (gram_of(WELL_CONDITIONED), jnp.zeros(B)),
    "all_zero": (jnp.zeros((B, B)), jnp.zeros(B)),
    "one_row": (jnp.full((1, 1), 3.0), jnp.full((1,), 2.0)),
    "one_row_of_zeros": (jnp.zeros((1, 1)), jnp.full((1,), 2.0)),
    "one_large_row": (jnp.diag(jnp.asarray([1e6] + [1.0] * (B - 1))), errors()),
    "tiny": (1e-20 * gram_of(WELL_CONDITIONED), 1e-20 * errors()),
    "huge": (1e20 * gram_of(WELL_CONDITIONED), 1e20 * errors()),
    "tiny_singular": (1e-20 * duplicated(gram_of(WELL_CONDITIONED)), 1e-20 * errors()),
    "huge_singular": (1e20 * duplicated(gram_of(WELL_CONDITIONED)), 1e20 * errors()),
}


@each_solver
@pytest.mark.parametrize(("gram", "td_error"), DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_problems_have_a_finite_solution(name, gram, td_error):
    z, info = jitted(name)(gram, td_error)
    assert np.isfinite(z).all()
    assert info.finite
    assert -1 <= info.predicted_alignment <= 1


@each_solver
# 0.98 is above the paper's eta but below aligned's. The larger a kernel, the larger is the rounding in place
# of its zero eigenvalues.
@pytest.mark.parametrize(("n", "reachable"), [(B, 0.6), (B, 0.98), (B, 0.995), (256, 0.98)])
def test_a_singular_kernel_is_aligned_about_as_far_as_it_can_be(name, n, reachable):
    features = np.random.default_rng(0).normal(size=(n, n // 2))
    basis = np.linalg.qr(features, mode="complete")[0]  # the kernel's range, then its null space
    td_error = (reachable * basis[:, 0] + np.sqrt(1 - reachable**2) * basis[:, -1]).astype(np.float32)
    gram = jnp.asarray(features @ features.T, jnp.float32)
    z, _ = jitted(name)(gram, td_error)
    assert oracles.cosine(np.float64(gram) @ np.float64(z), td_error) >= min(reachable, 0.985) - 0.01


@each_solver
@pytest.mark.parametrize("name_of_problem", ["zero_kernel", "all_zero", "zero_error", "one_row_of_zeros"])
def test_nothing_to_solve_gives_zero(name, name_of_problem):
    gram, td_error = DEGENERATE[name_of_problem]
    z, info = jitted(name)(gram, td_error)
    assert not np.any(z)
    assert info.predicted_alignment == (0 if np.any(td_error) else 1)
    assert info.residual == (1 if np.any(td_error) else 0)


@each_solver
@pytest.mark.parametrize("scale", [1e-20, 1e20])
class TestScale:
    """Kernel and error times the same number have the same z, and fit in float32 though their squares do not."""

    @pytest.fixture
    def pair(self, name, scale):
        gram, td_error = gram_of(WELL_CONDITIONED), errors()
        return jitted(name)(gram, td_error), jitted(name)(scale * gram, scale * td_error)

    def test_solution_does_not_depend_on_it(self, pair):
        (z, _), (scaled_z, _) = pair
        np.testing.assert_allclose(scaled_z, z, rtol=0, atol=1e-5 * np.abs(z).max())

    @pytest.mark.parametrize("field", ["predicted_alignment", "residual", "damping"])
    def test_info_does_not_depend_on_it(self, pair, field):
        (_, info), (_, scaled_info) = pair
        assert getattr(scaled_info, field) == pytest.approx(float(getattr(info, field)), rel=1e-4, abs=1e-5)


@each_solver
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("where", ["gram_diagonal", "gram_off_diagonal", "td_error"])
def test_non_finite_input_is_reported_and_gives_zero(name, value, where):
    gram, td_error = gram_of(WELL_CONDITIONED), errors()
    if where == "td_error":
        td_error = td_error.at[3].set(value)
    else:
        gram = gram.at[3, 3 if where == "gram_diagonal" else 5].set(value)
    z, info = jitted(name)(gram, td_error)
    assert not info.finite
    assert not np.any(z)


@each_solver
def test_overflowing_solution_is_reported_and_gives_zero(name):
    z, info = jitted(name)(1e-30 * gram_of(WELL_CONDITIONED), 1e30 * errors())
    assert not info.finite  # 1e60 does not fit into float32, nor does it with the largest damping, 1e3
    assert not np.any(z)


@each_solver
def test_vmap_equals_a_loop(x64, name):
    singular = duplicated(gram_of(WELL_CONDITIONED, dtype=np.float64))
    grams = [gram_of(WELL_CONDITIONED, dtype=np.float64), singular, jnp.asarray(INDEFINITE), jnp.zeros((B, B))]
    grams = jnp.stack([*grams, jnp.full((B, B), jnp.nan)])
    td_errors = jnp.stack([errors(seed=seed, dtype=np.float64) for seed in range(len(grams))])
    many = jax.jit(jax.vmap(solved_by(SOLVERS[name]())))(grams, td_errors)
    for i in range(len(grams)):
        one = jitted(name)(grams[i], td_errors[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-7, atol=1e-12), many, one)


@each_solver
def test_jit_changes_nothing_and_other_values_are_not_traced_again(x64, name):
    solve, traces = solved_by(SOLVERS[name]()), 0

    @jax.jit
    def counted(gram, td_error):
        nonlocal traces
        traces += 1
        return solve(gram, td_error)

    problem = gram_of(WELL_CONDITIONED, dtype=np.float64), errors(dtype=np.float64)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-12)
    jax.tree.map(close, counted(*problem), solve(*problem))
    counted(2 * problem[0], 3 * problem[1])
    assert traces == 1


@each_solver
def test_permuting_the_batch_permutes_z(x64, name):
    gram, td_error = gram_of(WELL_CONDITIONED, dtype=np.float64), errors(dtype=np.float64)
    order = np.random.default_rng(0).permutation(B)
    z, _ = jitted(name)(gram, td_error)
    permuted, _ = jitted(name)(gram[order][:, order], td_error[order])
    np.testing.assert_allclose(permuted, z[order], rtol=1e-7)


@each_solver
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(x64, name, dtype):
    z, info = jax.eval_shape(solved_by(SOLVERS[name]()), gram_of(WELL_CONDITIONED, dtype=dtype), errors(dtype=dtype))
    assert {z.dtype, info.predicted_alignment.dtype, info.residual.dtype, info.damping.dtype} == {np.dtype(dtype)}


@each_solver
@pytest.mark.parametrize(
    ("gram_shape", "error_shape"), [((B, B), (B, 1)), ((B, B + 1), (B,)), ((B, B), (B + 1,)), ((B,), (B,))]
)
def test_wrong_shapes_raise(name, gram_shape, error_shape):
    with pytest.raises(ValueError, match=r"gram and td_error must have shapes \[B, B\] and \[B\], got "):
        solvers.solve(SOLVERS[name](), jnp.ones(gram_shape), jnp.ones(error_shape))


def test_a_users_own_solver_is_measured_and_reports_no_damping(x64):
    gram, td_error = gram_of(WELL_CONDITIONED, dtype=np.float64), errors(dtype=np.float64)
    z, info = jax.jit(solved_by(lambda gram, delta: 0.5 * jnp.linalg.solve(gram, delta)))(gram, td_error)
    np.testing.assert_allclose(z, 0.5 * np.linalg.solve(gram, td_error), rtol=1e-10)
    assert info.predicted_alignment == pytest.approx(1.0)
    assert info.residual == pytest.approx(0.5)
    assert info.damping == 0
    assert info.kernel_diagonal == pytest.approx(np.trace(gram) / B)
    assert info.status == Status.ACCEPTED


def test_a_users_own_solver_may_report_its_damping():
    z, info = solvers.solve(lambda gram, delta: (delta, 0.25), gram_of(WELL_CONDITIONED), errors())
    np.testing.assert_array_equal(z, errors())
    assert info.damping == 0.25


@pytest.mark.parametrize("problem", ["nan", "inf", "zero"])
def test_a_users_own_solver_sees_no_kernel_that_cannot_be_factorized(problem):
    gram = {"nan": jnp.full((B, B), jnp.nan), "inf": jnp.full((B, B), jnp.inf), "zero": jnp.zeros((B, B))}[problem]
    seen = []
    z, info = solvers.solve(lambda gram, delta: seen.append(gram) or jnp.linalg.solve(gram, delta), gram, errors())
    np.testing.assert_array_equal(seen[0], jnp.eye(B))
    assert not np.any(z)
    assert info.status == (Status.ACCEPTED if problem == "zero" else Status.NON_FINITE_KERNEL)


def test_a_users_own_solver_that_fails_is_reported():
    z, info = solvers.solve(lambda gram, delta: jnp.full_like(delta, jnp.nan), jnp.eye(B), errors())
    assert info.status == Status.NON_FINITE_SOLUTION
    assert not info.finite
    assert not np.any(z)


@pytest.mark.parametrize(
    "solver",
    [
        lambda gram, delta: delta[:, None],
        lambda gram, delta: delta[:-1],
        lambda gram, delta: (delta, jnp.zeros(2)),
        lambda gram, delta: jnp.linalg.lstsq(gram, delta),
        jax.scipy.sparse.linalg.cg,
    ],
    ids=["column", "fewer", "several_dampings", "four_results", "solution_and_none"],
)
def test_a_solution_of_another_shape_raises(solver):
    with pytest.raises(ValueError, match=r"solver must return z of shape \[B\] = \(12,\), or \(z, damping \[\]\), got"):
        solvers.solve(solver, jnp.eye(B), errors())


def test_a_solver_says_what_it_cuts_off():
    assert [solvers.cut_off(solver) for solver in (solvers.lstsq(0.1), solvers.eigh(0.2))] == [0.1, 0.2]
    assert [solvers.cut_off(s) for s in (solvers.ridge(), solvers.aligned(), jnp.linalg.solve)] == [0.0] * 3


@each_solver
def test_the_cut_off_tells_which_kernel_an_update_has(x64, name):
    """What a diagnosis takes for K (K + damping)^+ is what the solver does to delta."""
    gram, td_error = gram_of(SINGULAR, dtype=np.float64), errors(dtype=np.float64)
    solver = SOLVERS[name]()
    z, info = solvers.solve(solver, gram, td_error)
    kernel = diagnostics.preconditioned_kernel(gram, info.damping, solvers.cut_off(solver))
    np.testing.assert_allclose(kernel @ td_error, gram @ z, rtol=0, atol=1e-6)


@each_solver
@pytest.mark.parametrize("value", [-1.0, -1, float("inf"), float("nan")])
def test_senseless_parameters_raise(name, value):
    (parameter,) = inspect.signature(SOLVERS[name]).parameters
    with pytest.raises(ValueError, match=parameter):
        SOLVERS[name](value)


@pytest.mark.parametrize(
    ("constructor", "value"),
    [(solvers.lstsq, 1.0), (solvers.eigh, 1.0), (solvers.ridge, 0.0), (solvers.aligned, 0.0), (solvers.aligned, 1.0)],
)
def test_excluded_ends_of_intervals_raise(constructor, value):
    for number in (value, np.float32(value), jnp.float32(value)):
        with pytest.raises(ValueError, match="must be in"):
            constructor(number)


@each_solver
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    rank=st.integers(1, B),
    repeated=st.integers(1, B),
    log_scales=st.tuples(st.integers(-15, 15), st.integers(-15, 15)),
)
def test_any_kernel_has_a_finite_solution(name, seed, rank, repeated, log_scales):
    rng = np.random.default_rng(seed)
    rows = rng.integers(repeated, size=B)  # drawn with replacement, as a minibatch is
    features = rng.normal(size=(B, rank))[rows] * 10.0 ** (log_scales[0] / 2)
    gram, td_error = (features @ features.T).astype(np.float32), rng.normal(size=B)[rows] * 10.0 ** log_scales[1]
    z, info = jitted(name)(gram, td_error.astype(np.float32))
    assert info.finite
    assert np.isfinite(z).all()
    assert -1 <= info.predicted_alignment <= 1


def test_docstring_example_runs():
    result = doctest.testmod(solvers)
    assert result.attempted > 0
    assert result.failed == 0
