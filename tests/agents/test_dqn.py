import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.networks import DiscreteCritic
from preqn_jax.ops import ntk, solvers
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import preqn_update
from tests.agents.batches import A, O, batch

pytestmark = pytest.mark.slow

CRITIC = DiscreteCritic(A, (16, 16))


def agent_of(name, **settings):
    return AGENTS[name](hidden_sizes=(16, 16), **settings).make(O, A)[0]


def target(params, data, critic=CRITIC):
    return data.reward + 0.99 * data.discount * critic.apply(params, data.next_observation, method="all_values").max(-1)


def test_q_of_an_action_is_its_output():
    data = batch(discrete=True)
    params = CRITIC.init(jax.random.key(0), data.observation, data.action)
    every = CRITIC.apply(params, data.observation, method="all_values")
    taken = np.take_along_axis(every, np.argmax(data.action, axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(CRITIC.apply(params, data.observation, data.action), taken)


def test_the_kernel_is_that_of_the_outputs_taken():
    data = batch(discrete=True)
    inputs = (data.observation, data.action)
    params = CRITIC.init(jax.random.key(0), *inputs)
    jacobian = jax.jacobian(lambda params: CRITIC.apply(params, data.observation, method="all_values"))(params)
    chosen = np.argmax(data.action, axis=1)
    rows = [np.asarray(leaf)[np.arange(len(chosen)), chosen].reshape(len(chosen), -1)
            for leaf in jax.tree.leaves(jacobian)]  # fmt: skip
    expected = sum(row @ row.T for row in rows)
    np.testing.assert_allclose(ntk.dense(CRITIC)(params, inputs).gram, expected, rtol=1e-4, atol=1e-5)


def test_one_update_of_preqn_is_written_out():
    agent, data = agent_of("preqn_dqn"), batch(discrete=True)
    state = agent.init(jax.random.key(1))
    new, info = jax.jit(agent.update)(state, data, jax.random.key(2))
    inputs = (data.observation, data.action)
    y = target(state.critic, data)
    delta = y - CRITIC.apply(state.critic, *inputs)
    expected, expected_info = preqn_update(
        ntk.module_q_fn(CRITIC), state.critic, inputs, y, solver=solvers.ridge(1e-4), linesearch=Linesearch(0.1, 0.97)
    )
    assert bool(expected_info.accepted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), new.critic, expected)
    np.testing.assert_allclose(info["td_error"], jnp.sqrt(jnp.mean(delta**2)), rtol=1e-5)


@pytest.mark.parametrize("name", ["dqn", "naive_dqn"])
def test_updates_of_dqn_are_written_out(name):
    agent, batches = agent_of(name), [batch(seed, discrete=True) for seed in range(2)]
    critic, adam = DiscreteCritic(A, (16, 16), "relu"), optax.adam(1e-3)
    state, update = agent.init(jax.random.key(1)), jax.jit(agent.update)
    params = slow = state.critic
    optimizer = adam.init(params)
    for data in batches:
        y = target(slow if name == "dqn" else params, data, critic)

        def loss(params, data=data, y=y):
            return jnp.mean((critic.apply(params, data.observation, data.action) - y) ** 2)

        updates, optimizer = adam.update(jax.grad(loss)(params), optimizer)
        params = optax.apply_updates(params, updates)
        slow = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, slow, params)
        state, info = update(state, data, jax.random.key(2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), state.critic, params)
    assert (state.target is None) == (name == "naive_dqn")
    if name == "dqn":
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), state.target, slow)
    assert info["critic_loss"] > 0


def test_the_greedy_action_is_explored_around_by_epsilon():
    agent, observation = agent_of("preqn_dqn", exploration_epsilon=0.3), batch().observation.repeat(100, axis=0)
    state = agent.init(jax.random.key(0))
    greedy, explored = agent.act(state, observation), agent.explore(state, observation, jax.random.key(1))
    values = CRITIC.apply(state.critic, observation, method="all_values")
    np.testing.assert_array_equal(np.argmax(greedy, axis=1), np.argmax(values, axis=1))
    changed = np.mean(np.any(greedy != explored, axis=1))
    assert changed == pytest.approx(0.3 * (1 - 1 / A), abs=0.03)
