"""Environments that are unusual, or that break Gymnasium's interface; registered with Gymnasium on import."""

from typing import ClassVar

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


class Sees(Odd):
    """Observes what it is given, in a space that it is given."""

    def __init__(self, space, value):
        self.observation_space, self.value = space, value

    def observe(self):
        return self.value


class Acts(Odd):
    def __init__(self, space):
        self.action_space = space


class Gives(Odd):
    """Returns from step what it is given, with a valid observation in place of "o"; so does reset."""

    def __init__(self, step=("o", 1.0, False, False, {}), reset=("o", {})):
        super().__init__()
        self.given = {"step": step, "reset": reset}

    def _give(self, method):
        given = self.given[method]
        fill = lambda part: self.observe() if isinstance(part, str) and part == "o" else part  # noqa: E731
        return tuple(map(fill, given)) if isinstance(given, tuple) else fill(given)

    def reset(self, *, seed=None, options=None):
        return self._give("reset")

    def step(self, action):
        return self._give("step")


class ResetWithoutSeed(Odd):
    def reset(self):
        return self.observe(), {}


class Raises(Odd):
    """Fails after so many steps."""

    def __init__(self, after=0):
        super().__init__()
        self.left = after

    def step(self, action):
        if not self.left:
            raise RuntimeError("the robot is\non fire")
        self.left -= 1
        return super().step(action)


class Draws(Odd):
    """Pictures of its own making: the step counts in the red of a grey field; three steps an episode."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, picture=None, render_mode=None):
        super().__init__()
        self.picture, self.render_mode, self.time = picture, render_mode, 0

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.time += 1
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.time == 3, False, info

    def render(self):
        if self.picture is not None:
            return self.picture
        picture = np.full((32, 48, 3), 128, np.uint8)
        picture[..., 0] = 60 * self.time
        return picture


class CannotDraw(Draws):
    def render(self):
        raise OSError("no paint\nat all")


class NoSpaces(Odd):
    observation_space = None


for kind in list(globals().values()):
    if isinstance(kind, type) and issubclass(kind, Odd):
        gymnasium.register(f"{kind.__name__}-v0", entry_point=kind)
gymnasium.register("GivesLimited-v0", entry_point=Gives, max_episode_steps=30)
# Versions of one name: the newest needs a package that nobody has, the one before has a space that no agent takes.
gymnasium.register("Versioned-v9", entry_point="no_such_package:Env")
gymnasium.register("Versioned-v8", entry_point=Acts, kwargs={"space": gymnasium.spaces.MultiBinary(2)})
gymnasium.register("Versioned-v2", entry_point=Odd)
gymnasium.register("Versioned-v10", entry_point=Odd)
