"""TD3, twin delayed DDPG (Fujimoto et al. 2018, arXiv 1802.09477, Algorithm 1)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from preqn_jax.agents import common
from preqn_jax.agents.base import Agent, CriticView
from preqn_jax.ops import ntk, td
from preqn_jax.ops.conditionals import update_if
from preqn_jax.settings import setting
from preqn_jax.types import Array, Params, Transition


@dataclasses.dataclass(frozen=True)
class TD3Config(common.NoiseConfig, common.BaselineConfig, common.ActorCriticConfig):
    """Hyperparameters of TD3; those that only TD3 has are as in Fujimoto et al. (2018)."""

    name: ClassVar[str] = "td3"
    target_noise: float = setting(
        0.2, "standard deviation of the Gaussian noise on target actions in [-1, 1]", interval="[0, inf)"
    )
    target_noise_bound: float = setting(0.5, "target noise is clipped to +- this", interval="[0, inf)")
    policy_delay: int = setting(
        2, "number of critic updates per update of the actor and the target networks", interval="[1, inf)"
    )

    def build(self, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
        """Creates the agent, without normalization of observations."""
        return _build(self, observation_size, action_size)


class Networks(NamedTuple):
    """Parameters of both critics and of the actor."""

    critics: tuple[Params, Params]
    actor: Params


class ActorPart(NamedTuple):
    """The part of the state that changes only once in ``policy_delay`` updates.

    Attributes:
      actor: parameters of the actor.
      optimizer: optimizer state of the actor.
      target: target networks of critics and actor.
      scalars: metrics of the last actor update; updates without an actor update report them again.
    """

    actor: Params
    optimizer: optax.OptState
    target: Networks
    scalars: common.Scalars


class TD3State(NamedTuple):
    """Both critics and their optimizer state, the part that is updated less often, and the number of updates so far."""

    critics: tuple[Params, Params]
    critic_optimizer: optax.OptState
    delayed: ActorPart
    updates: Array


def _build(config: TD3Config, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
    critic, actor = common.make_critic(config), common.make_actor(config, action_size)
    q_fn, policy = ntk.module_q_fn(critic), ntk.module_q_fn(actor)
    critic_adam, actor_adam = optax.adam(config.critic_learning_rate), optax.adam(config.actor_learning_rate)

    def init(key: Array) -> TD3State:
        first, second, actor_key = jax.random.split(key, 3)
        observation, action = jnp.zeros((1, observation_size)), jnp.zeros((1, action_size))
        critics = critic.init(first, observation, action), critic.init(second, observation, action)
        actor_params = actor.init(actor_key, observation)
        scalars = {name: jnp.zeros(()) for name in ("actor_loss", "action_abs")}
        delayed = ActorPart(actor_params, actor_adam.init(actor_params), Networks(critics, actor_params), scalars)
        return TD3State(critics, critic_adam.init(critics), delayed, jnp.zeros((), jnp.int32))

    def act(state: TD3State, observation: Array) -> Array:
        return policy(state.delayed.actor, observation)

    def explore(state: TD3State, observation: Array, key: Array) -> Array:
        return common.add_noise(act(state, observation), key, config.exploration_noise)

    @jax.named_scope("target")
    def target_of(state: TD3State, batch: Transition, key: Array) -> Array:
        target = state.delayed.target
        next_action = policy(target.actor, batch.next_observation)
        next_action = common.add_noise(next_action, key, config.target_noise, config.target_noise_bound)
        next_values = common.values_of(q_fn, target.critics, (batch.next_observation, next_action))
        return td.clipped_double_target(batch.reward, batch.discount, next_values, config.gamma)

    def td_error(state: TD3State, batch: Transition, key: Array) -> Array:
        return target_of(state, batch, key) - q_fn(state.critics[0], (batch.observation, batch.action))

    @jax.named_scope("critics")
    def update_critics(state: TD3State, batch: Transition, key: Array) -> tuple[TD3State, common.Scalars]:
        y = target_of(state, batch, key)

        def loss(critics: tuple[Params, Params]) -> tuple[Array, common.Scalars]:
            return common.squared_error(common.values_of(q_fn, critics, (batch.observation, batch.action)), y)

        critics, optimizer, scalars = common.descend(critic_adam, loss, state.critics, state.critic_optimizer)
        return state._replace(critics=critics, critic_optimizer=optimizer), scalars

    @jax.named_scope("actor")
    def update_delayed(part: ActorPart, critics: tuple[Params, Params], observation: Array) -> ActorPart:
        loss = common.climb(policy, q_fn, critics[0], observation)
        actor_params, optimizer, scalars = common.descend(actor_adam, loss, part.actor, part.optimizer)
        target = common.polyak(part.target, Networks(critics, actor_params), config.polyak)
        return ActorPart(actor_params, optimizer, target, scalars)

    def update(state: TD3State, batch: Transition, key: Array) -> tuple[TD3State, dict[str, Array]]:
        state, critic_info = update_critics(state, batch, key)
        due = state.updates % config.policy_delay == 0
        delayed = update_if(due, lambda part: update_delayed(part, state.critics, batch.observation), state.delayed)
        return state._replace(delayed=delayed, updates=state.updates + 1), {**critic_info, **delayed.scalars}

    return Agent(init=init, act=act, explore=explore, update=update), CriticView(
        q_fn=q_fn,
        params=lambda state: state.critics[0],
        td_error=td_error,
        operator=common.gradient_operator(config.critic_learning_rate),
        gamma=config.gamma,
    )
