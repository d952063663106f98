import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.ops import diagnostics, probe
from preqn_jax.ops.probe import NTKProbe, ntk_probe
from tests import oracles
from tests.helpers import normal
from tests.ops.modules import LINEARIZERS, B, Net, each_linearizer, initialize, net_oracle

pytestmark = pytest.mark.slow

NET, X, DELTA = Net(), normal(B, 3), normal(B, seed=1)
PARAMS = initialize(NET, X)
LINEAR = jnp.zeros(3), jnp.eye(3), jnp.ones(3)
FLAGS = ("linearization_broken", "overshoots", "over_generalizes")


def probe_of(make, **options):
    """(params, x, td_error) -> the probe of targets Q + td_error."""
    q = make(NET)
    return jax.jit(lambda params, x, td_error: ntk_probe(q, **options)(params, x, q(params, x).values + td_error))


@each_linearizer
@pytest.mark.parametrize("step_size", [1e-3, 0.1])
def test_matches_the_oracle(x64, make, step_size):
    params, x, td_error = oracles.float64((PARAMS, X, DELTA))
    found = probe_of(make, step_size=step_size, gamma=0.9)(params, x, td_error)

    jacobian = oracles.gradients(net_oracle(), params, x)
    gram = jacobian @ jacobian.T
    start, unflatten = oracles.flatten(params)
    change = net_oracle()(unflatten(start + step_size / B * td_error @ jacobian), x) - net_oracle()(params, x)
    predicted = step_size / B * gram @ td_error
    off_diagonal = np.abs(gram - np.diag(np.diag(gram))).sum(axis=1)
    expected = {
        "diagonal_mean": np.diag(gram).mean(),
        "diagonal_std": np.diag(gram).std(),
        "diagonal_min": np.diag(gram).min(),
        "diagonal_max": np.diag(gram).max(),
        "row_ratio": oracles.row_ratio(gram).mean(),
        "effective_rank": oracles.effective_rank(gram),
        "predicted_alignment": oracles.cosine(gram @ td_error, td_error),
        "alignment": oracles.cosine(change, td_error),
        "linearization": np.linalg.norm(change - predicted) / np.linalg.norm(predicted),
        "overshooting": step_size * np.diag(gram).max() / B,
        "over_generalization": (1.9 * off_diagonal / (0.1 * np.diag(gram))).max(),
    }
    assert set(expected) | set(FLAGS) == set(NTKProbe._fields)
    for name, value in expected.items():
        assert float(getattr(found, name)) == pytest.approx(value, rel=1e-5), name


def test_flags_are_those_of_the_failure_modes():
    found = probe_of(LINEARIZERS["dense"], step_size=1e3)(PARAMS, X, DELTA)
    values = found.linearization, found.overshooting, found.over_generalization
    assert [bool(getattr(found, flag)) for flag in FLAGS] == [bool(value >= 1) for value in values]
    assert found.overshoots
    harmless = jax.jit(ntk_probe(lambda params, x: x @ params, step_size=0.1))(*LINEAR)
    assert not any(getattr(harmless, flag) for flag in FLAGS)
    assert harmless.alignment == pytest.approx(1.0)


@pytest.mark.parametrize("where", ["td_error", "params"])
def test_what_is_not_finite_shows_and_raises_nothing(where):
    nothing = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), PARAMS)
    params, td_error = (PARAMS, DELTA.at[2].set(jnp.nan)) if where == "td_error" else (nothing, DELTA)
    found = probe_of(LINEARIZERS["dense"])(params, X, td_error)
    assert np.isnan(found.alignment)
    assert found.linearization_broken
    assert np.isnan(found.effective_rank) == (where == "params")


def test_nothing_to_correct_is_no_failure():
    found = probe_of(LINEARIZERS["dense"])(PARAMS, X, 0 * DELTA)
    assert found.alignment == found.predicted_alignment == found.linearization == 0
    assert not found.linearization_broken


def test_vmap_equals_a_loop_and_all_are_scalars():
    run = probe_of(LINEARIZERS["dense"])
    td_errors = jnp.stack([DELTA, 10 * DELTA])
    together = jax.vmap(run, in_axes=(None, None, 0))(PARAMS, X, td_errors)
    for i in range(2):
        one = run(PARAMS, X, td_errors[i])
        assert {leaf.shape for leaf in one} == {()}
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5), together, one)


def test_jit_measures_the_step_that_bfloat16_parameters_can_take():
    def q_fn(params, x):
        return jnp.tanh(x @ params["w"].astype(jnp.float32)) @ params["v"].astype(jnp.float32)

    params = {"w": normal(3, 64).astype(jnp.bfloat16), "v": normal(64, seed=1).astype(jnp.bfloat16)}
    probe = ntk_probe(q_fn, step_size=1e-3)
    plain, jitted = (run(params, X, q_fn(params, X) + DELTA) for run in (probe, jax.jit(probe)))
    assert float(jitted.linearization) == pytest.approx(float(plain.linearization), rel=1e-3)


def test_the_step_size_may_be_traced():
    steps = jax.jit(lambda step_size: ntk_probe(lambda params, x: x @ params, step_size=step_size)(*LINEAR))
    assert steps(0.1).overshooting == pytest.approx(0.1 / 3, rel=1e-5)
    assert steps(0.2).overshooting == pytest.approx(0.2 / 3, rel=1e-5)


@pytest.mark.parametrize(("option", "value"), [("step_size", 0.0), ("gamma", 1.1), ("gamma", -0.1)])
def test_numbers_out_of_range_raise(option, value):
    with pytest.raises(ValueError, match=option):
        ntk_probe(lambda params, x: x @ params, **{option: value})


def test_docstring_example_runs():
    result = doctest.testmod(probe)
    assert result.attempted > 0
    assert result.failed == 0


def test_attributes_follow_the_failure_modes_in_order():
    assert NTKProbe._fields[8:11] == diagnostics.FailureModes._fields[:3]
