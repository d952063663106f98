"""PreQN with normalized networks and two critics that share a minibatch: an agent without target networks.

It changes the agent of Achiam et al. (2019) around the update, not the update itself (docs/agent.md):

* LayerNorm before each hidden activation of the critics, and relu in place of sin;
* two critics, each updated by PreQN's step on its own half of the minibatch, towards one target that is made of both;
* observations divided by running statistics.

With every option at the value that :class:`~preqn_jax.agents.preqn.PreQNConfig` has, it is that agent bit for bit.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from preqn_jax.agents import common, observations, preqn
from preqn_jax.agents.base import Agent
from preqn_jax.networks import LAYER_NORMS
from preqn_jax.ops import ntk, td
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.ops.conditionals import update_if
from preqn_jax.settings import setting
from preqn_jax.types import Array, Inputs, Params, Transition


@dataclasses.dataclass(frozen=True)
class PreQNNormConfig(preqn.PreQNConfig):
    """Hyperparameters; one setting for all tasks."""

    activation: str = setting("relu", "activation of critics and actor", choices=ACTIVATIONS)
    critic_layer_norm: str = setting(
        "fixed", "LayerNorm before each hidden activation of the critics", choices=LAYER_NORMS
    )
    normalize_observations: bool = setting(
        True, "whether networks see observations less their running mean, over their running scale"
    )
    observation_moment: float = setting(8.0, "p of that scale", interval="[1, 64]")
    num_critics: int = setting(2, "critics", interval="[1, inf)", structural=True)
    split_minibatch: bool = setting(True, "whether each critic is trained on a part of the minibatch of its own")
    target_pessimism: float = setting(
        1.0, "how the target combines the critics: (1 - this) mean + this minimum", interval="[0, 1]"
    )
    target_noise: float = setting(
        0.0,
        "standard deviation of the Gaussian added to target actions in [-1, 1]",
        interval="[0, inf)",
        structural=True,  # no random numbers are drawn for 0
    )
    target_noise_bound: float = setting(0.5, "to which that noise is clipped, plus or minus", interval="[0, inf)")
    policy_delay: int = setting(1, "updates of the critics to one of the actor", interval="[1, inf)", structural=True)
    critic_update: str = setting(
        "preqn",
        "how critics are updated: by PreQN's step, or by Adam on the squared TD error",
        choices=("preqn", "adam"),
    )
    critic_learning_rate: float = setting(1e-3, "for adam: the critics' Adam step size", interval="(0, inf)")


class ActorPart(NamedTuple):
    """All that changes only once in ``policy_delay`` updates.

    Attributes:
      params: of the actor.
      optimizer: its Adam.
      scalars: what the last actor step reported; the updates between two of them report it again.
    """

    params: Params
    optimizer: optax.OptState
    scalars: common.Scalars


class PreQNNormState(NamedTuple):
    """Every critic's parameters and Adam (empty with PreQN's step), the actor, and the number of updates so far."""

    critics: tuple[Params, ...]
    critic_optimizers: tuple[Any, ...]
    actor: ActorPart
    updates: Array


class CriticUpdate(NamedTuple):
    """One critic's update, a pair of pure functions.

    Attributes:
      init: parameters -> state of its optimizer.
      apply: (parameters, state, inputs [B, ...], targets [B]) -> (parameters, state, scalars).
    """

    init: Any
    apply: Any


def make(config: PreQNNormConfig, observation_size: int, action_size: int) -> Agent:
    """The agent for observations ``[..., observation_size]`` and actions ``[..., action_size]`` in [-1, 1]."""
    critic, actor = common.make_critic(config), common.make_actor(config, action_size)
    q_fn, policy = ntk.module_q_fn(critic), ntk.module_q_fn(actor)
    critic_update = _critic_update(config, critic)
    adam = optax.adam(config.actor_learning_rate)

    def init(key: Array) -> PreQNNormState:
        critic_key, actor_key = jax.random.split(key)
        observation, action = jnp.zeros((1, observation_size)), jnp.zeros((1, action_size))
        keys = [critic_key, *(jax.random.fold_in(critic_key, number) for number in range(1, config.num_critics))]
        critics = tuple(critic.init(key, observation, action) for key in keys)
        params = actor.init(actor_key, observation)
        scalars = {name: jnp.zeros(()) for name in ("actor_loss", "action_abs")}
        part = ActorPart(params, adam.init(params), scalars)
        return PreQNNormState(critics, tuple(map(critic_update.init, critics)), part, jnp.zeros((), jnp.int32))

    def act(state: PreQNNormState, observation: Array) -> Array:
        return policy(state.actor.params, observation)

    def explore(state: PreQNNormState, observation: Array, key: Array) -> Array:
        return common.add_noise(act(state, observation), key, config.exploration_noise)

    def target(state: PreQNNormState, batch: Transition, key: Array) -> Array:
        action = act(state, batch.next_observation)
        if config.target_noise > 0:
            action = common.add_noise(action, key, config.target_noise, config.target_noise_bound)
        values = common.values_of(q_fn, state.critics, (batch.next_observation, action))
        return td.pessimistic_target(batch.reward, batch.discount, values, config.gamma, config.target_pessimism)

    def td_error(state: PreQNNormState, batch: Transition, key: Array) -> Array:
        return target(state, batch, key) - q_fn(state.critics[0], (batch.observation, batch.action))

    def update_critics(state: PreQNNormState, inputs: Inputs, y: Array) -> tuple[PreQNNormState, common.Scalars]:
        parts = _parts(config, (inputs, y))
        steps = [
            critic_update.apply(params, optimizer, *part)
            for params, optimizer, part in zip(state.critics, state.critic_optimizers, parts, strict=True)
        ]
        critics, optimizers, scalars = zip(*steps, strict=True)
        mean = jax.tree.map(lambda *each: sum(each) / len(each), *scalars) if len(scalars) > 1 else scalars[0]
        return state._replace(critics=critics, critic_optimizers=optimizers), mean

    def update_actor(part: ActorPart, critic_params: Params, observation: Array) -> ActorPart:
        loss = common.climb(policy, q_fn, critic_params, observation)
        return ActorPart(*common.descend(adam, loss, part.params, part.optimizer))

    def update(state: PreQNNormState, batch: Transition, key: Array) -> tuple[PreQNNormState, common.Scalars]:
        state, critic_info = update_critics(state, (batch.observation, batch.action), target(state, batch, key))
        # As in Algorithm 1 the actor climbs a critic that this very step has improved, the first.
        step = lambda part: update_actor(part, state.critics[0], batch.observation)  # noqa: E731
        if config.policy_delay == 1:
            part = step(state.actor)
        else:
            part = update_if(state.updates % config.policy_delay == 0, step, state.actor)
        return state._replace(actor=part, updates=state.updates + 1), {**critic_info, **part.scalars}

    agent = Agent(
        init, act, explore, update, q_fn, lambda state: state.critics[0], td_error, _operator(config), config.gamma,
        critic_rows=lambda batch_size: _part_size(config, batch_size),
    )  # fmt: skip
    return observations.normalized(agent, config, observation_size)


def _part_size(config: PreQNNormConfig, batch_size: int) -> int:
    return batch_size // config.num_critics if config.split_minibatch else batch_size


def _parts(config: PreQNNormConfig, rows: Any) -> list[Any]:
    """The rows that each critic is trained on."""
    (batch_size,) = rows[1].shape
    size = _part_size(config, batch_size)
    starts = [number * size if config.split_minibatch else 0 for number in range(config.num_critics)]
    return [jax.tree.map(lambda leaf, start=start: leaf[start : start + size], rows) for start in starts]


def _critic_update(config: PreQNNormConfig, critic: nn.Module) -> CriticUpdate:
    if config.critic_update == "preqn":
        step = preqn.make_critic_step(config, critic)

        def apply(params: Params, state: tuple[()], inputs: Inputs, target: Array) -> tuple[Params, Any, Any]:
            params, scalars = step(params, inputs, target)
            return params, state, scalars

        return CriticUpdate(lambda params: (), apply)

    q_fn, adam = ntk.module_q_fn(critic), optax.adam(config.critic_learning_rate)

    def apply_adam(params: Params, state: optax.OptState, inputs: Inputs, target: Array) -> tuple[Params, Any, Any]:
        loss = lambda params: common.squared_error(common.values_of(q_fn, [params], inputs), target)  # noqa: E731
        return common.descend(adam, loss, params, state)

    return CriticUpdate(adam.init, apply_adam)


def _operator(config: PreQNNormConfig) -> Any:
    if config.critic_update == "preqn":
        return preqn.make_operator(config)
    return common.gradient_operator(config.critic_learning_rate)
