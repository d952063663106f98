import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from preqn_jax.ops import ntk
from preqn_jax.ops.preqn import preqn_update
from preqn_jax.optim import preqn, preqn_info
from tests.helpers import normal
from tests.ops.modules import B, Net

pytestmark = pytest.mark.slow

X, DELTA = normal(B, 3), normal(B, seed=1)


class NNXNet(nnx.Module):
    """:class:`Net` with one hidden layer in NNX; with variables that are no parameters."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(3, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        return self.last(self.dropout(jnp.tanh(self.first(x))))[..., 0]


MODULE = NNXNet(nnx.Rngs(0))
LINEN = {
    "params": {
        f"Dense_{i}": {"kernel": layer.kernel[...], "bias": layer.bias[...]}
        for i, layer in enumerate((MODULE.first, MODULE.last))
    }
}


def test_kernel_and_values_equal_those_of_the_same_linen_module():
    q_fn, params = ntk.nnx_q_fn(MODULE)
    ours = jax.jit(ntk.per_example(q_fn))(params, X)
    linens = jax.jit(ntk.dense(Net((16,))))(LINEN, X)
    np.testing.assert_allclose(ours.values, linens.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.gram, linens.gram, rtol=1e-4, atol=1e-4)
    assert MODULE.calls[...] == 0  # evaluating Q leaves the module alone


def test_an_update_goes_back_into_the_module_and_through_optax():
    q_fn, params = ntk.nnx_q_fn(NNXNet(nnx.Rngs(0)))
    module, target = NNXNet(nnx.Rngs(0)), q_fn(params, X) + DELTA
    new_params, info = jax.jit(lambda params: preqn_update(q_fn, params, X, target))(params)
    assert info.accepted
    nnx.update(module, new_params)
    np.testing.assert_allclose(module(X), q_fn(new_params, X), rtol=1e-6)
    assert not np.allclose(module(X), q_fn(params, X))

    optimizer = preqn(q_fn)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params, inputs=X, target=target)
    by_optax = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), by_optax, new_params)


def test_an_nnx_optimizer_takes_it_and_says_how_it_went():
    module = NNXNet(nnx.Rngs(0))
    q_fn, params = ntk.nnx_q_fn(module)
    target = q_fn(params, X) + DELTA
    expected, info = preqn_update(q_fn, params, X, target)
    optimizer = nnx.Optimizer(module, preqn(q_fn), wrt=nnx.Param)
    optimizer.update(module, params, inputs=X, target=target)
    np.testing.assert_allclose(module(X), q_fn(expected, X), rtol=1e-4, atol=1e-5)
    found = preqn_info(optimizer.opt_state)
    assert bool(found.accepted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, info)


@pytest.mark.parametrize(
    "change",
    [
        lambda params: LINEN,
        lambda params: {"first": params["first"]},
        lambda params: {"last": params["first"], "first": params["last"]},
        lambda params: None,
    ],
    ids=["linen", "fewer", "exchanged", "none"],
)
def test_parameters_of_another_module_raise(change):
    q_fn, params = ntk.nnx_q_fn(MODULE)
    pure = nnx.to_pure_dict(params)
    np.testing.assert_array_equal(q_fn(pure, X), q_fn(params, X))  # the same names and shapes are welcome
    with pytest.raises(ValueError, match="params must fit NNXNet"):
        q_fn(change(pure), X)


class InMode(nnx.Module):
    """A module with one BatchNorm or Dropout, whose mode arguments of the call may override."""

    def __init__(self, layer, call=lambda layer, x, **mode: layer(x, **mode), **mode):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(3, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)
        self.between, self.call, self.mode = layer, call, mode

    def __call__(self, x):
        return self.last(jnp.tanh(self.call(self.between, self.first(x), **self.mode)))[..., 0]


def batch_norm(**how):
    return nnx.BatchNorm(16, rngs=nnx.Rngs(0), **how)


def dropout(rate=0.5, **how):
    return nnx.Dropout(rate, rngs=nnx.Rngs(0), **how)


def rematerialized(layer, x):
    return nnx.remat(lambda layer, x: layer(x))(layer, x)


def jitted(layer, x):
    return nnx.jit(lambda layer, x: layer(x))(layer, x)


TRAINING = {
    "batch_norm": InMode(batch_norm()),
    "dropout": InMode(dropout()),
    "batch_norm_by_argument": InMode(batch_norm(), use_running_average=False),
    "rematerialized": InMode(batch_norm(), rematerialized),
    "jitted": InMode(dropout(), jitted),
    "nested": nnx.Sequential(InMode(batch_norm()), jnp.tanh),
}


@pytest.mark.parametrize("module", TRAINING.values(), ids=TRAINING)
def test_a_layer_in_training_mode_is_named(module):
    q_fn, params = ntk.nnx_q_fn(module)
    message = r"must be in evaluation mode .*between \((BatchNorm|Dropout)\) is in training mode.*module\.eval\(\)"
    for update in (preqn_update, jax.jit(preqn_update, static_argnums=0)):
        with pytest.raises(ValueError, match=message):
            update(q_fn, params, X, DELTA)
    with pytest.raises(ValueError, match=message):
        ntk.check_example_by_example(q_fn, params, X)
    module.eval()
    if "use_running_average" not in getattr(module, "mode", ()):
        q_fn, params = ntk.nnx_q_fn(module)
        assert preqn_update(q_fn, params, X, q_fn(params, X) + DELTA)[1].accepted


EVALUATION = {
    "by_argument_of_batch_norm": InMode(batch_norm(), use_running_average=True),
    "by_argument_of_dropout": InMode(dropout(), deterministic=True),
    "layer_that_is_not_called": InMode(dropout(), lambda layer, x: x),
    "no_rate": InMode(dropout(0.0)),
    "one_mask_for_all_rows": InMode(dropout(broadcast_dims=(0,))),
    "one_mask_for_all_rows_from_the_end": InMode(dropout(broadcast_dims=(-2,))),
    "rematerialized": InMode(batch_norm(use_running_average=True), rematerialized),
    "jitted": InMode(dropout(deterministic=True), jitted),
}


@pytest.mark.parametrize("module", EVALUATION.values(), ids=EVALUATION)
def test_a_layer_that_treats_each_row_alone_is_taken_whatever_its_mode(module):
    q_fn, params = ntk.nnx_q_fn(module)
    ntk.check_example_by_example(q_fn, params, X)
    assert preqn_update(q_fn, params, X, q_fn(params, X) + 0.1 * DELTA)[1].accepted


class Two(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones(()))

    def __call__(self, x, y):
        return self.w * (x.sum(axis=-1) + y.sum(axis=-1))


def test_a_tuple_of_inputs_becomes_arguments():
    q_fn, params = ntk.nnx_q_fn(Two())
    np.testing.assert_allclose(q_fn(params, (X, 2 * X)), 3 * X.sum(axis=-1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"inputs .* must fit Two\.__call__: missing a required argument: 'y'"):
        q_fn(params, X)


@pytest.mark.parametrize(
    ("module", "message"),
    [(nn.Dense(1), "must be an nnx.Module, got Dense"), (nnx.Dropout(0.5), "parameters .* got none in Dropout")],
    ids=["linen", "no_parameters"],
)
def test_other_modules_raise(module, message):
    with pytest.raises(ValueError, match=message):
        ntk.nnx_q_fn(module)
