import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.ops import linesearch
from preqn_jax.ops.linesearch import Linesearch
from tests import oracles
from tests.helpers import bits
from tests.ops.precision import double

B = 12
OPTIONS = {"step_size": 1.0, "min_alignment": 0.97, "decay": 0.8, "max_backtracks": 20}


def random(seed, n=B):
    return np.random.default_rng(seed).normal(size=n).astype(np.float32)


DELTA, CURVATURE = random(0), random(1)


def bent(strength):
    """Q_i(w) = w_i + strength c_i w_i^2: along delta aligned for short steps alone, the shorter the stronger."""
    return lambda w: w + strength * CURVATURE * w**2


def backtrack(value_fn, params, direction, values, td_error, **options):
    """New parameters, as Optax would add the step, and what the search says."""
    step, info = linesearch.search(value_fn, params, direction, values, td_error, Linesearch(**options))
    return jax.tree.map(jnp.add, params, step), info


@jax.jit
def search(strength, start, direction, td_error, options):
    value_fn = bent(strength)
    return backtrack(value_fn, start, direction, value_fn(start), td_error, **options)


# Strengths from one that needs no backtrack to one that 20 do not help.
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 2.0, 10.0, 1e4])
@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        OPTIONS | {"decay": 0.5, "min_alignment": 0.999},
        OPTIONS | {"step_size": 0.1, "max_backtracks": 3},
        OPTIONS | {"max_backtracks": 0},
    ],
    ids=["papers", "halving", "impatient", "one_trial"],
)
def test_takes_the_first_step_size_that_reaches_the_alignment(strength, options):
    start = np.zeros(B, np.float32)
    params, info = search(strength, start, DELTA, DELTA, options)
    step, reached, backtracks = oracles.backtrack(bent(strength), *oracles.float64((start, DELTA, DELTA)), **options)
    assert info.accepted == (step is not None)
    assert info.backtracks == backtracks
    assert info.alignment == pytest.approx(reached, abs=1e-5)
    if step is None:
        assert info.step_size == 0
        assert bits(params) == bits(start)
    else:
        assert info.step_size == pytest.approx(options["step_size"] * options["decay"] ** backtracks, rel=1e-5)
        np.testing.assert_allclose(params, step * DELTA, rtol=1e-5)
        assert oracles.cosine(bent(strength)(np.float64(params)), DELTA) >= options["min_alignment"] - 1e-6


def test_the_cases_above_cover_every_end():
    ends = [oracles.backtrack(bent(s), np.zeros(B), DELTA, DELTA, **OPTIONS) for s in (0.0, 2.0, 1e4)]
    assert ends[0][2] == 0
    assert 0 < ends[1][2] < OPTIONS["max_backtracks"]
    assert ends[2][0] is None


def test_goes_on_where_long_steps_leave_the_range_of_the_values():
    def value_fn(w):
        return jnp.where(jnp.max(jnp.abs(w)) > 0.3, jnp.nan, w)  # 0.8^5 = 0.328 is too far, 0.8^6 is not

    unit = DELTA / np.abs(DELTA).max()
    params, info = backtrack(value_fn, jnp.zeros(B), jnp.asarray(unit), jnp.zeros(B), jnp.asarray(unit), **OPTIONS)
    assert info.accepted
    assert info.backtracks == 6
    np.testing.assert_allclose(params, 0.8**6 * unit, rtol=1e-5)


START = random(2)
START[:2] = [-0.0, 0.0]
UNCHANGED = {
    "nan_td_error": (DELTA, np.where(np.arange(B) == 3, np.nan, DELTA)),
    "inf_td_error": (DELTA, np.where(np.arange(B) == 3, np.inf, DELTA)),
    "nan_direction": (np.where(np.arange(B) == 3, np.nan, DELTA), DELTA),
    "inf_direction": (np.where(np.arange(B) == 3, -np.inf, DELTA), DELTA),
    "overflowing_values": (1e38 * DELTA, DELTA),
    "wrong_way": (-DELTA, DELTA),
    "zero_direction": (np.zeros(B), DELTA),
}


@pytest.mark.parametrize(("direction", "td_error"), UNCHANGED.values(), ids=UNCHANGED)
def test_a_rejected_step_changes_no_bit(direction, td_error):
    params, info = search(1.0, START, np.float32(direction), np.float32(td_error), OPTIONS)
    assert not info.accepted
    assert info.step_size == 0
    assert bits(params) == bits(START)
    if not (np.isfinite(td_error).all() and np.isfinite(direction).all()):
        assert info.backtracks == 0  # which none would mend


@pytest.mark.parametrize("direction", [DELTA, np.full(B, np.nan)], ids=["finite", "nan"])
def test_zero_td_error_is_an_accepted_no_op(direction):
    params, info = search(1.0, START, np.float32(direction), np.zeros(B, np.float32), OPTIONS)
    assert bits(params) == bits(START)
    assert jax.tree.map(float, info) == (True, 1.0, 0.0, 0)


