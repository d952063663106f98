"""The agents that the benchmark of updates compares: the paper's form does the same as ours, for more operations."""

import types

import jax
import numpy as np
import pytest

from experiments import timing
from experiments.benchmark_agents import gradients_formed_twice, make_agents
from experiments.benchmark_problem import make_problem
from preqn_jax.ops import ntk
from tests.programs import execute

HIDDEN_SIZES, STEP_SIZE = (8, 8), 1e-3


@pytest.fixture(scope="module")
def problem():
    return make_problem(6, HIDDEN_SIZES)


def test_gradients_formed_twice_are_the_same(problem):
    q_fn = ntk.module_q_fn(problem.critic)
    z = np.linspace(-1, 1, 6, dtype=np.float32)
    once, twice = (
        linearizer(problem.critic_params, problem.inputs)
        for linearizer in (ntk.per_example(q_fn), gradients_formed_twice(q_fn))
    )
    np.testing.assert_allclose(twice.gram, once.gram, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), twice.pullback(z), once.pullback(z)
    )


def test_the_papers_form_is_the_same_update_for_more_operations(problem):
    agents = make_agents(HIDDEN_SIZES, STEP_SIZE)
    after, operations = {}, {}
    for name in ("PreQN, gradients formed twice", "PreQN, gradients reused"):
        state, key = agents[name].init(jax.random.key(0)), jax.random.key(1)
        compiled = jax.jit(agents[name].update).lower(state, problem.batch, key).compile()
        after[name], info = compiled(state, problem.batch, key)
        operations[name] = compiled.cost_analysis()["flops"]
        assert int(info["backtracks"]) == 0
    twice, once = after.values()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), twice, once)
    # At least the critic's backward pass to its kernels, two operations an entry and example.
    entries = sum(leaf.size for leaf in jax.tree.leaves(problem.critic_params))
    assert operations["PreQN, gradients formed twice"] > operations["PreQN, gradients reused"] + entries * 6


def test_ratios_are_of_the_same_round(monkeypatch):
    """Every round is slower than the one before, of all alike: times spread widely, ratios do not."""
    now = {"clock": 0.0, "processor": 0.0, "runs": 0}

    def candidate(name, seconds, evaluations):
        def run():
            slowness = 10.0 ** (now["runs"] // 2)
            now["runs"] += 1
            now["clock"] += seconds * slowness
            now["processor"] += 2 * seconds

        return timing.Candidate(name, run, evaluations, 0.0, None)

    clocks = types.SimpleNamespace(perf_counter=lambda: now["clock"], process_time=lambda: now["processor"])
    monkeypatch.setattr(timing, "time", clocks)
    candidates = [candidate("reference", 2.0, 4), candidate("slow", 3.0, 2)]  # 0.5 and 1.5 s an evaluation
    timings, ratios = timing.measure_relative(candidates, 3, "reference")
    assert ratios["reference"] == (1.0, (1.0, 1.0), 1.0)
    np.testing.assert_allclose([ratios["slow"].clock, *ratios["slow"].quartiles, ratios["slow"].cpu], 3.0)
    assert timings["slow"].ms == pytest.approx(15000)  # the median round's
    assert timings["slow"].cpu_ms == pytest.approx(3000)


def test_an_unknown_section_is_refused(tmp_path):
    code, _, errors = execute("benchmark_update", "--sections=agent", cwd=tmp_path)
    assert code == 2
    assert "did you mean agents?" in errors
    assert errors.count("\n") == 1
