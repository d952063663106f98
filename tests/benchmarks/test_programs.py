"""What the benchmarks of replay buffers, populations, the probe and convolutions measure."""

import functools

import jax
import numpy as np
import pytest

from benchmarks.buffers import BUFFERS
from preqn_jax.training import replay
from tests.programs import execute

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", BUFFERS)
def test_a_minibatch_is_of_what_was_inserted(name):
    pytest.importorskip(name)
    state, step = BUFFERS[name](1200)
    step = jax.jit(functools.partial(step, held=600))
    ones = jax.tree.map(lambda leaf: leaf + 1.0, replay.device_replay(10, 105, 8).transitions)
    drawn = 0
    for seed in range(40):
        state, batch = step(state, ones, jax.random.key(seed))
        drawn += np.sum(batch.reward)
        assert [leaf.shape for leaf in batch] == [(256, 105), (256, 8), (256,), (256,), (256, 105)]
        np.testing.assert_array_equal(batch.observation[:, 3], batch.reward)
    # The same ten of 610 again and again: 168, with a standard deviation of 13.
    np.testing.assert_allclose(drawn, 40 * 256 * 10 / 610, atol=60)


def test_the_benchmark_of_buffers_names_what_is_not_there(tmp_path):
    code, output, errors = execute("benchmarks.replay", "--capacities=1000", "--repeats=1", cwd=tmp_path)
    assert code == 0, errors
    assert "500 of 1000 transitions" in output
    assert "brax takes" in output
    assert ("flashbax not installed" in output) == ("flashbax takes" not in output)


def test_the_benchmark_of_a_population(tmp_path):
    small = ["--config.agent.hidden_sizes=8", "--config.batch_size=16", "--members=2", "--repeats=1"]
    code, output, errors = execute("benchmarks.population", "--config=preqn_ant", *small, cwd=tmp_path)
    assert code == 0, errors
    for line in ("2 members, one by one", "2 members, vmapped", "replay 881.0 MB (1000000 transitions)"):
        assert line in output


def test_the_benchmark_of_composing(tmp_path):
    code, output, errors = execute("benchmarks.composing", "--batch-size=4", "--repeats=1", cwd=tmp_path)
    assert code == 0, errors
    for line in ("the probe (dense) adds", "the probe (per_example) adds", "per_example takes"):
        assert line in output


@pytest.mark.parametrize(
    ("module", "argument", "message"),
    [
        ("benchmarks.replay", "--capacities=1001", "--capacities=1001 must be a multiple of 20"),
        ("benchmarks.population", "--members=1,0", "--members=1,0 must be numbers of at least 1"),
    ],
)
def test_bad_input_ends_with_one_line(module, argument, message, tmp_path):
    code, _, errors = execute(module, argument, cwd=tmp_path)
    assert code == 2
    assert errors.count("\n") == 1
    assert message in errors
