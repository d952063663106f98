import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.settings import SettingError
from preqn_jax.training import replay as device
from preqn_jax.training.replay import HostReplay, Ring
from preqn_jax.types import Transition


def transition(i, seeds=2):
    value = i + 100.0 * np.arange(seeds)
    return Transition(np.stack([value] * 3, 1), value[:, None], value, np.ones(seeds), np.stack([value + 1] * 3, 1))


def filled(count, capacity=5):
    replay = HostReplay(2, capacity, 3, 1)
    for i in range(count):
        replay.add(transition(i), [False] * 2)
    return replay


def generators(seed=0):
    return [np.random.default_rng([seed, s]) for s in range(2)]


@pytest.mark.parametrize(("count", "kept"), [(1, {0}), (5, {0, 1, 2, 3, 4}), (7, {2, 3, 4, 5, 6})])
def test_samples_are_of_the_newest_transitions_and_of_the_own_seed(count, kept):
    batch = filled(count).sample(generators(), (40, 10))
    assert batch.observation.shape == (2, 40, 10, 3)
    assert batch.reward.shape == (2, 40, 10)
    assert set(batch.reward[0].ravel()) == kept
    assert set(batch.reward[1].ravel()) == {100 + i for i in kept}


def test_leaves_of_a_sample_belong_together():
    batch = filled(7).sample(generators(), (50,))
    np.testing.assert_array_equal(batch.action[..., 0], batch.reward)
    np.testing.assert_array_equal(batch.observation[..., 1], batch.reward)
    np.testing.assert_array_equal(batch.next_observation[..., 2], batch.reward + 1)


def test_draws_are_uniform():
    rewards = filled(5).sample(generators(), (100_000,)).reward[0]
    counts = np.unique(rewards, return_counts=True)[1]
    np.testing.assert_allclose(counts, 20_000, rtol=0.04)  # five standard deviations


@pytest.mark.parametrize("count", [0, 3, 5, 7])
def test_a_restored_buffer_goes_on_alike(count):
    replay, again = filled(count), HostReplay(2, 5, 3, 1)
    again.restore(replay.state())
    for i in (10, 11, 12):
        replay.add(transition(i), [False] * 2)
        again.add(transition(i), [False] * 2)
    np.testing.assert_array_equal(replay.sample(generators(), (99,)).reward, again.sample(generators(), (99,)).reward)


def test_bytes_are_what_is_allocated():
    replay = filled(0, capacity=1000)
    assert replay.nbytes == sum(leaf.nbytes for leaf in replay.data) + replay.last.nbytes


def test_a_capacity_beyond_memory_is_refused_with_what_fits():
    with pytest.raises(SettingError, match=r"config\.replay_capacity=1000000000000 .* at most \d+ transitions fit"):
        HostReplay(1, 10**12, 100, 10)


GAMMA = 0.5


class Story:
    """Episodes of one environment, told step by step: observation t, reward t + 1, ends at random."""

    def __init__(self, steps, seed):
        rng = np.random.default_rng(seed)
        self.terminated, truncated = rng.random(steps) < 0.15, rng.random(steps) < 0.1
        self.last = self.terminated | truncated

    def transition(self, t):
        return Transition(np.full(3, t), np.full(1, t), t + 1.0, 1.0 - self.terminated[t], np.full(3, t + 0.5))

    def n_step(self, t, n, newest):
        """(reward, discount, next observation) by the definition, for the transition of step t."""
        reward, k = t + 1.0, 0
        while k + 1 < n and not self.last[t + k] and t + k < newest:
            k += 1
            reward += GAMMA**k * (t + k + 1.0)
        return reward, GAMMA**k * (1.0 - self.terminated[t + k]), t + k + 0.5


@pytest.mark.parametrize("steps", [6, 20, 47])  # not full, just full, gone round twice
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_n_step_transitions_on_the_host_are_those_of_the_definition(steps, n):
    stories, replay = [Story(steps, seed) for seed in range(2)], HostReplay(2, 20, 3, 1)
    for t in range(steps):
        transition = jax.tree.map(lambda *leaves: np.stack(leaves), *(story.transition(t) for story in stories))
        replay.add(transition, np.array([story.last[t] for story in stories]))
    again = HostReplay(2, 20, 3, 1)
    again.restore(replay.state())
    batch = again.sample(generators(), (300,), n, GAMMA)
    for s, story in enumerate(stories):
        check(story, n, steps - 1, jax.tree.map(lambda leaf, s=s: leaf[s], batch))


@pytest.mark.parametrize("blocks", [1, 4, 9])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("n", [1, 3])
def test_n_step_transitions_on_the_device_follow_each_environment(blocks, num_envs, n):
    block, capacity = 6 * num_envs, 24 * num_envs
    steps = 6 * blocks
    stories = [Story(steps, seed) for seed in range(num_envs)]
    ring = device.device_replay(capacity, 3, 1)
    for b in range(blocks):
        rows = [(stories[e], t, 1000 * e) for t in range(6 * b, 6 * b + 6) for e in range(num_envs)]
        told = [story.transition(t) for story, t, _ in rows]
        told = [one._replace(action=one.action + shift) for one, (*_, shift) in zip(told, rows, strict=True)]
        new = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), jnp.float32), *told)
        last = jnp.asarray([story.last[t] for story, t, _ in rows])
        ring = device.add(ring, Ring(new, last), jnp.uint32(b * block))
    total = jnp.uint32(blocks * block)
    batch = jax.jit(device.sample, static_argnums=(3, 4, 6))(ring, jax.random.key(0), total, (300,), n, GAMMA, num_envs)
    batch = jax.tree.map(np.asarray, batch)
    for e, story in enumerate(stories):
        own = batch.action[:, 0] // 1000 == e
        assert own.any()
        check(story, n, steps - 1, jax.tree.map(lambda leaf, own=own: leaf[own], batch))


def check(story, n, newest, batch):
    """Every row is the n-step transition of its first step."""
    columns = batch.observation[..., 0], batch.reward, batch.discount, batch.next_observation[..., 0]
    for t, *found in zip(*map(np.asarray, columns), strict=True):
        np.testing.assert_allclose(found, story.n_step(int(t), n, newest), rtol=1e-6)
