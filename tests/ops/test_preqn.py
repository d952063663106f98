import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.networks import Critic
from preqn_jax.ops import ntk, preqn, solvers
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import Status, describe, preqn_update
from tests import oracles
from tests.helpers import assert_close, bits, linear, overflowing
from tests.ops.jaxprs import dot_precisions

B = 12
OPTIONS = {"step_size": 0.1, "min_alignment": 0.97, "decay": 0.8, "max_backtracks": 20}
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
    """(params, inputs, td_error, options) -> the update towards Q + td_error."""
    q, solver = PAIRS[pair]

    def update(params, inputs, td_error, options):
        target = q(params, inputs).values + td_error
        return preqn_update(q, params, inputs, target, solver=solver, linesearch=Linesearch(**options))

    return jax.jit(update)


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
    assert info.search.backtracks == backtracks
    assert info.search.step_size == pytest.approx(step)
    assert info.search.alignment == pytest.approx(reached, abs=1e-8)
    assert info.solve.predicted_alignment == pytest.approx(oracles.cosine(gram @ z, td_error), abs=1e-8)
    assert info.solve.residual == pytest.approx(oracles.residual(gram, z, td_error), abs=1e-8)
    assert info.solve.damping == 0
    assert info.solve.kernel_diagonal == pytest.approx(np.trace(gram) / B)
    assert info.q == pytest.approx(critic_oracle(params, inputs).mean())
    assert info.td_error == pytest.approx(np.sqrt(np.mean(td_error**2)))
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
    assert oracles.cosine(change, td_error) >= OPTIONS["min_alignment"] - 1e-4
    assert info.search.alignment == pytest.approx(oracles.cosine(change, td_error), abs=1e-4)


