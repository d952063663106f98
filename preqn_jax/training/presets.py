"""Configurations by name ``<agent>_<environment>``, from the tables of agents and of environments."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

from preqn_jax.agents import AGENTS
from preqn_jax.envs import DISCRETE_ENVS, ENVS
from preqn_jax.envs.config import EnvConfig
from preqn_jax.settings import Leaf, Options, SettingError, find, leaves, parse, replace, unknown
from preqn_jax.training.config import Config

DEFAULT = "preqn_ant"
# preqn_tuned_<environment>: PreQN with what docs/results/ shows to be better than the paper's values there.
TUNED = dict.fromkeys(("ant", "halfcheetah"), ("agent.step_size=0.03",))
# Tasks that are learned in minutes: a shorter schedule than MuJoCo's.
SHORT = ("total_steps=50000", "start_steps=1000", "update_after=1000", "evaluate_every=2500")
SCHEDULES = {"acrobot": SHORT, "cartpole": SHORT, "mountaincar": SHORT}
CONFIG_FILE = "config.json"  # in every work folder: the resolved configuration and what it ran with


def names() -> list[str]:
    """All names that :func:`get_config` knows."""
    fitting = [f"{agent}_{env}" for agent, entry in AGENTS.items() for env in _envs(entry.discrete)]
    return fitting + [f"preqn_tuned_{env}" for env in TUNED]


def _envs(discrete: bool) -> dict[str, str]:
    """Those whose actions are of this kind."""
    return DISCRETE_ENVS if discrete else ENVS


def get_config(name: str) -> Config:
    """The configuration of a name.

    Raises:
      SettingError: for a name that is in neither table, with the nearest that is.
    """
    if name not in names():
        raise SettingError(unknown("--config", name, names()))
    agent, _, env = name.rpartition("_")
    overrides = (*SCHEDULES.get(env, ()), *(TUNED[env] if agent == "preqn_tuned" else ()))
    agent = agent.removesuffix("_tuned")
    entry = AGENTS[agent]
    config = Config(agent=entry.config(), algorithm=agent, env=EnvConfig(id=_envs(entry.discrete)[env]))
    return functools.reduce(override, overrides, config)


def override(config: Config, assignment: str) -> Config:
    """A copy of a configuration with one field changed, ``agent.min_alignment=0.9`` for example.

    Raises:
      SettingError: for an unknown field, with the nearest that exists, or a value that it cannot have.
    """
    path, _, text = assignment.partition("=")
    return replace(config, path, parse(find(config, path), text))


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The configuration that a run wrote into its work folder, as nested dict.

    Raises:
      SettingError: if there is none.
    """
    try:
        return json.loads((workdir / CONFIG_FILE).read_text())["config"]
    except OSError:
        raise SettingError(f"--workdir={workdir} holds no run: there is no {CONFIG_FILE} in it") from None
    except (ValueError, KeyError, TypeError):
        raise SettingError(f"{workdir / CONFIG_FILE} is no configuration of a run; choose another --workdir") from None


def from_dict(values: dict[str, Any]) -> Config:
    """The configuration that :func:`read_config` read.

    Raises:
      SettingError: if it is of another version of this library.
    """
    try:
        algorithm = values["algorithm"]
        config = Config(agent=AGENTS[algorithm].config(), algorithm=algorithm)
        for leaf in list(leaves(config)):
            config = replace(config, leaf.path, recorded(values, leaf))
    except KeyError as error:
        raise SettingError(f"the run's configuration has no {error}: another version of preqn_jax wrote it") from None
    return config


def recorded(values: Any, leaf: Leaf) -> Any:
    """The value of a field in what :func:`read_config` read; raises KeyError if there is none."""
    # Records from before there were such options have none: as if they were empty.
    optional = isinstance(leaf.value, Options)
    *owners, name = leaf.path.split(".")
    for owner in owners:
        values = values.get(owner, {}) if optional else values[owner]
    if leaf.rule.formerly and leaf.rule.formerly in values:
        name = leaf.rule.formerly
    values = values.get(name, {}) if optional else values[name]
    if isinstance(leaf.value, Options):
        return Options(values)
    return tuple(values) if isinstance(values, list) else values
