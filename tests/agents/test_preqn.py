import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.networks import KERNEL_INITS, Actor, Critic
from preqn_jax.ops import ntk, solvers
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import preqn_update
from tests.agents.batches import A, O, batch

pytestmark = pytest.mark.slow

SMALL = PreQNConfig(hidden_sizes=(16, 16))


def test_one_update_is_algorithm_1_written_out():
    agent, _ = SMALL.make(O, A)
    state = agent.init(jax.random.key(1))
    data = batch()
    new, info = jax.jit(agent.update)(state, data, jax.random.key(2))

    critic, actor = Critic((16, 16)), Actor(A, (16, 16))
    next_action = actor.apply(state.actor, data.next_observation)
    target = data.reward + 0.99 * data.discount * critic.apply(state.critic, data.next_observation, next_action)
    delta = target - critic.apply(state.critic, data.observation, data.action)
    update = jax.jit(functools.partial(preqn_update, ntk.module_q_fn(critic)), static_argnames="solver")
    critic_params, critic_info = update(
        state.critic,
        (data.observation, data.action),
        target,
        solver=solvers.ridge(1e-4),
        linesearch=Linesearch(step_size=0.1, min_alignment=0.97),
    )
    assert bool(critic_info.accepted)

    def actor_loss(params):  # with the critic that has just been updated
        return -critic.apply(critic_params, data.observation, actor.apply(params, data.observation)).mean()

    adam = optax.adam(1e-3)
    updates, _ = adam.update(jax.grad(actor_loss)(state.actor), adam.init(state.actor))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), new.critic, critic_params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), new.actor, optax.apply_updates(state.actor, updates)
    )
    np.testing.assert_allclose(info["actor_loss"], actor_loss(state.actor), rtol=1e-4)
    np.testing.assert_allclose(info["td_error"], jnp.sqrt(jnp.mean(delta**2)), rtol=1e-5)


def test_defaults_are_the_papers():
    config = PreQNConfig()
    assert (config.gamma, config.step_size, config.min_alignment, config.actor_learning_rate) == (0.99, 0.1, 0.97, 1e-3)
    assert (config.hidden_sizes, config.activation, config.exploration_noise) == ((256, 256), "sin", 0.1)


def test_kernels_are_glorot_uniform_and_biases_zero():
    state = PreQNConfig().make(O, A)[0].init(jax.random.key(0))
    for name, layer in state.critic["params"]["MLP_0"].items():
        fan_in, fan_out = layer["kernel"].shape
        bound = np.sqrt(6.0 / (fan_in + fan_out))
        assert 0.9 * bound < np.abs(layer["kernel"]).max() <= bound, name
        np.testing.assert_array_equal(layer["bias"], 0.0)


@pytest.mark.parametrize("solver", solvers.SOLVERS)
@pytest.mark.parametrize("linearizer", ["dense", "per_example"])
def test_every_solver_and_linearizer_makes_an_aligned_step(solver, linearizer):
    agent, _ = dataclasses.replace(SMALL, solver=solver, linearizer=linearizer).make(O, A)
    _, info = jax.jit(agent.update)(agent.init(jax.random.key(1)), batch(), jax.random.key(2))
    assert info["accepted"]
    assert info["alignment"] >= 0.97


UNIFORM, NORMAL = np.sqrt(3), 2 / 0.87963  # largest entry over standard deviation; the normal is cut at two of its own
VARIANCES = {  # of a kernel from 256 to 64 units, and that ratio
    "glorot_uniform": (2 / (256 + 64), UNIFORM),
    "glorot_normal": (2 / (256 + 64), NORMAL),
    "lecun_uniform": (1 / 256, UNIFORM),
    "lecun_normal": (1 / 256, NORMAL),
    "he_uniform": (2 / 256, UNIFORM),
    "torch_default": (1 / (3 * 256), UNIFORM),
}


@pytest.mark.parametrize("name", KERNEL_INITS)
def test_every_initialization_is_drawn_as_its_name_says_by_critic_and_actor(name):
    config = dataclasses.replace(SMALL, hidden_sizes=(256, 64), kernel_init=name)
    state = config.make(O, A)[0].init(jax.random.key(0))
    for params in (state.critic, state.actor):
        (kernel,) = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.shape == (256, 64)]
        if name == "orthogonal":
            np.testing.assert_allclose(kernel.T @ kernel, np.eye(64), atol=1e-5)
        else:
            variance, ratio = VARIANCES[name]
            np.testing.assert_allclose(kernel.var(), variance, rtol=0.05)
            np.testing.assert_allclose(np.abs(kernel).max() / kernel.std(), ratio, rtol=0.03)
