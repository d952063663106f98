"""Environments so small that the right values are known; registered with Gymnasium on import."""

import gymnasium
import numpy as np


class Probe(gymnasium.Env):
    """Observation: the time left, and a coin; one action in [-1, 1]."""

    action_space = gymnasium.spaces.Box(-2.0, 6.0, (1,), np.float32)
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, length=1, reward=lambda action, last: 1.0, terminates=True, render_mode=None):
        self._length, self._reward, self._terminates = length, reward, terminates
        self.render_mode = render_mode

    def _observe(self):
        coin = self.np_random.integers(2) * 2.0 - 1.0
        left = (self._length - self._step) / self._length if self._length else 1.0
        return np.array([left, coin], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step = 0
        return self._observe(), {}

    def step(self, action):
        self._step += 1
        last = self._step == self._length
        reward = self._reward(float(action[0]), last)
        return self._observe(), reward, last and self._terminates, last and not self._terminates, {}


class FaultyProbe(Probe):
    """In step ``at`` of the process one number is another; in none at -1."""

    steps, at, quantity, value = 0, -1, "reward", float("nan")

    def _observe(self):
        odd = self.quantity == "observation" and FaultyProbe.steps == FaultyProbe.at
        return np.array([self.value, 1.0]) if odd else super()._observe()

    def step(self, action):
        FaultyProbe.steps += 1
        observation, reward, *rest = super().step(action)
        odd = self.quantity == "reward" and FaultyProbe.steps == FaultyProbe.at
        return observation, self.value if odd else reward, *rest


class ForgetfulProbe(Probe):
    """Depends on everything that came before in the process, which no seed brings back."""

    before = 0

    def __init__(self, hidden="observation"):
        super().__init__(length=4)
        self._hidden = hidden

    def step(self, action):
        ForgetfulProbe.before += 1
        observation, reward, *rest = super().step(action)
        if self._hidden == "error" and ForgetfulProbe.before == -999:
            raise RuntimeError("not that action")
        shift = np.float32(ForgetfulProbe.before / 1000)
        return observation + shift * (self._hidden == "observation"), reward + shift * (self._hidden == "reward"), *rest


class ChoiceProbe(Probe):
    """With three discrete actions."""

    action_space = gymnasium.spaces.Discrete(3, start=5)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(np.array([action], np.float32))


class UnfitProbe(Probe):
    """With actions of a kind that no agent has."""

    action_space = gymnasium.spaces.MultiDiscrete([2, 2])


def at_the_end(action, last):
    return float(last)


def best_at_four(action, last):
    return 1.0 - ((action - 4.0) / 4.0) ** 2


def best_at_six(action, last):
    return float(action == 6.0)


PROBES = {
    "ProbeOne-v0": {},
    "ProbeDelayed-v0": {"length": 2, "reward": at_the_end},
    "ProbeTruncated-v0": {"terminates": False},
    "ProbeEndless-v0": {"length": 0},
    "ProbeAction-v0": {"reward": best_at_four},
}
for probe_id, options in PROBES.items():
    limit = None if probe_id == "ProbeEndless-v0" else 9
    gymnasium.register(probe_id, entry_point=Probe, kwargs=options, max_episode_steps=limit)
gymnasium.register("ProbeFaulty-v0", entry_point=FaultyProbe, kwargs={"length": 3}, max_episode_steps=9)
gymnasium.register("ProbeForgetful-v0", entry_point=ForgetfulProbe, max_episode_steps=9)
gymnasium.register(
    "ProbeNormalized-v0",
    entry_point=lambda **options: gymnasium.wrappers.NormalizeObservation(Probe(length=4, **options)),
    max_episode_steps=9,
)
gymnasium.register("ProbeChoice-v0", entry_point=ChoiceProbe, kwargs={"reward": best_at_six})
gymnasium.register("ProbeUnfit-v0", entry_point=UnfitProbe)
