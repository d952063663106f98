"""SAC, soft actor-critic (Haarnoja et al. 2018, arXiv 1801.01290 and 1812.05905), with two critics and no V function.

The temperature is fixed, as in the first of the two papers, or learned, as in the second.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from preqn_jax.agents import common, soft
from preqn_jax.agents.base import Agent, CriticView
from preqn_jax.ops import ntk, td
from preqn_jax.types import Array, Params, Transition


@dataclasses.dataclass(frozen=True)
class SACConfig(soft.TemperatureConfig, common.BaselineConfig, common.ActorCriticConfig):
    """Hyperparameters of SAC."""

    name: ClassVar[str] = "sac"

    def build(self, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
        """Creates the agent, without normalization of observations."""
        return _build(self, observation_size, action_size)


class SACState(NamedTuple):
    """Both critics, the actor, their optimizer states, target critics, and the learned temperature, None if fixed."""

    critics: tuple[Params, Params]
    actor: Params
    critic_optimizer: optax.OptState
    actor_optimizer: optax.OptState
    target_critics: tuple[Params, Params]
    temperature: soft.Temperature | None


def _build(config: SACConfig, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
    critic, policy = common.make_critic(config), soft.GaussianPolicy(config, action_size)
    q_fn = ntk.module_q_fn(critic)
    critic_adam, actor_adam = optax.adam(config.critic_learning_rate), optax.adam(config.actor_learning_rate)

    def init(key: Array) -> SACState:
        first, second, actor_key = jax.random.split(key, 3)
        observation, action = jnp.zeros((1, observation_size)), jnp.zeros((1, action_size))
        critics = critic.init(first, observation, action), critic.init(second, observation, action)
        params = policy.actor.init(actor_key, observation)
        optimizers = critic_adam.init(critics), actor_adam.init(params)
        return SACState(critics, params, *optimizers, critics, soft.init_temperature(config))

    def act(state: SACState, observation: Array) -> Array:
        return policy.act(state.actor, observation)

    def explore(state: SACState, observation: Array, key: Array) -> Array:
        return policy.sample(state.actor, observation, key)[0]

    @jax.named_scope("target")
    def target_of(state: SACState, batch: Transition, key: Array) -> Array:
        next_action, next_log_prob = policy.sample(state.actor, batch.next_observation, key)
        temperature = soft.temperature_of(config, state.temperature)
        next_values = common.values_of(q_fn, state.target_critics, (batch.next_observation, next_action))
        return td.soft_target(batch.reward, batch.discount, next_values, next_log_prob, config.gamma, temperature)

    def td_error(state: SACState, batch: Transition, key: Array) -> Array:
        next_key, _ = jax.random.split(key)
        return target_of(state, batch, next_key) - q_fn(state.critics[0], (batch.observation, batch.action))

    @jax.named_scope("critics")
    def update_critics(state: SACState, batch: Transition, key: Array) -> tuple[SACState, common.Scalars]:
        y = target_of(state, batch, key)

        def loss(critics: tuple[Params, Params]) -> tuple[Array, common.Scalars]:
            return common.squared_error(common.values_of(q_fn, critics, (batch.observation, batch.action)), y)

        critics, optimizer, scalars = common.descend(critic_adam, loss, state.critics, state.critic_optimizer)
        return state._replace(critics=critics, critic_optimizer=optimizer), scalars

    @jax.named_scope("actor")
    def update_actor(state: SACState, observation: Array, key: Array) -> tuple[SACState, common.Scalars]:
        temperature = soft.temperature_of(config, state.temperature)
        lowest = lambda inputs: jnp.min(common.values_of(q_fn, state.critics, inputs), axis=0)  # noqa: E731
        loss = soft.climb(policy, lowest, temperature, observation, key)
        params, optimizer, scalars = common.descend(actor_adam, loss, state.actor, state.actor_optimizer)
        learned, found = soft.update_temperature(config, state.temperature, scalars["entropy"], action_size)
        return state._replace(actor=params, actor_optimizer=optimizer, temperature=learned), {**scalars, **found}

    def update(state: SACState, batch: Transition, key: Array) -> tuple[SACState, dict[str, Array]]:
        next_key, key = jax.random.split(key)
        state, critic_info = update_critics(state, batch, next_key)
        state, actor_info = update_actor(state, batch.observation, key)
        targets = common.polyak(state.target_critics, state.critics, config.polyak)
        return state._replace(target_critics=targets), {**critic_info, **actor_info}

    return Agent(init=init, act=act, explore=explore, update=update), CriticView(
        q_fn=q_fn,
        params=lambda state: state.critics[0],
        td_error=td_error,
        operator=common.gradient_operator(config.critic_learning_rate),
        gamma=config.gamma,
    )
