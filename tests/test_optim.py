"""The Optax forms: equal to preqn_update bit for bit, and transformations as Optax's own tests want them."""

import doctest
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import preqn_jax
from preqn_jax import optim
from preqn_jax.networks import Critic
from preqn_jax.ops import ntk, solvers
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import Status, preqn_update
from preqn_jax.optim import precondition_by_ntk, preqn, preqn_info, scale_by_alignment_linesearch
from tests.helpers import bits, normal, overflowing
from tests.ops.precision import double

pytestmark = [pytest.mark.slow, pytest.mark.bitwise]

B = 12
CRITIC = Critic((16, 16), activation="tanh")
CRITIC_Q = ntk.module_q_fn(CRITIC)


def Q_FN(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


CRITIC_INPUTS = normal(B, 3), normal(B, 2, seed=1)
CRITIC_PARAMS = jax.tree.map(
    lambda leaf: 0.5 * normal(*leaf.shape, seed=3), CRITIC.init(jax.random.key(0), *CRITIC_INPUTS)
)
INPUTS, DELTA = normal(B, 16), normal(B, seed=2)
PARAMS = {"w": 0.25 * normal(16, 32, seed=4), "v": normal(32, seed=5)}
TARGET = Q_FN(PARAMS, INPUTS) + DELTA
PAIRS = {
    "reference": (CRITIC_Q, {"solver": solvers.lstsq()}),
    "fast": (ntk.dense(CRITIC), {"solver": solvers.ridge()}),
    "small": (Q_FN, {}),
    "failing": (Q_FN, {"solver": overflowing}),
}
OPTIONS = {"step_size": 0.1, "min_alignment": 0.97, "decay": 0.8, "max_backtracks": 20}


def shapes(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)


def step_by(optimizer):
    """(params, inputs, target) -> new parameters and info, from a fresh state."""

    def step(params, inputs, target):
        state = optimizer.init(params)
        updates, state = optimizer.update(params, state, params, inputs=inputs, target=target)
        return optax.apply_updates(params, updates), preqn_info(state)

    return step


def compiled(pair, static=None):
    """preqn_update and the chain towards Q + td_error: (params, inputs, td_error, options) -> new parameters and info.

    The options are traced, those in ``static`` are not.
    """
    (q, how), static = PAIRS[pair], static or {}

    def target_of(params, inputs, td_error):
        return ntk.linearizer_of(q)(params, inputs).values + td_error

    def update(params, inputs, td_error, options):
        linesearch = Linesearch(**{**options, **static})
        return preqn_update(q, params, inputs, target_of(params, inputs, td_error), **how, linesearch=linesearch)

    def chain(params, inputs, td_error, options):
        search = scale_by_alignment_linesearch(q, linesearch=Linesearch(**{**options, **static}))
        optimizer = optax.chain(precondition_by_ntk(q, **how), search)
        return step_by(optimizer)(params, inputs, target_of(params, inputs, td_error))

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
    "nan_params": ({"params": with_first_leaf(jnp.nan)}, {}, Status.NON_FINITE_TD_ERROR),
    "nan_params_and_no_td_error": (
        {"params": with_first_leaf(jnp.nan), "td_error": 0 * DELTA},
        {},
        Status.NON_FINITE_TD_ERROR,
    ),
    "overflowing_kernel": ({"params": scaled_last(1e25)}, {}, Status.NON_FINITE_KERNEL),
    "overflowing_kernel_and_no_td_error": (
        {"params": scaled_last(1e25), "td_error": 0 * DELTA},
        {},
        Status.NON_FINITE_KERNEL,
    ),
}


# Of the second and third, every Q-value exceeds the TD errors by so much that the targets are rounded to it.
TARGETS_EQUAL_Q = ("no_td_error", "overflowing_kernel", "overflowing_kernel_and_no_td_error")


def arguments_of(case):
    change, options, status = CASES[case]
    arguments = {"params": CRITIC_PARAMS, "inputs": CRITIC_INPUTS, "td_error": DELTA, "options": OPTIONS | options}
    return arguments | change, status


@pytest.mark.parametrize("pair", ["reference", "fast"])
@pytest.mark.parametrize("case", CASES)
def test_the_chain_moves_parameters_as_preqn_update_does_bit_for_bit(pair, case):
    arguments, status = arguments_of(case)
    if pair == "reference" and case in TARGETS_EQUAL_Q and jax.__version_info__ < (0, 10):
        pytest.skip("older compilers round Q and the targets Q + 0 of this program differently")
    update, chain = compiled_once(pair)
    params, info = update(*arguments.values())
    assert info.status == status
    same_params, same_info = chain(*arguments.values())
    assert bits(same_params) == bits(params)
    # Some versions of JAX round the last sum of a diagnostic differently in the two programs.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=3e-7), same_info, info)