def test_scales_above_do_force_backtracking():
    params, inputs, td_error = critic_problem(seed=1)
    infos = [jitted("fast")(params, inputs, s * td_error, OPTIONS)[1] for s in np.float32(SCALES)]
    backtracks = [int(info.search.backtracks) for info in infos]
    assert backtracks[0] == 0 < backtracks[-1] < OPTIONS["max_backtracks"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", ["lstsq", "eigh"])  # the undamped ones
def test_one_undamped_step_of_a_linear_function_hits_the_targets(x64, dtype, solver):
    x, start, target = (
        normal(B, 2 * B, dtype=dtype),
        normal(2 * B, seed=1, dtype=dtype),
        normal(B, seed=2, dtype=dtype),
    )
    update = functools.partial(
        preqn_update, linear, solver=solvers.SOLVERS[solver](), linesearch=Linesearch(step_size=1.0)
    )
    params, info = jax.jit(update)(start, x, target)
    assert info.accepted
    assert info.search.backtracks == 0
    np.testing.assert_allclose(x @ params, target, rtol=0, atol=1e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_repeated_rows_stay_finite_and_still_hit_the_targets(x64, solver):
    rows = np.arange(B) // 3
    x, start, td_error = (normal(B, 2 * B, seed=s, dtype=np.float64) for s in range(3))
    x, start, td_error = x[rows], start[0], td_error[rows, 0]
    update = functools.partial(
        preqn_update, linear, solver=solvers.SOLVERS[solver](), linesearch=Linesearch(step_size=1.0)
    )
    params, info = jax.jit(update)(start, x, x @ start + td_error)
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
    q, target = ntk.dense(CRITIC), critic_oracle(params, inputs) + td_error
    fast = jax.jit(functools.partial(preqn_update, q, solver=solvers.ridge(1e-12)))(params, inputs, target)
    reference = jitted("reference")(params, inputs, td_error, OPTIONS)
    condition = np.linalg.cond(jax.jit(q)(params, inputs).gram)
    assert condition < 1e5  # so that the damping matters to 1e-7 at most
    assert_close(fast[0], reference[0], rtol=0, atol=1e-7)
    assert fast[1].search.alignment == pytest.approx(float(reference[1].search.alignment), abs=1e-7)


def root(params, x):
    """Finite values with infinite gradients at the third weight, which is 0."""
    return x @ params + jnp.sqrt(jnp.abs(params[2]))


X, W, DELTA = jnp.eye(4), jnp.asarray([-0.0, 0.5, 0.0, -1.0]), jnp.asarray([1.0, -2.0, 0.5, 1.0])
TARGET = W + DELTA  # of the linear Q
ARGUMENTS = {"q": linear, "params": W, "inputs": X, "target": TARGET}
FAILURES = {
    "nan_target": ({"target": TARGET.at[1].set(jnp.nan)}, Status.NON_FINITE_TD_ERROR),
    "inf_target": ({"target": TARGET.at[1].set(jnp.inf)}, Status.NON_FINITE_TD_ERROR),
    "all_inf_target": ({"target": jnp.full(4, -jnp.inf)}, Status.NON_FINITE_TD_ERROR),
    "nan_inputs": ({"inputs": X.at[0, 0].set(jnp.nan)}, Status.NON_FINITE_TD_ERROR),
    "nan_gradient": ({"q": lambda w, x: x @ w + 0 * jnp.sqrt(w[2])}, Status.NON_FINITE_KERNEL),
    "inf_gradient": ({"q": root}, Status.NON_FINITE_KERNEL),
    "overflowing_kernel": ({"inputs": 1e25 * X}, Status.NON_FINITE_KERNEL),
    "nan_parameters": ({"q": lambda w, x: x @ w**2, "params": W.at[1].set(jnp.nan)}, Status.NON_FINITE_TD_ERROR),
    "failed_solve": ({"solver": overflowing}, Status.NON_FINITE_SOLUTION),
    "overflowing_solution": ({"inputs": 1e-15 * X, "target": 1e30 * DELTA}, Status.NON_FINITE_SOLUTION),
    "no_kernel": ({"inputs": 0 * X}, Status.NOT_ALIGNED),
    "contradicting_targets": ({"inputs": jnp.ones((4, 4))}, Status.NOT_ALIGNED),
    "one_trial_too_long": (
        {"q": lambda w, x: x @ (w + 10 * w**2), "linesearch": Linesearch(step_size=10.0, max_backtracks=0)},
        Status.NOT_ALIGNED,
    ),
}


@pytest.mark.parametrize(("change", "status"), FAILURES.values(), ids=FAILURES)
def test_a_step_not_taken_changes_no_bit_and_says_why(change, status):
    arguments = ARGUMENTS | change
    params, info = preqn_update(**arguments)
    assert info.status == status
    assert not info.accepted
    assert info.search.step_size == 0
    assert bits(params) == bits(arguments["params"])
    assert describe(info).startswith("rejected: no step size reached" if status == Status.NOT_ALIGNED else "no step: ")


def test_an_update_is_described_in_one_line():
    _, info = preqn_update(linear, W, X, TARGET)
    words = "accepted: step size 0.1 after 0 backtracks, alignment 1.000 (predicted 1.000), residual 0.0001"
    assert describe(info) == words
    assert describe(preqn_update(linear, W, X, W)[1]) == "nothing to correct: every TD error is zero"
    contradicting, _ = FAILURES["contradicting_targets"]
    words = describe(preqn_update(**ARGUMENTS | contradicting)[1])
    assert words.startswith(
        "rejected: no step size reached the line search's min_alignment: 20 backtracks, alignment 0."
    )
    assert words.endswith("; if most steps are rejected, call ntk.check_example_by_example once")
    with pytest.raises(ValueError, match="info must be of one update, got 1 batch axes"):
        describe(jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), info))
    with pytest.raises(ValueError, match="call it outside of jit"):
        jax.jit(lambda info: jnp.zeros(len(describe(info))))(info)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_size_of_the_td_errors_is_right_at_any_scale(scale):
    _, info = preqn_update(linear, jnp.zeros_like(W), X, scale * TARGET)
    assert float(info.td_error) == pytest.approx(scale * np.sqrt(np.mean(np.square(TARGET))), rel=1e-5)
    assert bool(jax.tree.map(float, info).solve.finite) is True


def test_an_accepted_step_says_so():
    params, info = preqn_update(linear, W, X, TARGET, solver=solvers.lstsq())
    assert info.status == Status.ACCEPTED
    assert info.accepted
    np.testing.assert_allclose(params, W + 0.1 * DELTA, rtol=1e-5)


