import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.agents.sac import SACConfig
from tests import oracles
from tests.agents.batches import A, O, batch

pytestmark = pytest.mark.slow

SMALL = SACConfig(hidden_sizes=(8, 8))
UPDATES = 3


def sample(params, observation, noise):
    mean, log_std = oracles.gaussian_actor(params, observation)
    return np.tanh(mean + np.exp(log_std) * noise), oracles.squashed_log_prob(mean, log_std, noise)


def written_out(state, batches, noises):
    """(critics, actor, target critics, info of the last) after one update for each batch, in float64."""
    start_critics, start_actor = oracles.float64((state.critics, state.actor))
    critics, actor, targets = start_critics, start_actor, start_critics
    critic_gradients, actor_gradients = [], []
    for data, (next_noise, noise) in zip(map(oracles.float64, batches), noises, strict=True):
        next_action, log_prob = sample(actor, data.next_observation, next_noise)
        next_value = np.min([oracles.critic(c, data.next_observation, next_action) for c in targets], axis=0)
        target = oracles.td_target(data.reward, data.discount, next_value - 0.1 * log_prob, 0.99)
        critics, info = oracles.twin_critic_step(critics, start_critics, critic_gradients, data, target)

        def actor_loss(params, data=data, noise=noise, critics=critics):
            action, log_prob = sample(params, data.observation, noise)
            return (
                0.1 * log_prob - oracles.minimum(*[oracles.critic(c, data.observation, action) for c in critics])
            ).mean()

        action, log_prob = sample(actor, data.observation, noise)
        info |= {"actor_loss": actor_loss(actor), "action_abs": np.abs(action).mean(), "entropy": -log_prob.mean()}
        actor_gradients.append(oracles.gradient(actor_loss, actor))
        actor = oracles.adam(start_actor, actor_gradients)
        targets = oracles.polyak(targets, critics)
    return critics, actor, targets, info


def test_updates_are_the_algorithm_written_out():
    agent, _ = SMALL.make(O, A)
    start = state = agent.init(jax.random.key(1))
    batches, keys = [batch(i) for i in range(UPDATES)], jax.random.split(jax.random.key(2), UPDATES)
    noises = [
        [np.asarray(jax.random.normal(k, batches[0].action.shape)) for k in jax.random.split(key)] for key in keys
    ]
    update = jax.jit(agent.update)
    for data, key in zip(batches, keys, strict=True):
        state, info = update(state, data, key)
    critics, actor, targets, expected = written_out(start, batches, noises)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
    jax.tree.map(close, state.critics, critics)
    jax.tree.map(close, state.actor, actor)
    jax.tree.map(close, state.target_critics, targets)
    assert info.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(info[name], value, rtol=1e-4, err_msg=name)


def test_it_acts_by_the_mean_and_explores_by_samples():
    agent, _ = SMALL.make(O, A)
    state, observation = agent.init(jax.random.key(1)), jax.random.normal(jax.random.key(2), (1, O))
    mean, log_std = oracles.gaussian_actor(oracles.float64(state.actor), np.asarray(observation))
    np.testing.assert_allclose(agent.act(state, observation), np.tanh(mean), rtol=1e-5)
    u = np.arctanh(np.float64(agent.explore(state, jnp.tile(observation, (20_000, 1)), jax.random.key(3))))
    np.testing.assert_allclose(u.mean(axis=0), mean[0], atol=0.05)
    np.testing.assert_allclose(u.std(axis=0), np.exp(log_std[0]), rtol=0.05)


def with_output_bias(state, mean, log_std):
    """The state with an actor that gives these everywhere."""
    layers = dict(state.actor["params"]["MLP_0"])
    last = layers["Dense_2"]
    bias = jnp.concatenate([jnp.full(A, mean), jnp.full(A, log_std)])
    layers["Dense_2"] = {"kernel": jnp.zeros_like(last["kernel"]), "bias": bias}
    return state._replace(actor={"params": {"MLP_0": layers}})


def test_log_std_is_clipped():
    agent, _ = SMALL.make(O, A)
    observation, key = jnp.zeros((2000, O)), jax.random.key(3)
    narrow = with_output_bias(agent.init(jax.random.key(1)), 0.0, -100.0)
    np.testing.assert_allclose(np.std(agent.explore(narrow, observation, key)), np.exp(-20), rtol=0.1)
    wide = with_output_bias(narrow, 0.0, 100.0)
    # P(|u| < 1) for u of standard deviation exp(2) is 0.1077.
    inside = np.abs(agent.explore(wide, observation, key)) < np.tanh(1.0)
    np.testing.assert_allclose(inside.mean(), 0.1077, atol=0.02)


def test_a_saturated_policy_stays_finite():
    agent, _ = SMALL.make(O, A)
    state = with_output_bias(agent.init(jax.random.key(1)), 30.0, 2.0)
    new, info = jax.jit(agent.update)(state, batch(), jax.random.key(2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new, info)))


def test_defaults():
    config = SACConfig()
    assert (config.gamma, config.polyak, config.temperature) == (0.99, 0.995, 0.1)
    assert (config.critic_learning_rate, config.actor_learning_rate) == (1e-3, 1e-3)
    assert (config.hidden_sizes, config.activation) == ((256, 256), "relu")
