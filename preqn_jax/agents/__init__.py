"""The agents by name, each with its configuration class and its constructor."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from preqn_jax.agents import ddpg, dqn, preqn, preqn_norm, sac, td3
from preqn_jax.agents.base import Agent


class AgentEntry(NamedTuple):
    """An entry of :data:`AGENTS`.

    Attributes:
      config: function without arguments that returns the default configuration, a dataclass.
      make: (config, observation_size, action_size) -> Agent.
      discrete: True for discrete actions, one-hot vectors ``[..., A]``; False for continuous actions in [-1, 1].
    """

    config: Callable[..., Any]
    make: Callable[[Any, int, int], Agent]
    discrete: bool = False


AGENTS: dict[str, AgentEntry] = {
    "preqn": AgentEntry(preqn.PreQNConfig, preqn.make),
    "preqn_norm": AgentEntry(preqn_norm.PreQNNormConfig, preqn_norm.make),
    "td3": AgentEntry(td3.TD3Config, td3.make),
    "sac": AgentEntry(sac.SACConfig, sac.make),
    "ddpg": AgentEntry(ddpg.DDPGConfig, ddpg.make),
    "naive_ddpg": AgentEntry(functools.partial(ddpg.DDPGConfig, target_network=False), ddpg.make),
    "preqn_dqn": AgentEntry(dqn.PreQNDQNConfig, dqn.make_preqn, discrete=True),
    "dqn": AgentEntry(dqn.DQNConfig, dqn.make, discrete=True),
    "naive_dqn": AgentEntry(functools.partial(dqn.DQNConfig, target_network=False), dqn.make, discrete=True),
}
