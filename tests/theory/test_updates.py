"""What one update of the parameters does to Q, by the statements of Achiam et al. (2019); docs/theory.md lists them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preqn_jax.ops import ntk, solvers
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import Status, preqn_update
from preqn_jax.theory import mdps
from tests import oracles
from tests.helpers import linear
from tests.ops.precision import double
from tests.theory.mdp_cases import (
    A,
    N,
    S,
    bellman,
    draw_mdp,
    draw_rho,
    sup,
)
from tests.theory.statements import call, gammas, many, seeds

pytestmark = pytest.mark.slow

# ---------------------------------------------------------------------------------------------------------------------
# Theorem 1, Lemma 3 and Eq. 21: what a step of the parameters does to Q
# ---------------------------------------------------------------------------------------------------------------------


@many
@given(seeds, gammas, st.floats(0.01, 1.0))
def test_lemma_3_gradient_step_of_a_linear_q_is_u3_exactly(seed, gamma, step_size):
    rng = np.random.default_rng(seed)
    features, weights = rng.normal(size=(N, 5)), rng.normal(size=5)
    mdp, rho = draw_mdp(rng, gamma), draw_rho(rng)
    q = (features @ weights).reshape(S, A)
    delta = (bellman(q, mdp) - q).ravel()
    stepped = weights + step_size * sum(rho.flat[i] * delta[i] * features[i] for i in range(N))
    expected = call("u3", q, mdp, features @ features.T, rho, step_size)
    np.testing.assert_allclose((features @ stepped).reshape(S, A), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_lemma_3_with_a_singular_kernel_has_other_fixed_points(gamma):
    """The paper's U3 has a positive definite K, Lemma 3's is semi-definite: Q* = 0 is not the only Q that stays."""
    with double():
        mdp, features, _ = jax.tree.map(np.asarray, mdps.tsitsiklis_van_roy(gamma))
    kernel, rho = features @ features.T, np.full((2, 1), 0.5)
    assert np.linalg.matrix_rank(kernel) == 1
    q = np.array([[3 * gamma - 2], [1.0]])
    assert sup(bellman(q, mdp) - q) > 0.009
    np.testing.assert_allclose(call("u3", q, mdp, kernel, rho, 0.3), q, rtol=0, atol=1e-15)


@jax.jit
def preqn_step(weights, features, td_error, step_size):
    linesearch = Linesearch(step_size, max_backtracks=0)
    target = linear(weights, features) + td_error
    return preqn_update(linear, weights, features, target, solver=solvers.lstsq(1e-14), linesearch=linesearch)


@many
@given(seeds, gammas, st.floats(0.01, 1.0))
def test_eq_21_preqn_step_of_a_linear_q_is_u1_exactly(seed, gamma, step_size):
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


def gradients_of_the_network(params, x):
    return oracles.gradients(lambda p, x: np.tanh(x @ p["in"]) @ p["out"], params, x)


@settings(many, max_examples=20)
@given(seeds, gammas)
def test_theorem_1_an_expected_step_moves_every_pair_up_to_second_order(seed, gamma):
    """All pairs of an MDP, one of them without data; T*, D_rho and K as in Eq. 10."""
    rng = np.random.default_rng(seed)
    mdp, rho = draw_mdp(rng, gamma), draw_rho(rng)
    rho[1, 0] = 0.0
    with double():
        params, x = network_problem(seed)[0], jnp.asarray(rng.normal(size=(N, 3)))
        q = np.asarray(evaluate_network(params, x)).reshape(S, A)
        jacobian = gradients_of_the_network(params, x)
        weighted = rho.ravel() * (bellman(q, mdp) - q).ravel()
        direction = linearize_network(params, x).pullback(jnp.asarray(weighted))  # Eq. 5
        steps = 1e-2 / np.linalg.norm(weighted @ jacobian) * np.array([1.0, 0.5, 0.25])
        moved = [jax.tree.map(lambda p, d, a=a: p + a * d, params, direction) for a in steps]
        values = [np.asarray(evaluate_network(parameters, x)).reshape(S, A) for parameters in moved]
    kernel = jacobian @ jacobian.T
    errors = [sup(v - call("u3", q, mdp, kernel, rho, a)) for v, a in zip(values, steps, strict=True)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


def test_theorem_1_fails_at_a_kink():
    """Q = (theta, relu(theta)) at 0, where the kernel knows nothing of the second pair: the error is of first order."""

    def q_fn(theta, x):
        return jnp.where(x > 0, jax.nn.relu(theta), theta)

    theta, x = jnp.zeros(()), jnp.arange(2.0)
    linearization = ntk.per_example(q_fn)(theta, x)
    np.testing.assert_array_equal(linearization.gram, [[1, 0], [0, 0]])
    direction = linearization.pullback(jnp.asarray([1.0, 0.0]))
    errors = [float((q_fn(theta + a * direction, x) - a * linearization.gram[0])[1]) for a in (0.1, 0.05)]
    assert errors[0] / errors[1] == pytest.approx(2)


@pytest.mark.parametrize("method", ["gradient", "preqn"])
@settings(many, max_examples=20)
@given(seeds)
def test_theorem_1_holds_for_either_direction_and_outside_of_the_batch(method, seed):
    """On the batch, and by K(x', X) on inputs that are not in it."""
    with double():
        params, x, others, delta = network_problem(seed)
        jacobian, jacobian_others = gradients_of_the_network(params, x), gradients_of_the_network(params, others)
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
# Lemma 4: PreQN and the natural gradient
# ---------------------------------------------------------------------------------------------------------------------


def well_conditioned(rng, rows, columns):
    """Random with singular values between 1 and 3."""
    u, _, vt = np.linalg.svd(rng.normal(size=(rows, columns)), full_matrices=False)
    return (u * rng.uniform(1, 3, len(vt))) @ vt


solve_exactly = jax.jit(functools.partial(solvers.solve, solvers.lstsq(1e-12)))


@functools.cache
def solve_damped(damping):
    return jax.jit(functools.partial(solvers.solve, solvers.ridge(damping)))


def of_rank(rng, rows, columns, rank):
    """``[rows, columns]`` with ``rank`` singular values between 1 and 3, the others 0."""
    return well_conditioned(rng, rows, rank) @ well_conditioned(rng, rank, columns)


@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(8, 6, 3), (8, 6, 6), (6, 6, 6), (4, 9, 4), (4, 9, 2), (5, 3, 1)]
)
@settings(many, max_examples=20)
@given(seeds)
def test_lemma_4_pseudo_inverses_agree_at_any_rank(rows, columns, rank, seed):
    """(Phi Phi^T)^+ Phi = Phi (Phi^T Phi)^+, Phi = gradients^T: the library's two directions, for equal weights."""
    rng = np.random.default_rng(seed)
    gradients, delta = of_rank(rng, rows, columns, rank), rng.normal(size=rows)
    assert np.linalg.matrix_rank(gradients) == rank
    natural = call("natural_gradient_direction", gradients, np.full(rows, 1 / rows), delta)
    with double():
        z, _ = solve_exactly(jnp.asarray(gradients @ gradients.T), jnp.asarray(delta))
    np.testing.assert_allclose(gradients.T @ np.asarray(z), natural, rtol=1e-9, atol=1e-9 * sup(natural))


