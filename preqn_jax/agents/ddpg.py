"""DDPG (Lillicrap et al. 2016, Algorithm 1), and naive DDPG, which is DDPG without target networks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from preqn_jax.agents import common
from preqn_jax.agents.base import Agent, CriticView
from preqn_jax.ops import ntk, td
from preqn_jax.settings import setting
from preqn_jax.types import Array, Params, Transition


@dataclasses.dataclass(frozen=True)
class DDPGConfig(common.NoiseConfig, common.BaselineConfig, common.ActorCriticConfig):
    """Hyperparameters of DDPG."""

    name: ClassVar[str] = "ddpg"
    target_network: bool = setting(True, "whether targets are computed with target networks of critic and actor")

    def build(self, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
        """Creates the agent, without normalization of observations."""
        return _build(self, observation_size, action_size)


@dataclasses.dataclass(frozen=True)
class NaiveDDPGConfig(DDPGConfig):
    """Hyperparameters of naive DDPG."""

    name: ClassVar[str] = "naive_ddpg"
    target_network: bool = setting(False, "whether targets are computed with target networks of critic and actor")


class Networks(NamedTuple):
    """Parameters of a critic and an actor."""

    critic: Params
    actor: Params


class DDPGState(NamedTuple):
    """Critic and actor, their optimizer states, and their target networks (None for naive DDPG)."""

    online: Networks
    critic_optimizer: optax.OptState
    actor_optimizer: optax.OptState
    target: Networks | None


def _build(config: DDPGConfig, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
    critic, actor = common.make_critic(config), common.make_actor(config, action_size)
    q_fn, policy = ntk.module_q_fn(critic), ntk.module_q_fn(actor)
    critic_adam, actor_adam = optax.adam(config.critic_learning_rate), optax.adam(config.actor_learning_rate)

    def init(key: Array) -> DDPGState:
        critic_key, actor_key = jax.random.split(key)
        observation, action = jnp.zeros((1, observation_size)), jnp.zeros((1, action_size))
        online = Networks(critic.init(critic_key, observation, action), actor.init(actor_key, observation))
        target = online if config.target_network else None
        return DDPGState(online, critic_adam.init(online.critic), actor_adam.init(online.actor), target)

    def act(state: DDPGState, observation: Array) -> Array:
        return policy(state.online.actor, observation)

    def explore(state: DDPGState, observation: Array, key: Array) -> Array:
        return common.add_noise(act(state, observation), key, config.exploration_noise)

    def target_of(state: DDPGState, batch: Transition) -> Array:
        target = state.target or state.online
        next_action = policy(target.actor, batch.next_observation)
        next_value = q_fn(target.critic, (batch.next_observation, next_action))
        return td.td_target(batch.reward, batch.discount, next_value, config.gamma)

    def td_error(state: DDPGState, batch: Transition, key: Array) -> Array:
        del key
        return target_of(state, batch) - q_fn(state.online.critic, (batch.observation, batch.action))

    def update(state: DDPGState, batch: Transition, key: Array) -> tuple[DDPGState, dict[str, Array]]:
        del key  # nothing in DDPG's update is random
        y = target_of(state, batch)

        def critic_loss(params: Params) -> tuple[Array, common.Scalars]:
            return common.squared_error(common.values_of(q_fn, [params], (batch.observation, batch.action)), y)

        critic_params, critic_optimizer, critic_info = common.descend(
            critic_adam, critic_loss, state.online.critic, state.critic_optimizer
        )
        actor_loss = common.climb(policy, q_fn, critic_params, batch.observation)
        actor_params, actor_optimizer, actor_info = common.descend(
            actor_adam, actor_loss, state.online.actor, state.actor_optimizer
        )
        online = Networks(critic_params, actor_params)
        slow = common.polyak(state.target, online, config.polyak) if state.target else None
        return DDPGState(online, critic_optimizer, actor_optimizer, slow), {**critic_info, **actor_info}

    return Agent(init=init, act=act, explore=explore, update=update), CriticView(
        q_fn=q_fn,
        params=lambda state: state.online.critic,
        td_error=td_error,
        operator=common.gradient_operator(config.critic_learning_rate),
        gamma=config.gamma,
    )
