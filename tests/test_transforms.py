"""The Optax forms: equal to preqn_update bit for bit, and transformations as Optax's own tests want them."""

import doctest
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import preqn_jax
from preqn_jax import transforms
from preqn_jax.networks import Critic
from preqn_jax.ops import ntk, solvers
from preqn_jax.ops.preqn import Status, preqn_update
from preqn_jax.transforms import precondition_by_ntk, preqn, preqn_info, scale_by_alignment_linesearch
from tests.ops.precision import double

B = 12
CRITIC = Critic((16, 16), activation="tanh")
CRITIC_Q = ntk.module_q_fn(CRITIC)


def Q_FN(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def overflowing(gram, td_error):
    del gram
    return jnp.full_like(td_error, jnp.inf)


CRITIC_INPUTS = normal(B, 3), normal(B, 2, seed=1)
CRITIC_PARAMS = jax.tree.map(
    lambda leaf: 0.5 * normal(*leaf.shape, seed=3), CRITIC.init(jax.random.key(0), *CRITIC_INPUTS)
)
INPUTS, DELTA = normal(B, 16), normal(B, seed=2)
PARAMS = {"w": 0.25 * normal(16, 32, seed=4), "v": normal(32, seed=5)}
HOW = {"solve": solvers.ridge()}
PAIRS = {
    "reference": (CRITIC_Q, {}),
    "fast": (CRITIC_Q, {"linearize": ntk.dense(CRITIC), "solve": solvers.ridge()}),
    "small": (Q_FN, HOW),
    "failing": (Q_FN, {"solve": overflowing}),
}
OPTIONS = {"step_size": 0.1, "alignment": 0.97, "decay": 0.8, "max_backtracks": 20}


def bits(tree):
    """Tells -0.0 from 0.0, and equals itself where there is a NaN."""
    return [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def shapes(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)


def step_by(optimizer):
    """(params, inputs, td_error) -> new parameters and info, from a fresh state."""

    def step(params, inputs, td_error):
        state = optimizer.init(params)
        updates, state = optimizer.update(params, state, params, inputs=inputs, td_error=td_error)
        return optax.apply_updates(params, updates), preqn_info(state)

    return step


def compiled(pair, static=None):
    """preqn_update and the chain: each (params, inputs, td_error, options) -> new parameters and info.

    The options are traced, those in ``static`` are not.
    """
    (q_fn, how), static = PAIRS[pair], static or {}

    def update(params, inputs, td_error, options):
        return preqn_update(q_fn, params, inputs, td_error, **how, **{**options, **static})

    def chain(params, inputs, td_error, options):
        search = scale_by_alignment_linesearch(q_fn, **{**options, **static})
        return step_by(optax.chain(precondition_by_ntk(q_fn, **how), search))(params, inputs, td_error)

    return jax.jit(update), jax.jit(chain)


compiled_once = functools.cache(compiled)


def with_first_leaf(value):
    leaves, structure = jax.tree.flatten(CRITIC_PARAMS)
    return jax.tree.unflatten(structure, [leaves[0].at[0].set(value), *leaves[1:]])


def scaled_last(scale):
    layers = CRITIC_PARAMS["params"]["MLP_0"]
    return {"params": {"MLP_0": layers | {"Dense_2": jax.tree.map(lambda leaf: scale * leaf, layers["Dense_2"])}}}


CASES = {
    "accepted": ({}, {}, Status.ACCEPTED),
    "accepted_after_backtracks": ({"td_error": 30 * DELTA}, {}, Status.ACCEPTED),
    "rejected": (
        {"params": with_first_leaf(-0.0), "td_error": 1e5 * DELTA},
        {"max_backtracks": 3},
        Status.NOT_ALIGNED,
    ),
    "no_td_error": ({"params": with_first_leaf(-0.0), "td_error": 0 * DELTA}, {}, Status.NO_TD_ERROR),
    "nan_td_error": ({"td_error": DELTA.at[3].set(jnp.nan)}, {}, Status.NON_FINITE_TD_ERROR),
    "inf_td_error": ({"td_error": DELTA.at[3].set(jnp.inf)}, {}, Status.NON_FINITE_TD_ERROR),
    "nan_params": ({"params": with_first_leaf(jnp.nan)}, {}, Status.NON_FINITE_KERNEL),
    "nan_params_and_no_td_error": (
        {"params": with_first_leaf(jnp.nan), "td_error": 0 * DELTA},
        {},
        Status.NON_FINITE_KERNEL,
    ),
    "overflowing_kernel_and_no_td_error": (
        {"params": scaled_last(1e25), "td_error": 0 * DELTA},
        {},
        Status.NON_FINITE_KERNEL,
    ),
}


def arguments_of(case):
    change, options, status = CASES[case]
    arguments = {"params": CRITIC_PARAMS, "inputs": CRITIC_INPUTS, "td_error": DELTA, "options": OPTIONS | options}
    return arguments | change, status


@pytest.mark.parametrize("pair", ["reference", "fast"])
@pytest.mark.parametrize("case", CASES)
def test_the_chain_equals_preqn_update_bit_for_bit(pair, case):
    arguments, status = arguments_of(case)
    update, chain = compiled_once(pair)
    expected = update(*arguments.values())
    assert expected[1].status == status
    assert bits(chain(*arguments.values())) == bits(expected)


def test_the_cases_above_do_backtrack():
    arguments, _ = arguments_of("accepted_after_backtracks")
    assert 0 < compiled_once("fast")[0](*arguments.values())[1].backtracks < OPTIONS["max_backtracks"]


def test_the_chain_equals_preqn_update_with_a_search_that_the_compiler_knows_to_be_one_trial():
    update, chain = compiled("small", {"max_backtracks": 0})
    for scale, status in ((1.0, Status.ACCEPTED), (0.0, Status.NO_TD_ERROR), (1e5, Status.NOT_ALIGNED)):
        expected = update(PARAMS, INPUTS, scale * DELTA, OPTIONS)
        assert expected[1].status == status
        assert bits(chain(PARAMS, INPUTS, scale * DELTA, OPTIONS)) == bits(expected)


@pytest.mark.parametrize("td_error", [DELTA, 0 * DELTA], ids=["some", "none"])
def test_the_chain_equals_preqn_update_where_the_solve_fails(td_error):
    update, chain = compiled_once("failing")
    expected = update(PARAMS, INPUTS, td_error, OPTIONS)
    assert expected[1].status == Status.NON_FINITE_SOLUTION
    assert bits(chain(PARAMS, INPUTS, td_error, OPTIONS)) == bits(expected)


def test_a_run_whose_updates_leave_the_program_equals_preqn_update_bit_for_bit():
    optimizer = preqn(Q_FN, **HOW)
    update, params, expected = jax.jit(optimizer.update), PARAMS, PARAMS
    state = optimizer.init(params)
    for i in range(5):
        td_error = 10.0**i * DELTA
        expected, info = compiled_once("small")[0](expected, INPUTS, td_error, OPTIONS)
        updates, state = update(params, state, params, inputs=INPUTS, td_error=td_error)
        params = optax.apply_updates(params, updates)
        assert bits((params, preqn_info(state))) == bits((expected, info))


def test_updates_point_where_q_rises_towards_its_targets():
    optimizer = precondition_by_ntk(lambda params, x: x @ params, solve=solvers.lstsq())
    updates, state = optimizer.update(
        None, optimizer.init(jnp.zeros(3)), jnp.zeros(3), inputs=jnp.eye(3), td_error=jnp.asarray([1.0, -2.0, 3.0])
    )
    np.testing.assert_allclose(updates, [1.0, -2.0, 3.0], rtol=1e-5)
    assert state.info.predicted_alignment == pytest.approx(1.0)


@pytest.mark.parametrize("case", ["nan_td_error", "nan_params"])
def test_without_a_linesearch_a_failed_solve_asks_for_no_step_either(case):
    arguments, status = arguments_of(case)
    params, inputs, td_error, _ = arguments.values()
    optimizer = precondition_by_ntk(CRITIC_Q, **PAIRS["fast"][1])
    update = jax.jit(optimizer.update)
    updates, state = update(params, optimizer.init(params), params, inputs=inputs, td_error=td_error)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(updates))
    assert state.info.status == status


def test_the_linesearch_serves_other_directions_too():
    search = scale_by_alignment_linesearch(Q_FN, 0.5, step_size=1.0, max_backtracks=100)
    optimizer = optax.chain(optax.sgd(1.0), search)

    @jax.jit
    def step(params):
        td_error = 3 * DELTA - Q_FN(params, INPUTS)
        gradient = jax.grad(lambda params: 0.5 * jnp.mean((3 * DELTA - Q_FN(params, INPUTS)) ** 2))(params)
        state = optimizer.init(params)
        return gradient, td_error, *optimizer.update(gradient, state, params, inputs=INPUTS, td_error=td_error)

    gradient, td_error, updates, state = step(PARAMS)
    info = state[1].info
    assert info.accepted
    assert info.step_size == pytest.approx(0.8 ** int(info.backtracks))
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -info.step_size * g, rtol=1e-5), updates, gradient)
    change = Q_FN(optax.apply_updates(PARAMS, updates), INPUTS) - Q_FN(PARAMS, INPUTS)
    assert change @ td_error / jnp.linalg.norm(change) / jnp.linalg.norm(td_error) >= 0.5 - 1e-4


