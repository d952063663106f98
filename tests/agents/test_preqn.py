import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.agents import preqn as preqn_agent
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.networks import KERNEL_INITS, Actor, Critic
from preqn_jax.ops import ntk, solvers
from preqn_jax.ops.preqn import preqn_update
from preqn_jax.types import Transition

B, O, A = 24, 5, 2
SMALL = PreQNConfig(hidden_sizes=(16, 16))


def batch(seed=0):
    k = jax.random.split(jax.random.key(seed), 5)
    return Transition(
        jax.random.normal(k[0], (B, O)),
        jax.random.uniform(k[1], (B, A), minval=-1.0),
        jax.random.normal(k[2], (B,)),
        jax.random.bernoulli(k[3], 0.7, (B,)).astype(jnp.float32),
        jax.random.normal(k[4], (B, O)),
    )


def test_one_update_is_algorithm_1_written_out():
    agent = preqn_agent.make(SMALL, O, A)
    state = agent.init(jax.random.key(1))
    data = batch()
    new, info = agent.update(state, data, jax.random.key(2))

    critic, actor = Critic((16, 16)), Actor(A, (16, 16))
    next_action = actor.apply(state.actor, data.next_observation)
    target = data.reward + 0.99 * data.discount * critic.apply(state.critic, data.next_observation, next_action)
    delta = target - critic.apply(state.critic, data.observation, data.action)
    critic_params, critic_info = preqn_update(
        ntk.module_q_fn(critic),
        state.critic,
        (data.observation, data.action),
        delta,
        solve=solvers.ridge(1e-4),
        step_size=0.1,
        alignment=0.97,
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
    assert (config.gamma, config.critic_step_size, config.eta, config.actor_learning_rate) == (0.99, 0.1, 0.97, 1e-3)
    assert (config.hidden_sizes, config.activation, config.exploration_noise) == ((256, 256), "sin", 0.1)


def test_kernels_are_glorot_uniform_and_biases_zero():
    state = preqn_agent.make(PreQNConfig(), O, A).init(jax.random.key(0))
    for name, layer in state.critic["params"]["MLP_0"].items():
        fan_in, fan_out = layer["kernel"].shape
        bound = np.sqrt(6.0 / (fan_in + fan_out))
        assert 0.9 * bound < np.abs(layer["kernel"]).max() <= bound, name
        np.testing.assert_array_equal(layer["bias"], 0.0)


@pytest.mark.parametrize("solver", solvers.SOLVERS)
@pytest.mark.parametrize("linearizer", ["dense", "per_example"])
def test_every_solver_and_linearizer_makes_an_aligned_step(solver, linearizer):
    config = dataclasses.replace(SMALL, solver=solver, linearizer=linearizer)
    agent = preqn_agent.make(config, O, A)
    _, info = agent.update(agent.init(jax.random.key(1)), batch(), jax.random.key(2))
    assert info["accepted"]
    assert info["alignment"] >= 0.97


@pytest.mark.parametrize("name", KERNEL_INITS)
def test_every_initialization_can_be_had(name):
    state = preqn_agent.make(dataclasses.replace(SMALL, kernel_init=name), O, A).init(jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


# What holds for every agent.


@pytest.fixture(params=AGENTS)
def agent(request):
    entry = AGENTS[request.param]
    return entry.make(entry.config(hidden_sizes=(16, 16)), O, A)


def assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


def test_jit_changes_nothing(agent):
    state, data, key = agent.init(jax.random.key(0)), batch(), jax.random.key(1)
    assert_close(agent.update(state, data, key), jax.jit(agent.update)(state, data, key))


def test_vmap_is_a_loop(agent):
    keys = jax.random.split(jax.random.key(0), 3)
    states, data = jax.vmap(agent.init)(keys), jax.tree.map(lambda *x: jnp.stack(x), *map(batch, range(3)))
    together = jax.vmap(agent.update)(states, data, keys)
    for i in range(3):
        alone = agent.update(*jax.tree.map(lambda x, i=i: x[i], (states, data, keys)))
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone)


def test_a_second_call_compiles_nothing(agent):
    traces = []

    @jax.jit
    def update(*arguments):
        traces.append(1)
        return agent.update(*arguments)

    state, _ = update(agent.init(jax.random.key(0)), batch(0), jax.random.key(1))
    update(state, batch(1), jax.random.key(2))
    assert len(traces) == 1


def test_other_seeds_give_other_parameters(agent):
    one, two = (jax.tree.leaves(agent.init(jax.random.key(seed))) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_actions_are_in_the_box_and_exploration_is_noise_around_them(agent):
    state, observation = agent.init(jax.random.key(0)), 10.0 * jax.random.normal(jax.random.key(1), (500, O))
    action, noisy = agent.act(state, observation), agent.explore(state, observation, jax.random.key(2))
    assert action.shape == noisy.shape == (500, A)
    assert np.abs(action).max() <= 1
    assert np.abs(noisy).max() <= 1
    assert not np.array_equal(noisy, agent.explore(state, observation, jax.random.key(3)))
    inside = np.abs(action) < 0.5  # where the noise is not clipped
    np.testing.assert_allclose(np.std((noisy - action)[inside]), 0.1, rtol=0.2)
