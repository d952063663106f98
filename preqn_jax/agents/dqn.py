"""Agents with discrete actions: DQN (Mnih et al. 2015) with and without a target network, and PreQN without an actor.

Actions are one-hot vectors ``[..., A]``. PreQN without an actor is Eqs. 22-24 of Achiam et al. (2019) with the
Q-learning target of their Eq. 3, y = r + gamma max_a Q(s', a); the kernel K is that of the network outputs for the
actions that were taken. Their Algorithm 1 is the variant with an actor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from preqn_jax.agents import common, preqn
from preqn_jax.agents.base import Agent, CriticView
from preqn_jax.networks import DiscreteCritic
from preqn_jax.ops import ntk, td
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.settings import setting
from preqn_jax.types import Array, Params, Transition


@dataclasses.dataclass(frozen=True)
class EpsilonConfig(common.AgentConfig):
    """Hyperparameters of all agents with discrete actions."""

    discrete: ClassVar[bool] = True
    exploration_epsilon: float = setting(
        0.1, "epsilon of the epsilon-greedy exploration: probability of a uniformly random action", interval="[0, 1]"
    )


@dataclasses.dataclass(frozen=True)
class PreQNDQNConfig(preqn.CriticStepConfig, EpsilonConfig):
    """Hyperparameters of PreQN with discrete actions.

    The paper has no agent with discrete actions. With its sin activation Q overshoots here, with tanh it does not
    (docs/results/cartpole).
    """

    name: ClassVar[str] = "preqn_dqn"
    activation: str = setting("tanh", "activation function of the critic", choices=ACTIVATIONS)

    def build(self, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
        """Creates the agent, without normalization of observations."""
        return _build_preqn(self, observation_size, action_size)


@dataclasses.dataclass(frozen=True)
class DQNConfig(common.BaselineConfig, EpsilonConfig):
    """Hyperparameters of DQN."""

    name: ClassVar[str] = "dqn"
    target_network: bool = setting(True, "whether targets are computed with a target network of the critic")

    def build(self, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
        """Creates the agent, without normalization of observations."""
        return _build_dqn(self, observation_size, action_size)


@dataclasses.dataclass(frozen=True)
class NaiveDQNConfig(DQNConfig):
    """Hyperparameters of naive DQN."""

    name: ClassVar[str] = "naive_dqn"
    target_network: bool = setting(False, "whether targets are computed with a target network of the critic")


class PreQNDQNState(NamedTuple):
    """Parameters of the critic. There is no optimizer state and no target network."""

    critic: Params


class DQNState(NamedTuple):
    """The critic, its optimizer state, and its target network (None for naive DQN)."""

    critic: Params
    optimizer: optax.OptState
    target: Params | None


def _build_preqn(config: PreQNDQNConfig, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
    critic = _Critic(config, observation_size, action_size)
    step = preqn.make_critic_step(config, critic.module)

    def init(key: Array) -> PreQNDQNState:
        return PreQNDQNState(critic.init(key))

    def update(state: PreQNDQNState, batch: Transition, key: Array) -> tuple[PreQNDQNState, common.Scalars]:
        del key  # nothing in the update is random
        target = critic.target(state.critic, batch)
        params, info = step(state.critic, (batch.observation, batch.action), target)
        return PreQNDQNState(params), info

    agent = Agent(init=init, act=critic.act, explore=critic.explore, update=update)
    return agent, critic.view(lambda state: state.critic, preqn.make_operator(config))


def _build_dqn(config: DQNConfig, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
    critic = _Critic(config, observation_size, action_size)
    adam = optax.adam(config.critic_learning_rate)

    def init(key: Array) -> DQNState:
        params = critic.init(key)
        return DQNState(params, adam.init(params), params if config.target_network else None)

    def target_params(state: DQNState) -> Params:
        return state.critic if state.target is None else state.target

    def update(state: DQNState, batch: Transition, key: Array) -> tuple[DQNState, common.Scalars]:
        del key  # nothing in the update is random
        y = critic.target(target_params(state), batch)

        def loss(params: Params) -> tuple[Array, common.Scalars]:
            return common.squared_error(common.values_of(critic.q_fn, [params], (batch.observation, batch.action)), y)

        params, optimizer, info = common.descend(adam, loss, state.critic, state.optimizer)
        target = None if state.target is None else common.polyak(state.target, params, config.polyak)
        return DQNState(params, optimizer, target), info

    agent = Agent(init=init, act=critic.act, explore=critic.explore, update=update)
    return agent, critic.view(target_params, common.gradient_operator(config.critic_learning_rate))


class _Critic:
    """The part that both agents share: critic, greedy policy, epsilon-greedy exploration, target max_a Q(s', a).

    The methods with an argument ``state`` are functions of an :class:`Agent` or a :class:`CriticView`; they expect the
    parameters of the critic in ``state.critic``.
    """

    def __init__(self, config: Any, observation_size: int, action_size: int):
        self.config, self.observation_size, self.action_size = config, observation_size, action_size
        self.module = DiscreteCritic(
            action_size, config.hidden_sizes, config.activation, config.kernel_init, config.critic_layer_norm
        )
        self.q_fn = ntk.module_q_fn(self.module)

    def init(self, key: Array) -> Params:
        observation, action = jnp.zeros((1, self.observation_size)), jnp.zeros((1, self.action_size))
        return self.module.init(key, observation, action)

    def all_values(self, params: Params, observation: Array) -> Array:
        return cast(Array, self.module.apply(params, observation, method="all_values"))

    def target(self, params: Params, batch: Transition) -> Array:
        next_value = jnp.max(self.all_values(params, batch.next_observation), axis=-1)
        return td.td_target(batch.reward, batch.discount, next_value, self.config.gamma)

    def act(self, state: Any, observation: Array) -> Array:
        best = jnp.argmax(self.all_values(state.critic, observation), axis=-1)
        return jax.nn.one_hot(best, self.action_size)

    def explore(self, state: Any, observation: Array, key: Array) -> Array:
        whether, which = jax.random.split(key)
        lead = observation.shape[:-1]
        uniform = jax.nn.one_hot(jax.random.randint(which, lead, 0, self.action_size), self.action_size)
        at_random = jax.random.bernoulli(whether, self.config.exploration_epsilon, lead)
        return jnp.where(at_random[..., None], uniform, self.act(state, observation))

    def view(self, target_params: Callable[[Any], Params], operator: Any) -> CriticView:
        """The view of the critic; ``target_params`` maps a state to the parameters that targets are computed with."""

        def td_error(state: Any, batch: Transition, key: Array) -> Array:
            del key
            value = self.q_fn(state.critic, (batch.observation, batch.action))
            return self.target(target_params(state), batch) - value

        return CriticView(
            q_fn=self.q_fn,
            params=lambda state: state.critic,
            td_error=td_error,
            operator=operator,
            gamma=self.config.gamma,
        )