TRANSFORMS = {
    "precondition": precondition_by_ntk(Q_FN, **HOW),
    "linesearch": scale_by_alignment_linesearch(Q_FN),
    "chain": preqn(Q_FN, **HOW),
}
each_transform = pytest.mark.parametrize("optimizer", TRANSFORMS.values(), ids=TRANSFORMS)
EXTRA = {"inputs": INPUTS, "td_error": DELTA}


@each_transform
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs": INPUTS, "td_eror": DELTA}, r"td_eror=\.\.\.; did you mean td_error="),
        ({"input": INPUTS, "td_error": DELTA}, r"input=\.\.\.; did you mean inputs="),
        ({**EXTRA, "all_param": PARAMS}, r"all_param=\.\.\.; did you mean all_params="),
        ({"inputs": INPUTS}, r"by keyword: .*inputs=\.\.\., td_error=\.\.\.\); got no td_error$"),
        ({"delta": DELTA}, "got no inputs and no td_error, and delta instead$"),
    ],
)
def test_a_missing_or_misspelt_keyword_is_named(optimizer, given, message):
    with pytest.raises(ValueError, match=message):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, **given)


@each_transform
def test_keywords_of_other_transformations_pass(optimizer):
    others = {"value": DELTA.sum(), "grad": PARAMS, "value_fn": Q_FN, "input": INPUTS}  # ours is given besides
    jax.eval_shape(lambda params: optimizer.update(params, optimizer.init(params), params, **EXTRA, **others), PARAMS)


