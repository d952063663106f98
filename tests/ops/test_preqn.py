import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.networks import Critic
from preqn_jax.ops import ntk, preqn, solvers
from preqn_jax.ops.preqn import Status, preqn_update, step_linearized
from tests import oracles
from tests.ops.jaxprs import dot_precisions

B = 12
OPTIONS = {"step_size": 0.1, "alignment": 0.97, "decay": 0.8, "max_backtracks": 20}
CRITIC = Critic((16, 16), activation="tanh")
PAIRS = {
    "reference": (ntk.per_example(ntk.module_q_fn(CRITIC)), solvers.lstsq()),
    "fast": (ntk.dense(CRITIC), solvers.ridge()),
}
each_pair = pytest.mark.parametrize("pair", PAIRS)


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def critic_problem(seed=0, dtype=np.float32):
    """(params, inputs, td_error) of a critic."""
    inputs = normal(B, 3, seed=seed, dtype=dtype), normal(B, 2, seed=seed + 100, dtype=dtype)
    shapes = jax.eval_shape(CRITIC.init, jax.random.key(0), jnp.zeros((1, 3), "float32"), jnp.zeros((1, 2), "float32"))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(dtype), shapes)
    return params, inputs, normal(B, seed=seed + 200, dtype=dtype)


def critic_oracle(params, inputs):
    layers = params["params"]["MLP_0"]
    x = np.concatenate(inputs, axis=-1)
    return oracles.mlp([layers[f"Dense_{i}"] for i in range(len(layers))], x, "tanh")[..., 0]


@functools.cache
def jitted(pair):
    linearize, solve = PAIRS[pair]

    def update(params, inputs, td_error, options):
        return preqn_update(
            ntk.module_q_fn(CRITIC), params, inputs, td_error, linearize=linearize, solve=solve, **options
        )

    return jax.jit(update)


def linear(params, x):
    return x @ params


