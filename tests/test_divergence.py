import csv

import numpy as np
import pytest

from experiments import divergence, plots
from experiments.divergence_tasks import METHODS, linear_task, pendulum_task
from preqn_jax.ops import mdps
from preqn_jax.ops.diagnostics import FailureModes
from tests.test_run import execute

TASKS = {"baird": linear_task(mdps.baird()), "tsitsiklis_van_roy": linear_task(mdps.tsitsiklis_van_roy())}


def expected_q(problem, method, updates):
    """Largest |Q| after ``updates``, in NumPy float64 with nothing of the library but the MDP."""
    gamma, features, weights = (
        np.asarray(x, np.float64) for x in (problem.mdp.gamma, problem.features, problem.weights)
    )
    target = weights
    for _ in range(updates):
        aim = target if METHODS[method].has_target else weights
        delta = gamma * features[-1] @ aim - features @ weights  # every state leads to the last
        if METHODS[method].eta is None:
            direction = features.T @ delta / len(features)
        else:
            gram = features @ features.T
            damped = gram + 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))
            z = np.linalg.solve(damped, delta)
            cosine = gram @ z @ delta / np.linalg.norm(gram @ z) / np.linalg.norm(delta)
            direction = features.T @ z if cosine >= METHODS[method].eta else 0.0
        weights = weights + 0.1 * direction
        target = target + 0.005 * (weights - target)
    return np.abs(features @ weights).max()


@pytest.mark.parametrize(
    ("task", "method", "verdict"),
    [
        ("baird", "q_learning", "diverges"),
        ("baird", "preqn", "goes to 0"),
        ("tsitsiklis_van_roy", "q_learning", "diverges"),
        ("tsitsiklis_van_roy", "preqn", "does not move"),
        ("tsitsiklis_van_roy", "preqn_any_step", "diverges"),
    ],
)
def test_counterexamples(task, method, verdict):
    curve = divergence.run(task, TASKS[task], method, 1, 5950)
    assert curve.updates.tolist() == list(range(0, 6001, 60))  # rounded up
    q_abs = curve.record.q_abs[0]
    assert q_abs[0] == curve.bound
    assert divergence.verdict(q_abs, curve.bound) == verdict
    expected = expected_q(getattr(mdps, task)(), method, 120)
    assert q_abs[2] == pytest.approx(expected, rel=1e-2)
    modes = divergence.frequent_modes(curve.record, curve.bound)
    assert ("over_generalization" in modes) == (verdict != "goes to 0")
    assert "linearization" not in modes  # Q is linear
    assert "extrapolation" not in modes  # every pair is in the data


def test_pendulum_data():
    task = pendulum_task("relu")
    data = task.probe
    assert data.observation.shape == (256, 3)
    assert (data.discount == 1).all()  # Pendulum never terminates
    assert np.abs(data.action).max() <= 1
    assert np.abs(data.action).min() < 0.1
    # Gymnasium's reward, from the observation (cos, sin, speed) and the torque of at most 2
    angle = np.arctan2(data.observation[:, 1], data.observation[:, 0])
    reward = -(angle**2 + 0.1 * data.observation[:, 2] ** 2 + 0.001 * (2 * data.action[:, 0]) ** 2)
    np.testing.assert_allclose(data.reward, reward, atol=1e-3)
    assert 1000 < task.bound < (np.pi**2 + 6.4 + 0.004) / 0.01  # the largest penalty forever


@pytest.mark.parametrize(
    ("q_abs", "expected"),
    [
        ([1, 2, np.nan], "diverges"),
        ([1, 2, np.inf], "diverges"),
        ([1, 200, 101], "diverges"),
        ([1, 200, 99], "too large"),
        ([1, 200, 9], "bounded"),
        ([1, 0.5, 0.009], "goes to 0"),
        ([1, 1, 1], "does not move"),
    ],
)
def test_verdict(q_abs, expected):
    assert divergence.verdict(np.asarray(q_abs, float), bound=10) == expected


def synthetic_curve():
    shape = (2, 4)
    ones = np.ones(shape)
    modes = FailureModes(0.5 * ones, 2 * ones, 3 * ones, 0.1 * ones)
    modes.linearization[:, 3] = np.nan
    q_abs = np.where(np.arange(4) == 3, np.nan, ones)
    record = divergence.Record(q_abs, ones, ones, ones, modes, ones)
    return divergence.Curve("some_task", "preqn", 10.0, np.arange(4) * 5, record)


def test_table_summary_and_picture(tmp_path):
    curve = synthetic_curve()
    (tmp_path / "divergence.csv").write_text(divergence.to_csv([curve, curve._replace(task="other")]))
    rows = list(csv.DictReader((tmp_path / "divergence.csv").open()))
    assert len(rows) == 2 * 2 * 4
    assert rows[2]["update"] == "10"
    assert rows[2]["overshooting"] == "2"
    assert rows[3]["q_abs"] == "nan"
    assert plots.divergence(tmp_path / "divergence.csv", tmp_path / "divergence.png")
    assert (tmp_path / "divergence.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.partial"))
    line = divergence.summary([curve])[1]
    assert "diverges" in line
    assert line.endswith("overshooting, over-generalization")  # what came after Q broke does not count


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--num_seeds=0", "--num_seeds=0 must be at least 1"),
        ("--updates=0", "--updates=0 must be at least 1"),
        ("--activation=rleu", "did you mean relu?"),
        ("--out=/dev/null/x", "--out=/dev/null/x cannot be a folder"),
    ],
)
def test_bad_flags_end_with_one_line(tmp_path, flag, message):
    code, output, errors = execute("divergence", flag, cwd=tmp_path)
    assert code == 2
    assert output == ""
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
