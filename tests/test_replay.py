import numpy as np
import pytest

from preqn_jax.replay import HostReplay
from preqn_jax.settings import SettingError
from preqn_jax.types import Transition


def transition(i, seeds=2):
    value = i + 100.0 * np.arange(seeds)
    return Transition(np.stack([value] * 3, 1), value[:, None], value, np.ones(seeds), np.stack([value + 1] * 3, 1))


def filled(count, capacity=5):
    replay = HostReplay(2, capacity, 3, 1)
    for i in range(count):
        replay.add(transition(i))
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
        replay.add(transition(i))
        again.add(transition(i))
    np.testing.assert_array_equal(replay.sample(generators(), (99,)).reward, again.sample(generators(), (99,)).reward)


def test_bytes_are_what_is_allocated():
    replay = filled(0, capacity=1000)
    assert replay.nbytes == sum(leaf.nbytes for leaf in replay.data)


def test_a_capacity_beyond_memory_is_refused_with_what_fits():
    with pytest.raises(SettingError, match=r"config\.replay_capacity=1000000000000 .* at most \d+ transitions fit"):
        HostReplay(1, 10**12, 100, 10)
