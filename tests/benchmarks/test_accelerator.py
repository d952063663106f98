"""The benchmark of an accelerator runs on a CPU with small sizes, section by section."""

import json
import time

import jax
import numpy as np
import pytest

from benchmarks import device
from benchmarks.problem import make_problem
from benchmarks.timing import Candidate
from preqn_jax.ops import ntk
from tests.programs import execute

pytestmark = pytest.mark.slow

SIZES = device.QUICK._replace(repeats=2)


def test_a_section_is_measured_once_and_a_restart_measures_what_is_missing(tmp_path):
    quick = ["--quick", "--out=results"]
    code, output, errors = execute("benchmarks.accelerator", *quick, "--sections=precision", cwd=tmp_path)
    assert code == 0, errors
    assert "largest error of the kernel (dense) <= 1e-05" in output
    saved = tmp_path / "results" / "precision.json"
    first = saved.read_text()
    record = json.loads(first)
    assert record["settings"]["device"].startswith("cpu")
    assert record["versions"]["jax"] == jax.__version__

    code, output, errors = execute("benchmarks.accelerator", *quick, "--sections=precision,sine", cwd=tmp_path)
    assert code == 0, errors
    assert "in results already: precision;" in output
    assert "[1/1] sine" in errors
    assert saved.read_text() == first
    page = (tmp_path / "results" / "accelerator.txt").read_text()
    assert page.index("Full float32 precision") < page.index("the polynomial takes")

    code, _, errors = execute("benchmarks.accelerator", "--out=results", cwd=tmp_path)
    assert code == 2
    assert "precision.json, which was measured with repeats 1, not 7; choose another directory" in errors
    saved.write_text("{")
    code, _, errors = execute("benchmarks.accelerator", *quick, cwd=tmp_path)
    assert (code, errors) == (2, "error: --out=results holds a damaged precision.json; delete that file\n")


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--sections=sinus", "did you mean sine?"), ("--tasks=Hoper-v5", "did you mean Hopper-v5?")],
)
def test_bad_input_ends_with_one_line(argument, message, tmp_path):
    code, _, errors = execute("benchmarks.accelerator", argument, cwd=tmp_path)
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1


def test_the_reference_kernel_is_in_double_precision():
    problem = make_problem(6, (8,))
    exact, single = device._exact_gram(problem), ntk.dense(problem.critic)(problem.critic_params, problem.inputs).gram
    assert exact.dtype == np.float64
    difference = np.abs(exact - single).max() / np.abs(exact).max()
    assert 0 < difference < 1e-6
    assert not jax.config.jax_enable_x64


def test_a_kernel_of_truncated_products_misses_the_target(monkeypatch):
    """As bfloat16 would have it."""
    dense = ntk.dense

    def truncated(module):
        exact = dense(module)

        def tangents(params, inputs):
            rounded = jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype(leaf.dtype), (params, inputs))
            return exact.tangents(*rounded)

        return ntk.Linearizer(exact.q_fn, tangents, exact.gram, exact.inner, exact.pullback)

    monkeypatch.setattr(ntk, "dense", truncated)
    section = device.precision_section(SIZES)
    assert not section.targets[0].reached
    assert section.numbers["kernels"]["float64"]["error"] == 0


def test_a_task_and_the_bare_physics_keep_the_types_of_their_state():
    loops = device._loops_of("InvertedPendulum-v5", num_envs=2)
    assert list(loops) == ["InvertedPendulum-v5", "InvertedPendulum-v5, mjx.step alone"]
    for function, state in loops.values():
        after = jax.eval_shape(function, state)
        assert jax.tree.map(lambda a, b: a.shape == b.shape, after, state)
        jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), after, state)


def test_rates_are_steps_of_all_environments(monkeypatch):
    slow = lambda x: jax.lax.fori_loop(0, 3000, lambda _, x: jax.numpy.sin(x), x)  # noqa: E731
    loops = {"task": (slow, jax.numpy.ones(500)), "task, mjx.step alone": (lambda x: x + 1, jax.numpy.ones(1))}
    monkeypatch.setattr(device, "_loops_of", lambda task, num_envs: loops)
    section = device.environments_section(SIZES._replace(tasks=("task",), num_envs=10))
    rates = section.numbers["rates"]["task"]
    assert rates["steps_per_second"] == pytest.approx(1e4 / section.numbers["timings"]["task"]["ms"])
    assert rates["steps_per_second"] < rates["mjx_step_alone"]


def test_members_are_compared_with_one(monkeypatch):
    def sleeping(name, count):
        return Candidate(name, lambda: time.sleep(0.02 * count), 1, 0.0, None)

    monkeypatch.setattr(device, "burst", lambda name, agent, batches, count: sleeping(name, count))
    monkeypatch.setattr(device, "training", lambda name, count, config: sleeping(name, count))
    section = device.members_section(SIZES._replace(members=(1, 8)))
    for way in ("updates", "training"):
        relative = section.numbers[way]["relative"]
        assert relative[f"{way}, 1 member"]["clock"] == 1
        assert relative[f"{way}, 8 members"]["clock"] > 3  # 8 on an idle machine