@each_transform
def test_updates_are_like_the_parameters_and_states_stay_as_they_are_shaped(optimizer):
    state = jax.jit(optimizer.init)(PARAMS)
    assert shapes(state) == shapes(optimizer.init(PARAMS))
    update = jax.jit(optimizer.update)
    updates, new_state = update(PARAMS, state, PARAMS, **EXTRA)
    assert shapes(updates) == shapes(PARAMS)
    assert shapes(new_state) == shapes(state)
    update(updates, new_state, PARAMS, **EXTRA)
    assert update._cache_size() == 1
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_are_kept_whatever_the_parameters(dtype):
    """Optax's own test, by which init and update have to fit into one ``lax.cond``."""

    def q_fn(params, x):
        return jnp.tanh(x @ params["w"]).astype(jnp.float32) if dtype == jnp.bfloat16 else jnp.tanh(x @ params["w"])

    with double():
        params, x, optimizer = {"w": jnp.ones(3, dtype)}, normal(B, 3).astype(dtype), preqn(q_fn, solve=solvers.ridge())

        @jax.jit
        def step(params, state):
            updates, state = jax.lax.cond(
                jax.random.bernoulli(jax.random.key(0)),
                lambda: optimizer.update(params, state, params, inputs=x, td_error=DELTA),
                lambda: (params, state),
            )
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        for _ in range(2):
            params, state = step(params, state)
        assert params["w"].dtype == dtype


@each_transform
def test_vmap_equals_a_loop(optimizer):
    scales = jnp.asarray([1.0, 30.0, 0.0, jnp.nan])
    td_errors = jnp.outer(scales, DELTA)

    def update(td_error):
        return optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, inputs=INPUTS, td_error=td_error)

    together, alone = jax.jit(jax.vmap(update))(td_errors), jax.jit(update)
    for i in range(len(scales)):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3), one, alone(td_errors[i]))


