"""What every way into PreQN refuses while tracing, in one line that names argument, expected and actual."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from preqn_jax import (
    ntk,
    ntk_probe,
    precondition_by_ntk,
    preqn,
    preqn_update,
    scale_by_alignment_linesearch,
    solvers,
)

B = 4
X, DELTA = jnp.eye(B), jnp.ones(B)
PARAMS = {"w": jnp.ones(B)}


def linear(params, x):
    return x @ params["w"]


def by(transform):
    def update(q, params, inputs, target):
        optimizer = transform(q)
        return optimizer.update(params, optimizer.init(params), params, inputs=inputs, target=target)

    return update


ENTRIES = {
    "preqn_update": preqn_update,
    "precondition_by_ntk": by(precondition_by_ntk),
    "scale_by_alignment_linesearch": by(scale_by_alignment_linesearch),
    "ntk_probe": lambda q, *arguments: ntk_probe(q)(*arguments),
}
each_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)[..., 0]


LAYER = Layer().init(jax.random.key(0), X)
MODULE = ntk.module_q_fn(Layer())
REFUSED = {
    "column": ({"q": lambda p, x: linear(p, x)[:, None]}, r"^q_fn must return .* \(4,\), got \(4, 1\)$"),
    "scalar": ({"q": lambda p, x: linear(p, x).sum()}, r"^q_fn must return .* \(4,\), got \(\)$"),
    "integer_values": ({"q": lambda p, x: jnp.argmax(x, axis=1)}, "^q_fn must return float32 .* got int32"),
    "half_values": ({"q": lambda p, x: linear(p, x).astype("float16")}, "^q_fn must return float32 .* got float16"),
    "integer_params": (
        {"params": {"w": jnp.ones(B, jnp.int32)}},
        r"^params must be floating.* int32 in params\['w'\]$",
    ),
    "lengths_differ": (
        {"q": lambda p, x: linear(p, x[0]), "inputs": (X, X[1:])},
        r"^the arrays in inputs must have the same leading batch axis B.* \(4, 4\).* \(3, 4\)",
    ),
    "no_inputs": ({"inputs": ()}, "^inputs has no arrays"),
    "inner_params": ({"q": MODULE, "params": LAYER["params"]}, r"^params and inputs must fit Layer.*\['Dense_0'\]"),
    "other_params": ({"q": MODULE, "params": {"params": PARAMS}}, "^params and inputs must fit Layer"),
    "other_sizes": ({"q": MODULE, "params": LAYER, "inputs": X[:, 1:]}, "^params and inputs must fit Layer.*kernel"),
    "target_column": ({"target": DELTA[:, None]}, r"^target must have shape \[B\] = \(4,\).* got shape \(4, 1\)"),
    "target_scalar": ({"target": jnp.float32(1)}, r"^target must have shape \[B\] = \(4,\).* got shape \(\)"),
    "target_short": ({"target": DELTA[1:]}, r"^target must have shape \[B\] = \(4,\).* got shape \(3,\)"),
    "target_missing": (
        {"target": None},
        r"^target must be an array \[B\] = \(4,\), got NoneType|got no target$",
    ),
    "target_integer": ({"target": jnp.ones(B, jnp.int32)}, "^target must .* floating-point, got .* int32"),
}


@each_entry
@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_in_one_line(entry, change, message):
    arguments = {"q": linear, "params": PARAMS, "inputs": X, "target": DELTA} | change
    q = arguments.pop("q")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is judged below)
        jax.eval_shape(lambda *given: entry(q, *given), *arguments.values())
    text, _, notice = str(caught.value).partition("\n")
    assert re.search(message, text)
    assert not notice or notice.startswith("-----")  # JAX's own, on tracebacks


@each_entry
def test_takes_what_is_right(entry):
    jax.eval_shape(lambda params: entry(linear, params, X, DELTA), PARAMS)
    jax.eval_shape(lambda params: entry(MODULE, params, X, DELTA), LAYER)
    jax.eval_shape(lambda params: entry(ntk.dense(Layer()), params, X, DELTA), LAYER)


class TwoArguments(nnx.Module):
    """Called like a Q-function, but with observation and action."""

    def __call__(self, observation, action):
        return observation[:, 0] + action[:, 0]


NO_NETWORK = {
    "linen": (Layer(), r"the Linen module Layer: pass ntk.dense\(module\)"),
    "nnx": (nnx.Linear(B, 1, rngs=nnx.Rngs(0)), r"the NNX module Linear: pass .* = ntk.nnx_q_fn\(module\)"),
    "nnx_of_two_arguments": (TwoArguments(), r"the NNX module TwoArguments: pass .* = ntk.nnx_q_fn\(module\)"),
    "class": (Layer, "the class Layer"),
    "params": (PARAMS, "dict"),
    "none": (None, "NoneType"),
    "pair": ((linear, PARAMS), "tuple"),
    "uncalled": (ntk.dense, r"a function of \(module\)"),
}
no_network = pytest.mark.parametrize(("q", "found"), NO_NETWORK.values(), ids=NO_NETWORK)


@each_entry
@no_network
def test_what_is_no_network_is_refused(entry, q, found):
    with pytest.raises(ValueError, match=rf"^q must be a Linearizer, such as .*; got {found}$"):
        entry(q, LAYER, X, DELTA)


@no_network
def test_per_example_refuses_what_is_no_network(q, found):
    with pytest.raises(ValueError, match=rf"^q must be a Linearizer, such as .*; got {found}$"):
        ntk.per_example(q)


NO_SOLVER = {
    "name": ("lstsq", r"the string 'lstsq'; did you mean solvers\.lstsq\(\)\?"),
    "misspelt": ("rigde", r"the string 'rigde'; did you mean solvers\.ridge\(\)\?"),
    "unknown_name": ("conjugate", r"the string 'conjugate'; pass one of solvers, such as solvers\.ridge\(\)"),
    **{
        name: (constructor, rf"solvers\.{name} itself; did you mean solvers\.{name}\(\)\?")
        for name, constructor in solvers.SOLVERS.items()
    },
    "number": (1e-4, "float; pass .*"),
    "none": (None, "NoneType; pass .*"),
    "module": (solvers, "module; pass .*"),
    "of_one_argument": (lambda gram: gram, r"a function of \(gram\); pass .*"),
}
SOLVER_ENTRIES = {
    "preqn_update": lambda solver: jax.eval_shape(
        lambda params: preqn_update(linear, params, X, DELTA, solver=solver), PARAMS
    ),
    "preqn": lambda solver: preqn(linear, solver=solver),
    "precondition_by_ntk": lambda solver: precondition_by_ntk(linear, solver=solver),
    "solve": lambda solver: solvers.solve(solver, X, DELTA),
    "cut_off": solvers.cut_off,
}


@pytest.mark.parametrize("entry", SOLVER_ENTRIES.values(), ids=SOLVER_ENTRIES)
@pytest.mark.parametrize(("solver", "found"), NO_SOLVER.values(), ids=NO_SOLVER)
def test_what_is_no_solver_is_refused_with_the_nearest_one(entry, solver, found):
    with pytest.raises(ValueError, match=rf"(?m)^solver must be a function \(gram, delta\) -> z, got {found}$"):
        entry(solver)


@pytest.mark.parametrize("entry", SOLVER_ENTRIES.values(), ids=SOLVER_ENTRIES)
@pytest.mark.parametrize(
    "solver",
    [solvers.lstsq(), jax.jit(jnp.linalg.solve), functools.partial(jnp.linalg.solve), max],
    ids=["ours", "jitted", "partial", "builtin_of_unknown_signature"],
)
def test_functions_of_two_arguments_are_taken_for_solvers(entry, solver):
    if solver is not max:  # it takes two arguments, but is no solver
        entry(solver)
    solvers.check_solver(solver)


def test_the_arguments_of_a_decorated_function_are_its_own():
    def q_of_statistics(params, statistics, x):
        return (x + statistics) @ params

    @functools.wraps(q_of_statistics)
    def q_fn(params, x):
        return q_of_statistics(params, 0.0, x)

    assert preqn_update(q_fn, jnp.zeros(3), jnp.eye(3), jnp.ones(3))[1].accepted


@each_entry
def test_a_linearizers_own_q_function_is_checked(entry):
    with pytest.raises(ValueError, match=r"^params and inputs must fit Layer.*kernel"):
        entry(ntk.dense(Layer()), LAYER, X[:, 1:], DELTA)
