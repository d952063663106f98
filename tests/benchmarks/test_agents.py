"""The agents that the benchmark of updates compares: the paper's form does the same as ours, for more operations."""

import types

import jax
import numpy as np
import pytest

from benchmarks import timing
from benchmarks.agents import gradients_formed_twice, make_agents
from benchmarks.problem import make_problem
from preqn_jax.ops import ntk
from tests.programs import execute

pytestmark = pytest.mark.slow

HIDDEN_SIZES, STEP_SIZE = (8, 8), 1e-3


@pytest.fixture(scope="module")
def problem():
    return make_problem(6, HIDDEN_SIZES)


def test_gradients_formed_twice_are_the_same_for_more_operations(problem):
    q_fn = ntk.module_q_fn(problem.critic)
    z = np.linspace(-1, 1, 6, dtype=np.float32)
    found, operations = [], []
    for linearizer in (ntk.per_example(q_fn), gradients_formed_twice(q_fn)):

        def gram_and_pullback(params, inputs, z, linearizer=linearizer):
            linearization = linearizer(params, inputs)
            return linearization.gram, linearization.pullback(z)

        compiled = jax.jit(gram_and_pullback).lower(problem.critic_params, problem.inputs, z).compile()
        found.append(compiled(problem.critic_params, problem.inputs, z))
        operations.append(compiled.cost_analysis()["flops"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)
    # A forward pass and the way back to kernels and to layers' inputs, less the weighted sum of stored gradients.
    pass_through = 2 * 6 * sum(leaf.size for leaf in jax.tree.leaves(problem.critic_params))
    assert operations[1] > operations[0] + pass_through


def test_the_papers_form_is_the_same_update(problem):
    agents, after = make_agents(HIDDEN_SIZES, STEP_SIZE), []
    for name in ("PreQN, gradients formed twice", "PreQN, gradients reused"):
        state, info = jax.jit(agents[name].update)(
            agents[name].init(jax.random.key(0)), problem.batch, jax.random.key(1)
        )
        after.append(state)
        assert int(info["backtracks"]) == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *after)


def test_ratios_are_of_the_same_round(monkeypatch):
    """The machine slows all alike, by 1, 100 and 10 in three rounds; the median of ratios is no ratio of medians."""
    now = {"clock": 0.0, "processor": 0.0, "runs": 0}

    def candidate(name, seconds, evaluations):
        def run():
            turn = now["runs"] // 2
            now["runs"] += 1
            now["clock"] += seconds[turn] * (1, 100, 10)[turn]
            now["processor"] += seconds[turn]

        return timing.Candidate(name, run, evaluations, 0.0, None)

    clocks = types.SimpleNamespace(perf_counter=lambda: now["clock"], process_time=lambda: now["processor"])
    monkeypatch.setattr(timing, "time", clocks)
    candidates = [candidate("reference", (2, 2, 2), 4), candidate("slow", (3, 2, 4), 2)]
    timings, ratios = timing.measure_relative(candidates, 3, "reference")
    assert ratios["reference"] == (1.0, (1.0, 1.0), 1.0)
    np.testing.assert_allclose([ratios["slow"].clock, *ratios["slow"].quartiles, ratios["slow"].cpu], [3, 2.5, 3.5, 3])
    assert timings["slow"].ms == pytest.approx(20000)  # of 1.5, 100 and 20 s an evaluation
    assert timings["slow"].cpu_ms == pytest.approx(1500)


def test_an_unknown_section_is_refused(tmp_path):
    code, _, errors = execute("benchmarks.update", "--sections=agent", cwd=tmp_path)
    assert code == 2
    assert "did you mean agents?" in errors
    assert errors.count("\n") == 1
