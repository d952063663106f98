"""What the linearizers refuse, and how they say so."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from preqn_jax.ops import ntk
from tests.helpers import normal
from tests.ops.modules import LINEARIZERS, B, Net, NoDense, TwoInputs, each_linearizer, initialize


class Rematerialized(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.remat(Net)((4,))(x)


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        how = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.vmap(Net, **how, in_axes=None, axis_size=2)((4,))(x).mean(axis=0)


class Cell(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
        return jnp.tanh(nn.Dense(3)(carry)), None


class Scanned(nn.Module):
    shared: bool  # one cell for every step, or a cell per step

    @nn.compact
    def __call__(self, x):
        how = {"variable_broadcast": "params"} if self.shared else {"variable_axes": {"params": 0}}
        return nn.scan(Cell, **how, split_rngs={"params": not self.shared}, length=2)()(x, None)[0].sum(axis=-1)


class WeightNormalized(nn.Module):
    parameter: str

    @nn.compact
    def __call__(self, x):
        axes = -1 if self.parameter == "kernel" else None
        layer = nn.WeightNorm(nn.Dense(4), variable_filter={self.parameter}, feature_axes=axes)
        return jnp.tanh(layer(x)).sum(axis=-1)


class Tied(nn.Module):
    """Parameters of a layer that act outside of its call as well."""

    parameter: str

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(3)
        hidden = jnp.tanh(layer(x))
        tied = layer.variables["params"][self.parameter]
        return (hidden @ tied if self.parameter == "kernel" else hidden * tied.sum()).sum(axis=-1)


class Context(nn.Module):
    """A layer that sees a learned table instead of the inputs."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        context = nn.Dense(3)(self.param("table", nn.initializers.zeros, self.shape))
        return jnp.tanh(x) @ context.reshape(-1, 3).mean(axis=0)


class TokensFirst(nn.Module):
    """A layer that sees [T, B, n]."""

    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(4)(jnp.swapaxes(x, 0, 1))).mean(axis=(0, 2))


UNSUPPORTED = {
    "remat": (Rematerialized(), normal(B, 3), "Dense_0/kernel"),
    "vmap": (Ensemble(), normal(B, 3), "Dense_0/kernel"),
    "scan": (Scanned(False), normal(B, 3), "Dense_0/kernel"),
    "scan_with_shared_parameters": (Scanned(True), normal(B, 3), "Dense_0/kernel"),
    "weight_norm": (WeightNormalized("kernel"), normal(B, 3), "Dense_0/kernel"),
    "weight_norm_of_the_bias": (WeightNormalized("bias"), normal(B, 3), "Dense_0/"),
    "tied_kernel": (Tied("kernel"), normal(B, 3), "Dense_0/kernel"),
    "tied_bias": (Tied("bias"), normal(B, 3), "Dense_0/"),
    "no_axis_but_features": (Context((7,)), normal(B, 3), "Dense_0/kernel"),
    "no_batch_axis": (Context((B + 5, 7)), normal(B, 3), "Dense_0/kernel"),
    "no_batch_axis_but_its_length": (Context((B, 7)), normal(B, 3), "Dense_0/kernel"),
    "no_batch_axis_but_a_row_more": (Context((B + 1, 7)), normal(B, 3), "Dense_0/kernel"),
    "batch_axis_second": (TokensFirst(), normal(B, 5, 3), "Dense_0/kernel"),
    "batch_axis_second_of_two_equal": (TokensFirst(), normal(B, B, 3), "Dense_0/kernel"),
    "batch_axis_second_and_a_token_more": (TokensFirst(), normal(B, B + 1, 3), "Dense_0/kernel"),
}