def test_the_cases_above_do_backtrack():
    arguments, _ = arguments_of("accepted_after_backtracks")
    assert 0 < compiled_once("fast")[0](*arguments.values())[1].search.backtracks < OPTIONS["max_backtracks"]


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
    optimizer = preqn(Q_FN)
    update, params, expected = jax.jit(optimizer.update), PARAMS, PARAMS
    alone = jax.jit(functools.partial(preqn_update, Q_FN))
    state = optimizer.init(params)
    for i in range(5):
        target = 10.0**i * DELTA
        expected, info = alone(expected, INPUTS, target)
        updates, state = update(params, state, params, inputs=INPUTS, target=target)
        params = optax.apply_updates(params, updates)
        assert bits((params, preqn_info(state))) == bits((expected, info))


def test_updates_point_where_q_rises_towards_its_targets():
    optimizer = precondition_by_ntk(lambda params, x: x @ params, solver=solvers.lstsq())
    updates, state = optimizer.update(
        None, optimizer.init(jnp.ones(3)), jnp.ones(3), inputs=jnp.eye(3), target=jnp.asarray([2.0, -1.0, 4.0])
    )
    np.testing.assert_allclose(updates, [1.0, -2.0, 3.0], rtol=1e-5)
    assert state.solve.predicted_alignment == pytest.approx(1.0)
    assert state.q == 1.0
    assert state.td_error == pytest.approx(np.sqrt(14 / 3))


@pytest.mark.parametrize("case", ["nan_td_error", "nan_params"])
def test_without_a_linesearch_a_failed_solve_asks_for_no_step_either(case):
    arguments, status = arguments_of(case)
    params, inputs, target, _ = arguments.values()
    q, how = PAIRS["fast"]
    optimizer = precondition_by_ntk(q, **how)
    update = jax.jit(optimizer.update)
    updates, state = update(params, optimizer.init(params), params, inputs=inputs, target=target)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(updates))
    assert state.solve.status == status


def test_the_linesearch_serves_other_directions_too():
    linesearch = Linesearch(step_size=1.0, min_alignment=0.5, max_backtracks=100)
    search = scale_by_alignment_linesearch(Q_FN, linesearch=linesearch)
    optimizer = optax.chain(optax.sgd(1.0), search)

    @jax.jit
    def step(params):
        target = 3 * DELTA
        gradient = jax.grad(lambda params: 0.5 * jnp.mean((target - Q_FN(params, INPUTS)) ** 2))(params)
        state = optimizer.init(params)
        return gradient, *optimizer.update(gradient, state, params, inputs=INPUTS, target=target)

    gradient, updates, state = step(PARAMS)
    info, td_error = state[1].search, 3 * DELTA - Q_FN(PARAMS, INPUTS)
    assert info.accepted
    assert info.step_size == pytest.approx(0.8 ** int(info.backtracks))
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -info.step_size * g, rtol=1e-5), updates, gradient)
    change = Q_FN(optax.apply_updates(PARAMS, updates), INPUTS) - Q_FN(PARAMS, INPUTS)
    assert change @ td_error / jnp.linalg.norm(change) / jnp.linalg.norm(td_error) >= 0.5 - 1e-4


TRANSFORMS = {
    "precondition": precondition_by_ntk(Q_FN),
    "linesearch": scale_by_alignment_linesearch(Q_FN),
    "chain": preqn(Q_FN),
}
each_transform = pytest.mark.parametrize("optimizer", TRANSFORMS.values(), ids=TRANSFORMS)
EXTRA = {"inputs": INPUTS, "target": TARGET}


@each_transform
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs": INPUTS, "taget": TARGET}, r"taget=\.\.\.; did you mean target="),
        ({"input": INPUTS, "target": TARGET}, r"input=\.\.\.; did you mean inputs="),
        ({**EXTRA, "all_param": PARAMS}, r"all_param=\.\.\.; did you mean all_params="),
        ({"inputs": INPUTS}, r"by keyword: .*inputs=\.\.\., target=\.\.\.\); got no target$"),
        ({"delta": DELTA}, "got no inputs and no target, but delta$"),
        ({}, r"got no inputs and no target; TrainState\.apply_gradients passes on no keywords"),
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
        params, x, optimizer = {"w": jnp.ones(3, dtype)}, normal(B, 3).astype(dtype), preqn(q_fn)

        @jax.jit
        def step(params, state):
            updates, state = jax.lax.cond(
                jax.random.bernoulli(jax.random.key(0)),
                lambda: optimizer.update(params, state, params, inputs=x, target=DELTA),
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
        target = ntk.per_example(Q_FN)(PARAMS, INPUTS).values + td_error
        return optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, inputs=INPUTS, target=target)

    together, alone = jax.jit(jax.vmap(update))(td_errors), jax.jit(update)
    for i in range(len(scales)):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3), one, alone(td_errors[i]))


