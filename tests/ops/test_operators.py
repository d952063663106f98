"""The statements of Achiam et al. (2019), sections 3 and 4, on drawn MDPs in float64; docs/theory.md lists them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from preqn_jax.ops import mdps, ntk, operators, solvers
from preqn_jax.ops.mdps import FiniteMDP
from preqn_jax.ops.preqn import Status, preqn_update
from tests import oracles
from tests.ops.mdp_cases import (
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
from tests.ops.precision import double

# Many rounding errors of 1e-16 on values of order 1 to 100.
SLACK = 1e-10

FUNCTIONS = {
    name: jax.jit(getattr(operators, name))
    for name in (
        "optimality",
        "u1",
        "u2",
        "u3",
        "u1_modulus",
        "u2_modulus",
        "contraction_bound",
        "contraction_conditions",
        "natural_gradient_direction",
    )
}

many = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
gammas = st.floats(0.0, 0.999)


def call(name, *arguments):
    """The library's function in float64, its result in NumPy."""
    with double():
        arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), arguments)
        return jax.tree.map(np.asarray, FUNCTIONS[name](*arguments))


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
    with pytest.raises(AssertionError):
        call(name, *arguments)


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


def test_theorem_3_needs_moduli_that_stay_below_one():
    mdp = FiniteMDP(np.ones((1, 1, 1)), np.zeros((1, 1)), 0.5)
    q = np.ones((1, 1))
    for k in range(1, 60):
        step_size = 2.0**-k
        assert call("u1_modulus", step_size, 0.5) < 1 or k > 50  # each a contraction, but for rounding
        q = call("u1", q, mdp, step_size)
    assert q > 0.5  # prod (1 - 2^-k / 2) = 0.58, and Q* = 0


def test_theorem_3_fails_where_kernels_expand():
    gamma, rho = 0.9, np.array([0.5, 0.5])
    mdp, kernel, rho, q, _ = worst_case(np.array([[1.0, 0.5], [0.5, 1.0]]), rho, 0.5, gamma)
    assert call("contraction_bound", kernel, rho[:, 0], 0.5, gamma) > 1
    assert sup(call("u3", q, mdp, kernel, rho, 0.5)) > sup(q)  # away from Q* = 0


# ---------------------------------------------------------------------------------------------------------------------
# First order (Lemma 3): what a step of the parameters does to Q
# ---------------------------------------------------------------------------------------------------------------------


def linear(params, x):
    return x @ params


@many
@given(seeds, gammas, st.floats(0.01, 1.0))
def test_gradient_step_of_a_linear_q_is_u3_exactly(seed, gamma, step_size):
    rng = np.random.default_rng(seed)
    features, weights = rng.normal(size=(N, 5)), rng.normal(size=5)
    mdp, rho = draw_mdp(rng, gamma), draw_rho(rng)
    q = (features @ weights).reshape(S, A)
    delta = (bellman(q, mdp) - q).ravel()
    stepped = weights + step_size * sum(rho.flat[i] * delta[i] * features[i] for i in range(N))
    expected = call("u3", q, mdp, features @ features.T, rho, step_size)
    np.testing.assert_allclose((features @ stepped).reshape(S, A), expected, rtol=1e-10, atol=1e-10)


@jax.jit
def preqn_step(weights, features, td_error, step_size):
    return preqn_update(
        linear, weights, features, td_error, solve=solvers.lstsq(1e-14), step_size=step_size, max_backtracks=0
    )


@many
@given(seeds, gammas, st.floats(0.01, 1.0))
def test_preqn_step_of_a_linear_q_is_u1_exactly(seed, gamma, step_size):
    rng = np.random.default_rng(seed)
    features, weights = well_conditioned(rng, N, N + 3), rng.normal(size=N + 3)
    mdp = draw_mdp(rng, gamma)
    q = (features @ weights).reshape(S, A)
    delta = (bellman(q, mdp) - q).ravel()
    with double():
        arguments = (jnp.asarray(x, "float64") for x in (weights, features, delta, step_size))
        stepped, info = jax.tree.map(np.asarray, preqn_step(*arguments))
    assert info.status == Status.ACCEPTED
    expected = call("u1", q, mdp, step_size)
    np.testing.assert_allclose((features @ stepped).reshape(S, A), expected, rtol=1e-9, atol=1e-9)


def network(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def network_problem(seed=0):
    rng = np.random.default_rng(seed)
    params = {"in": jnp.asarray(rng.normal(size=(3, 20))), "out": jnp.asarray(rng.normal(size=20) / 4)}
    x, others = jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.normal(size=(5, 3)))
    return params, x, others, jnp.asarray(rng.normal(size=6))