def bits(tree):
    """Tells -0.0 from 0.0, and equals itself where there is a NaN."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


SCALES = [0.1, 10.0, 30.0, 100.0]  # of the TD error: the larger, the more backtracks


@pytest.mark.parametrize("scale", SCALES)
def test_matches_algorithm_1_of_the_oracle(x64, scale):
    params, inputs, td_error = critic_problem(dtype=np.float64)
    td_error *= scale
    new_params, info = jitted("reference")(params, inputs, td_error, OPTIONS)

    jacobian = oracles.gradients(critic_oracle, params, inputs)
    gram = jacobian @ jacobian.T
    z = oracles.lstsq(gram, td_error, rcond=1e-7)
    start, unflatten = oracles.flatten(params)
    step, reached, backtracks = oracles.backtrack(
        lambda vector: critic_oracle(unflatten(vector), inputs), start, z @ jacobian, td_error, **OPTIONS
    )
    assert step is not None
    assert info.status == Status.ACCEPTED
    assert info.backtracks == backtracks
    assert info.step_size == pytest.approx(step)
    assert info.alignment == pytest.approx(reached, abs=1e-8)
    assert info.predicted_alignment == pytest.approx(oracles.cosine(gram @ z, td_error), abs=1e-8)
    assert info.residual == pytest.approx(oracles.residual(gram, z, td_error), abs=1e-8)
    assert info.damping == 0
    assert info.kernel_diagonal == pytest.approx(np.trace(gram) / B)
    assert_close(new_params, unflatten(start + step * z @ jacobian), rtol=1e-7, atol=1e-9)


@each_pair
@pytest.mark.parametrize("scale", SCALES)
def test_accepted_steps_meet_the_cosine_when_recomputed(pair, scale):
    params, inputs, td_error = critic_problem(seed=1)
    td_error = np.float32(scale) * td_error
    new_params, info = jitted(pair)(params, inputs, td_error, OPTIONS)
    change = critic_oracle(oracles.float64(new_params), inputs) - critic_oracle(oracles.float64(params), inputs)
    assert info.accepted
    assert info.status == Status.ACCEPTED
    # 1e-4: Q' - Q of float32 values of order 1 is off by 1e-6, some 1e-4 of the smallest change.
    assert oracles.cosine(change, td_error) >= OPTIONS["alignment"] - 1e-4
    assert info.alignment == pytest.approx(oracles.cosine(change, td_error), abs=1e-4)


def test_scales_above_do_force_backtracking():
    params, inputs, td_error = critic_problem(seed=1)
    backtracks = [int(jitted("fast")(params, inputs, s * td_error, OPTIONS)[1].backtracks) for s in np.float32(SCALES)]
    assert backtracks[0] == 0 < backtracks[-1] < OPTIONS["max_backtracks"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", ["lstsq", "eigh"])  # the undamped ones
def test_one_undamped_step_of_a_linear_function_hits_the_targets(x64, dtype, solver):
    x, start, td_error = (
        normal(B, 2 * B, dtype=dtype),
        normal(2 * B, seed=1, dtype=dtype),
        normal(B, seed=2, dtype=dtype),
    )
    update = functools.partial(preqn_update, linear, solve=solvers.SOLVERS[solver](), step_size=1.0)
    params, info = jax.jit(update)(start, x, td_error)
    assert info.accepted
    assert info.backtracks == 0
    np.testing.assert_allclose(x @ params, x @ start + td_error, rtol=0, atol=1e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_repeated_rows_stay_finite_and_still_hit_the_targets(x64, solver):
    rows = np.arange(B) // 3
    x, start, td_error = (normal(B, 2 * B, seed=s, dtype=np.float64) for s in range(3))
    x, start, td_error = x[rows], start[0], td_error[rows, 0]
    update = functools.partial(preqn_update, linear, solve=solvers.SOLVERS[solver](), step_size=1.0)
    params, info = jax.jit(update)(start, x, td_error)
    change = x @ params - x @ start
    assert info.accepted
    assert np.isfinite(params).all()
    assert oracles.cosine(change, td_error) >= 0.97


@each_pair
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_permuting_the_batch_changes_nothing(x64, pair, scale):
    params, (observation, action), td_error = critic_problem(seed=2, dtype=np.float64)
    order = np.random.default_rng(0).permutation(B)
    straight = jitted(pair)(params, (observation, action), scale * td_error, OPTIONS)
    permuted = jitted(pair)(params, (observation[order], action[order]), scale * td_error[order], OPTIONS)
    assert_close(permuted, straight)


def test_fast_pair_agrees_with_the_reference_pair(x64):
    params, inputs, td_error = critic_problem(seed=3, dtype=np.float64)
    q_fn, linearize = ntk.module_q_fn(CRITIC), ntk.dense(CRITIC)
    fast_update = functools.partial(preqn_update, q_fn, linearize=linearize, solve=solvers.ridge(1e-12))
    fast = jax.jit(fast_update)(params, inputs, td_error)
    reference = jitted("reference")(params, inputs, td_error, OPTIONS)
    condition = np.linalg.cond(jax.jit(linearize)(params, inputs).gram)
    assert condition < 1e5  # so that the damping matters to 1e-7 at most
    assert_close(fast[0], reference[0], rtol=0, atol=1e-7)
    assert fast[1].alignment == pytest.approx(float(reference[1].alignment), abs=1e-7)


def root(params, x):
    """Finite values with infinite gradients at the third weight, which is 0."""
    return x @ params + jnp.sqrt(jnp.abs(params[2]))


def overflowing(gram, td_error):
    del gram
    return jnp.full_like(td_error, jnp.inf)


X, W, DELTA = jnp.eye(4), jnp.asarray([-0.0, 0.5, 0.0, -1.0]), jnp.asarray([1.0, -2.0, 0.5, 1.0])
FAILURES = {
    "nan_td_error": ({"td_error": DELTA.at[1].set(jnp.nan)}, Status.NON_FINITE_TD_ERROR),
    "inf_td_error": ({"td_error": DELTA.at[1].set(jnp.inf)}, Status.NON_FINITE_TD_ERROR),
    "all_inf_td_error": ({"td_error": jnp.full(4, -jnp.inf)}, Status.NON_FINITE_TD_ERROR),
    "nan_kernel": ({"inputs": X.at[0, 0].set(jnp.nan)}, Status.NON_FINITE_KERNEL),
    "inf_gradient": ({"q_fn": root}, Status.NON_FINITE_KERNEL),
    "overflowing_kernel": ({"inputs": 1e25 * X}, Status.NON_FINITE_KERNEL),
    "nan_parameters": ({"q_fn": lambda w, x: x @ w**2, "params": W.at[1].set(jnp.nan)}, Status.NON_FINITE_KERNEL),
    "failed_solve": ({"solve": overflowing}, Status.NON_FINITE_SOLUTION),
    "overflowing_solution": ({"inputs": 1e-15 * X, "td_error": 1e30 * DELTA}, Status.NON_FINITE_SOLUTION),
    "no_kernel": ({"inputs": 0 * X}, Status.NOT_ALIGNED),
    "contradicting_targets": ({"inputs": jnp.ones((4, 4))}, Status.NOT_ALIGNED),
    "one_trial_too_long": (
        {"q_fn": lambda w, x: x @ (w + 10 * w**2), "step_size": 10.0, "max_backtracks": 0},
        Status.NOT_ALIGNED,
    ),
}


@pytest.mark.parametrize(("change", "status"), FAILURES.values(), ids=FAILURES)
def test_a_step_not_taken_changes_no_bit_and_says_why(change, status):
    arguments = {"q_fn": linear, "params": W, "inputs": X, "td_error": DELTA} | change
    params, info = preqn_update(**arguments)
    assert info.status == status
    assert not info.accepted
    assert info.step_size == 0
    assert bits(params) == bits(arguments["params"])


def test_an_accepted_step_says_so():
    params, info = preqn_update(linear, W, X, DELTA)
    assert info.status == Status.ACCEPTED
    assert info.accepted
    np.testing.assert_allclose(params, W + 0.1 * DELTA, rtol=1e-5)


def test_zero_td_error_is_an_accepted_no_op():
    params, info = preqn_update(linear, W, X, jnp.zeros(4))
    assert info.status == Status.NO_TD_ERROR
    assert info.accepted
    assert info.backtracks == 0
    assert bits(params) == bits(W)


def test_a_broken_kernel_is_not_accepted_even_with_nothing_to_correct():
    params, info = preqn_update(root, W, X, jnp.zeros(4))
    assert info.status == Status.NON_FINITE_KERNEL
    assert not info.accepted
    assert bits(params) == bits(W)


@pytest.mark.parametrize("max_backtracks", [0, 3])
def test_search_ends_after_max_backtracks(max_backtracks):
    params, inputs, td_error = critic_problem(seed=1)
    _, info = jitted("fast")(params, inputs, 1e5 * td_error, OPTIONS | {"max_backtracks": max_backtracks})
    assert info.status == Status.NOT_ALIGNED
    assert info.backtracks == max_backtracks
    assert info.alignment < OPTIONS["alignment"]


@pytest.mark.parametrize("reason", ["nan", "no_solution"])
def test_a_failed_solve_costs_no_search(reason):
    change = FAILURES["nan_td_error" if reason == "nan" else "failed_solve"][0]
    _, info = preqn_update(**{"q_fn": linear, "params": W, "inputs": X, "td_error": DELTA} | change)
    assert info.backtracks == 0


def test_starts_from_a_linearization_at_hand():
    params, inputs, td_error = critic_problem()
    linearization = jax.jit(PAIRS["fast"][0])(params, inputs)
    q_fn, solve = ntk.module_q_fn(CRITIC), PAIRS["fast"][1]
    again = jax.jit(functools.partial(step_linearized, q_fn, solve=solve))(params, inputs, td_error, linearization)
    assert_close(again, jitted("fast")(params, inputs, td_error, OPTIONS))


def test_jit_changes_nothing():
    x, start, td_error = normal(B, 2 * B), normal(2 * B, seed=1), 30 * normal(B, seed=2)

    def bent(params, x):
        return x @ params + 0.5 * (x @ params) ** 2

    plain = preqn_update(bent, jnp.asarray(start), x, td_error, step_size=1.0)
    compiled = jax.jit(functools.partial(preqn_update, bent, step_size=1.0))(start, x, td_error)
    assert plain[1].backtracks > 0
    assert_close(compiled, plain, rtol=1e-3, atol=1e-4)


def test_vmap_over_seeds_equals_a_loop(x64):
    params, inputs, td_errors = stack([critic_problem(seed, np.float64) for seed in range(5)])
    td_errors *= np.array([1.0, 300.0, 0.0, 1.0, 30.0])[:, None]
    td_errors[3, 0] = np.nan
    new_params, info = jax.vmap(jitted("fast"), in_axes=(0, 0, 0, None))(params, inputs, td_errors, OPTIONS)
    assert set(info.status.tolist()) == {Status.ACCEPTED, Status.NO_TD_ERROR, Status.NON_FINITE_TD_ERROR}
    assert len(set(info.backtracks.tolist())) >= 3
    for i in range(5):
        pick = functools.partial(jax.tree.map, lambda leaf, i=i: leaf[i])
        one = jitted("fast")(pick(params), pick(inputs), td_errors[i], OPTIONS)
        assert_close(pick((new_params, info)), one)
        if not info.step_size[i]:
            assert bits(pick(new_params)) == bits(pick(params))


def test_hyperparameters_may_be_traced_and_do_not_compile_again():
    params, inputs, td_error = critic_problem(seed=1)
    traces = 0

    @jax.jit
    def update(options):
        nonlocal traces
        traces += 1
        return preqn_update(
            ntk.module_q_fn(CRITIC),
            params,
            inputs,
            td_error,
            linearize=PAIRS["fast"][0],
            solve=PAIRS["fast"][1],
            **options,
        )

    first = OPTIONS
    second = {"step_size": 1.0, "alignment": 0.999, "decay": 0.5, "max_backtracks": 10}
    as_arrays = functools.partial(jax.tree.map, lambda value: jnp.asarray(value))
    _, one = update(as_arrays(first))
    _, other = update(as_arrays(second))
    assert traces == 1
    assert one.step_size == pytest.approx(0.1)
    assert other.backtracks > 0
    assert other.step_size == pytest.approx(0.5 ** int(other.backtracks))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("step_size", 0.0),
        ("step_size", -0.1),
        ("step_size", float("nan")),
        ("alignment", 0.0),
        ("alignment", 1.1),
        ("alignment", float("nan")),
        ("decay", 0.0),
        ("decay", 1.0),
        ("max_backtracks", -1),
    ],
)
def test_options_out_of_range_raise(option, value):
    with pytest.raises(ValueError, match=option):
        preqn_update(linear, W, X, DELTA, **{option: value})
    with pytest.raises(ValueError, match=option):
        preqn_update(linear, W, X, DELTA, **{option: jnp.asarray(value)})


@pytest.mark.parametrize("shape", [(4, 1), (5,), (1,), ()], ids=str)
def test_a_td_error_of_wrong_shape_raises(shape):
    with pytest.raises(ValueError, match=r"td_error must have shape \[B\]"):
        preqn_update(linear, W, X, jnp.ones(shape))


def test_td_error_gets_no_gradient():
    def update(params, td_error):
        return preqn_update(linear, params, X, td_error, solve=solvers.ridge())[0]

    tangents = jnp.zeros_like(W), jnp.ones_like(DELTA)
    np.testing.assert_array_equal(jax.jvp(update, (W, DELTA), tangents)[1], jnp.zeros_like(W))


@each_pair
def test_all_matrix_products_are_full_precision(pair):
    params, inputs, td_error = critic_problem()
    products = dot_precisions(lambda *arguments: jitted(pair)(*arguments, OPTIONS), params, inputs, td_error)
    assert set(products) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_docstring_example_runs():
    result = doctest.testmod(preqn)
    assert result.attempted > 0
    assert result.failed == 0