def test_the_defaults_are_the_recommended_ones():
    expected = preqn_update(linear, W, X, TARGET, solver=solvers.ridge(1e-4), linesearch=Linesearch(0.1, 0.97, 0.8, 20))
    assert bits(preqn_update(linear, W, X, TARGET)) == bits(expected)


def test_a_solver_of_ones_own():
    solver = lambda gram, delta: jnp.linalg.solve(gram, delta)  # noqa: E731
    params, info = jax.jit(functools.partial(preqn_update, linear, solver=solver))(W, X, TARGET)
    np.testing.assert_allclose(params, W + 0.1 * DELTA, rtol=1e-5)
    assert info.solve.damping == 0
    with pytest.raises(ValueError, match="solver must return z of shape"):
        preqn_update(linear, W, X, TARGET, solver=lambda gram, delta: gram)


def test_equal_rows_need_equal_targets():
    """As docs/composing.md says: no step moves equal rows apart, and the mean of their targets is a remedy."""
    x, contradicting = X.at[1].set(X[0]), W[jnp.asarray([0, 0, 2, 3])] + DELTA
    _, info = preqn_update(linear, W, x, contradicting)
    assert info.status == Status.NOT_ALIGNED
    # Only the mean of the two TD errors can be followed.
    reachable = DELTA.at[:2].set(DELTA[:2].mean())
    cosine = oracles.cosine(np.asarray(reachable), np.asarray(DELTA))
    assert info.search.alignment == pytest.approx(cosine, abs=1e-3)
    assert info.solve.predicted_alignment == pytest.approx(cosine, abs=1e-3)
    assert preqn_update(linear, W, x, contradicting - DELTA + reachable)[1].accepted


def test_zero_td_error_is_an_accepted_no_op():
    params, info = preqn_update(linear, W, X, W)
    assert info.status == Status.NO_TD_ERROR
    assert info.accepted
    assert info.search.backtracks == 0
    assert bits(params) == bits(W)


def test_a_broken_kernel_is_not_accepted_even_with_nothing_to_correct():
    params, info = preqn_update(root, W, X, root(W, X))
    assert info.status == Status.NON_FINITE_KERNEL
    assert not info.accepted
    assert bits(params) == bits(W)


@pytest.mark.parametrize("max_backtracks", [0, 3])
def test_search_ends_after_max_backtracks(max_backtracks):
    params, inputs, td_error = critic_problem(seed=1)
    _, info = jitted("fast")(params, inputs, 1e5 * td_error, OPTIONS | {"max_backtracks": max_backtracks})
    assert info.status == Status.NOT_ALIGNED
    assert info.search.backtracks == max_backtracks
    assert info.search.alignment < OPTIONS["min_alignment"]


@pytest.mark.parametrize("reason", ["nan", "no_solution"])
def test_a_failed_solve_costs_no_search(reason):
    change = FAILURES["nan_target" if reason == "nan" else "failed_solve"][0]
    _, info = preqn_update(**ARGUMENTS | change)
    assert info.search.backtracks == 0


def test_a_plain_q_function_stands_for_its_per_example_linearizer():
    params, inputs, target = critic_problem()
    q_fn = ntk.module_q_fn(CRITIC)
    found, expected = (jax.jit(functools.partial(preqn_update, q))(params, inputs, target)
                       for q in (q_fn, ntk.per_example(q_fn)))  # fmt: skip
    assert bits(found) == bits(expected)


def test_jit_changes_nothing():
    x, start, td_error = normal(B, 2 * B), normal(2 * B, seed=1), 30 * normal(B, seed=2)

    def bent(params, x):
        return x @ params + 0.5 * (x @ params) ** 2

    target, linesearch = bent(start, x) + td_error, Linesearch(step_size=1.0)
    plain = preqn_update(bent, jnp.asarray(start), x, target, linesearch=linesearch)
    compiled = jax.jit(functools.partial(preqn_update, bent, linesearch=linesearch))(start, x, target)
    assert plain[1].search.backtracks > 0
    assert_close(compiled, plain, rtol=1e-3, atol=1e-4)


