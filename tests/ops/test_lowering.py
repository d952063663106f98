"""The update lowers for GPUs and TPUs with every solver and linearizer, and what would not lower is found here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax import Linesearch, ntk, ntk_probe, preqn, preqn_update
from preqn_jax.networks import Critic
from preqn_jax.ops.solvers import SOLVERS
from tests.helpers import normal
from tests.lowering import lower

B, MEMBERS = 4, 2
INPUTS, TARGET = (normal(MEMBERS, B, 3), normal(MEMBERS, B, 2, seed=1)), normal(MEMBERS, B, seed=2)
LINEARIZERS = {"dense": ntk.dense, "per_example": lambda module: ntk.per_example(ntk.module_q_fn(module))}
each_linearizer = pytest.mark.parametrize("linearizer", LINEARIZERS)


def lower_of(function):
    """Exports ``function(module, params, inputs, target)``, vmapped over learners as on an accelerator."""
    module = Critic((8,))
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), *x), jax.tree.map(lambda leaf: leaf[0], INPUTS))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((MEMBERS, *leaf.shape), leaf.dtype), shapes)
    program = jax.jit(jax.vmap(functools.partial(function, module)))
    return lower(lambda: (program, (params, INPUTS, TARGET)))


@each_linearizer
@pytest.mark.parametrize("solver", SOLVERS)
def test_an_update_lowers(solver, linearizer):
    def update(module, params, inputs, target):
        return preqn_update(LINEARIZERS[linearizer](module), params, inputs, target, solver=SOLVERS[solver]())

    assert lower_of(update).nr_devices == 1


def test_the_optax_transformation_lowers():
    def update(module, params, inputs, target):
        optimizer = preqn(ntk.dense(module), linesearch=Linesearch(step_size=0.5))
        return optimizer.update(params, optimizer.init(params), params, inputs=inputs, target=target)

    lower_of(update)


@each_linearizer
def test_the_probe_lowers(linearizer):
    lower_of(lambda module, *arguments: ntk_probe(LINEARIZERS[linearizer](module))(*arguments))


def of_its_shape(delta):
    return jax.ShapeDtypeStruct(delta.shape, delta.dtype)


def primitive_of_cpus(gram, delta):
    return jax.scipy.linalg.schur(gram)[0] @ delta


def custom_call(gram, delta):
    return jax.ffi.ffi_call("of_a_cpu_library", of_its_shape(delta), vmap_method="sequential")(gram, delta)


def callback(gram, delta):
    return jax.pure_callback(np.linalg.solve, of_its_shape(delta), gram, delta, vmap_method="sequential")


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (primitive_of_cpus, "'schur' not found for platform"),
        (custom_call, "custom calls whose targets have no compatibility guarantees"),
        (callback, "callback|backend cpu is different from the lowering platform"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_operation_that_needs_a_cpu_is_found(solver, message):
    def update(module, params, inputs, target):
        return preqn_update(ntk.dense(module), params, inputs, target, solver=solver)

    with pytest.raises((NotImplementedError, ValueError), match=message):
        lower_of(update)


def test_a_program_is_traced_as_on_the_accelerator():
    def where(platforms):
        backends = []
        lower(lambda: (jax.jit(lambda x: backends.append(jax.default_backend()) or x), (jnp.zeros(1),)), platforms)
        return backends

    assert where(("tpu",)) == ["tpu"]
    assert where(("cuda", "tpu")) == ["gpu"]
    assert jax.default_backend() == "cpu"
