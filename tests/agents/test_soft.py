"""The learned temperature, in SAC and in PreQN with a Gaussian policy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from preqn_jax.agents import soft
from tests import oracles
from tests.agents import batches
from tests.agents.batches import A, O, batch

pytestmark = pytest.mark.slow

LEARNED = {"automatic_temperature": True, "temperature": 0.2, "temperature_learning_rate": 0.01}


def make(name, **settings):
    settings |= {"policy": "gaussian"} if name == "preqn_norm" else {}
    return batches.make(name, hidden_sizes=(8, 8), **settings)


def temperature(name, state):
    if name == "sac":
        return state.temperature
    return state.agent.actor.temperature


def with_temperature(name, state, value):
    learned = temperature(name, state)._replace(log_value=jnp.log(value))
    if name == "sac":
        return state._replace(temperature=learned)
    inner = state.agent
    return state._replace(agent=inner._replace(actor=inner.actor._replace(temperature=learned)))


@pytest.mark.parametrize(("entropy", "rises"), [(-5.0, True), (5.0, False)])
def test_the_temperature_rises_while_the_entropy_is_below_its_target(entropy, rises):
    config = soft.TemperatureConfig(**LEARNED, target_entropy=-0.5)
    state = soft.init_temperature(config)
    assert soft.temperature_of(config, state) == pytest.approx(0.2)
    new, found = soft.update_temperature(config, state, jnp.asarray(entropy), action_size=3)
    assert (found["temperature"] > 0.2) == rises
    np.testing.assert_allclose(found["temperature"], soft.temperature_of(config, new))


def test_the_temperatures_step_is_adams_on_its_logarithm():
    config = soft.TemperatureConfig(**LEARNED, target_entropy=-0.5)
    state = soft.init_temperature(config)
    new, _ = soft.update_temperature(config, state, jnp.asarray(-1.0), action_size=3)
    loss = lambda log_value: log_value * (-1.0 - 3 * -0.5)  # noqa: E731
    adam = optax.adam(0.01)
    updates, _ = adam.update(jax.grad(loss)(jnp.log(0.2)), adam.init(jnp.log(0.2)))
    np.testing.assert_allclose(new.log_value, jnp.log(0.2) + updates, rtol=1e-6)


def test_at_its_target_the_entropy_leaves_the_temperature():
    config = soft.TemperatureConfig(**LEARNED, target_entropy=-0.5)
    state = soft.init_temperature(config)
    new, _ = soft.update_temperature(config, state, jnp.asarray(-1.5), action_size=3)
    np.testing.assert_allclose(new.log_value, state.log_value)


@pytest.mark.parametrize("name", ["sac", "preqn_norm"])
def test_a_fixed_temperature_has_no_state(name):
    agent, _ = make(name)
    state, info = jax.jit(agent.update)(agent.init(jax.random.key(0)), batch(), jax.random.key(1))
    assert temperature(name, state) is None
    assert "temperature" not in info


@pytest.mark.parametrize("name", ["sac", "preqn_norm"])
def test_an_agent_learns_the_temperature_from_the_entropy_of_its_minibatch(name):
    (agent, _), config = make(name, **LEARNED), soft.TemperatureConfig(**LEARNED)
    state = agent.init(jax.random.key(0))
    new, info = jax.jit(agent.update)(state, batch(), jax.random.key(1))
    expected, _ = soft.update_temperature(config, temperature(name, state), info["entropy"], A)
    np.testing.assert_allclose(temperature(name, new).log_value, expected.log_value, rtol=1e-5)
    np.testing.assert_allclose(info["temperature"], jnp.exp(expected.log_value), rtol=1e-5)


@pytest.mark.parametrize("name", ["sac", "preqn_norm"])
def test_a_learned_temperature_takes_the_place_of_the_configured_one(name):
    (learning, its_critic), (fixed, critic) = make(name, **LEARNED), make(name, temperature=0.7)
    key, data = jax.random.key(1), batch()
    state = with_temperature(name, learning.init(jax.random.key(0)), 0.7)
    expected_state = fixed.init(jax.random.key(0))
    errors = its_critic.td_error(state, data, key), critic.td_error(expected_state, data, key)
    np.testing.assert_allclose(*errors, rtol=1e-5, atol=1e-6)
    _, info = jax.jit(learning.update)(state, data, key)
    _, expected = jax.jit(fixed.update)(expected_state, data, key)
    np.testing.assert_allclose(info["actor_loss"], expected["actor_loss"], rtol=1e-5)


def test_preqns_gaussian_actor_ascends_the_new_critic_and_the_entropy():
    agent, _ = make("preqn_norm", normalize_observations=False, critic_layer_norm="none", temperature=0.5)
    state, data, key = agent.init(jax.random.key(0)), batch(), jax.random.key(1)
    new, info = jax.jit(agent.update)(state, data, key)
    observation, start = np.float64(data.observation), oracles.float64(state.actor.params)
    noise = np.asarray(jax.random.normal(jax.random.split(key)[1], data.action.shape))
    critic = oracles.float64(new.critics[0])

    def loss(params):
        mean, log_std = oracles.gaussian_actor(params, observation)
        action = np.tanh(mean + np.exp(log_std) * noise)
        log_prob = oracles.squashed_log_prob(mean, log_std, noise)
        return (0.5 * log_prob - oracles.critic(critic, observation, action)).mean()

    np.testing.assert_allclose(info["actor_loss"], loss(start), rtol=1e-5)
    expected = oracles.adam(start, [oracles.gradient(loss, start)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new.actor.params, expected)


def test_preqns_gaussian_target_has_the_entropy_of_the_next_action():
    agent, critic = make("preqn_norm", normalize_observations=False, temperature=0.5, target_pessimism=0.3)
    state, data, key = agent.init(jax.random.key(0)), batch(), jax.random.key(1)
    td_error = critic.td_error(state, data, key)
    mean, log_std = oracles.gaussian_actor(oracles.float64(state.actor.params), np.asarray(data.next_observation))
    noise = np.asarray(jax.random.normal(jax.random.split(key)[0], mean.shape))
    action, log_prob = np.tanh(mean + np.exp(log_std) * noise), oracles.squashed_log_prob(mean, log_std, noise)
    following = (data.next_observation, jnp.asarray(action, jnp.float32))
    one, two = (np.asarray(critic.q_fn(params, following)) for params in state.critics)
    value = (one + two) / 2 - 0.3 * np.abs(one - two) / 2 - 0.5 * log_prob
    target = np.asarray(data.reward) + 0.99 * np.asarray(data.discount) * value
    np.testing.assert_allclose(td_error, target - critic.value(state, data.observation, data.action), atol=1e-4)


def test_preqns_gaussian_policy_explores_by_samples():
    agent, _ = make("preqn_norm", normalize_observations=False)
    state, observation = agent.init(jax.random.key(1)), jax.random.normal(jax.random.key(2), (1, O))
    mean, log_std = oracles.gaussian_actor(oracles.float64(state.actor.params), np.asarray(observation))
    np.testing.assert_allclose(agent.act(state, observation), np.tanh(mean), rtol=1e-5)
    u = np.arctanh(np.float64(agent.explore(state, jnp.tile(observation, (20_000, 1)), jax.random.key(3))))
    np.testing.assert_allclose(u.std(axis=0), np.exp(log_std[0]), rtol=0.05)