def test_vmap_over_seeds_equals_a_loop(x64):
    params, inputs, td_errors = stack([critic_problem(seed, np.float64) for seed in range(5)])
    td_errors *= np.array([1.0, 300.0, 0.0, 1.0, 30.0])[:, None]
    td_errors[3, 0] = np.nan
    new_params, info = jax.vmap(jitted("fast"), in_axes=(0, 0, 0, None))(params, inputs, td_errors, OPTIONS)
    assert set(info.status.tolist()) == {Status.ACCEPTED, Status.NO_TD_ERROR, Status.NON_FINITE_TD_ERROR}
    assert len(set(info.search.backtracks.tolist())) >= 3
    for i in range(5):
        pick = functools.partial(jax.tree.map, lambda leaf, i=i: leaf[i])
        one = jitted("fast")(pick(params), pick(inputs), td_errors[i], OPTIONS)
        assert_close(pick((new_params, info)), one)
        if not info.search.step_size[i]:
            assert bits(pick(new_params)) == bits(pick(params))


def test_hyperparameters_may_be_traced_and_do_not_compile_again():
    params, inputs, td_error = critic_problem(seed=1)
    q, solver = PAIRS["fast"]
    traces = 0

    @jax.jit
    def update(linesearch):
        nonlocal traces
        traces += 1
        target = q(params, inputs).values + td_error
        return preqn_update(q, params, inputs, target, solver=solver, linesearch=linesearch)

    as_arrays = functools.partial(jax.tree.map, lambda value: jnp.asarray(value))
    _, one = update(as_arrays(Linesearch()))
    _, other = update(as_arrays(Linesearch(step_size=1.0, min_alignment=0.999, decay=0.5, max_backtracks=10)))
    assert traces == 1
    assert one.search.step_size == pytest.approx(0.1)
    assert other.search.backtracks > 0
    assert other.search.step_size == pytest.approx(0.5 ** int(other.search.backtracks))


def test_a_linesearch_may_be_vmapped():
    def accepted_step_size(linesearch):
        return preqn_update(linear, W, X, TARGET, linesearch=linesearch)[1].search.step_size

    step_sizes = jnp.asarray([0.1, 0.2])
    every = Linesearch(step_sizes, jnp.asarray([0.5, 0.9]), jnp.full(2, 0.5), jnp.asarray([1, 2]))
    np.testing.assert_allclose(jax.vmap(accepted_step_size)(every), step_sizes)
    one_alone = jax.vmap(accepted_step_size, in_axes=(Linesearch(0, None, None, None),))
    np.testing.assert_allclose(one_alone(Linesearch(step_sizes)), step_sizes)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("step_size", 0.0),
        ("step_size", -0.1),
        ("step_size", float("nan")),
        ("min_alignment", 0.0),
        ("min_alignment", 1.1),
        ("min_alignment", float("nan")),
        ("decay", 0.0),
        ("decay", 1.0),
        ("max_backtracks", -1),
        ("max_backtracks", -2.5),
        ("max_backtracks", float("inf")),
    ],
)
def test_options_out_of_range_raise(option, value):
    for number in (value, jnp.asarray(value)):
        with pytest.raises(ValueError, match=rf"^linesearch\.{option} must be in .*, got "):
            preqn_update(linear, W, X, TARGET, linesearch=Linesearch(**{option: number}))


@pytest.mark.parametrize(
    ("linesearch", "message"),
    [
        (0.1, "linesearch must be a Linesearch, got float"),
        (OPTIONS, "linesearch must be a Linesearch, got dict"),
        (Linesearch(step_size=jnp.ones(2)), "linesearch.step_size must be one number"),
        (Linesearch(decay=None), "linesearch.decay must be one number"),
        (Linesearch(step_size=lambda step: 0.1), "linesearch.step_size must be one number, got function"),
        (Linesearch(max_backtracks=True), "linesearch.max_backtracks must be one number, got True"),
        (Linesearch, "linesearch must be a Linesearch, got the class Linesearch"),
    ],
    ids=["number", "dict", "several", "none", "schedule", "bool", "class"],
)
def test_what_is_no_linesearch_raises(linesearch, message):
    with pytest.raises(ValueError, match=message):
        preqn_update(linear, W, X, TARGET, linesearch=linesearch)


