"""Predefined configurations, named ``<agent>_<environment>``."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Set
from typing import Any

from preqn_jax import settings
from preqn_jax.agents import AGENTS
from preqn_jax.envs import DISCRETE_ENVS, ENVS
from preqn_jax.envs.config import EnvConfig
from preqn_jax.settings import Leaf, Options, SettingError, find, leaves, parse, replace, unknown
from preqn_jax.training.config import Config

DEFAULT = "preqn_ant"
# preqn_tuned_<environment>: PreQN with values that perform better than the paper's there (docs/results/).
TUNED = dict.fromkeys(("ant", "halfcheetah"), ("agent.step_size=0.03",))
# A shorter schedule than MuJoCo's, for tasks that are solved in minutes.
SHORT = ("total_steps=50000", "start_steps=1000", "update_after=1000", "evaluate_every=2500")
SCHEDULES = {"acrobot": SHORT, "cartpole": SHORT, "mountaincar": SHORT}
# Fields that only agents with normalized observations used, up to version 0.2.
_REMOVED_NORMALIZATION = {"agent.observation_moment", "agent.observation_power"}
CONFIG_FILE = "config.json"  # in every work directory: the resolved configuration, versions and hardware


def names() -> list[str]:
    """All names that :func:`get_config` knows."""
    fitting = [f"{agent}_{env}" for agent, config in AGENTS.items() for env in _envs(config.discrete)]
    return fitting + [f"preqn_tuned_{env}" for env in TUNED]


def _envs(discrete: bool) -> dict[str, str]:
    """The environments with discrete, or with continuous, actions."""
    return DISCRETE_ENVS if discrete else ENVS


def get_config(name: str) -> Config:
    """Returns the predefined configuration with this name.

    Raises:
      SettingError: if the name is unknown; the message suggests the nearest known name.
    """
    if name not in names():
        raise SettingError(unknown("--config", name, names()))
    agent, _, env = name.rpartition("_")
    overrides = (*SCHEDULES.get(env, ()), *(TUNED[env] if agent == "preqn_tuned" else ()))
    agent = agent.removesuffix("_tuned")
    agent_config = AGENTS[agent]()
    config = Config(agent=agent_config, env=EnvConfig(id=_envs(agent_config.discrete)[env]))
    return functools.reduce(override, overrides, config)


def override(config: Config, assignment: str) -> Config:
    """Returns a copy of a configuration with one field changed.

    Args:
      config: the configuration.
      assignment: ``<path>=<value>``, for example ``agent.min_alignment=0.9``.

    Raises:
      SettingError: if the field is unknown (the message suggests the nearest known field) or the value is invalid.
    """
    path, _, text = assignment.partition("=")
    return replace(config, path, parse(find(config, path), text))


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads the configuration of a run from its work directory, as a nested dict.

    Raises:
      SettingError: if the directory holds no run.
    """
    try:
        config = json.loads((workdir / CONFIG_FILE).read_text())["config"]
        if isinstance(config, dict):
            return config
        raise TypeError
    except OSError:
        raise SettingError(f"--workdir={workdir} holds no run: it has no {CONFIG_FILE}") from None
    except (ValueError, KeyError, TypeError):
        raise SettingError(
            f"{workdir / CONFIG_FILE} is not the configuration of a run; choose another --workdir"
        ) from None


def to_dict(config: Config) -> dict[str, Any]:
    """Converts a configuration to a nested dict for JSON; ``algorithm`` is the name of the agent."""
    return {"algorithm": config.agent.name, **settings.to_dict(config)}


def from_dict(values: dict[str, Any]) -> Config:
    """Converts a dict of :func:`to_dict`, after it was stored as JSON, to a :class:`Config`.

    Raises:
      SettingError: if another version of this library wrote it, or a value is invalid.
    """
    try:
        config = Config(agent=AGENTS[str(values["algorithm"])]())
        for leaf in list(leaves(config)):
            config = replace(config, leaf.path, recorded(values, leaf))
    except KeyError as error:
        raise SettingError(
            f"the run's configuration has no {error}: another version of preqn_jax wrote it; use that version"
        ) from None
    check_fields(values, config)
    settings.check(config)
    return config


def check_fields(values: dict[str, Any], config: Config) -> None:
    """Raises SettingError if such a dict has a field that ``config`` does not have, whose effect would be lost."""
    known = {"algorithm"}
    if not config.agent.normalize_observations:
        known |= _REMOVED_NORMALIZATION
    for leaf in leaves(config):
        known.add(leaf.path)
        if leaf.rule.formerly:
            owner, dot, _ = leaf.path.rpartition(".")
            known.add(f"{owner}{dot}{leaf.rule.formerly}")
    for path in _paths(values, known):
        raise SettingError(
            f"the run's configuration has the field {path}, which this version of preqn_jax lacks; use the version "
            "that wrote it"
        )


def _paths(values: dict[str, Any], known: Set[str], prefix: str = "") -> Iterator[str]:
    """Yields the dotted paths in a nested dict that are neither known nor lead to a known one."""
    for name, value in values.items():
        path = prefix + name
        if isinstance(value, dict) and any(other.startswith(f"{path}.") for other in known):
            yield from _paths(value, known, f"{path}.")
        elif path not in known:
            yield path


def recorded(values: Any, leaf: Leaf) -> Any:
    """The value of a field in such a dict; raises KeyError if it is missing and its rule has no value for this case."""
    *owners, name = leaf.path.split(".")
    for owner in owners:
        if not isinstance(values := values[owner], Mapping):
            raise KeyError(owner)
    if leaf.rule.formerly and leaf.rule.formerly in values:
        name = leaf.rule.formerly
    if name not in values and leaf.rule.absent is not None:
        return leaf.rule.absent
    values = values[name]
    if isinstance(leaf.value, Options) and isinstance(values, Mapping):
        return Options(values)
    return tuple(values) if isinstance(values, list) else values
