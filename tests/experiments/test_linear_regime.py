"""Networks beside linear TD-learning: the measurement against NumPy and exact cases, and the command."""

import csv
import functools
import json

import jax
import numpy as np
import pytest

from experiments.studies.linear_regime import measurements, report
from preqn_jax.networks import Critic
from tests import oracles
from tests.programs import execute
from tests.theory import mdp_cases

pytestmark = pytest.mark.slow

GARNET = functools.partial(measurements.garnet, gamma=0.9)


def trajectory(draw, hidden_sizes, method, updates, activation="sin", seed=0):
    run = jax.jit(measurements.follow(draw, activation, hidden_sizes, method, updates))
    return jax.tree.map(np.asarray, run(jax.random.key(seed)))


@pytest.mark.parametrize("method", measurements.METHODS)
def test_without_hidden_layers_both_are_the_same(method):
    """Lemma 3 and Eq. 21: Q is linear, so nothing is left out of first order."""
    found = trajectory(measurements.baird, (), method, 40)
    np.testing.assert_allclose(found.network, found.linear, rtol=1e-3, atol=1e-3)
    assert found.kernel_change.max() < 1e-5
    assert np.abs(found.network[-1] - found.network[0]).max() > 0.3


@pytest.mark.parametrize("method", measurements.METHODS)
def test_the_first_update_and_the_operator_are_what_numpy_makes_of_them(method):
    problem_key, network_key = jax.random.split(jax.random.key(3))
    problem = GARNET(problem_key)
    inputs = tuple(np.asarray(column, np.float64) for column in (problem.observation, problem.action))
    params = Critic((16,), "tanh", "lecun_normal").init(network_key, *inputs)

    def q(params, inputs):
        layers = [params["params"]["MLP_0"][f"Dense_{i}"] for i in range(2)]
        return oracles.mlp(layers, np.concatenate(inputs, axis=1), "tanh")[:, 0]

    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    gradients, values = oracles.gradients(q, params, inputs), q(params, inputs)
    gram, shape, rho = gradients @ gradients.T, problem.mdp.reward.shape, 1 / len(values)
    mdp = jax.tree.map(np.asarray, problem.mdp)

    def delta(values):
        return (mdp_cases.bellman(values.reshape(shape), mdp) - values.reshape(shape)).reshape(-1)

    if method == "q_learning":
        step_size = 0.5 / np.linalg.eigvalsh(rho * gram)[-1]
        direction, gain = rho * gradients.T @ delta(values), step_size * rho * gram
    else:
        step_size = 0.1
        direction, gain = gradients.T @ np.linalg.solve(gram, delta(values)), step_size * np.eye(len(values))
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    after = q(jax.tree.map(np.asarray, unravel(flat + step_size * direction)), inputs)

    found = trajectory(GARNET, (16,), method, 3, "tanh", seed=3)
    np.testing.assert_allclose(found.network[0], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.network[1] - found.network[0], after - values, rtol=2e-2, atol=1e-3)
    expected = values
    for linear in found.linear:
        np.testing.assert_allclose(linear, expected, rtol=1e-3, atol=1e-4)
        expected = expected + gain @ delta(expected)

    greedy = np.zeros((len(values), len(values)))
    best = np.argmax(values.reshape(shape), axis=1)
    for i, j in np.ndindex(len(values), shape[0]):
        greedy[i, j * shape[1] + best[j]] = mdp.transition.reshape(-1, shape[0])[i, j]
    update = np.eye(len(values)) + gain @ (mdp.gamma * greedy - np.eye(len(values)))
    assert found.spectral_radius == pytest.approx(np.abs(np.linalg.eigvals(update)).max(), rel=1e-3)


def test_a_wide_network_is_closer_to_linear_learning_than_a_narrow_one():
    narrow, wide = (trajectory(GARNET, (width, width), "q_learning", 30) for width in (16, 256))
    assert wide.kernel_change.max() < 0.4 * narrow.kernel_change.max()
    apart = [np.abs(found.network - found.linear).max() for found in (narrow, wide)]
    assert apart[1] < 0.5 * apart[0]


def straight(start, factors):
    """Q of two pairs that is multiplied by another factor in every update."""
    return start * np.cumprod([1.0, *factors])[:, None] * np.array([1.0, -0.5])


def made_up(network, linear, change=(0.0, 0.1, 0.2, 0.4)):
    return measurements.Trajectory(network, linear, np.array(change), np.float64(1.5))


def test_on_the_star_a_row_ends_where_linear_learning_has_grown_tenfold():
    found = made_up(straight(1.0, (2, 5, 30)), straight(1.0, (3, 5, 1)))
    row = report.row_of("sin", ("baird", "q_learning"), 8, 0, found)
    assert (row.linear_grown, row.network_grown) == (2, 2)
    assert row.deviation == pytest.approx(5 / 14)  # |10 - 15| over |15 - 1|; the update after does not count
    assert row.kernel_change == pytest.approx(0.2)
    row = report.row_of("sin", ("garnet", "q_learning"), 8, 0, found)
    assert row.deviation == pytest.approx(285 / 14)
    assert row.kernel_change == pytest.approx(0.4)


def test_a_network_that_is_not_finite_is_infinitely_far():
    found = made_up(straight(1.0, (2, np.inf, np.nan)), straight(1.0, (2, 2, 2)), (0, 0.1, np.inf, np.nan))
    row = report.row_of("relu", ("baird", "q_learning"), 8, 0, found)
    assert (row.deviation, row.kernel_change, row.linear_grown, row.network_grown) == (np.inf, np.inf, -1, 2)
    (line,) = [line for line in report.summary([row]) if line.startswith("     8")]
    assert line.split() == ["8", "inf", "inf", "1.500", "never", "2"]


def test_slopes_are_of_the_wider_half():
    widths = [32, 64, 128, 256]
    assert report.slope(widths, [9.0, 7.0, 128**-0.5, 256**-0.5]) == pytest.approx(-0.5)
    assert np.isnan(report.slope([32], [1.0]))


def test_the_command_end_to_end(tmp_path):
    arguments = ("--widths=8,16", "--activations=sin", "--num-seeds=2", "--updates=4", "--out=results")
    code, output, errors = execute("linear_regime", *arguments, cwd=tmp_path)
    assert code == 0, errors
    assert "[6/6] sin, Q-learning beside U3 with K_0, Baird's star, width 16" in errors
    assert "slopes in log-log, 16 to 16: nan" in output
    folder = tmp_path / "results"
    assert (folder / "linear_regime.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "linear_regime.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    kinds = {(row["problem"], row["method"], row["width"], row["seed"]) for row in rows}
    assert len(kinds) == len(rows) == 3 * 2 * 2
    assert all(0 < float(row["deviation"]) < np.inf for row in rows)
    with (folder / "linear_regime_baird.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 2 * 2 * 5
    assert json.loads((folder / "linear_regime.json").read_text())["settings"]["widths"] == [8, 16]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--widths=32,0", "--widths=32,0 must be whole numbers of at least 1"),
        ("--widths=wide", "--widths=wide must be whole numbers of at least 1"),
        ("--activations=rely", "did you mean relu?"),
        ("--gamma=1", "--gamma=1 must be below 1"),
    ],
)
def test_a_mistake_ends_with_one_line_and_exit_code_2(argument, says, tmp_path):
    code, output, errors = execute("linear_regime", argument, cwd=tmp_path)
    assert (code, output) == (2, "")
    assert says in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert not list(tmp_path.iterdir())