def test_scan_equals_a_loop_and_learns():
    optimizer = preqn(Q_FN, linesearch=Linesearch(step_size=0.5))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params, state, params, inputs=INPUTS, target=DELTA)
        return (optax.apply_updates(params, updates), state), jnp.linalg.norm(DELTA - Q_FN(params, INPUTS))

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
    factory = optax.inject_hyperparams(lambda step_size: preqn(Q_FN, linesearch=Linesearch(step_size)))
    optimizer = factory(step_size=optax.piecewise_constant_schedule(0.1, {1: 0.5}))
    state, update = jax.jit(optimizer.init)(PARAMS), jax.jit(optimizer.update)
    for step_size in (0.1, 0.05):
        updates, state = update(PARAMS, state, PARAMS, **EXTRA)
        expected = compiled_once("small")[0](PARAMS, INPUTS, DELTA, OPTIONS | {"step_size": step_size})
        assert preqn_info(state).search.step_size == pytest.approx(step_size)
        new_params = optax.apply_updates(PARAMS, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new_params, expected[0])


MASK = {"w": False, "v": True}


def test_masked_leaves_stay_and_the_others_are_updated_by_their_own_kernel():
    def q_of_v(v, inputs):
        return Q_FN({"w": PARAMS["w"], "v": v}, inputs)

    td_error = q_of_v(jnp.ones(32), INPUTS)  # one that v alone can mend
    zeros, target = jax.tree.map(jnp.zeros_like, PARAMS), q_of_v(PARAMS["v"], INPUTS) + td_error
    labels = {"w": "frozen", "v": "own"}
    wrapped = {
        "masked": optax.masked(preqn(Q_FN), MASK),
        "partition": optax.partition({"own": preqn(Q_FN), "frozen": optax.set_to_zero()}, labels),
    }
    expected, info = jax.jit(functools.partial(preqn_update, q_of_v))(PARAMS["v"], INPUTS, target)
    assert info.accepted
    for optimizer in wrapped.values():
        state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
        updates, state = update(zeros, state, PARAMS, inputs=INPUTS, target=target, all_params=PARAMS)
        params = optax.apply_updates(PARAMS, updates)
        assert bits(params["w"]) == bits(PARAMS["w"])
        np.testing.assert_allclose(params["v"], expected, rtol=1e-4, atol=1e-5)
        diagonal = float(info.solve.kernel_diagonal)
        assert preqn_info(state).solve.kernel_diagonal == pytest.approx(diagonal, rel=1e-5)


def test_a_mask_may_be_a_prefix_and_frozen_leaves_of_any_type():
    def q_fn(params, x):
        return x @ params["w"] + params["frozen"]["count"].astype(jnp.float32)

    params = {"w": jnp.zeros(3), "frozen": {"count": jnp.asarray(2), "unused": jnp.ones(2)}}
    inner = preqn(q_fn, solver=solvers.lstsq(), linesearch=Linesearch(step_size=1.0))
    optimizer = optax.masked(inner, {"w": True, "frozen": False})
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(
        zeros, optimizer.init(params), params, inputs=jnp.eye(3), target=3 * jnp.ones(3), all_params=params
    )
    np.testing.assert_allclose(updates["w"], jnp.ones(3), rtol=1e-5)


