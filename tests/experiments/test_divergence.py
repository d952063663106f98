import csv

import jax
import numpy as np
import pytest

from experiments import divergence
from experiments.studies.divergence import agents, pictures
from experiments.studies.divergence.tasks import METHODS, cascade_task, linear_task, pendulum_task
from preqn_jax.ops.diagnostics import FailureModes
from preqn_jax.theory import mdps
from tests.cli.test_run import execute

pytestmark = pytest.mark.slow

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
        if METHODS[method].min_alignment is None:
            direction = features.T @ delta / len(features)
        else:
            gram = features @ features.T
            damped = gram + 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))
            z = np.linalg.solve(damped, delta)
            cosine = gram @ z @ delta / np.linalg.norm(gram @ z) / np.linalg.norm(delta)
            direction = features.T @ z if cosine >= METHODS[method].min_alignment else 0.0
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


def expected_cascade(shared, missing, method, updates):
    """Q of the eight pairs, in NumPy float64: K = (1 - shared) I + shared a a^T, a the size of each pair's action."""
    sizes = np.tile([1.0, 2.0], 4)
    kernel = (1 - shared) * np.eye(8) + shared * np.outer(sizes, sizes)
    data = np.arange(0, 8, 2) if missing else np.arange(8)
    gram = kernel[np.ix_(data, data)]
    damped = gram + 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))
    q = np.tile([0.0, 1.0], 4)
    for _ in range(updates):
        best = q.reshape(4, 2).max(axis=1)
        delta = (0.8 * best[(data // 2 + 1) % 4]) - q[data]
        q = q + 0.1 * kernel[:, data] @ (np.linalg.solve(damped, delta) if method == "preqn" else delta / len(data))
    return q[data]


@pytest.mark.parametrize("method", ["q_learning", "preqn"])
@pytest.mark.parametrize(
    ("shared", "missing", "verdict"),
    [(0.0, False, "goes to 0"), (0.0, True, "bounded"), (0.9, False, "goes to 0"), (0.9, True, "diverges")],
)
def test_over_generalization_and_missing_data_do_harm_only_together(shared, missing, verdict, method):
    curve = divergence.run("cascade", cascade_task(shared, missing), method, 1, 6000)
    q_abs = curve.record.q_abs[0]
    assert divergence.verdict(q_abs, curve.bound) == verdict
    expected = expected_cascade(shared, missing, method, 60)
    assert q_abs[1] == pytest.approx(np.abs(expected).max(), rel=1e-2)
    if shared == 0.0 and missing:
        assert q_abs[-1] == pytest.approx(0.8, abs=1e-5)  # gamma times the value that never moves
    if method == "preqn":  # within the batch nothing goes wrong, and nothing is seen
        assert curve.record.contraction_bound[0, 1] < 1
        assert "over_generalization" not in divergence.frequent_modes(curve.record, curve.bound)


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
    record = divergence.Record(q_abs, ones, ones, ones, ones, ones, modes, ones)
    return divergence.Curve("some_task", "preqn", 10.0, np.arange(4) * 5, record)


def test_table_summary_and_picture(tmp_path):
    curve = synthetic_curve()
    (tmp_path / "divergence.csv").write_text(divergence.to_csv([curve, curve._replace(task="other")]))
    rows = list(csv.DictReader((tmp_path / "divergence.csv").open()))
    assert len(rows) == 2 * 2 * 4
    assert rows[2]["update"] == "10"
    assert rows[2]["overshooting"] == "2"
    assert rows[3]["q_abs"] == "nan"
    assert pictures.divergence(tmp_path / "divergence.csv", tmp_path / "divergence.png")
    assert (tmp_path / "divergence.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.partial"))
    line = divergence.summary([curve])[1]
    assert "diverges" in line
    assert line.endswith("overshooting, over-generalization")  # what came after Q broke does not count


def test_variants_are_named_by_what_differs():
    found = divergence.variants(["relu", "sin"], [(32, 32), (64,)], [0.1], [2000])
    assert list(found) == ["pendulum relu 32x32", "pendulum relu 64", "pendulum sin 32x32", "pendulum sin 64"]
    assert found["pendulum sin 64"] == ("sin", (64,), 0.1, 2000)
    assert list(divergence.variants(["relu"], [(32,)], [0.1, 0.03], [2000])) == [
        "pendulum step 0.1",
        "pendulum step 0.03",
    ]
    assert list(divergence.variants(["relu"], [(32,)], [0.1], [2000])) == ["pendulum"]


def several_networks():
    """Four networks of five seeds: the larger the row ratio, the more seeds break, and the lower the alignment."""
    curves = []
    for i, task in enumerate(["pendulum a", "pendulum b", "pendulum c", "pendulum d"]):
        q_abs = np.full((5, 3), 5.0 + i)
        q_abs[:, 0], q_abs[:i, 2] = 4.0, np.inf
        ones = np.ones_like(q_abs)
        modes = FailureModes(0.1 * ones, 0.1 * ones, 2 * ones, 0.1 * ones)
        bound = np.where(np.arange(3) == 0, 0.9, 1.1) * ones
        record = divergence.Record(q_abs, ones, ones, ones, ones / (i + 1), (i + 1) * ones, modes, bound)
        curves.append(divergence.Curve(task, "q_learning", 10.0, np.arange(3) * 5, record))
    return curves


def test_many_seeds_are_counted_and_compared_with_the_row_ratio(tmp_path):
    curves = several_networks()
    lines = divergence.summary(curves)
    assert "bounded 3, diverges 2" in lines[3]
    assert "median 7, largest inf" in lines[3]
    assert " 0.33 " in lines[3]  # the share of records with beta < 1
    (line,) = divergence.trends(curves)
    assert "seeds that diverge 1.00" in line
    assert "the alignment of the first update -1.00, the alignment of all updates (median) -1.00" in line
    assert divergence.trends(curves[:2]) == []
    (tmp_path / "divergence.csv").write_text(divergence.to_csv(curves))
    assert pictures.divergence_seeds(tmp_path / "divergence.csv", tmp_path / "seeds.png")
    assert (tmp_path / "seeds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--records=0", "--records=0: 0 is not a positive integer"),
        ("--tasks=cascades", "did you mean cascade?"),
        ("--methods=preqm", "did you mean preqn?"),
        ("--methods=preqn,sac", "--methods=sac needs --tasks=pendulum: the other tasks have no actor"),
        ("--hidden-sizes=32,x", "--hidden-sizes=32,x must be whole numbers above 0"),
        ("--preqn-step-size=0.1,0", "--preqn-step-size=0.1,0 must be numbers above 0"),
        ("--transitions=0.5", "--transitions=0.5 must be whole numbers above 0"),
        ("--num-seeds=0", "--num-seeds=0: 0 is not a positive integer"),
        ("--updates=0", "--updates=0: 0 is not a positive integer"),
        ("--activation=rleu", "did you mean relu?"),
        ("--out=/dev/null/x", "--out=/dev/null/x cannot be a directory"),
    ],
)
def test_bad_flags_end_with_one_line(tmp_path, flag, message):
    code, output, errors = execute("divergence", flag, cwd=tmp_path)
    assert code == 2
    assert output == ""
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_an_agent_learns_from_the_same_data_with_its_own_update():
    task = pendulum_task("relu", (8, 8), transitions=100)
    curve = divergence.run("pendulum", task, "preqn_norm", 2, 4, records=2)
    agent, critic = agents.make("preqn_norm", task)
    keys = jax.random.split(jax.random.key(1))  # of seed 1: of the initial parameters, and of the updates
    state, advance = agent.observe(agent.init(keys[0]), task.probe.observation), jax.jit(agent.update)
    for part in jax.random.split(keys[1], (3, 2))[:2]:
        for draw, update in map(jax.random.split, part):
            state, _ = advance(state, task.draw(draw), update)
    values = critic.value(state, task.probe.observation, task.probe.action)
    np.testing.assert_allclose(curve.record.q_abs[1, -1], np.abs(values).max(), rtol=1e-4)
    assert "not measured for a whole agent" in divergence.summary([curve])[1]
    assert not divergence.trends([curve] * 3)


@pytest.mark.parametrize("name", agents.NAMES)
def test_every_agent_has_the_networks_of_the_task(name):
    task = pendulum_task("tanh", (8, 8), preqn_step_size=0.02, transitions=100)
    agent, critic = agents.make(name, task)
    params = critic.params(agent.init(jax.random.key(0)))
    assert jax.tree.leaves(params)[0].shape[-1] == 8
    assert pendulum_task("tanh", (8, 8), 0.02, 100).networks == ("tanh", (8, 8), 0.02)
