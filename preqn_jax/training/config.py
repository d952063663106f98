"""The configuration of a whole run."""

from __future__ import annotations

import dataclasses
from typing import Any

from preqn_jax.agents import AGENTS
from preqn_jax.agents.common import AgentConfig
from preqn_jax.envs.config import EnvConfig
from preqn_jax.settings import SettingError, check, check_multiple, setting, spell


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of a run: the training schedule, and the configurations of the agent and the environment.

    The type of ``agent``, a subclass of :class:`~preqn_jax.agents.common.AgentConfig`, determines the agent.
    """

    agent: Any
    env: EnvConfig = EnvConfig()
    seed: int = setting(0, "seed of the first learner; learner i uses seed + i", interval="[0, 2147483647]")
    num_seeds: int = setting(1, "learners trained in parallel, each with its own environments", interval="[1, inf)")
    total_steps: int = setting(
        1_000_000, "length of the run, at least update_after [environment steps per seed]", interval="[1, inf)"
    )
    start_steps: int = setting(
        5_000, "initial steps with uniformly random actions [environment steps]", interval="[0, inf)"
    )
    update_after: int = setting(5_000, "step at which gradient steps begin [environment steps]", interval="[1, inf)")
    update_every: int = setting(
        50,
        "environment steps per iteration, followed by updates_per_step times as many gradient steps",
        interval="[1, inf)",
    )
    updates_per_step: int = setting(1, "gradient steps per environment step", interval="[1, inf)", absent=1)
    batch_size: int = setting(
        256, "minibatch size; minibatches are sampled with replacement [transitions]", interval="[1, inf)"
    )
    n_step: int = setting(
        1, "number of rewards in an n-step target; fewer at the end of an episode", interval="[1, inf)"
    )
    replay_capacity: int = setting(1_000_000, "size of each seed's replay buffer [transitions]", interval="[1, inf)")
    evaluate_every: int = setting(10_000, "interval between evaluations [environment steps]", interval="[1, inf)")
    evaluate_episodes: int = setting(10, "number of episodes per evaluation", interval="[1, inf)")
    checkpoint_every: int = setting(10_000, "interval between checkpoints [environment steps]", interval="[1, inf)")
    measure_alignment: bool = setting(
        False, "report cos(Q' - Q, y - Q) of every critic update, on its minibatch and on a held-out minibatch"
    )
    diagnose_every: int = setting(
        0,
        "interval between kernel diagnostics of an update, which take about half a second each; 0 disables them "
        "[environment steps]",
        interval="[0, inf)",
    )
    record_updates: bool = setting(False, "save the metrics of every update in <workdir>/updates/*.npz")

    @property
    def updates_per_iteration(self) -> int:
        """Number of gradient steps in one iteration."""
        return self.update_every * self.updates_per_step


def check_config(config: Config) -> None:
    """Checks each field, and the fields against each other.

    Raises:
      SettingError: if a field is invalid, or fields contradict each other (the first one found).
    """
    for name, kind in (("agent", AgentConfig), ("env", EnvConfig)):
        if not isinstance(value := getattr(config, name), kind):
            raise SettingError(f"config.{name}={value!r} is not supported; allowed: an instance of {kind.__name__}")
    check(config)
    config.agent.check(config.batch_size)
    if config.batch_size > config.replay_capacity:
        raise SettingError(
            f"config.batch_size={config.batch_size} is larger than config.replay_capacity={config.replay_capacity}; "
            f"allowed: at most {config.replay_capacity}"
        )
    for name in ("total_steps", "update_after", "evaluate_every", "checkpoint_every", "diagnose_every"):
        check_multiple(f"config.{name}", getattr(config, name), "config.update_every", config.update_every)
    if config.total_steps < config.update_after:
        raise SettingError(
            f"config.total_steps={config.total_steps} ends before config.update_after={config.update_after}, where "
            f"gradient steps begin: nothing would be trained; raise total_steps to {config.update_after} or more, or "
            "lower update_after"
        )
    env = config.env
    for name in env.facts.unsupported:
        value, default = getattr(env, name), getattr(EnvConfig, name)
        if value != default:
            raise SettingError(
                f"config.env.{name}={spell(value)} is not supported by backend={env.backend}; allowed: {spell(default)}"
            )
    if config.agent.discrete and not env.facts.discrete_actions:
        raise SettingError(
            f"config.env.backend={env.backend} has only environments with continuous actions"
            + _not_supported(config, discrete=False)
        )
    if env.facts.on_device:
        check_multiple("config.update_every", config.update_every, "config.env.num_envs", config.env.num_envs)
        check_multiple("config.replay_capacity", config.replay_capacity, "config.update_every", config.update_every)


def check_actions(config: Config, discrete: bool) -> None:
    """Raises SettingError unless the agent and the environment have the same kind of actions."""
    if config.agent.discrete != discrete:
        kind = "discrete" if discrete else "continuous"
        raise SettingError(
            f"config.env.id={config.env.id} (backend={config.env.backend}) has {kind} actions"
            + _not_supported(config, discrete)
        )


def _not_supported(config: Config, discrete: bool) -> str:
    """The end of the error message for an agent that does not support the environment's kind of actions."""
    fit = ", ".join(name for name, agent in AGENTS.items() if agent.discrete == discrete)
    return f", which {config.agent.name} does not support; allowed agents: {fit}"