@pytest.mark.parametrize(
    ("transform", "extra", "message"),
    [
        (preqn(Q_FN), {}, "all_params=params"),
        (scale_by_alignment_linesearch(Q_FN), {}, "all_params=params"),
        (preqn(ntk.per_example(Q_FN)), {"all_params": PARAMS}, "q must be a plain Q-function for masked parameters"),
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
    ("option", "value"), [("step_size", 0.0), ("min_alignment", 1.1), ("decay", 1.0), ("max_backtracks", -1)]
)
def test_options_out_of_range_raise_before_anything_runs(option, value):
    with pytest.raises(ValueError, match=rf"^linesearch\.{option} must be in"):
        preqn(Q_FN, linesearch=Linesearch(**{option: value}))


@pytest.mark.parametrize("state", [(), optax.sgd(1.0).init(PARAMS), [TRANSFORMS["chain"].init(PARAMS)] * 2])
def test_an_info_of_another_state_raises(state):
    with pytest.raises(ValueError, match=r"preqn\(\.\.\.\)"):
        preqn_info(state)


def test_defaults_are_those_of_preqn_update():
    def defaults(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    assert set(defaults(preqn)) == {"solver", "linesearch"}
    assert set(defaults(precondition_by_ntk)) | set(defaults(scale_by_alignment_linesearch)) == set(defaults(preqn))
    assert defaults(preqn)["linesearch"] == defaults(scale_by_alignment_linesearch)["linesearch"] == Linesearch()
    expected = preqn_update(Q_FN, PARAMS, INPUTS, TARGET)
    for optimizer in (preqn(Q_FN), optax.chain(precondition_by_ntk(Q_FN), scale_by_alignment_linesearch(Q_FN))):
        found = step_by(optimizer)(PARAMS, INPUTS, TARGET)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_public_names_are_there():
    assert all(hasattr(preqn_jax, name) for name in preqn_jax.__all__)
    assert {*preqn_jax.__all__, "train", "load_policy"} <= {*dir(preqn_jax)}


def test_docstring_example_runs():
    result = doctest.testmod(optim)
    assert result.attempted > 0
    assert result.failed == 0


def test_whole_layers_may_be_masked():
    mask = {"params": {"MLP_0": {"Dense_0": False, "Dense_1": False, "Dense_2": True}}}
    optimizer = optax.masked(preqn(CRITIC_Q), mask)
    arguments = {"inputs": CRITIC_INPUTS, "target": DELTA, "all_params": CRITIC_PARAMS}
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


def test_the_linesearch_evaluates_the_linearizers_own_network():
    def column(params, inputs):
        return CRITIC_Q(params, inputs)[:, None]

    optimizer = scale_by_alignment_linesearch(ntk.per_example(column))
    with pytest.raises(ValueError, match=r"q_fn must return one value per example.*\(12, 1\)"):
        optimizer.update(
            CRITIC_PARAMS, optimizer.init(CRITIC_PARAMS), CRITIC_PARAMS, inputs=CRITIC_INPUTS, target=DELTA
        )


def test_flaxs_train_state_does_not_pass_the_minibatch_on():
    """If this fails, the installed Flax does, and docs/composing.md and the message need to change."""
    state = TrainState.create(apply_fn=Q_FN, params=PARAMS, tx=preqn(Q_FN))
    with pytest.raises(ValueError, match="got no inputs and no target; TrainState"):
        state.apply_gradients(grads=PARAMS, **EXTRA)


def norm_of(tree):
    return np.linalg.norm([np.linalg.norm(leaf) for leaf in jax.tree.leaves(tree)])


def test_a_transformation_between_both_parts_is_searched_and_one_after_them_is_not():
    """As docs/composing.md says."""
    parts = precondition_by_ntk(Q_FN), scale_by_alignment_linesearch(Q_FN)
    clip, (params, info) = optax.clip_by_global_norm(1e-2), preqn_update(Q_FN, PARAMS, INPUTS, TARGET)
    expected = norm_of(jax.tree.map(jnp.subtract, params, PARAMS))
    for chain, norm in (((parts[0], clip, parts[1]), 1e-3), ((*parts, optax.scale(-3.0)), 3 * expected)):
        optimizer = optax.chain(*chain)
        updates, state = jax.jit(optimizer.update)(PARAMS, optimizer.init(PARAMS), PARAMS, **EXTRA)
        assert norm_of(updates) == pytest.approx(norm, rel=1e-3)
        assert preqn_info(state).accepted
        assert preqn_info(state).search.step_size == pytest.approx(float(info.search.step_size))


def test_multi_steps_takes_the_last_minibatch_alone():
    """As docs/composing.md says."""
    optimizer, last = optax.MultiSteps(preqn(Q_FN), every_k_schedule=2), {"inputs": -INPUTS, "target": DELTA}
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    updates, state = update(PARAMS, state, PARAMS, **EXTRA)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
    updates, state = update(PARAMS, state, PARAMS, **last)
    params, info = step_by(preqn(Q_FN))(PARAMS, **last)
    assert info.accepted
    found = optax.apply_updates(PARAMS, updates), preqn_info(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, (params, info))


WRAPPERS = {
    "multi_steps": lambda inner: optax.MultiSteps(inner, every_k_schedule=1).gradient_transformation(),
    "named_chain": lambda inner: optax.named_chain(("preqn", inner)),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, max_consecutive_errors=3),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_optaxs_own_wrappers_hand_everything_on(wrap):
    inner, wrapped = preqn(Q_FN), wrap(preqn(Q_FN))
    updates, state = jax.jit(wrapped.update)(PARAMS, wrapped.init(PARAMS), PARAMS, **EXTRA)
    expected, _ = jax.jit(inner.update)(PARAMS, inner.init(PARAMS), PARAMS, **EXTRA)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updates, expected)
    assert preqn_info(state).accepted
