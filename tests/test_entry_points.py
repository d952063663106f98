"""What every way into PreQN refuses while tracing, in one line that names argument, expected and actual."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from preqn_jax import ntk, ntk_probe, precondition_by_ntk, preqn_update, scale_by_alignment_linesearch

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


@each_entry
@pytest.mark.parametrize(
    ("q", "found"),
    [(Layer(), "Layer"), (Layer, "the class Layer"), (PARAMS, "dict"), (None, "NoneType")],
    ids=["module", "class", "params", "none"],
)
def test_what_is_no_network_is_refused(entry, q, found):
    with pytest.raises(ValueError, match=rf"^q must be a Linearizer, such as .*; got {found}$"):
        entry(q, LAYER, X, DELTA)


@each_entry
def test_a_linearizers_own_q_function_is_checked(entry):
    with pytest.raises(ValueError, match=r"^params and inputs must fit Layer.*kernel"):
        entry(ntk.dense(Layer()), LAYER, X[:, 1:], DELTA)