def test_scan_equals_a_loop_and_learns():
    optimizer = preqn(Q_FN, step_size=0.5, **HOW)

    def step(carry, _):
        params, state = carry
        td_error = DELTA - Q_FN(params, INPUTS)
        updates, state = optimizer.update(params, state, params, inputs=INPUTS, td_error=td_error)
        return (optax.apply_updates(params, updates), state), jnp.linalg.norm(td_error)

    start = PARAMS, optimizer.init(PARAMS)
    scanned, norms = jax.jit(lambda carry: jax.lax.scan(step, carry, length=10))(start)
    assert norms[-1] < 0.05 * norms[0]
    carry, step = start, jax.jit(step)
    for _ in range(10):
        carry, _ = step(carry, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), scanned[0], carry[0])


@each_transform
def test_unknown_extra_arguments_are_let_through(optimizer):
    def update(params):
        return optimizer.update(params, optimizer.init(params), params, **EXTRA, value=1.0, anything="else")

    assert shapes(jax.eval_shape(update, PARAMS)[0]) == shapes(PARAMS)


@each_transform
def test_tree_map_params_runs(optimizer):
    state = optimizer.init(PARAMS)
    assert bits(optax.tree_utils.tree_map_params(optimizer, lambda leaf: leaf, state)) == bits(state)


def test_hyperparameters_can_be_injected_and_scheduled():
    factory = optax.inject_hyperparams(preqn, static_args=("q_fn", "linearize", "solve"))
    schedule = optax.piecewise_constant_schedule(0.1, {1: 0.5})
    optimizer = factory(q_fn=Q_FN, step_size=schedule, **HOW)
    state, update = jax.jit(optimizer.init)(PARAMS), jax.jit(optimizer.update)
    for step_size in (0.1, 0.05):
        updates, state = update(PARAMS, state, PARAMS, **EXTRA)
        expected = compiled_once("small")[0](PARAMS, INPUTS, DELTA, OPTIONS | {"step_size": step_size})
        assert preqn_info(state).step_size == pytest.approx(step_size)
        new_params = optax.apply_updates(PARAMS, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new_params, expected[0])


MASK = {"w": False, "v": True}


def test_masked_leaves_stay_and_the_others_are_updated_by_their_own_kernel():
    def q_of_v(v, inputs):
        return Q_FN({"w": PARAMS["w"], "v": v}, inputs)

    zeros, td_error = jax.tree.map(jnp.zeros_like, PARAMS), q_of_v(jnp.ones(32), INPUTS)  # one that v alone can mend
    labels = {"w": "frozen", "v": "own"}
    wrapped = {
        "masked": optax.masked(preqn(Q_FN), MASK),
        "partition": optax.partition({"own": preqn(Q_FN), "frozen": optax.set_to_zero()}, labels),
    }
    expected, info = jax.jit(functools.partial(preqn_update, q_of_v))(PARAMS["v"], INPUTS, td_error)
    assert info.accepted
    for optimizer in wrapped.values():
        state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
        updates, state = update(zeros, state, PARAMS, inputs=INPUTS, td_error=td_error, all_params=PARAMS)
        params = optax.apply_updates(PARAMS, updates)
        assert bits(params["w"]) == bits(PARAMS["w"])
        np.testing.assert_allclose(params["v"], expected, rtol=1e-4, atol=1e-5)
        assert preqn_info(state).kernel_diagonal == pytest.approx(float(info.kernel_diagonal), rel=1e-5)


def test_a_mask_may_be_a_prefix_and_frozen_leaves_of_any_type():
    def q_fn(params, x):
        return x @ params["w"] + params["frozen"]["count"].astype(jnp.float32)

    params = {"w": jnp.zeros(3), "frozen": {"count": jnp.asarray(2), "unused": jnp.ones(2)}}
    optimizer = optax.masked(preqn(q_fn, step_size=1.0), {"w": True, "frozen": False})
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(
        zeros, optimizer.init(params), params, inputs=jnp.eye(3), td_error=jnp.ones(3), all_params=params
    )
    np.testing.assert_allclose(updates["w"], jnp.ones(3), rtol=1e-5)


