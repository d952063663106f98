"""The numbered statements of Achiam et al. (2019), on drawn MDPs in float64; docs/theory.md lists them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from preqn_jax.ops import td
from preqn_jax.theory import mdps
from preqn_jax.theory.mdps import FiniteMDP
from tests.ops.precision import double
from tests.theory.mdp_cases import (
    A,
    N,
    S,
    bellman,
    beta,
    draw_kernel,
    draw_mdp,
    draw_qs,
    draw_rho,
    optimal_q,
    sup,
    worst_case,
)
from tests.theory.statements import FUNCTIONS, SLACK, call, gammas, linearize_linear, many, seeds

# ---------------------------------------------------------------------------------------------------------------------
# Definitions
# ---------------------------------------------------------------------------------------------------------------------


@many
@given(seeds, gammas, st.floats(0.0, 2.0))
def test_operators_are_what_their_formulas_say(seed, gamma, step_size):
    rng = np.random.default_rng(seed)
    mdp, rho, kernel, (q,) = draw_mdp(rng, gamma), draw_rho(rng), draw_kernel(rng, 1.0), draw_qs(rng, 1)
    delta = bellman(q, mdp) - q
    weighted = [sum(kernel[i, j] * rho.flat[j] * delta.flat[j] for j in range(N)) for i in range(N)]
    close = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(call("optimality", q, mdp), bellman(q, mdp), **close)
    np.testing.assert_allclose(call("u1", q, mdp, step_size), q + step_size * delta, **close)
    np.testing.assert_allclose(call("u2", q, mdp, rho, step_size), q + step_size * rho * delta, **close)
    u3 = q + step_size * np.reshape(weighted, (S, A))
    np.testing.assert_allclose(call("u3", q, mdp, kernel, rho, step_size), u3, **close)
    expected = beta(kernel, rho.ravel(), step_size, gamma)
    assert call("contraction_bound", kernel, rho.ravel(), step_size, gamma) == pytest.approx(expected, rel=1e-12)


def test_conditions_of_a_kernel_by_hand():
    kernel, rho = np.array([[2.0, -1.0], [-1.0, 4.0]]), np.array([0.25, 0.75])
    conditions = call("contraction_conditions", kernel, rho, 0.5, 0.5)
    np.testing.assert_allclose(conditions.overshoot, [0.25, 1.5])
    np.testing.assert_allclose(conditions.spill, [1.5 * 0.75, 1.5 * 0.25])
    np.testing.assert_allclose(conditions.pull, [0.5 * 0.5, 0.5 * 3.0])
    assert not conditions.hold()
    # |1 - 0.25| + 0.5 * 0.25 + 0.5 * 1.125 in the first row, |1 - 1.5| + 0.5 * 1.5 + 0.5 * 0.375 in the second
    assert call("contraction_bound", kernel, rho, 0.5, 0.5) == pytest.approx(1.4375)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("optimality", (np.zeros(S),)),
        ("optimality", (np.zeros((S, A + 1)),)),
        ("u2", (np.zeros(N), 0.1)),
        ("u3", (np.eye(N), np.zeros(N), 0.1)),
        ("u3", (np.eye(S), np.zeros((S, A)), 0.1)),
        ("contraction_conditions", (np.eye(N), np.zeros((N, 1)), 0.1, 0.9)),
        ("contraction_conditions", (np.ones((N, 1)), np.zeros(N), 0.1, 0.9)),
        ("natural_gradient_direction", (np.ones((N, 3)), np.zeros((N, 1)), np.zeros(N))),
        ("natural_gradient_direction", (np.ones(N), np.zeros(N), np.zeros(N))),
    ],
)
def test_other_shapes_raise(name, arguments):
    mdp = draw_mdp(np.random.default_rng(0), 0.9)
    if name == "optimality":
        arguments = (*arguments, mdp)
    elif name.startswith("u"):
        arguments = (np.zeros((S, A)), mdp, *arguments)
    with pytest.raises(ValueError, match=r"must have shape \[.*\], got"):
        call(name, *arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Section 2.2: value iteration, Q-learning
# ---------------------------------------------------------------------------------------------------------------------


@settings(many, max_examples=20)
@given(seeds, gammas)
def test_value_iteration_contracts_by_gamma(seed, gamma):
    rng = np.random.default_rng(seed)
    mdp, (q, other) = draw_mdp(rng, gamma), draw_qs(rng)
    assert sup(call("optimality", q, mdp) - call("optimality", other, mdp)) <= gamma * sup(q - other) + SLACK
    best = optimal_q(mdp)
    start = sup(q - best)
    for _ in range(20):
        q = call("optimality", q, mdp)
    assert sup(q - best) <= gamma**20 * start + SLACK * (1 + sup(best))


def test_eq_4_is_q_learning_for_a_table(x64):
    rng = np.random.default_rng(0)
    table, (state, action, following) = jnp.asarray(rng.normal(size=(S, A))), (2, 1, 0)
    one_hot = jnp.eye(N)[state * A + action][None]
    reward, best = jnp.asarray([0.7]), table[following].max()[None]
    linearization = linearize_linear(table.ravel(), one_hot)
    delta = td.td_target(reward, jnp.ones(1), best, 0.9) - linearization.values
    stepped = table.ravel() + 0.3 * linearization.pullback(delta)
    expected = np.array(table)  # Eq. 3
    expected[state, action] += 0.3 * (0.7 + 0.9 * max(expected[following]) - expected[state, action])
    np.testing.assert_allclose(stepped.reshape(S, A), expected, rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Lemma 1: U1
# ---------------------------------------------------------------------------------------------------------------------


@many
@given(seeds, gammas, st.floats(0.0, 2.5))
def test_lemma_1_bound_and_fixed_point(seed, gamma, step_size):
    rng = np.random.default_rng(seed)
    mdp, (q, other) = draw_mdp(rng, gamma), draw_qs(rng)
    modulus = call("u1_modulus", step_size, gamma)
    difference = call("u1", q, mdp, step_size) - call("u1", other, mdp, step_size)
    assert sup(difference) <= modulus * sup(q - other) + SLACK
    if step_size <= 1:
        assert modulus == pytest.approx(1 - (1 - gamma) * step_size, abs=1e-12)
    best = optimal_q(mdp)
    assert sup(call("u1", best, mdp, step_size) - best) <= SLACK * (1 + sup(best))


@pytest.mark.parametrize(("step_size", "expands"), [(0.5, False), (1.0, False), (1.05, False), (1.06, True)])
def test_lemma_1_fails_beyond_two_over_one_plus_gamma(step_size, expands):
    mdp, kernel, rho, q, zero = worst_case(np.eye(3), np.ones(3), step_size, gamma=0.9)
    del kernel, rho
    ratio = sup(call("u1", q, mdp, step_size) - call("u1", zero, mdp, step_size)) / sup(q)
    assert ratio == pytest.approx(call("u1_modulus", step_size, 0.9))
    assert (ratio > 1) == expands  # 2 / 1.9 = 1.0526


# ---------------------------------------------------------------------------------------------------------------------
# Lemma 2: U2
# ---------------------------------------------------------------------------------------------------------------------


@many
@given(seeds, gammas, st.floats(0.01, 2.5))
def test_lemma_2_bound_and_fixed_point(seed, gamma, relative_step):
    rng = np.random.default_rng(seed)
    mdp, rho, (q, other) = draw_mdp(rng, gamma), draw_rho(rng), draw_qs(rng)
    step_size = relative_step / rho.max()
    modulus = call("u2_modulus", rho, step_size, gamma)
    difference = call("u2", q, mdp, rho, step_size) - call("u2", other, mdp, rho, step_size)
    assert sup(difference) <= modulus * sup(q - other) + SLACK
    if relative_step <= 1:
        assert modulus == pytest.approx(1 - (1 - gamma) * step_size * rho.min(), abs=1e-12)
    best = optimal_q(mdp)
    assert sup(call("u2", best, mdp, rho, step_size) - best) <= SLACK * (1 + sup(best)) * step_size


def test_lemma_2_without_data_somewhere_nothing_contracts():
    rng = np.random.default_rng(0)
    mdp, rho, (q,) = draw_mdp(rng, 0.9), draw_rho(rng), draw_qs(rng, 1)
    rho[2, 1] = 0.0
    best = optimal_q(mdp)
    assert call("u2_modulus", rho, 1 / rho.max(), 0.9) == 1
    apart = np.where(rho == 0, 3.0, 0.0)  # the pair of its proof: apart at the missing pair alone, and so they stay
    moved = call("u2", q + apart, mdp, rho, 0.5 / rho.max()) - call("u2", q, mdp, rho, 0.5 / rho.max())
    assert sup(moved) == pytest.approx(3.0, rel=1e-14)
    start = q
    for _ in range(200):
        before = sup(q - best)
        q = call("u2", q, mdp, rho, 1 / rho.max())
        assert sup(q - best) <= before + SLACK  # a non-expansion
    assert q[2, 1] == start[2, 1]  # never updated
    assert sup(q - best) > 0.1  # and so the limit is not Q*


def test_lemma_2_fails_for_larger_steps():
    rho = np.array([0.5, 0.3, 0.2])
    step_size = 1.1 * 2 / (1 + 0.9) / rho.max()
    mdp, _, padded, q, zero = worst_case(np.eye(3), rho, step_size, gamma=0.9)
    ratio = sup(call("u2", q, mdp, padded, step_size) - call("u2", zero, mdp, padded, step_size)) / sup(q)
    assert ratio == pytest.approx(call("u2_modulus", rho, step_size, 0.9))
    assert ratio > 1.1


# ---------------------------------------------------------------------------------------------------------------------
# Theorem 2: U3
# ---------------------------------------------------------------------------------------------------------------------


@many
@given(seeds, gammas, st.floats(0.0, 5.0), st.sampled_from([0.0, 1e-4, 1e-2, 1.0]))
def test_theorem_2_bound_and_fixed_point(seed, gamma, step_size, coupling):
    rng = np.random.default_rng(seed)
    mdp, rho, kernel, (q, other) = draw_mdp(rng, gamma), draw_rho(rng), draw_kernel(rng, coupling), draw_qs(rng)
    bound = call("contraction_bound", kernel, rho.ravel(), step_size, gamma)
    difference = call("u3", q, mdp, kernel, rho, step_size) - call("u3", other, mdp, kernel, rho, step_size)
    assert sup(difference) <= bound * sup(q - other) + SLACK
    best = optimal_q(mdp)
    assert sup(call("u3", best, mdp, kernel, rho, step_size) - best) <= SLACK * (1 + sup(best)) * (1 + step_size)


@many
@given(seeds, st.floats(0.0, 0.99), st.floats(0.01, 2.0), st.sampled_from([0.0, 1e-4, 1e-3, 1e-2, 1.0]))
def test_theorem_2_conditions_decide_whether_beta_is_below_one(seed, gamma, relative_step, coupling):
    rng = np.random.default_rng(seed)
    kernel, rho = draw_kernel(rng, coupling), rng.dirichlet(np.full(N, 20.0))
    step_size = relative_step / np.max(np.diag(kernel) * rho)
    conditions = call("contraction_conditions", kernel, rho, step_size, gamma)
    bound = call("contraction_bound", kernel, rho, step_size, gamma)
    assume(sup(bound - 1) > 1e-9)
    if conditions.hold():
        assert bound < 1
    if (conditions.spill > conditions.pull).any():  # then no step size, however small, helps
        assert bound > 1
    if (conditions.overshoot < 1).all():
        assert (bound < 1) == bool(conditions.hold())
        # the paper's own form of beta(K)
        assert bound == pytest.approx(np.max(1 - step_size * (conditions.pull - conditions.spill)), rel=1e-12)


def test_theorem_2_draws_cover_both_cases():
    rng = np.random.default_rng(0)
    rho = rng.dirichlet(np.full(N, 20.0))
    held = [call("contraction_conditions", draw_kernel(rng, c), rho, 0.1, 0.9).hold() for c in (0.0, 1e-4, 1.0)]
    assert held == [True, True, False]


@many
@given(seeds, gammas, st.floats(0.01, 3.0), st.sampled_from([0.0, 1e-3, 1.0]))
def test_theorem_2_bound_is_attained(seed, gamma, relative_step, coupling):
    """So wherever a condition fails and beta(K) > 1, this MDP makes U3 expand."""
    rng = np.random.default_rng(seed)
    kernel, rho = draw_kernel(rng, coupling), rng.dirichlet(np.ones(N))
    step_size = relative_step / np.max(np.diag(kernel) * rho)
    mdp, padded, padded_rho, q, zero = worst_case(kernel, rho, step_size, gamma)
    with double():  # one state more than elsewhere
        arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), (mdp, padded, padded_rho, step_size))
        moved = FUNCTIONS["u3"](jnp.asarray(q), *arguments) - FUNCTIONS["u3"](jnp.asarray(zero), *arguments)
    ratio = sup(np.asarray(moved)) / sup(q)
    assert ratio == pytest.approx(max(1.0, beta(kernel, rho, step_size, gamma)), rel=1e-12)


def test_theorem_2_as_printed_contradicts_lemma_2():
    """Eqs. 16 and 17 hold as printed, with <=, for K = I and rho = (1, 0), where U3 is U2 with a missing pair."""
    kernel, rho = np.eye(2), np.array([1.0, 0.0])
    conditions = call("contraction_conditions", kernel, rho, 0.5, 0.9)
    assert (conditions.overshoot < 1).all()
    assert (conditions.spill <= conditions.pull).all()
    assert not conditions.hold()
    assert call("contraction_bound", kernel, rho, 0.5, 0.9) == 1
    mdp = FiniteMDP(np.ones((2, 1, 2)) / 2, np.zeros((2, 1)), 0.9)
    q, zero = np.array([[0.0], [1.0]]), np.zeros((2, 1))
    moved = call("u3", q, mdp, kernel, rho[:, None], 0.5) - call("u3", zero, mdp, kernel, rho[:, None], 0.5)
    assert sup(moved) == sup(q)
    np.testing.assert_array_equal(moved, call("u2", q, mdp, rho[:, None], 0.5))


@settings(many, max_examples=30)
@given(seeds, st.integers(1, N - 1), st.floats(0.0, 0.99))
def test_theorem_2_conditions_force_a_table(seed, features, gamma):
    """They make K D_rho strictly diagonally dominant, and K invertible: a linear Q with fewer features fails them."""
    rng = np.random.default_rng(seed)
    phi, rho = rng.normal(size=(N, features)), rng.dirichlet(np.ones(N))
    conditions = call("contraction_conditions", phi @ phi.T, rho, 1e-3, gamma)
    assert (conditions.spill >= (1 + gamma) / (1 - gamma) * conditions.pull).any()


def test_theorem_2_with_equality_is_a_non_expansion_only():
    gamma, rho = 0.9, np.array([0.5, 0.5])
    kernel = np.array([[1.0, 0.1 / 1.9], [0.1 / 1.9, 1.0]])  # spill = pull
    assert not call("contraction_conditions", kernel, rho, 0.1, gamma).hold()
    assert call("contraction_bound", kernel, rho, 0.1, gamma) == pytest.approx(1.0, abs=1e-15)
    mdp, padded, padded_rho, q, zero = worst_case(kernel, rho, 0.1, gamma)
    moved = call("u3", q, mdp, padded, padded_rho, 0.1) - call("u3", zero, mdp, padded, padded_rho, 0.1)
    assert moved[:2].max() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("problem", ["baird", "tsitsiklis_van_roy"])
def test_theorem_2_fails_and_repeated_steps_diverge(problem):
    with double():
        mdp, features, weights = jax.tree.map(np.asarray, getattr(mdps, problem)(0.99))
    kernel, n = features @ features.T, len(features)
    rho = np.full(n, 1 / n)
    conditions = call("contraction_conditions", kernel, rho, 0.3, 0.99)
    assert (conditions.overshoot < 1).all()  # no entry oversteps its own target
    assert (conditions.spill > conditions.pull).any()
    q = (features @ weights)[:, None]
    start = sup(q)
    for _ in range(100):
        q = call("u3", q, mdp, kernel, rho[:, None], 0.3)
    assert sup(q) > 10 * start


@pytest.mark.parametrize(("gamma", "grows"), [(0.8, False), (0.83, False), (0.84, True), (0.99, True)])
def test_tsitsiklis_van_roy_grows_beyond_five_sixths(gamma, grows):
    with double():
        mdp, features, _ = jax.tree.map(np.asarray, mdps.tsitsiklis_van_roy(gamma))
    q = call("u3", features, mdp, features @ features.T, np.full((2, 1), 0.5), 0.1)
    np.testing.assert_allclose(q, (1 + 0.1 * (6 * gamma - 5) / 2) * features, rtol=1e-12)
    assert (sup(q) > sup(features)) == grows


@pytest.mark.parametrize(
    ("features", "rho", "factor"),
    [
        ([[1.0], [2.0]], (0.5, 0.5), 1 + 0.1 * (6 * 0.99 - 5) / 2),  # all three of the triad: it grows
        ([[1.0], [2.0]], (0.0, 1.0), 1 - 4 * 0.1 * 0.01),  # on-policy, Melo's way out: both states lead to the second
        (np.eye(2), (0.5, 0.5), 1 - 0.05 * 0.01),  # a table, Theorem 2's way out
    ],
    ids=["triad", "on_policy", "table"],
)
def test_melo_parallel_each_way_out_removes_one_part_of_the_triad(features, rho, factor):
    with double():
        mdp, _, _ = jax.tree.map(np.asarray, mdps.tsitsiklis_van_roy(0.99))
    features, rho = np.asarray(features), np.asarray(rho)[:, None]
    q = np.ones((2, 1)) if len(features[0]) > 1 else features
    for _ in range(500):
        q = call("u3", q, mdp, features @ features.T, rho, 0.1)
    moved = call("u3", q, mdp, features @ features.T, rho, 0.1)
    np.testing.assert_allclose(moved, factor * q, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Theorem 3: a kernel that changes from step to step
# ---------------------------------------------------------------------------------------------------------------------


@settings(many, max_examples=20)
@given(seeds, st.floats(0.0, 0.95))
def test_theorem_3_contractions_of_one_fixed_point_in_a_row(seed, gamma):
    rng = np.random.default_rng(seed)
    mdp, (q,) = draw_mdp(rng, gamma), draw_qs(rng, 1)
    best = optimal_q(mdp)
    bound = sup(q - best)
    for _ in range(15):
        kernel, rho = draw_kernel(rng, 1e-5), rng.dirichlet(np.full(N, 20.0))
        step_size = rng.uniform(0.1, 0.99) / np.max(np.diag(kernel) * rho)
        modulus = call("contraction_bound", kernel, rho, step_size, gamma)
        assert modulus < 1
        bound *= modulus
        q = call("u3", q, mdp, kernel, rho.reshape(S, A), step_size)
        assert sup(q - best) <= bound + SLACK * (1 + sup(best))


def test_theorem_3_as_printed_fails_where_moduli_approach_one():
    """The paper has convergence whenever all beta_k < 1, since their product went to 0. It need not."""
    mdp = FiniteMDP(np.ones((1, 1, 1)), np.zeros((1, 1)), 0.5)
    q = np.ones((1, 1))
    for k in range(1, 51):  # beyond these, a modulus is 1 but for rounding
        step_size = 2.0**-k
        assert call("u1_modulus", step_size, 0.5) < 1  # each a contraction
        q = call("u1", q, mdp, step_size)
    assert q == pytest.approx(np.prod(1 - 0.5 ** np.arange(2.0, 52)))
    assert q > 0.577  # and Q* = 0


def test_theorem_3_fails_where_kernels_expand():
    gamma, rho = 0.9, np.array([0.5, 0.5])
    mdp, kernel, rho, q, _ = worst_case(np.array([[1.0, 0.5], [0.5, 1.0]]), rho, 0.5, gamma)
    assert call("contraction_bound", kernel, rho[:, 0], 0.5, gamma) > 1
    assert sup(call("u3", q, mdp, kernel, rho, 0.5)) > sup(q)  # away from Q* = 0
