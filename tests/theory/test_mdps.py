import jax
import numpy as np
import pytest

from preqn_jax.theory import mdps

garnet = jax.jit(mdps.garnet, static_argnums=(1, 2, 3))


@pytest.mark.parametrize(("states", "actions", "branching"), [(1, 1, 1), (6, 3, 4), (4, 2, 4)])
def test_garnet_is_an_mdp_with_that_branching(x64, states, actions, branching):
    mdp = garnet(jax.random.key(0), states, actions, branching, 0.9)
    assert mdp.transition.shape == (states, actions, states)
    assert mdp.reward.shape == (states, actions)
    assert (mdp.transition >= 0).all()
    np.testing.assert_allclose(mdp.transition.sum(axis=-1), 1, rtol=1e-12)
    np.testing.assert_array_equal((mdp.transition > 0).sum(axis=-1), branching)


def test_garnet_reaches_all_states_and_repeats_itself_by_key():
    first, again, other = (garnet(jax.random.key(seed), 5, 20, 2, 0.9) for seed in (0, 0, 1))
    assert (first.transition > 0).any(axis=(0, 1)).all()
    # Each pair draws its own successors and its own probabilities.
    assert len(np.unique(np.asarray(first.transition).reshape(100, 5), axis=0)) == 100
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.transition, other.transition)
    assert not np.array_equal(first.reward, other.reward)


def test_garnet_probabilities_are_uniform_cuts():
    transition = np.asarray(garnet(jax.random.key(0), 3, 2000, 2, 0.9).transition)
    # With one cut u a successor's probability is u or 1 - u: uniform, with mean 1/2 and variance 1/12.
    probabilities = transition[transition > 0]
    assert probabilities.mean() == pytest.approx(1 / 2, abs=0.01)
    assert probabilities.var() == pytest.approx(1 / 12, abs=0.005)
    np.testing.assert_allclose((transition > 0).mean(axis=(0, 1)), 2 / 3, atol=0.03)


@pytest.mark.parametrize("branching", [0, 4])
def test_garnet_refuses_more_successors_than_states(branching):
    with pytest.raises(ValueError, match=r"branching must be in \[1, 3\]"):
        mdps.garnet(jax.random.key(0), 3, 1, branching, 0.9)


def test_baird_is_the_star_of_the_book():
    problem = mdps.baird()
    w = np.arange(1.0, 9.0, dtype=np.float32)
    expected = [2 * w[i] + w[7] for i in range(6)] + [w[6] + 2 * w[7]]
    np.testing.assert_array_equal(problem.features @ w, expected)
    np.testing.assert_array_equal(problem.weights, [1, 1, 1, 1, 1, 1, 10, 1])
    np.testing.assert_array_equal(problem.mdp.transition[:, 0], np.eye(7)[[6] * 7])
    assert (problem.mdp.reward == 0).all()
    assert np.linalg.matrix_rank(problem.features) == 7  # K = features features^T is invertible


def test_tsitsiklis_van_roy_is_w_then_2w():
    problem = mdps.tsitsiklis_van_roy()
    np.testing.assert_array_equal(problem.features @ np.float32([3.0]), [3.0, 6.0])
    np.testing.assert_array_equal(problem.mdp.transition[:, 0], [[0, 1], [0, 1]])
    assert (problem.mdp.reward == 0).all()
