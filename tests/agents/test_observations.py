"""Running statistics of observations, alone and around every agent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.agents.critic_diagnostics import diagnosis_of, with_alignment
from preqn_jax.agents.observations import include, no_statistics, normalize
from tests.agents.batches import O, batch, make

pytestmark = pytest.mark.slow


def seen(*shape, seed=0):
    """Observations whose entries differ in mean and in spread."""
    return np.random.default_rng(seed).normal(size=shape) * [0.01, 1.0, 100.0] + [0.0, 1000.0, -5.0]


def statistics_of(parts):
    statistics = no_statistics(3)
    for part in parts:
        statistics = include(statistics, jnp.asarray(part, jnp.float32))
    return statistics


def test_statistics_of_one_block_are_those_of_numpy():
    x = seen(50, 3)
    statistics = statistics_of([x])
    assert statistics.total == 50
    np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics.deviation, x.std(0), rtol=2e-3)
    np.testing.assert_allclose(statistics.absolute, np.abs(x - x.mean(0)).mean(0), rtol=2e-3)


# The second has a million observations, all of which were seen many times.
@pytest.mark.parametrize(("size", "blocks", "rtol"), [(20_000, 400, 0.01), (5000, 20_000, 1e-3)])
def test_statistics_of_many_blocks_are_those_of_all(size, blocks, rtol):
    x = seen(size, 3)
    parts = jnp.asarray(x.reshape(-1, 50, 3), jnp.float32)
    include_part = lambda i, statistics: include(statistics, parts[i % len(parts)])  # noqa: E731
    statistics = jax.lax.fori_loop(0, blocks, include_part, no_statistics(3))
    np.testing.assert_allclose(statistics.mean[1:], x.mean(0)[1:], rtol=1e-3)
    np.testing.assert_allclose(statistics.deviation, x.std(0), rtol=rtol)
    np.testing.assert_allclose(statistics.absolute, np.abs(x - x.mean(0)).mean(0), rtol=rtol)


def test_large_and_small_numbers_do_not_overflow():
    for size in (1e-15, 1e15):
        statistics = statistics_of([size * np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])] * 3)
        np.testing.assert_allclose(statistics.deviation, [size, 0.0, size], rtol=1e-3)


@pytest.mark.parametrize("tail", [0.0, 1.0, 2.0])
def test_normal_entries_get_unit_variance_whatever_the_tail_exponent(tail):
    x = np.random.default_rng(0).normal(size=(100_000, 3)) * [0.1, 1.0, 30.0] + 5.0
    normalized = normalize(statistics_of([x]), jnp.asarray(x, jnp.float32), 1e-3, 10.0, tail)
    np.testing.assert_allclose(np.mean(normalized, axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(np.std(normalized, axis=0), 1.0, rtol=0.01)


@pytest.mark.parametrize("tail", [1.0, 2.0])
def test_a_tail_exponent_magnifies_less_what_moves_rarely(tail):
    x = np.random.default_rng(0).normal(size=(20_000, 3))
    x[:, 1] *= 10.0 * (np.arange(len(x)) % 100 == 0)  # one in a hundred
    rarity = x[:, 1].std() / np.abs(x[:, 1] - x[:, 1].mean()).mean() / np.sqrt(np.pi / 2)
    normalized = normalize(statistics_of([x]), jnp.asarray(x, jnp.float32), 1e-3, 100.0, tail)
    np.testing.assert_allclose(np.std(normalized, axis=0), [1.0, rarity**-tail, 1.0], rtol=0.01)
    assert rarity > 7


def test_the_variance_of_a_rare_entry_is_as_documented():
    share = 0.01
    x = np.zeros((100_000, 3))
    x[:: int(1 / share)] = 1.0
    normalized = normalize(statistics_of([x]), jnp.asarray(x, jnp.float32), 1e-3, 100.0, 2.0)
    np.testing.assert_allclose(np.var(normalized, axis=0), 39 * share**2, rtol=0.05)


def test_normalization_is_of_the_last_axis_and_clips():
    statistics = statistics_of([seen(1000, 3)])
    assert normalize(statistics, jnp.zeros((5, 4, 3)), 1e-3, 10.0).shape == (5, 4, 3)
    far = normalize(statistics, jnp.asarray([1.0, -1e6, 0.0]), 1e-3, 10.0)
    np.testing.assert_array_equal(far[:2], [10.0, -10.0])


@pytest.mark.parametrize("tail", [0.0, 2.0])
def test_an_entry_that_never_moves_is_divided_by_the_floor(tail):
    statistics, x = statistics_of([np.full((10, 3), 2.0)]), jnp.asarray([2.0, 2.001, 1.0])
    np.testing.assert_allclose(normalize(statistics, x, 0.01, 10.0, tail), [0, 0.1, -10], rtol=1e-3)


def test_nothing_changes_before_the_first_observation():
    x = jnp.asarray([0.5, -3.0, 99.0])
    np.testing.assert_array_equal(normalize(no_statistics(3), x, 0.01, 10.0, 2.0), x)


@pytest.fixture(params=AGENTS)
def pair(request):
    """The same agent and its critic without and with normalization, and whether its actions are discrete."""
    numbers = {"observation_floor": 0.1, "observation_clip": 2.0, "observation_tail": 2.0}
    agents = [make(request.param, normalize_observations=on, **numbers) for on in (False, True)]
    return agents, AGENTS[request.param].discrete


def observed(agent, key=0):
    """A state that has seen something."""
    state = agent.init(jax.random.key(key))
    return agent.observe(state, 3.0 * jax.random.normal(jax.random.key(9), (40, O)) + 1.0)


def by_hand(state, batch):
    return batch._replace(
        observation=normalize(state.statistics, batch.observation, 0.1, 2.0, 2.0),
        next_observation=normalize(state.statistics, batch.next_observation, 0.1, 2.0, 2.0),
    )


def test_an_agent_works_on_normalized_observations(pair):
    ((plain, plain_critic), (agent, critic)), discrete = pair
    data, key, state = batch(discrete=discrete), jax.random.key(1), observed(agent)
    same = by_hand(state, data)
    assert np.abs(np.asarray(same.observation - data.observation)).max() > 0.5
    equal = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)  # noqa: E731
    equal(agent.act(state, data.observation), plain.act(state.agent, same.observation))
    equal(agent.explore(state, data.observation, key), plain.explore(state.agent, same.observation, key))
    equal(critic.td_error(state, data, key), plain_critic.td_error(state.agent, same, key))
    equal(critic.preprocess(state, data.observation), same.observation)
    new, info = jax.jit(agent.update)(state, data, key)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # noqa: E731 (fused differently)
    jax.tree.map(close, (new.agent, info), jax.jit(plain.update)(state.agent, same, key))
    equal(new.statistics, state.statistics)  # an update does not move them


def test_what_is_measured_is_measured_on_normalized_observations(pair):
    ((plain, plain_critic), (agent, critic)), discrete = pair
    data, key, state = batch(discrete=discrete), jax.random.key(1), observed(agent)
    same = by_hand(state, data)
    close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=3e-4), a, b)  # noqa: E731
    for measure in (diagnosis_of, lambda *pair: lambda *arguments: with_alignment(*pair).update(*arguments)[1]):
        measured, expected = jax.jit(measure(agent, critic)), jax.jit(measure(plain, plain_critic))
        close(measured(state, data, key), expected(state.agent, same, key))


def test_observing_changes_the_statistics_alone(pair):
    (_, (agent, _)), _ = pair
    state = agent.init(jax.random.key(0))
    new = agent.observe(state, jnp.ones((5, O)))
    jax.tree.map(np.testing.assert_array_equal, new.agent, state.agent)
    np.testing.assert_array_equal(new.statistics.mean, 1.0)
    assert new.statistics.total == 5


def test_an_agent_without_normalization_has_nothing_to_observe(pair):
    ((plain, _), _), _ = pair
    state = plain.init(jax.random.key(0))
    assert plain.observe(state, jnp.ones((5, O))) is state
    assert not hasattr(state, "statistics")
