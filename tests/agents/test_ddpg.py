import functools

import jax
import numpy as np
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.agents.ddpg import DDPGConfig
from tests import oracles
from tests.agents.batches import A, O, batch

pytestmark = pytest.mark.slow

UPDATES = 3


def written_out(state, batches, target_network, activation):
    """(critic, actor, their targets, info of the last) after one update for each batch, in float64."""
    q, mu = (functools.partial(f, activation=activation) for f in (oracles.critic, oracles.actor))
    start_critic, start_actor = critic, actor = oracles.float64(state.online)
    target_critic, target_actor = critic, actor
    critic_gradients, actor_gradients = [], []
    for data in map(oracles.float64, batches):
        if not target_network:
            target_critic, target_actor = critic, actor
        next_action = mu(target_actor, data.next_observation)
        next_value = q(target_critic, data.next_observation, next_action)
        target = oracles.td_target(data.reward, data.discount, next_value, 0.99)

        def error(params, data=data, target=target):
            return target - q(params, data.observation, data.action)

        info = {"td_error": np.sqrt((error(critic) ** 2).mean()), "critic_loss": (error(critic) ** 2).mean()}
        info["q"] = q(critic, data.observation, data.action).mean()
        critic_gradients.append(oracles.gradient(lambda params, error=error: (error(params) ** 2).mean(), critic))
        critic = oracles.adam(start_critic, critic_gradients)

        def actor_loss(params, data=data, critic=critic):  # with the critic that has just been updated
            return -q(critic, data.observation, mu(params, data.observation)).mean()

        info["actor_loss"] = actor_loss(actor)
        info["action_abs"] = np.abs(mu(actor, data.observation)).mean()
        actor_gradients.append(oracles.gradient(actor_loss, actor))
        actor = oracles.adam(start_actor, actor_gradients)
        target_critic, target_actor = oracles.polyak((target_critic, target_actor), (critic, actor))
    return critic, actor, (target_critic, target_actor), info


@pytest.mark.parametrize(
    ("target_network", "activation"), [(True, "relu"), (False, "relu"), (True, "sin"), (True, "tanh")]
)
def test_updates_are_the_algorithm_written_out(target_network, activation):
    agent, _ = DDPGConfig(hidden_sizes=(8, 8), target_network=target_network, activation=activation).make(O, A)
    start = state = agent.init(jax.random.key(1))
    batches = [batch(i) for i in range(UPDATES)]
    update = jax.jit(agent.update)
    for data in batches:
        state, info = update(state, data, jax.random.key(0))
    critic, actor, target, expected = written_out(start, batches, target_network, activation)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6)  # noqa: E731
    jax.tree.map(close, tuple(state.online), (critic, actor))
    if target_network:
        jax.tree.map(close, tuple(state.target), target)
    else:
        assert state.target is None
    assert info.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(info[name], value, rtol=1e-4, err_msg=name)


def test_target_networks_begin_as_copies():
    state = DDPGConfig(hidden_sizes=(8, 8)).make(O, A)[0].init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, state.online, state.target)


def test_defaults():
    config, naive = AGENTS["ddpg"](), AGENTS["naive_ddpg"]()
    assert (config.gamma, config.polyak, config.exploration_noise) == (0.99, 0.995, 0.1)
    assert (config.critic_learning_rate, config.actor_learning_rate) == (1e-3, 1e-3)
    assert (config.hidden_sizes, config.activation) == ((256, 256), "relu")
    assert (config.target_network, naive.target_network) == (True, False)