def test_backtracks_that_are_not_whole_raise_unless_they_are_traced():
    def update(max_backtracks):
        return preqn_update(linear, W, X, TARGET, linesearch=Linesearch(max_backtracks=max_backtracks))[1]

    for number in (2.5, np.float32(2.5), jnp.asarray(2.5)):
        with pytest.raises(ValueError, match=r"^linesearch\.max_backtracks must be a whole number, got 2\.5$"):
            update(number)
        with jax.numpy_dtype_promotion("standard"):
            assert jax.jit(update)(number).accepted
    with jax.numpy_dtype_promotion("standard"):
        assert update(2.0).accepted


@pytest.mark.parametrize("shape", [(4, 1), (5,), (1,), ()], ids=str)
def test_a_target_of_wrong_shape_raises(shape):
    with pytest.raises(ValueError, match=r"target must have shape \[B\]"):
        preqn_update(linear, W, X, jnp.ones(shape))


def test_target_gets_no_gradient():
    def update(params, target):
        return preqn_update(linear, params, X, target)[0]

    tangents = jnp.zeros_like(W), jnp.ones_like(DELTA)
    np.testing.assert_array_equal(jax.jvp(update, (W, TARGET), tangents)[1], jnp.zeros_like(W))


@each_pair
def test_all_matrix_products_are_full_precision(pair):
    params, inputs, td_error = critic_problem()
    products = dot_precisions(lambda *arguments: jitted(pair)(*arguments, OPTIONS), params, inputs, td_error)
    assert set(products) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_docstring_example_runs():
    result = doctest.testmod(preqn)
    assert result.attempted > 0
    assert result.failed == 0


def rounded_problem(dtype, scale):
    """(q_fn, params, inputs, targets of five updates) of a network whose parameters have few digits."""

    def q_fn(params, x):
        w, v = (params[name].astype(jnp.float32) for name in ("w", "v"))
        return jnp.tanh(x @ w) @ v

    params = {"w": normal(8, 32).astype(dtype), "v": normal(32, seed=1).astype(dtype)}
    inputs = normal(B, 8, seed=2)
    targets = np.asarray(q_fn(jax.tree.map(jnp.asarray, params), inputs)) + scale * normal(5, B, seed=3)
    return q_fn, params, inputs, targets


@pytest.mark.parametrize("scale", [0.1, 0.01])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_alignment_is_that_of_the_rounded_parameters(dtype, scale):
    """XLA may keep more digits of a sum than its dtype has, in which case the search would measure another step."""
    q_fn, params, inputs, targets = rounded_problem(dtype, scale)

    @jax.jit
    def train(params, targets):
        def step(params, target):
            params, info = preqn_update(q_fn, params, inputs, target)
            return params, (params, info.search)

        return jax.lax.scan(step, params, targets)[1]

    history, searches = train(params, targets)
    for i, target in enumerate(targets):
        new, found = jax.tree.map(lambda leaf, i=i: leaf[i], (history, searches))
        before = np.asarray(q_fn(params, inputs))
        if found.accepted:
            aligned = oracles.cosine(np.asarray(q_fn(new, inputs)) - before, target - before)
            assert_close(found.alignment, aligned, rtol=1e-3)
        else:
            assert bits(new) == bits(params)
        params = new


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_below_the_normal_numbers_of_their_dtype_are_kept(dtype):
    """A weight whose gradient is zero keeps its value, down to the smallest one that its dtype can hold."""
    smallest = jnp.finfo(dtype).smallest_subnormal if dtype == jnp.float16 else jnp.finfo(dtype).smallest_normal
    params = {"w": jnp.zeros(3, dtype), "unused": jnp.asarray([3e-5, smallest], dtype)}

    def q_fn(params, x):
        return x @ params["w"].astype(jnp.float32)

    new, info = jax.jit(preqn_update, static_argnums=0)(q_fn, params, np.eye(3, dtype="float32"), np.ones(3, "float32"))
    assert info.accepted
    assert bits(new["unused"]) == bits(params["unused"])
    assert (new["w"] > 0).all()
