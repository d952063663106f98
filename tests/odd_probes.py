"""Environments that are unusual, or that break Gymnasium's interface; registered with Gymnasium on import."""

import gymnasium
import numpy as np


class Odd(gymnasium.Env):
    """Observes zeros of its space; a pendulum without physics, and without render_mode."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, size=3.0):
        self.size = size

    def observe(self):
        return np.full(3, self.size, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        return self.observe(), 1.0, False, False, {}


class NeedsArgument(Odd):
    def __init__(self, size):
        super().__init__(size)


class NeedsOptions(Odd):
    """Starts where its options say, which it takes out of them."""

    def reset(self, *, seed=None, options=None):
        self.size = options.pop("goal")
        return super().reset(seed=seed)


for kind in list(globals().values()):
    if isinstance(kind, type) and issubclass(kind, Odd):
        gymnasium.register(f"{kind.__name__}-v0", entry_point=kind)