@pytest.mark.parametrize(
    ("value_fn", "broken"),
    [(lambda params: params["w"], jnp.nan), (lambda params: params["w"] + jax.nn.relu(params["b"]), -jnp.inf)],
    ids=["parameter_without_effect", "unit_that_is_off"],
)
def test_a_non_finite_direction_that_the_values_do_not_show_is_rejected(value_fn, broken):
    params = {"w": jnp.zeros(B), "b": jnp.float32(-1.0)}
    direction = {"w": jnp.asarray(DELTA), "b": jnp.float32(broken)}
    new_params, info = backtrack(value_fn, params, direction, jnp.zeros(B), jnp.asarray(DELTA), **OPTIONS)
    assert not info.accepted
    assert bits(new_params) == bits(params)


def test_a_step_that_overflows_an_unseen_parameter_is_shortened():
    params = {"w": jnp.zeros(B), "unseen": jnp.float32(0.0)}
    direction = {"w": jnp.asarray(DELTA), "unseen": jnp.float32(3e38)}
    options = {**OPTIONS, "step_size": 1.3, "decay": 0.8}
    new_params, info = backtrack(lambda p: p["w"], params, direction, jnp.zeros(B), jnp.asarray(DELTA), **options)
    assert info.accepted
    assert info.backtracks == 1
    np.testing.assert_allclose(new_params["unseen"], 1.04 * 3e38, rtol=1e-6)


def test_a_constant_that_is_infinite_from_the_start_does_not_matter():
    params = {"w": jnp.zeros(B), "mask": jnp.asarray([-jnp.inf, 0.0, jnp.nan])}
    direction = {"w": jnp.asarray(DELTA), "mask": jnp.zeros(3)}
    new_params, info = backtrack(lambda p: p["w"], params, direction, jnp.zeros(B), jnp.asarray(DELTA), **OPTIONS)
    assert info.accepted
    assert bits(new_params["mask"]) == bits(params["mask"])


def test_a_step_size_that_underflows_ends_the_search():
    options = {**OPTIONS, "max_backtracks": 100_000, "decay": 0.5}
    direction = jnp.asarray(-DELTA)
    params, info = backtrack(lambda p: p, START, direction, START, jnp.asarray(DELTA), **options)
    assert not info.accepted
    assert info.backtracks < 200
    assert bits(params) == bits(START)


@pytest.mark.parametrize("change", [{"decay": 2.0}, {"step_size": -1.0}, {"min_alignment": 0.0}], ids=str)
def test_hyperparameters_out_of_range_raise(change):
    with pytest.raises(ValueError, match=f"linesearch.{next(iter(change))} must be in"):
        backtrack(lambda p: p, START, jnp.asarray(DELTA), START, jnp.asarray(DELTA), **OPTIONS | change)


def test_dtypes_of_parameters_are_kept():
    params = {"w": jnp.zeros(B), "half": jnp.zeros(B, jnp.bfloat16)}
    direction = {"w": jnp.asarray(DELTA), "half": jnp.asarray(DELTA)}

    def value_fn(params):
        return params["w"] + params["half"].astype(jnp.float32)

    new_params, info = backtrack(value_fn, params, direction, jnp.zeros(B), jnp.asarray(DELTA), **OPTIONS)
    assert info.accepted
    assert {name: leaf.dtype for name, leaf in new_params.items()} == {"w": jnp.float32, "half": jnp.bfloat16}


def test_jit_changes_nothing():
    value_fn = bent(2.0)
    plain = backtrack(value_fn, jnp.zeros(B), jnp.asarray(DELTA), jnp.zeros(B), jnp.asarray(DELTA), **OPTIONS)
    jitted = search(2.0, np.zeros(B, np.float32), DELTA, DELTA, OPTIONS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jitted, plain)


def test_vmap_equals_a_loop_though_searches_end_at_different_times():
    strengths = np.float32([0.0, 2.0, 1e4, 2.0, 2.0])
    td_errors = np.stack([DELTA, DELTA, DELTA, np.zeros(B), np.full(B, np.nan)]).astype(np.float32)
    start = np.full(B, -0.0, np.float32)
    arguments = strengths, np.stack([start] * 5), np.stack([DELTA] * 5), td_errors
    params, info = jax.vmap(search, in_axes=(0, 0, 0, 0, None))(*arguments, OPTIONS)
    assert len(set(info.backtracks.tolist())) >= 3
    for i in range(5):
        one_params, one_info = search(*(argument[i] for argument in arguments), OPTIONS)
        np.testing.assert_allclose(params[i], one_params, rtol=1e-5)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5), info, one_info)
        if not one_info.step_size:
            assert bits(params[i]) == bits(start)


@pytest.mark.parametrize(("values", "td_error"), [((B,), (B, 1)), ((B, 1), (B, 1)), ((B,), (1,)), ((B,), ())])
def test_wrong_shapes_raise(values, td_error):
    with pytest.raises(ValueError, match="values and td_error must be vectors of one length, got shapes values"):
        backtrack(bent(0.0), jnp.zeros(B), jnp.ones(B), jnp.zeros(values), jnp.ones(td_error))


def test_a_decay_of_another_precision_leaves_that_of_the_values():
    with double():
        _, info = backtrack(bent(2.0), START, DELTA, START, DELTA, **OPTIONS | {"decay": np.float64(0.8)})
    assert info.alignment.dtype == info.step_size.dtype == jnp.float32
