"""Configurations by name ``<agent>_<environment>``, from the tables of agents and of environments."""

from __future__ import annotations

from preqn_jax.agents import AGENTS
from preqn_jax.envs import ENVS
from preqn_jax.settings import SettingError, unknown
from preqn_jax.train import Config, EnvConfig

DEFAULT = "preqn_ant"


def names() -> list[str]:
    """All names that :func:`get_config` knows."""
    return [f"{agent}_{env}" for agent in AGENTS for env in ENVS]


def get_config(name: str) -> Config:
    """The configuration of a name.

    Raises:
      SettingError: for a name that is in neither table, with the nearest that is.
    """
    if name not in names():
        raise SettingError(unknown("--config", name, names()))
    agent, _, env = name.rpartition("_")
    return Config(agent=AGENTS[agent].config(), algorithm=agent, env=EnvConfig(id=ENVS[env]))
