"""The probes of ``tests/probes.py`` as pure functions, with the interface of Brax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class State(NamedTuple):
    obs: Any
    reward: Any
    done: Any
    time: Any
    key: Any


class Probe:
    """Observation: the time left, and a coin; one action in [-1, 1]."""

    observation_size, action_size = 2, 1

    def __init__(self, length=1, reward=lambda action, last: jnp.ones(()), terminates=True):
        self._length, self._reward, self._terminates = length, reward, terminates

    def _observe(self, time, key):
        coin = jax.random.bernoulli(jax.random.fold_in(key, time)) * 2.0 - 1.0
        return jnp.stack([(self._length - time) / self._length, coin])

    def reset(self, rng):
        time = jnp.zeros((), jnp.int32)
        return State(self._observe(time, rng), jnp.zeros(()), jnp.zeros(()), time, rng)

    def step(self, state, action):
        time = state.time + 1
        last = time == self._length
        reward = self._reward(action[0], last).astype(jnp.float32)
        done = (last & self._terminates).astype(jnp.float32)
        return State(self._observe(time, state.key), reward, done, time, state.key)


class Breaks(Probe):
    """Three steps to a time limit; at the second something that is no physics comes out, once or for good."""

    def __init__(self, observation=1.0, reward=1.0, done=0.0):
        super().__init__(length=3, terminates=False)
        self._numbers = observation, reward, done

    def step(self, state, action):
        after, broken = super().step(state, action), state.time == 1
        numbers = zip((after.obs, after.reward, after.done), self._numbers, strict=True)
        obs, reward, done = (jnp.where(broken, odd, number) for number, odd in numbers)
        return after._replace(obs=obs, reward=reward, done=done)


class NanReset(Probe):
    def _observe(self, time, key):
        return super()._observe(time, key) * jnp.nan


def at_the_end(action, last):
    return last


def best_at_a_half(action, last):
    return 1.0 - (action - 0.5) ** 2


PROBES = {
    "one": (Probe(), 10),
    "delayed": (Probe(length=2, reward=at_the_end), 10),
    "truncated": (Probe(length=3, terminates=False), 3),
    "action": (Probe(reward=best_at_a_half), 10),
    "nan": (Breaks(observation=jnp.nan, reward=jnp.nan), 3),
    "nan_reset": (NanReset(), 3),
    "nan_and_done": (Breaks(observation=jnp.nan, done=1.0), 3),
    "infinite_reward": (Breaks(reward=-jnp.inf), 3),
    "huge": (Breaks(observation=1e11), 3),
}
