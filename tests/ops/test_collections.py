"""Variables of a module that are no parameters: held fixed, whoever asks for the kernel or the update."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from preqn_jax import Linesearch, ntk, ntk_probe, preqn, preqn_info, preqn_update, scale_by_alignment_linesearch
from preqn_jax.ops.solvers import SOLVERS
from tests import helpers
from tests.helpers import normal
from tests.ops.modules import B, Net, each_linearizer

pytestmark = pytest.mark.slow

X, DELTA = normal(B, 3), normal(B, seed=1)


class Normalized(nn.Module):
    """With running statistics, a count, flags, a key, and what no check of finiteness may see."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        count = self.variable("constants", "count", lambda: jnp.asarray(2, jnp.int32)).value
        mask = self.variable("constants", "mask", lambda: jnp.asarray([0.0, -jnp.inf])).value
        used = self.variable("constants", "used", lambda: jnp.asarray([True, False])).value
        if self.is_initializing():
            self.variable("keys", "key", lambda: jax.random.key(0))
        hidden = nn.BatchNorm(use_running_average=not self.train)(nn.Dense(16)(x))
        weights = jax.nn.softmax(mask) * used.astype(x.dtype)
        return nn.Dense(1)(jnp.tanh(hidden))[..., 0] * count.astype(x.dtype) * weights.sum()


def variables_of(module):
    variables = module.init(jax.random.key(0), X)
    statistics = {"BatchNorm_0": {"mean": normal(16, seed=2).at[0].set(-0.0), "var": jnp.exp(normal(16, seed=3))}}
    return {**variables, "batch_stats": statistics}


MODULE = Normalized()
VARIABLES = variables_of(MODULE)
Q_FN = ntk.module_q_fn(MODULE)
FREE = {"params": VARIABLES["params"]}
TARGET = Q_FN(VARIABLES, X) + DELTA


def q_of_free(params, x):
    """The same with everything else out of reach."""
    return MODULE.apply({**VARIABLES, **params}, x)


def assert_fixed(variables):
    for name in set(VARIABLES) - {"params"}:
        for before, after in zip(jax.tree.leaves(VARIABLES[name]), jax.tree.leaves(variables[name]), strict=True):
            if jnp.issubdtype(before.dtype, jax.dtypes.prng_key):
                before, after = jax.random.key_data(before), jax.random.key_data(after)
            assert after.dtype == before.dtype
            assert np.asarray(after).tobytes() == np.asarray(before).tobytes()


assert_close = functools.partial(helpers.assert_close, rtol=1e-4, atol=1e-5)


@each_linearizer
def test_the_kernel_and_what_is_pulled_back_are_of_the_parameters_alone(make):
    found, expected = make(MODULE)(VARIABLES, X), ntk.per_example(q_of_free)(FREE, X)
    for gram in (found.gram, ntk.kernel(make(MODULE), VARIABLES, X, block_size=5)):
        np.testing.assert_allclose(gram, expected.gram, rtol=1e-4, atol=1e-4)
    pulled = jax.jit(lambda z: found.pullback(z))(DELTA)
    assert jax.tree.structure(pulled) == jax.tree.structure(VARIABLES)
    np.testing.assert_allclose(
        *(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree["params"])])
          for tree in (pulled, expected.pullback(DELTA))), rtol=1e-3, atol=1e-4
    )  # fmt: skip
    for name in ("batch_stats", "constants"):
        assert not any(leaf.any() for leaf in jax.tree.leaves(pulled[name]))


@each_linearizer
@pytest.mark.parametrize("solver", SOLVERS)
def test_an_update_moves_the_parameters_alone(make, solver):
    def update(variables):
        return preqn_update(make(MODULE), variables, X, TARGET, **how)

    how = {"solver": SOLVERS[solver](), "linesearch": Linesearch(step_size=0.5)}
    found, info = jax.jit(update)(VARIABLES)
    expected, other = preqn_update(q_of_free, FREE, X, TARGET, **how)
    assert info.accepted
    assert info.search.backtracks == other.search.backtracks
    assert_fixed(found)
    np.testing.assert_allclose(Q_FN(found, X), q_of_free(expected, X), rtol=1e-2, atol=1e-2)


def test_a_rejected_update_and_frozen_variables_keep_their_types():
    found, info = preqn_update(Q_FN, freeze(VARIABLES), X, TARGET.at[0].set(jnp.nan))
    assert not info.accepted
    assert isinstance(found, type(freeze({})))
    assert_fixed(found)


def without_keys(variables):
    return {name: collection for name, collection in variables.items() if name != "keys"}


