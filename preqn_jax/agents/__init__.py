"""The agents: :data:`AGENTS` has the configuration class of each by its name; a configuration makes its agent."""

from __future__ import annotations

from preqn_jax.agents.common import AgentConfig
from preqn_jax.agents.ddpg import DDPGConfig, NaiveDDPGConfig
from preqn_jax.agents.dqn import DQNConfig, NaiveDQNConfig, PreQNDQNConfig
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.agents.preqn_norm import PreQNNormConfig
from preqn_jax.agents.sac import SACConfig
from preqn_jax.agents.td3 import TD3Config

AGENTS: dict[str, type[AgentConfig]] = {
    config.name: config
    for config in (
        PreQNConfig,
        PreQNNormConfig,
        TD3Config,
        SACConfig,
        DDPGConfig,
        NaiveDDPGConfig,
        PreQNDQNConfig,
        DQNConfig,
        NaiveDQNConfig,
    )
}
