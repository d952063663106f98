"""Environments that run on the device of the agent: pure functions of N parallel environments."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.envs import make_mjx
from preqn_jax.envs.config import EnvConfig
from preqn_jax.ops.conditionals import update_if
from preqn_jax.settings import SettingError, first_line, spell, unknown
from preqn_jax.types import Array

BRAX_TIME_LIMIT = 1000  # the value in Brax's own training; its environments have no time limit
LARGEST = 1e10  # a simulation with larger values has diverged; C MuJoCo has the same bound, mjMAXVAL


class EnvState(NamedTuple):
    """The state of N environments; every leaf has the leading axis N.

    Attributes:
      inner: state of the wrapped environment.
      observation: current observations, ``[N, O]`` float32.
      steps: number of steps since the reset, ``[N]`` int32.
    """

    inner: Any
    observation: Array
    steps: Array


class Outcome(NamedTuple):
    """The outcome of one action in each of N environments.

    Attributes:
      observation: successor observations before any reset, ``[N, O]`` float32.
      reward: rewards, ``[N]`` float32.
      terminated: whether the task terminated, so that a target does not bootstrap, ``[N]`` bool.
      truncated: whether a time limit or a diverged simulation ended the episode, so that a target bootstraps, ``[N]``
        bool.
      broken: whether the simulation diverged, that is, returned a NaN or a value beyond ``LARGEST``, ``[N]`` bool. The
        successor observation is then the previous observation, and the reward is 0.
    """

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    broken: Array


class DeviceEnv(NamedTuple):
    """An environment as pure functions.

    Attributes:
      reset: keys ``[N]`` -> states of new episodes.
      step: (states, actions ``[N, A]`` in [-1, 1]) -> (states, outcome); it does not reset at the end of an episode.
      observation_size: O.
      action_size: A.
      time_limit: steps after which an episode is truncated.
    """

    reset: Callable[[Array], EnvState]
    step: Callable[[EnvState, Array], tuple[EnvState, Outcome]]
    observation_size: int
    action_size: int
    time_limit: int


def make(config: EnvConfig) -> DeviceEnv:
    """Creates the configured environment.

    Raises:
      SettingError: if the name is unknown (the message suggests the nearest known name), or a package is missing.
    """
    env, own_time_limit = {"mjx": _mjx, "brax": _brax, "playground": _playground}[config.backend](config)
    try:
        return from_brax(env, config.time_limit or own_time_limit)
    except SettingError as error:
        raise SettingError(f"config.env.id={config.id}: {error}") from None


def step_and_restart(env: DeviceEnv, state: EnvState, action: Array, keys: Array) -> tuple[EnvState, Outcome]:
    """Steps all environments and resets those whose episode ended; each reset is a new draw, not a cached state."""
    state, outcome = env.step(state, action)
    return update_if(outcome.terminated | outcome.truncated, lambda state: env.reset(keys), state), outcome


def from_brax(env: Any, time_limit: int) -> DeviceEnv:
    """Converts an unwrapped environment with the interface of ``brax.envs.Env``, where ``done`` means termination.

    Args:
      env: the environment.
      time_limit: number of steps after which an episode is truncated.

    Raises:
      SettingError: if its observations are not vectors, or its reward is not a scalar.
    """

    def observe(inner: Any) -> Array:
        observation = inner.obs
        if isinstance(observation, Mapping):
            if "state" not in observation:
                raise SettingError(f"observations with the entries {', '.join(observation)} are not supported; "
                                   "allowed: vectors, or an entry named state")  # fmt: skip
            observation = observation["state"]  # MuJoCo Playground's name for the policy's observation
        return observation.astype(jnp.float32)

    def reset(keys: Array) -> EnvState:
        # Raw keys, since an environment may store them in its state, and checkpoints contain plain arrays only.
        inner = jax.vmap(env.reset)(jax.random.key_data(keys))
        return EnvState(inner, observe(inner), jnp.zeros(keys.shape, jnp.int32))

    def step(state: EnvState, action: Array) -> tuple[EnvState, Outcome]:
        inner, steps = _like(state.inner, jax.vmap(env.step)(state.inner, action)), state.steps + 1
        observation, reward = observe(inner), inner.reward.astype(jnp.float32)
        sound = (jnp.abs(observation) < LARGEST).all(axis=-1) & (jnp.abs(reward) < LARGEST)  # false for a nan
        observation, reward = jnp.where(sound[:, None], observation, state.observation), jnp.where(sound, reward, 0.0)
        terminated = inner.done.astype(bool) & sound
        truncated = ((steps >= time_limit) | ~sound) & ~terminated
        return EnvState(inner, observation, steps), Outcome(observation, reward, terminated, truncated, ~sound)

    start = jax.eval_shape(reset, jax.random.split(jax.random.key(0), 1))
    if len(shape := start.observation.shape) != 2 or shape[1] == 0:
        raise SettingError(f"observations of shape {shape[1:]} are not supported; allowed: vectors")
    for name in ("reward", "done"):
        if len(shape := getattr(start.inner, name).shape) != 1:
            raise SettingError(f"a {name} of shape {shape[1:]} violates Brax's interface; allowed: scalars")
    return DeviceEnv(reset, step, start.observation.shape[1], env.action_size, time_limit)


def _like(before: Any, after: Any) -> Any:
    """``after`` with the dtypes of ``before``: if JAX uses float64, a step may return other dtypes than a reset."""
    return jax.tree.map(lambda old, new: new if new.dtype == old.dtype else new.astype(old.dtype), before, after)


def _mjx(config: EnvConfig) -> tuple[Any, int]:
    iterations = config.solver_iterations or None
    env = make_mjx(config.id, iterations=iterations, ls_iterations=iterations)
    return env, env.time_limit


def _brax(config: EnvConfig) -> tuple[Any, int]:
    envs = _import("brax.envs", "brax", "pip install brax")
    _check_known(config.id, envs._envs)
    try:
        return envs.get_environment(config.id, **config.kwargs), BRAX_TIME_LIMIT
    except Exception as error:  # any exception of a constructor becomes one line for the user
        raise SettingError(f"config.env.id={config.id} cannot be created with config.env.kwargs="
                           f"{spell(config.kwargs)}: {first_line(error)}") from error  # fmt: skip


def _playground(config: EnvConfig) -> tuple[Any, int]:
    registry = _import("mujoco_playground", "playground", "pip install playground").registry
    _check_known(config.id, registry.ALL_ENVS)
    options = registry.get_default_config(config.id)
    if "impl" in options:  # MJX's implementation; the default, Warp, requires NVIDIA devices
        options.impl = "jax"
    return registry.load(config.id, options), options.episode_length


def _import(module: str, backend: str, remedy: str) -> ModuleType:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that Warp, which is not needed here, is missing
            return importlib.import_module(module)
    except ImportError as error:
        raise SettingError(
            f"config.env.backend={backend} needs a package that is not installed ({error}); {remedy}"
        ) from None


def _check_known(env_id: str, known: Iterable[str]) -> None:
    if env_id not in known:
        raise SettingError(unknown("config.env.id", env_id, known))