@pytest.mark.parametrize(
    ("transform", "extra", "message"),
    [
        (preqn(Q_FN), {}, "all_params=params"),
        (scale_by_alignment_linesearch(Q_FN), {}, "all_params=params"),
        (preqn(Q_FN, linearize=ntk.per_example(Q_FN)), {"all_params": PARAMS}, "linearize must be left out"),
    ],
    ids=["without_all_params", "linesearch_without_all_params", "with_a_linearizer"],
)
def test_masked_parameters_that_cannot_be_handled_name_the_way_around(transform, extra, message):
    optimizer = optax.masked(transform, MASK)
    with pytest.raises(ValueError, match=message):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, **EXTRA, **extra)


@each_transform
def test_update_without_parameters_raises(optimizer):
    with pytest.raises(ValueError, match="needs the current parameters"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), **EXTRA)


@pytest.mark.parametrize(
    ("option", "value"), [("step_size", 0.0), ("alignment", 1.1), ("decay", 1.0), ("max_backtracks", -1)]
)
def test_options_out_of_range_raise_before_anything_runs(option, value):
    with pytest.raises(ValueError, match=option):
        preqn(Q_FN, **{option: value})


@pytest.mark.parametrize("state", [(), optax.sgd(1.0).init(PARAMS), [TRANSFORMS["chain"].init(PARAMS)] * 2])
def test_an_info_of_another_state_raises(state):
    with pytest.raises(ValueError, match=r"preqn\(\.\.\.\)"):
        preqn_info(state)


def test_defaults_are_those_of_preqn_update():
    def defaults(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    assert defaults(preqn) == defaults(preqn_update)
    assert defaults(precondition_by_ntk) | defaults(scale_by_alignment_linesearch) == defaults(preqn_update)


def test_public_names_are_there():
    assert all(hasattr(preqn_jax, name) for name in preqn_jax.__all__)


def test_docstring_example_runs():
    result = doctest.testmod(transforms)
    assert result.attempted > 0
    assert result.failed == 0


def test_whole_layers_may_be_masked():
    mask = {"params": {"MLP_0": {"Dense_0": False, "Dense_1": False, "Dense_2": True}}}
    optimizer = optax.masked(preqn(CRITIC_Q, **HOW), mask)
    arguments = {"inputs": CRITIC_INPUTS, "td_error": DELTA, "all_params": CRITIC_PARAMS}
    updates, _ = optimizer.update(CRITIC_PARAMS, optimizer.init(CRITIC_PARAMS), CRITIC_PARAMS, **arguments)
    assert shapes(updates) == shapes(CRITIC_PARAMS)


@pytest.mark.parametrize(
    ("all_params", "message"),
    [({"w": PARAMS["w"]}, "must be a pytree like params"),
     ({"w": optax.MaskedNode(), "v": PARAMS["v"]}, "must be unmasked")],
    ids=["another_tree", "masked"],
)  # fmt: skip
def test_masked_parameters_need_all_of_them(all_params, message):
    optimizer = optax.masked(preqn(Q_FN), MASK)
    with pytest.raises(ValueError, match=message):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, **EXTRA, all_params=all_params)


def test_precondition_refuses_a_q_fn_that_the_linearizer_is_not_of():
    def column(params, inputs):
        return CRITIC_Q(params, inputs)[:, None]

    optimizer = precondition_by_ntk(column, linearize=ntk.dense(CRITIC))
    with pytest.raises(ValueError, match=r"q_fn must return one value per example.*\(12, 1\)"):
        optimizer.update(
            CRITIC_PARAMS, optimizer.init(CRITIC_PARAMS), CRITIC_PARAMS, inputs=CRITIC_INPUTS, td_error=DELTA
        )


WRAPPERS = {
    "multi_steps": lambda inner: optax.MultiSteps(inner, every_k_schedule=1).gradient_transformation(),
    "named_chain": lambda inner: optax.named_chain(("preqn", inner)),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, max_consecutive_errors=3),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_optaxs_own_wrappers_hand_everything_on(wrap):
    inner, wrapped = preqn(Q_FN, **HOW), wrap(preqn(Q_FN, **HOW))
    updates, state = jax.jit(wrapped.update)(PARAMS, wrapped.init(PARAMS), PARAMS, **EXTRA)
    expected, _ = jax.jit(inner.update)(PARAMS, inner.init(PARAMS), PARAMS, **EXTRA)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updates, expected)
    assert preqn_info(state).accepted
