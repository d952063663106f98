"""Every public function on arrays that are spread over two devices, held to the same function on one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from preqn_jax import Linesearch, diagnostics, linesearch, ntk, ntk_probe, preqn, preqn_info, preqn_update, solvers
from preqn_jax.ops import activations
from preqn_jax.ops.solvers import SOLVERS
from tests.helpers import normal

pytestmark = pytest.mark.slow

B, D = 6, 2  # examples of a device, devices


class Critic(nn.Module):
    """With a parameter outside of its Dense layers, and the activation that has rules of its own."""

    @nn.compact
    def __call__(self, x):
        hidden = activations.sin(nn.LayerNorm(use_bias=False)(nn.Dense(16)(x)))
        return nn.Dense(1)(hidden)[..., 0]


CRITIC = Critic()
Q_FN = ntk.module_q_fn(CRITIC)
X, DELTA = normal(D, B, 3), normal(D, B, seed=1)
LEARNERS = jax.vmap(lambda key: CRITIC.init(key, X[0]))(jax.random.split(jax.random.key(0), D))
ONE = jax.tree.map(lambda leaf: leaf[0], LEARNERS)


def kernels(params, x, delta):
    found = {}
    for name, linearizer in {"dense": ntk.dense(CRITIC), "per_example": ntk.per_example(Q_FN)}.items():
        linearization = linearizer(params, x)
        found[name] = linearization.values, linearization.gram, linearization.pullback(delta)
        found[name] += (ntk.kernel(linearizer, params, x, x[:4], block_size=4),)
    return found


def updates(params, x, delta):
    makers = {**SOLVERS, "own": lambda: lambda gram, delta: jnp.linalg.pinv(gram) @ delta}
    q, target = ntk.dense(CRITIC), Q_FN(params, x) + delta
    how = {"linesearch": Linesearch(step_size=0.5)}
    return {name: preqn_update(q, params, x, target, solver=make(), **how) for name, make in makers.items()}


def search(params, x, delta):
    gradient = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), params)
    how = Linesearch(0.3 + 0.01 * jnp.abs(delta.sum()), decay=0.5, max_backtracks=jnp.asarray(3))
    return linesearch.search(lambda p: Q_FN(p, x), params, gradient, Q_FN(params, x), delta, how)


def diagnosis(params, x, delta):
    gram = ntk.dense(CRITIC)(params, x).gram
    modes = diagnostics.failure_modes(gram, jnp.ones(B) / B, delta, 0.1 * delta, delta, step_size=0.1, gamma=0.9)
    share = diagnostics.unsupported_share(gram[1:, 1:], gram[:, 1:], jnp.diagonal(gram), damping=0.01)
    kernel = diagnostics.preconditioned_kernel(gram, damping=0.01)
    probes = [ntk_probe(q)(params, x, Q_FN(params, x) + delta) for q in (Q_FN, ntk.dense(CRITIC))]
    bound = diagnostics.contraction_bound(gram, jnp.ones(B) / B, 0.1, 0.9)
    return modes, share, kernel, probes, bound, diagnostics.row_ratio(gram), diagnostics.effective_rank(gram)


def optimizer(params, x, delta):
    """Three steps in one scan, which wants each state to be of the type of the one before."""
    transformation = preqn(Q_FN, solver=solvers.aligned(), linesearch=Linesearch(step_size=0.5))

    def step(carry, _):
        params, state = carry
        changes, state = transformation.update(params, state, params, inputs=x, target=delta)
        return (optax.apply_updates(params, changes), state), None

    params = jax.tree.map(lambda leaf: leaf + 0 * delta.sum(), params)  # varies where the minibatch does
    (params, state), _ = jax.lax.scan(step, (params, transformation.init(params)), length=3)
    return params, preqn_info(state)


FUNCTIONS = [kernels, updates, search, diagnosis, optimizer]
each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)


@functools.cache  # compiled once for all tests
def alone(function):
    return jax.jit(function)


def assert_close(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(b).max())))


def mesh_of(kind):
    return jax.make_mesh((D,), ("d",), axis_types=(kind,), devices=jax.devices()[:D])


@each_function
@pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("replicated", [True, False], ids=["replicated", "sharded"])
def test_inside_shard_map_a_device_finds_what_it_finds_alone(function, replicated, check_vma):
    def of_one_device(params, x, delta):
        params = params if replicated else jax.tree.map(lambda leaf: leaf[0], params)
        return jax.tree.map(lambda leaf: leaf[None], function(params, x[0], delta[0]))

    given, specs = (ONE, P()) if replicated else (LEARNERS, P("d"))
    sharded = jax.shard_map(
        of_one_device,
        mesh=mesh_of(AxisType.Auto),
        in_specs=(specs, P("d"), P("d")),
        out_specs=P("d"),
        check_vma=check_vma,
    )
    learners = [ONE] * D if replicated else [jax.tree.map(lambda leaf, i=i: leaf[i], LEARNERS) for i in range(D)]
    expected = [alone(function)(*arguments) for arguments in zip(learners, X, DELTA, strict=True)]
    assert_close(jax.jit(sharded)(given, X, DELTA), jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))


@each_function
def test_what_is_replicated_comes_out_replicated(function):
    sharded = jax.shard_map(function, mesh=mesh_of(AxisType.Auto), in_specs=P(), out_specs=P())
    assert_close(jax.jit(sharded)(ONE, X[0], DELTA[0]), alone(function)(ONE, X[0], DELTA[0]))


@each_function
def test_a_minibatch_that_is_sharded_over_an_explicit_mesh_is_gathered(function):
    mesh = mesh_of(AxisType.Explicit)
    x, delta = (jax.device_put(array[0], NamedSharding(mesh, P("d"))) for array in (X, DELTA))
    with jax.sharding.use_mesh(mesh) if hasattr(jax.sharding, "use_mesh") else jax.set_mesh(mesh):
        found = jax.jit(function)(ONE, x, delta)
    assert_close(found, alone(function)(ONE, X[0], DELTA[0]))


def test_parameters_that_are_sharded_over_an_explicit_mesh_come_out_so():
    mesh = mesh_of(AxisType.Explicit)
    params = {"w": normal(4, 8), "v": normal(8, seed=1)}
    specs = {"w": P(None, "d"), "v": P("d")}
    spread = {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in params.items()}
    x, target = normal(B, 4), normal(B, seed=2)

    def q_fn(params, x):
        return jnp.tanh(x @ params["w"]) @ params["v"]

    def update(params):
        return preqn_update(q_fn, params, x, target)

    def update_by_optax(params):
        optimizer = preqn(q_fn)
        changes, _ = optimizer.update(params, optimizer.init(params), params, inputs=x, target=target)
        return optax.apply_updates(params, changes)

    expected, found = jax.jit(update)(params), jax.jit(update)(spread)
    assert expected[1].accepted
    assert_close(found, expected)
    assert_close(jax.jit(update_by_optax)(spread), expected[0])
    assert jax.tree.map(lambda leaf: leaf.sharding.spec, found[0]) == specs


COMMUNICATE = {
    "psum": lambda p, x: jax.lax.psum(jnp.tanh(x @ p), "d"),
    "all_gather": lambda p, x: jnp.tanh(x @ jax.lax.all_gather(p, "d").sum(axis=0)),
    "pmax": jax.jit(lambda p, x: jax.lax.map(lambda y: jax.lax.pmax(y, "d"), x @ p)),
}


@pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize(("name", "q_fn"), COMMUNICATE.items(), ids=COMMUNICATE)
def test_a_q_function_that_communicates_is_refused(name, q_fn, check_vma):
    def gram(params, x):
        return ntk.per_example(q_fn)(params[0], x).gram[None]

    how = {"mesh": mesh_of(AxisType.Auto), "in_specs": (P("d"), P()), "out_specs": P("d"), "check_vma": check_vma}
    with pytest.raises(ValueError, match=f"must not communicate along a mapped axis, got {name}"):
        jax.eval_shape(jax.shard_map(gram, **how), normal(D, 3), normal(B, 3))


def test_a_q_function_may_know_which_device_it_is_on():
    def q_fn(params, x):
        return jnp.tanh(x @ params) * (1.0 + jax.lax.axis_index("d").astype(x.dtype))

    def gram(params, x):
        return ntk.per_example(q_fn)(params, x).gram[None]

    sharded = jax.shard_map(gram, mesh=mesh_of(AxisType.Auto), in_specs=P(), out_specs=P("d"))
    one, two = jax.jit(sharded)(normal(3), normal(B, 3))
    np.testing.assert_allclose(two, 4 * one, rtol=1e-5)
