"""Checks that an environment implements Gymnasium's interface; errors report in one line what it returned instead."""

from __future__ import annotations

import pathlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Box, Dict, Discrete, Tuple

from preqn_jax.settings import SettingError, first_line

_RETURNED = {  # return values of each method
    "reset": ("observation", "info"),
    "step": ("observation", "reward", "terminated", "truncated", "info"),
}
_SIGNATURES = {"reset": "reset(*, seed=None, options=None)", "step": "step(action)"}


def check_spaces(env_id: str, env: gymnasium.Env) -> None:
    """Checks that the spaces of ``env`` are supported: bounded or discrete actions, observations of fixed length.

    Raises:
      SettingError: if a space is missing, empty, or not supported; the message names it.
    """
    for name in ("action_space", "observation_space"):
        space = getattr(env, name, None)
        if not isinstance(space, spaces.Space):
            raise SettingError(f"config.env.id={env_id} needs an {name} from gymnasium.spaces, but has {_spell(space)}")
    actions, observations = env.action_space, env.observation_space
    bounded = isinstance(actions, Box) and np.all(np.isfinite([actions.low, actions.high]))
    if not bounded and not isinstance(actions, Discrete):
        raise SettingError(
            f"config.env.id={env_id} needs a bounded Box or Discrete action space, but has {_spell(actions)}"
        )
    try:
        sizes = {"action": spaces.flatdim(actions), "observation": spaces.flatdim(observations)}
    except (NotImplementedError, ValueError):
        raise SettingError(
            f"config.env.id={env_id} has observations without a fixed length: {_spell(observations)}; "
            "allowed: Box, Discrete, MultiBinary, MultiDiscrete, and Dict and Tuple of these"
        ) from None
    for name, size in sizes.items():
        if size == 0:
            space = getattr(env, f"{name}_space")
            raise SettingError(f"config.env.id={env_id} has an empty {name} space: {_spell(space)}")


def call(env_id: str, env: gymnasium.Env, method: str, *args: Any, **kwargs: Any) -> Sequence[Any]:
    """Calls ``reset`` or ``step`` of ``env`` and checks the number, shapes and types of the returned values.

    Bounds and numeric dtypes are not checked.

    Raises:
      SettingError: if the method raises an exception, or returns values that violate the interface. The message names
        the environment, the method, what it returned, and what the interface requires.
    """
    try:
        result = getattr(env, method)(*args, **kwargs)
    except Exception as error:  # any exception of a third-party environment becomes one line for the user
        below = _fault_below_the_wrappers(env, method, *args, **kwargs)
        raise SettingError(f"config.env.id={env_id}: {below or _raised(method, error)}") from error
    if fault := _wrong_number(method, result) or _wrong_part(method, result, env.observation_space):
        raise SettingError(f"config.env.id={env_id}: {method}() returned {fault}")
    return result


def flat(space: spaces.Space, observation: Any) -> np.ndarray:
    """Flattens an observation of ``space`` to a vector ``[O]`` float32."""
    if not isinstance(space, Box):
        observation = spaces.flatten(space, observation)
    return np.asarray(observation, np.float32).reshape(-1)


def misfit(space: spaces.Space, value: Any, name: str) -> str | None:
    """Describes a value that does not belong to its space, and the space; returns None if it does.

    Bounds and numeric dtypes of a Box are not checked.

    Args:
      space: the space.
      value: the value.
      name: name of the value in the description.
    """
    if isinstance(space, Dict):
        parts: dict[Any, spaces.Space] = dict(space.spaces)
        fits = isinstance(value, Mapping) and value.keys() == parts.keys()
    elif isinstance(space, Tuple):
        parts = dict(enumerate(space.spaces))
        fits = isinstance(value, tuple | list) and len(value) == len(parts)
    else:
        parts, fits = {}, _is_array(value, space.shape, "biuf") if isinstance(space, Box) else space.contains(value)
    if not fits:
        return f"{name} {_spell(value)}; its space is {_spell(space)}"
    faults = (misfit(part, value[key], f"{name} with {key!r}:") for key, part in parts.items())
    return next(filter(None, faults), None)


def _fault_below_the_wrappers(env: gymnasium.Env, method: str, *args: Any, **kwargs: Any) -> str | None:
    """Describes a wrong return value of the innermost environment, on which Gymnasium's wrappers fail."""
    try:
        result = getattr(env.unwrapped, method)(*args, **kwargs)
    except Exception:
        return None
    fault = _wrong_number(method, result)
    return fault and f"{method}() returned {fault}"


def _raised(method: str, error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{pathlib.Path(where.filename).name}:{where.lineno}"
    flag = "--config.env.reset_options.<name>=<value>"
    places = f"; its options are set in env.reset_options ({flag}), arguments of the constructor in env.kwargs"
    return (f"{method}() raised {type(error).__name__} in {place}: {first_line(error)} "
            f"(called as Gymnasium's {_SIGNATURES[method]}{places if method == 'reset' else ''})")  # fmt: skip


def _wrong_number(method: str, result: Any) -> str | None:
    expected = _RETURNED[method]
    if isinstance(result, tuple | list) and len(result) == len(expected):
        return None
    got = f"{len(result)} values" if isinstance(result, tuple | list) else f"one value of type {type(result).__name__}"
    return f"{got}; Gymnasium's interface requires {len(expected)}: {', '.join(expected)}"


def _wrong_part(method: str, result: Sequence[Any], space: spaces.Space) -> str | None:
    if fault := misfit(space, result[0], "an observation"):
        return fault
    if method == "step":
        for name, value, kinds in zip(_RETURNED[method][1:4], result[1:4], ("biuf", "biu", "biu"), strict=True):
            if not _is_array(value, (), kinds):
                required = "number" if "f" in kinds else "bool"
                return f"{name}={_spell(value)}; Gymnasium's interface requires a {required}"
    return None


def _is_array(value: Any, shape: tuple[int, ...], kinds: str) -> bool:
    try:
        array = np.asarray(value)
    except Exception:  # entries of different lengths, or an object that cannot be converted
        return False
    return array.shape == shape and array.dtype.kind in kinds


def _spell(thing: Any) -> str:
    """A short description of a space or a value."""
    if isinstance(thing, Box):
        return f"Box of shape {thing.shape} and type {thing.dtype}"
    if isinstance(thing, np.ndarray):
        value = f": {thing.tolist()}" if thing.size <= 8 else ""
        return f"of shape {thing.shape} and type {thing.dtype}{value}"
    if isinstance(thing, Mapping):
        return f"of type {type(thing).__name__} with the keys {', '.join(map(repr, thing))}"
    text = " ".join(repr(thing).split())
    return text if len(text) <= 120 else f"{text[:120]}..."
