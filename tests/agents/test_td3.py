import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.agents import common
from preqn_jax.agents.td3 import TD3Config
from tests import oracles
from tests.agents.batches import A, O, batch

pytestmark = pytest.mark.slow

SMALL = TD3Config(hidden_sizes=(8, 8))
UPDATES = 3


def written_out(state, batches, noises):
    """(critics, actor, their targets, info of the last) after one update for each batch, in float64."""
    start_critics, start_actor = oracles.float64((state.critics, state.delayed.actor))
    critics, actor = target_critics, target_actor = start_critics, start_actor
    critic_gradients, actor_gradients = [], []
    for i, (data, noise) in enumerate(zip(map(oracles.float64, batches), noises, strict=True)):
        next_action = oracles.actor(target_actor, data.next_observation) + np.clip(0.2 * noise, -0.5, 0.5)
        next_action = np.clip(next_action, -1, 1)
        next_value = np.min([oracles.critic(c, data.next_observation, next_action) for c in target_critics], axis=0)
        target = oracles.td_target(data.reward, data.discount, next_value, 0.99)
        critics, critic_info = oracles.twin_critic_step(critics, start_critics, critic_gradients, data, target)
        if i % 2 == 0:

            def actor_loss(params, data=data, critic=critics[0]):
                return -oracles.critic(critic, data.observation, oracles.actor(params, data.observation)).mean()

            saturation = np.abs(oracles.actor(actor, data.observation)).mean()
            actor_info = {"actor_loss": actor_loss(actor), "action_abs": saturation}
            actor_gradients.append(oracles.gradient(actor_loss, actor))
            actor = oracles.adam(start_actor, actor_gradients)
            target_critics, target_actor = oracles.polyak((target_critics, target_actor), (critics, actor))
    return critics, actor, (target_critics, target_actor), {**critic_info, **actor_info}


def test_updates_are_the_algorithm_written_out():
    agent, _ = SMALL.make(O, A)
    start = state = agent.init(jax.random.key(1))
    batches, keys = [batch(i) for i in range(UPDATES)], jax.random.split(jax.random.key(2), UPDATES)
    noises = [np.asarray(jax.random.normal(key, data.action.shape)) for key, data in zip(keys, batches, strict=True)]
    assert np.abs(noises).max() > 2.5  # some of it is clipped
    update = jax.jit(agent.update)
    for i in range(UPDATES):
        state, info = update(state, batches[i], keys[i])
        critics, actor, target, expected = written_out(start, batches[: i + 1], noises[: i + 1])
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6)  # noqa: E731
        jax.tree.map(close, state.critics, critics)
        jax.tree.map(close, state.delayed.actor, actor)
        jax.tree.map(close, tuple(state.delayed.target), target)
        assert info.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(info[name], value, rtol=1e-4, err_msg=name)


def test_seeds_side_by_side_may_be_at_different_updates():
    agent, _ = SMALL.make(O, A)
    key, data, update = jax.random.key(2), batch(), jax.jit(agent.update)
    fresh = agent.init(jax.random.key(1))
    states = [fresh, update(fresh, data, key)[0]]  # the actor is due in the first alone
    together, _ = jax.jit(jax.vmap(agent.update, (0, None, None)))(
        jax.tree.map(lambda *x: jnp.stack(x), *states), data, key
    )
    for i, state in enumerate(states):
        alone, _ = update(state, data, key)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5), together, alone)


def test_actor_and_targets_stay_between_their_updates():
    agent, _ = TD3Config(hidden_sizes=(8, 8), policy_delay=3).make(O, A)
    states, update = [agent.init(jax.random.key(1))], jax.jit(agent.update)
    for i in range(4):
        states.append(update(states[-1], batch(i), jax.random.key(i))[0])
    same = [
        all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (old.delayed, new.delayed)), strict=True))
        for old, new in itertools.pairwise(states)
    ]
    assert same == [False, True, True, False]


def test_both_critics_differ_and_targets_begin_as_copies():
    state = SMALL.make(O, A)[0].init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, tuple(state.delayed.target), (state.critics, state.delayed.actor))
    first, second = (critic["params"]["MLP_0"]["Dense_0"]["kernel"] for critic in state.critics)
    assert not np.array_equal(first, second)


def test_noise_is_clipped_and_then_the_action():
    action = jnp.asarray([0.0, 0.9, -0.9])
    noisy = np.asarray(common.add_noise(jnp.tile(action, (200, 1)), jax.random.key(0), 100.0, 0.5))
    assert set(np.unique(np.round(noisy[:, 0], 3))) >= {-0.5, 0.5}
    np.testing.assert_allclose(np.abs(noisy[:, 0]).max(), 0.5)
    np.testing.assert_allclose([noisy[:, 1].min(), noisy[:, 1].max()], [0.4, 1.0], rtol=1e-6)
    np.testing.assert_allclose([noisy[:, 2].min(), noisy[:, 2].max()], [-1.0, -0.4], rtol=1e-6)


def test_defaults_are_the_papers():
    config = TD3Config()
    assert (config.target_noise, config.target_noise_bound, config.policy_delay) == (0.2, 0.5, 2)
    assert (config.gamma, config.polyak, config.exploration_noise) == (0.99, 0.995, 0.1)
    assert (config.critic_learning_rate, config.actor_learning_rate) == (1e-3, 1e-3)
    assert (config.hidden_sizes, config.activation) == ((256, 256), "relu")