@settings(many, max_examples=20)
@given(seeds, st.sampled_from([(8, 6, 3), (4, 9, 4)]), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_lemma_4_holds_with_ridge(seed, shape, damping):
    """(Phi Phi^T + c I)^-1 Phi = Phi (Phi^T Phi + c I)^-1: the shipped solver is damped natural-gradient Q-learning."""
    rng = np.random.default_rng(seed)
    gradients, delta = of_rank(rng, *shape), rng.normal(size=shape[0])
    gram = gradients @ gradients.T
    damped = gradients.T @ gradients + damping * np.trace(gram) / len(gram) * np.eye(shape[1])
    with double():
        z, info = solve_damped(damping)(jnp.asarray(gram), jnp.asarray(delta))
    assert np.asarray(info.damping) == damping
    np.testing.assert_allclose(gradients.T @ np.asarray(z), np.linalg.solve(damped, gradients.T @ delta), rtol=1e-8)


@many
@given(seeds)
def test_lemma_4_for_other_weights_where_features_are_independent(seed):
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


def test_lemma_4_on_a_network(x64):
    params, x, _, delta = network_problem()
    jacobian = oracles.gradients(lambda p, x: np.tanh(x @ p["in"]) @ p["out"], params, x)
    moved, info = jax.jit(
        lambda params: preqn_update(
            network, params, x, network(params, x) + delta, solver=solvers.lstsq(1e-14), linesearch=Linesearch(1e-3)
        )
    )(params)
    assert info.status == Status.ACCEPTED
    step = (oracles.flatten(moved)[0] - oracles.flatten(params)[0]) / 1e-3
    natural = call("natural_gradient_direction", jacobian, np.array([0.3, 0.2, 0.2, 0.1, 0.1, 0.1]), delta)
    np.testing.assert_allclose(step, natural, rtol=1e-8, atol=1e-8 * sup(natural))


def test_lemma_4_is_of_equal_weights():
    """Where features are dependent *and* weights unequal, PreQN and the natural gradient part."""
    features, delta = np.array([[1.0], [2.0]]), np.array([1.0, 0.0])
    rho = np.array([0.9, 0.1])
    natural = call("natural_gradient_direction", features, rho, delta)
    np.testing.assert_allclose(natural, [0.9 / (0.9 + 0.1 * 4)])  # least squares weighted by rho
    gram, td_error = jnp.asarray(features @ features.T, "float32"), jnp.asarray(delta, "float32")
    z, info = solvers.solve(solvers.lstsq(), gram, td_error)
    np.testing.assert_allclose(features.T @ np.asarray(z), [1 / 5], rtol=1e-5)  # least squares unweighted
    assert info.predicted_alignment == pytest.approx(1 / np.sqrt(5), rel=1e-5)  # the linesearch would refuse it