@pytest.mark.parametrize(("module", "inputs", "name"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_dense_refuses_what_it_cannot_factor_and_names_the_parameter(module, inputs, name):
    params = initialize(module, inputs)
    # per_example, which the message advises, must take it: so it is not the module that is wrong.
    assert jax.eval_shape(LINEARIZERS["per_example"](module), params, inputs).gram.shape == (B, B)
    with pytest.raises(ValueError, match=name):
        jax.eval_shape(ntk.dense(module), params, inputs)


class WrongShape(nn.Module):
    wrong: str

    @nn.compact
    def __call__(self, x):
        column = nn.Dense(1)(x)
        return {"column": column, "scalar": column.sum(), "tuple": (column[:, 0], column[:, 0])}[self.wrong]


@each_linearizer
@pytest.mark.parametrize("wrong", ["column", "scalar", "tuple"])
def test_refuses_values_that_are_not_one_per_example(make, wrong):
    module, inputs = WrongShape(wrong), normal(B, 3)
    found = {"column": r"\(12, 1\)", "scalar": r"\(\)", "tuple": "tuple"}[wrong]
    with pytest.raises(ValueError, match=rf"shape \[B\] = \(12,\), got {found}"):
        make(module)(initialize(module, inputs), inputs)


def test_per_example_refuses_values_that_are_squeezed():
    def q_fn(params, x):
        return (x @ params).squeeze()

    with pytest.raises(ValueError, match=r"shape \[B\] = \(1,\) for a single one, got \(\)"):
        ntk.per_example(q_fn)(jnp.ones((3, 1)), normal(B, 3))


@each_linearizer
def test_refuses_integer_parameters(make):
    with pytest.raises(ValueError, match=r"floating-point.*'w'"):
        make(NoDense())({"params": {"w": jnp.ones(3, jnp.int32)}}, normal(B, 3))


@each_linearizer
@pytest.mark.parametrize(
    "inputs",
    [(normal(B, 3), normal(B + 1, 2)), (normal(B, 3), jnp.float32(1.0)), ()],
    ids=["lengths_differ", "a_scalar", "nothing"],
)
def test_refuses_inputs_without_one_batch_length(make, inputs):
    module = TwoInputs()
    params = initialize(module, (normal(B, 3), normal(B, 2)))
    with pytest.raises(ValueError, match="inputs"):
        make(module)(params, inputs)


@each_linearizer
def test_refuses_a_minibatch_without_examples(make):
    with pytest.raises(ValueError, match="at least one example, got B = 0"):
        make(Net((4,)))(initialize(Net((4,)), normal(B, 3)), normal(0, 3))


@each_linearizer
def test_refuses_inputs_that_do_not_fit_the_modules_arguments(make):
    module, inputs = Net((4,)), normal(B, 3)
    with pytest.raises(ValueError, match=r"inputs.*must fit Net\.__call__"):
        make(module)(initialize(module, inputs), (inputs, inputs))


@pytest.mark.parametrize("params", [{}, None, [], 1.0, [normal(3)]], ids=["dict", "none", "list", "float", "other"])
def test_refuses_what_holds_no_parameters(params):
    with pytest.raises(ValueError, match=r"^params (must|and inputs must)"):
        LINEARIZERS["per_example"](Net((4,)))(params, normal(B, 3))


@pytest.mark.parametrize("module", [Net, 3], ids=["class", "number"])
@each_linearizer
def test_refuses_what_is_no_module(make, module):
    with pytest.raises(ValueError, match="module must be an instance of a Linen module"):
        make(module)


def test_kernel_names_what_is_wrong_and_its_whole_size():
    def column(params, x):
        return x @ params

    linearizer, params = ntk.per_example(column), jnp.ones((3, 1))
    with pytest.raises(ValueError, match=r"\[B\] = \(300,\)"):
        ntk.kernel(linearizer, params, normal(300, 3))
    with pytest.raises(ValueError, match="others"):
        ntk.kernel(linearizer, params[:, 0], normal(B, 3), (normal(B, 3), normal(2, 3)))
    with pytest.raises(ValueError, match="floating-point"):
        ntk.kernel(linearizer, jnp.ones(3, int), normal(0, 3))
    with pytest.raises(ValueError, match=r"rows of others must have the shapes of those of inputs, \['\[3\]'\], got"):
        ntk.kernel(linearizer, params[:, 0], normal(B, 3), normal(B, 5))
    for block_size in (0, 2.5):
        with pytest.raises(ValueError, match="block_size must be"):
            ntk.kernel(linearizer, params[:, 0], normal(B, 3), block_size=block_size)


@pytest.mark.parametrize("change", [lambda p: p["params"], lambda p: [p]], ids=["inner", "list"])
def test_dense_refuses_parameters_that_are_not_in_their_collection(change):
    module, inputs = Net((4,)), normal(B, 3)
    with pytest.raises(ValueError, match="'params'"):
        ntk.dense(module)(change(initialize(module, inputs)), inputs)


class Partitioned(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "model")))(x)[..., 0]


def test_boxed_parameters_are_refused_with_the_remedy():
    module, inputs = Partitioned(), normal(B, 3)
    params = initialize(module, inputs)
    with pytest.raises(ValueError, match="unbox"):
        ntk.dense(module)(params, inputs)
    assert ntk.dense(module)(nn.meta.unbox(params), inputs).gram.shape == (B, B)
