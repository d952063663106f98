"""The parity program: its states, its errors, and the command as a person uses it."""

import csv
import json

import jax
import numpy as np
import pytest

from experiments.studies.parity.measurements import Outcome, collect, compare, relative_error
from tests.programs import execute

pytestmark = pytest.mark.slow


def test_states_reach_from_resets_to_falls_and_are_the_same_each_time():
    cases, again = collect("Hopper-v5", 80), collect("Hopper-v5", 80)
    jax.tree.map(np.testing.assert_array_equal, cases, again)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(cases)} == {80}
    heights = cases.before.quantities.qpos[:, 1]
    assert (abs(heights - 1.25) < 5e-3).sum() >= 2  # just reset
    assert cases.terminated.any()
    assert not cases.terminated.all()
    assert cases.contact.any()
    assert cases.steep[cases.contact].any()
    assert not cases.steep[~cases.contact].any()
    assert (abs(cases.action) == 1.0).all(axis=1).any()
    assert (abs(cases.action) < 1.0).any()


def test_relative_error_is_over_the_norm_but_never_over_less_than_one():
    np.testing.assert_allclose(relative_error(np.array([[3.0, 4.0], [0.0, 20.5]]), np.zeros((2, 2))), [5.0, 20.5])
    np.testing.assert_allclose(relative_error(np.array([11.0, 0.2]), np.array([10.0, 0.1])), [0.1, 0.1])


def test_a_row_for_each_kind_of_states():
    cases = collect("Hopper-v5", 40)
    exact = Outcome(cases.after.qvel, cases.observation, cases.reward, cases.terminated)
    off = exact._replace(
        qvel=exact.qvel * np.where(cases.contact, 1.25, 1.0)[:, None], terminated=exact.terminated ^ cases.contact
    )
    for outcome, errs in ((exact, False), (off, True)):
        every, contact, steep = compare("Hopper-v5", "own", cases, outcome, 2.0, 3.0)
        assert (every.kind, contact.kind, steep.kind) == ("all", "contact", "steep")
        assert every.states == 40 > contact.states == cases.contact.sum()
        assert (contact.velocity_median > 0.05, contact.velocity_max < 0.26) == (errs, True)
        assert every.disagreements == contact.disagreements == (contact.states if errs else 0)
        assert every.reward_max == every.observation_max == 0.0


def test_the_command_end_to_end(tmp_path):
    task = "InvertedDoublePendulum-v5"
    code, output, errors = execute(
        "parity", f"--tasks={task}", "--states=50", "--batch=30", "--out=results", cwd=tmp_path
    )
    assert code == 0, errors
    assert f"{task}, own: 50 states" in errors
    assert f"| {task} | own | all: 50 |" in output
    assert "99th percentile of the velocities under 0.001: all" in output
    assert "warp" not in output + errors
    (row,) = csv.DictReader((tmp_path / "results" / "parity.csv").read_text().splitlines())
    assert 0.0 < float(row["velocity_median"]) <= float(row["velocity_p99"]) <= float(row["velocity_max"]) < 1e-3
    assert max(float(row["observation_max"]), float(row["reward_max"])) < 1e-3
    assert (row["states"], row["disagreements"]) == ("50", "0")
    record = json.loads((tmp_path / "results" / "parity.json").read_text())
    assert record["command"].startswith(f"python -m experiments.parity --tasks={task}")
    assert {"mujoco", "mujoco-mjx", "brax", "gymnasium", "jax"} <= set(record["versions"])


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--tasks=Hoper-v5", "did you mean Hopper-v5"),
        ("--options=8x9", "did you mean 8x8"),
        ("--out=file/inside", "--out"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, argument, says):
    (tmp_path / "file").write_text("")
    code, output, errors = execute("parity", argument, cwd=tmp_path)
    assert code == 2
    assert says in errors
    assert len(errors.strip().splitlines()) == 1
    assert output == ""