@pytest.mark.parametrize(
    "optimizer",
    [
        preqn(Q_FN),
        optax.chain(optax.identity(), scale_by_alignment_linesearch(Q_FN, linesearch=Linesearch(min_alignment=0.1))),
    ],
    ids=["preqn", "gradients"],
)
def test_the_optax_form_moves_the_parameters_alone(optimizer):
    variables = without_keys(VARIABLES)  # Optax itself adds no keys
    updates = jax.tree.map(jnp.ones_like, variables)
    if len(optimizer.init(variables)) == 2:
        updates = {**updates, "params": ntk.dense(MODULE)(variables, X).pullback(DELTA)["params"]}
    updates, _ = jax.jit(optimizer.update)(updates, optimizer.init(variables), variables, inputs=X, target=TARGET)
    found = optax.apply_updates(variables, updates)
    assert any((a != b).any() for a, b in zip(*(jax.tree.leaves(v["params"]) for v in (found, variables)), strict=True))
    assert_fixed({**found, "keys": VARIABLES["keys"]})


def test_the_probe_asks_for_the_parameters_alone():
    found = jax.jit(ntk_probe(ntk.dense(MODULE)))(VARIABLES, X, TARGET)
    assert_close(found, ntk_probe(q_of_free)(FREE, X, TARGET))


def test_statistics_are_fixed_behind_a_function_of_ones_own():
    variables = {name: VARIABLES[name] for name in ("params", "batch_stats")}

    def q_fn(variables, x):
        return 3 * Q_FN({**VARIABLES, **variables}, x)

    expected = ntk.per_example(lambda params, x: 3 * q_of_free(params, x))(FREE, X)
    np.testing.assert_allclose(ntk.per_example(q_fn)(variables, X).gram, expected.gram, rtol=1e-4, atol=1e-3)
    assert np.asarray(preqn_info_of(q_fn, variables).accepted)


def preqn_info_of(q_fn, variables):
    optimizer, target = preqn(q_fn), q_fn(variables, X) + DELTA
    return preqn_info(optimizer.update(variables, optimizer.init(variables), variables, inputs=X, target=target)[1])


def test_integers_among_the_parameters_themselves_are_still_refused():
    wrong = {**VARIABLES, "params": {**VARIABLES["params"], "more": jnp.ones(3, int)}}
    with pytest.raises(ValueError, match=r"floating-point.*'more'"):
        ntk.per_example(Q_FN)(wrong, X)


@each_linearizer
def test_a_module_that_writes_while_q_is_evaluated_is_refused(make):
    module = Normalized(train=True)
    with pytest.raises(ValueError, match=r"Normalized must be in evaluation mode .* \"batch_stats\" is immutable"):
        make(module)(VARIABLES, X)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(x))[..., 0]


def test_a_module_that_draws_while_q_is_evaluated_is_refused():
    variables = Dropped().init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)
    with pytest.raises(ValueError, match="Dropped must be in evaluation mode"):
        ntk.dense(Dropped())(variables, X)


class NNXNormalized(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(3, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.norm(self.first(x))))[..., 0]


class LinenNormalized(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.BatchNorm(use_running_average=True)(nn.Dense(16)(x))))[..., 0]


def test_nnx_and_linen_hold_the_same_variables_fixed():
    module = NNXNormalized(nnx.Rngs(0))
    module.norm.mean[...], module.norm.var[...] = normal(16, seed=2), jnp.exp(normal(16, seed=3))
    module.eval()
    q_fn, params = ntk.nnx_q_fn(module)
    layers = {f"Dense_{i}": layer for i, layer in enumerate((module.last, module.first))}
    linen = {
        "params": {name: {"kernel": layer.kernel[...], "bias": layer.bias[...]} for name, layer in layers.items()},
        "batch_stats": {"BatchNorm_0": {"mean": module.norm.mean[...], "var": module.norm.var[...]}},
    }
    linen["params"]["BatchNorm_0"] = {"scale": module.norm.scale[...], "bias": module.norm.bias[...]}
    gram = ntk.dense(LinenNormalized())(linen, X).gram
    np.testing.assert_allclose(ntk.per_example(q_fn)(params, X).gram, gram, rtol=1e-4, atol=1e-4)
    new_params, info = preqn_update(q_fn, params, X, q_fn(params, X) + DELTA)
    nnx.update(module, new_params)
    assert info.accepted
    np.testing.assert_array_equal(module.norm.var[...], linen["batch_stats"]["BatchNorm_0"]["var"])


def test_a_module_without_other_variables_is_differentiated_as_it_is():
    module = Net((4,))
    params = module.init(jax.random.key(0), X)
    assert ntk.dense(module)(params, X).pullback(DELTA).keys() == {"params"}