linearize_network, evaluate_network = jax.jit(ntk.per_example(network)), jax.jit(network)


@pytest.mark.parametrize("method", ["gradient", "preqn"])
@settings(many, max_examples=20)
@given(seeds)
def test_lemma_4_a_network_moves_as_its_kernel_says_up_to_second_order(method, seed):
    """On the batch, and by K(x', X) on inputs that are not in it."""
    with double():
        params, x, others, delta = network_problem(seed)
        jacobian, jacobian_others = (
            oracles.gradients(lambda p, x: np.tanh(x @ p["in"]) @ p["out"], params, inputs) for inputs in (x, others)
        )
        gram = jacobian @ jacobian.T
        z = np.asarray(delta) / 6 if method == "gradient" else np.linalg.solve(gram, delta)
        z = z / np.linalg.norm(z @ jacobian)  # a step of unit length, however large the solution
        direction = linearize_network(params, x).pullback(jnp.asarray(z))
        errors = []
        for step_size in (1e-2, 5e-3, 2.5e-3):
            moved = jax.tree.map(lambda p, d, a=step_size: p + a * d, params, direction)
            change = np.concatenate([evaluate_network(moved, i) - evaluate_network(params, i) for i in (x, others)])
            predicted = step_size * np.concatenate([gram, jacobian_others @ jacobian.T]) @ z
            errors.append(sup(change - predicted))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # second order in the step
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


# ---------------------------------------------------------------------------------------------------------------------
# PreQN and the natural gradient
# ---------------------------------------------------------------------------------------------------------------------


def well_conditioned(rng, rows, columns):
    """Random with singular values between 1 and 3."""
    u, _, vt = np.linalg.svd(rng.normal(size=(rows, columns)), full_matrices=False)
    return (u * rng.uniform(1, 3, len(vt))) @ vt


@many
@given(seeds)
def test_preqn_takes_the_natural_gradient_step_where_features_are_independent(seed):
    rng = np.random.default_rng(seed)
    features, weights, delta = well_conditioned(rng, N, N + 3), rng.normal(size=N + 3), rng.normal(size=N)
    rho = rng.dirichlet(np.full(N, 2.0)) + 1e-3
    with double():
        stepped, info = preqn_step(*(jnp.asarray(x, "float64") for x in (weights, features, delta, 0.5)))
    assert info.status == Status.ACCEPTED
    natural = call("natural_gradient_direction", features, rho, delta)
    np.testing.assert_allclose((np.asarray(stepped) - weights) / 0.5, natural, rtol=1e-8, atol=1e-8)
    # an independent solution of the same problem: the shortest step that meets every target
    np.testing.assert_allclose(natural, np.linalg.pinv(features) @ delta, rtol=1e-8, atol=1e-8)


def test_preqn_takes_the_natural_gradient_step_on_a_network(x64):
    params, x, _, delta = network_problem()
    jacobian = oracles.gradients(lambda p, x: np.tanh(x @ p["in"]) @ p["out"], params, x)
    moved, info = jax.jit(
        lambda params: preqn_update(network, params, x, delta, solve=solvers.lstsq(1e-14), step_size=1e-3)
    )(params)
    assert info.status == Status.ACCEPTED
    step = (oracles.flatten(moved)[0] - oracles.flatten(params)[0]) / 1e-3
    natural = call("natural_gradient_direction", jacobian, np.array([0.3, 0.2, 0.2, 0.1, 0.1, 0.1]), delta)
    np.testing.assert_allclose(step, natural, rtol=1e-8, atol=1e-8 * sup(natural))


def test_preqn_and_the_natural_gradient_part_where_features_are_dependent():
    features, delta = np.array([[1.0], [2.0]]), np.array([1.0, 0.0])
    rho = np.array([0.9, 0.1])
    natural = call("natural_gradient_direction", features, rho, delta)
    np.testing.assert_allclose(natural, [0.9 / (0.9 + 0.1 * 4)])  # least squares weighted by rho
    z, info = solvers.lstsq()(jnp.asarray(features @ features.T, "float32"), jnp.asarray(delta, "float32"))
    np.testing.assert_allclose(features.T @ np.asarray(z), [1 / 5], rtol=1e-5)  # least squares unweighted
    assert info.predicted_alignment == pytest.approx(1 / np.sqrt(5), rel=1e-5)  # the linesearch would refuse it
