"""Gymnasium environments, which run on the CPU."""

from __future__ import annotations

import copy
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from preqn_jax.envs import interface
from preqn_jax.envs.config import EnvConfig
from preqn_jax.envs.suggestions import suggest
from preqn_jax.settings import SettingError, first_line
from preqn_jax.types import NonFiniteError

Float = np.ndarray
LARGEST = 1e18  # the sum over a minibatch of squares of larger values would overflow float32


class Step(NamedTuple):
    """The outcome of one action.

    Attributes:
      observation: successor observation before any reset, ``[O]`` float32.
      reward: reward.
      terminated: whether the task terminated, so that a target does not bootstrap.
      truncated: whether a time limit ended the episode, so that a target bootstraps.
    """

    observation: Float
    reward: float
    terminated: bool
    truncated: bool


class Episode(NamedTuple):
    """Determines the state of an environment: the number of the episode and its actions so far, ``[t, A]``."""

    number: int
    actions: Float


class HostEnv:
    """One Gymnasium environment, with continuous actions rescaled to [-1, 1] and discrete actions as one-hot vectors.

    Episode n starts from a reset seeded by (seed, n), independently of earlier episodes. The state of an environment is
    therefore a function of (seed, n, actions since the reset). Checkpoints store these instead of the state of the
    simulator, which is exact and works for any environment.
    """

    def __init__(
        self,
        env_id: str,
        seed: Sequence[int],
        render_mode: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        reset_options: Mapping[str, Any] | None = None,
        time_limit: int = 0,
    ):
        """Creates the environment; call :meth:`reset` before :meth:`step`.

        The methods raise NonFiniteError if the environment returns a value that float32 cannot represent.

        Args:
          env_id: a Gymnasium id.
          seed: seed from which the seeds of all episodes are derived.
          render_mode: "rgb_array" to enable :meth:`render`; None does not pass this argument to the constructor.
          kwargs: additional arguments of the environment's constructor.
          reset_options: ``options`` of every reset.
          time_limit: steps after which an episode is truncated; 0 uses the registered time limit.

        Raises:
          SettingError: if the id is unknown, its package is missing, or its spaces are not supported.
        """
        render = {"render_mode": render_mode} if render_mode else {}
        # This replaces a registered time limit, as in the backends on the device.
        limit = {"max_episode_steps": time_limit} if time_limit else {}
        self._id, self._env = env_id, _make(env_id, {**(kwargs or {}), **render, **limit})
        self._seed = seed
        self._reset_options = dict(reset_options or {})
        self._number = -1
        self._actions: list[Float] = []
        self._space, self._observations = self._env.action_space, self._env.observation_space
        self.observation_size = gymnasium.spaces.flatdim(self._observations)
        self.action_size = size(self._space)
        self._to_space = to_space(self._space)

    def reset(self, number: int | None = None) -> Float:
        """Starts episode ``number``, by default the next one; returns its first observation ``[O]``.

        Raises:
          SettingError: if the environment fails, or violates Gymnasium's interface.
        """
        self._number = self._number + 1 if number is None else number
        self._actions = []
        seed = np.random.SeedSequence([*self._seed, self._number]).generate_state(1)[0]
        options = copy.deepcopy(self._reset_options)  # the environment may modify its argument
        observation, _ = interface.call(self._id, self._env, "reset", seed=int(seed), options=options or None)
        return self._flat(observation)

    def step(self, action: Float) -> Step:
        """Takes one step with an action ``[A]``, in [-1, 1] or one-hot.

        Raises:
          SettingError: if the environment fails, or violates Gymnasium's interface.
        """
        action = np.array(action, np.float32)
        self._actions.append(action)
        result = interface.call(self._id, self._env, "step", self._to_space(action))
        observation, reward, terminated, truncated, _ = result
        self._check_finite("a reward", reward)
        return Step(self._flat(observation), float(reward), bool(terminated), bool(truncated))

    def _flat(self, observation: Any) -> Float:
        with np.errstate(over="ignore"):  # an overflow gives inf, which is checked below
            flat = interface.flat(self._observations, observation)
        self._check_finite("an observation", flat)
        return flat

    def _check_finite(self, quantity: str, value: Any) -> None:
        numbers = np.asarray(value, np.float64)
        sound = np.abs(numbers) < LARGEST  # false for a NaN
        if not sound.all():
            raise NonFiniteError(
                f"{self._id} returned {quantity} with the value {numbers[~sound].flat[0]:g} for seed {self._seed[0]} "
                f"in step {len(self._actions)} of episode {self._number}"
            )

    @property
    def observation_space(self) -> gymnasium.Space:
        """The observation space of the Gymnasium environment."""
        return self._observations

    @property
    def action_space(self) -> gymnasium.Space:
        """The action space of the Gymnasium environment."""
        return self._space

    @property
    def discrete(self) -> bool:
        """Whether actions are discrete, given as one-hot vectors."""
        return isinstance(self._space, Discrete)

    @property
    def caveats(self) -> list[str]:
        """Remarks on this environment for the user, one line each."""
        lines, layers = [], list(_layers(self._env))
        if not any(isinstance(layer, gymnasium.wrappers.TimeLimit) for layer in layers):
            lines.append(
                f"{self._id} has no time limit: an episode that does not terminate never ends; set a limit with "
                "--config.env.time_limit=1000"
            )
        if running := [type(layer).__name__ for layer in layers if _has_statistics(layer)]:
            lines.append(
                f"{self._id} keeps running statistics ({', '.join(running)}) in each environment: training, "
                "evaluations and rollouts do not share them, and a resumed run starts with new ones"
            )
        return lines

    def random_action(self, generator: np.random.Generator) -> Float:
        """Samples an action ``[A]`` uniformly."""
        if self.discrete:
            return np.eye(self.action_size, dtype=np.float32)[generator.integers(self.action_size)]
        return generator.uniform(-1.0, 1.0, self.action_size).astype(np.float32)

    @property
    def episode(self) -> Episode:
        """The current episode and its actions so far, for :meth:`restore`."""
        actions = np.array(self._actions, np.float32).reshape(-1, self.action_size)
        return Episode(self._number, actions)

    def restore(self, episode: Episode) -> tuple[Float, float]:
        """Replays an :class:`Episode`; returns its last observation ``[O]`` and its return so far."""
        observation, total = self.reset(episode.number), 0.0
        for action in episode.actions:
            step = self.step(action)
            observation, total = step.observation, total + step.reward
        return observation, total

    def render(self) -> np.ndarray:
        """Renders the current frame, ``[height, width, 3]`` uint8; needs render_mode="rgb_array".

        Raises:
          SettingError: if the environment returns anything else.
        """
        picture = np.asarray(self._env.render())
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            got = f"shape {picture.shape} and type {picture.dtype}"
            raise SettingError(f"config.env.id={self._id}: render() returned an array of {got}; Gymnasium's "
                               "rgb_array has shape [height, width, 3] and type uint8")  # fmt: skip
        return picture

    @property
    def render_modes(self) -> tuple[str, ...]:
        """The render modes in the metadata of the environment."""
        return tuple(self._env.metadata.get("render_modes") or ())

    @property
    def unwrapped(self) -> gymnasium.Env:
        """The Gymnasium environment without wrappers."""
        return self._env.unwrapped

    @property
    def frames_per_second(self) -> int:
        """Frame rate of :meth:`render` in real time [1/s]."""
        return self._env.metadata.get("render_fps") or 30

    def close(self) -> None:
        """Closes the Gymnasium environment."""
        self._env.close()


def make(config: EnvConfig, seed: Sequence[int], render_mode: str | None = None) -> HostEnv:
    """Creates the configured environment; for the other arguments see :class:`HostEnv`."""
    return HostEnv(config.id, seed, render_mode, config.kwargs, config.reset_options, config.time_limit)


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    """The wrappers of an environment, outermost first, followed by the environment itself."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env


def _has_statistics(layer: gymnasium.Env) -> bool:
    """Whether a wrapper has an attribute with the interface of Gymnasium's RunningMeanStd."""
    return any(
        all(hasattr(value, name) for name in ("mean", "var", "count", "update")) for value in vars(layer).values()
    )


def _make(env_id: str, kwargs: Mapping[str, Any]) -> gymnasium.Env:
    if env_id not in gymnasium.registry and ":" not in env_id:
        _register_plugin(env_id, kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # v4 tasks are deliberately selectable
        try:
            env = gymnasium.make(env_id, **{"disable_env_checker": True, **kwargs})
        except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:  # "<module>:<Id>"
            raise SettingError(f"config.env.id={env_id} is unknown{suggest(env_id, kwargs)}") from error
        except Exception as error:  # any exception of a third-party constructor becomes one line for the user
            line = first_line(error)
            if isinstance(error, TypeError) and "argument" in line:
                line += "; set arguments in env.kwargs (--config.env.kwargs.<name>=<value>)"
            others = suggest(env_id, kwargs, versions_alone=True)
            raise SettingError(f"config.env.id={env_id} cannot be created: {line}{others}") from error
    interface.check_spaces(env_id, env)
    return _ForgetsLastAction(env) if env_id.startswith("MinAtar/") else env


def _register_plugin(env_id: str, kwargs: Mapping[str, Any]) -> None:
    """Registers the environments of the package that provides "Namespace/..."; Gymnasium 1 does not do this itself.

    Raises:
      SettingError: if there is no such package, or it does not provide ``env_id``.
    """
    namespace, slash, _ = env_id.rpartition("/")
    if not (known := _ids_below(namespace + slash)):
        for plugin in importlib.metadata.entry_points(group="gymnasium.envs", name=namespace):
            try:
                plugin.load()()
            except Exception as error:  # third-party code may raise anything
                raise SettingError(f"config.env.id={env_id}: {plugin.value} cannot register {namespace}/...: "
                                   f"{first_line(error)}") from error  # fmt: skip
        known = _ids_below(namespace + slash)
    if not known:
        remedy = "; pip install MinAtar" if namespace == "MinAtar" else ""
        raise SettingError(f"config.env.id={env_id}: no installed package provides {namespace}/...{remedy}")
    if env_id not in known:
        raise SettingError(f"config.env.id={env_id} is unknown{suggest(env_id, kwargs)}")


def _ids_below(prefix: str) -> list[str]:
    return [name for name in gymnasium.registry if name.startswith(prefix)]


class _ForgetsLastAction(gymnasium.Wrapper):
    """Resets MinAtar's last action, which its sticky actions would otherwise carry over to the next episode."""

    def reset(self, **options: Any) -> Any:
        """Starts an episode that depends only on its seed."""
        cast(Any, self.unwrapped).game.last_action = 0
        return super().reset(**options)


def size(actions: gymnasium.Space) -> int:
    """The action size A: the number of entries of a Box, or the number of actions of a Discrete space."""
    if isinstance(actions, Discrete):
        return int(actions.n)
    assert isinstance(actions, Box)
    return actions.low.size


def to_space(space: gymnasium.Space) -> Callable[[Float], Any]:
    """Returns the function that converts an agent's action ``[A]`` to an element of the action space."""
    if isinstance(space, Discrete):
        return lambda action: int(space.start) + int(action.argmax())
    assert isinstance(space, Box)
    if np.issubdtype(space.dtype, np.integer):
        return _to_integers(space)
    low, high = space.low, space.high
    with np.errstate(over="ignore"):
        width = high - low
    if np.all(np.isfinite(width)):

        def scale(action: Float) -> Any:
            scaled = low + 0.5 * (action.reshape(space.shape) + 1.0) * width
            return np.clip(scaled, low, high).astype(space.dtype)

        return scale

    # high - low may overflow; a weighted mean of low and high does not.
    def mean(action: Float) -> Any:
        share = 0.5 * (action.reshape(space.shape) + 1.0)
        return np.clip((1.0 - share) * low + share * high, low, high).astype(space.dtype)

    return mean


def _to_integers(space: Box) -> Callable[[Float], Any]:
    """Like :func:`to_space`, for a Box of integers: each of them has an equal part of [-1, 1]."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)

    def number(action: Float) -> Any:
        share = 0.5 * (action.reshape(space.shape).astype(np.float64) + 1.0)
        found = np.floor(low + share * (high - low + 1.0))
        inside = (found > low) & (found < high)  # the bounds of wide Boxes cannot all be represented as floats
        integer = np.where(inside, found, 0.0).astype(space.dtype)
        return np.where(inside, integer, np.where(found < high, space.low, space.high))

    return number
