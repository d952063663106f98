"""Code shared by several agents: exploration noise, Adam steps of critic and actor, target networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from preqn_jax.agents import observations
from preqn_jax.agents.base import Agent, CriticView
from preqn_jax.networks import KERNEL_INITS, LAYER_NORMS, Actor, Critic, GaussianActor
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.ops.ntk import QFunction
from preqn_jax.settings import SettingError, setting, spell
from preqn_jax.types import Array, Params

Scalars = dict[str, Array]
Loss = Callable[[Params], tuple[Array, Scalars]]


def tail_setting(default: float) -> Any:
    """The field ``observation_tail``, whose default depends on the agent."""
    return setting(
        default,
        "exponent t in the running scale, the standard deviation times rarity^t; rarity is the ratio of the standard "
        "deviation to the mean absolute deviation, 1 for a normal distribution and larger for entries that rarely move",
        interval="[0, 8]",
        absent=0.0,
    )


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Hyperparameters of all agents.

    Attributes:
      name: name of the agent, as in the name ``<agent>_<environment>`` of a configuration.
      discrete: True for discrete actions, one-hot vectors ``[..., A]``; False for continuous actions in [-1, 1].
    """

    name: ClassVar[str]
    discrete: ClassVar[bool] = False

    hidden_sizes: tuple[int, ...] = setting(
        (256, 256), "widths of the hidden layers of the critic, and of the actor if any [units]", interval="[1, inf)"
    )
    kernel_init: str = setting(
        "glorot_uniform", "initializer of the weights of the critic, and of the actor if any", choices=KERNEL_INITS
    )
    critic_layer_norm: str = setting(
        "none", "LayerNorm before each hidden activation of the critic: none, without (fixed) or with (learned) a "
        "learned scale and bias",
        choices=LAYER_NORMS,
    )  # fmt: skip
    normalize_observations: bool = setting(
        False, "whether to normalize observations: subtract their running mean, divide by their running scale"
    )
    observation_floor: float = setting(
        0.01, "lower bound on the running scale [units of the observation]", interval="(0, inf)"
    )
    observation_clip: float = setting(
        10.0, "normalized observations are clipped to +- this [running scale]", interval="(0, inf)"
    )
    observation_tail: float = tail_setting(0.0)
    gamma: float = setting(0.99, "discount factor [per step]", interval="[0, 1]")

    def make(self, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
        """Creates the agent for observations ``[..., observation_size]`` and actions ``[..., action_size]``.

        Returns:
          The agent, and the view of its critic for diagnostics.
        """
        return observations.normalized(*self.build(observation_size, action_size), self, observation_size)

    def check(self, batch_size: int) -> None:
        """Raises SettingError if fields contradict each other, or do not fit the size of a minibatch."""
        del batch_size
        if not self.hidden_sizes:
            raise SettingError("config.agent.hidden_sizes is empty; give at least one width, for example 256,256")
        for network in ("critic", "actor"):
            kind = getattr(self, f"{network}_layer_norm", "none")
            if kind != "none" and 1 in self.hidden_sizes:
                raise SettingError(
                    f"config.agent.hidden_sizes={spell(self.hidden_sizes)} has a layer of one unit, whose output is "
                    f"constant with config.agent.{network}_layer_norm={kind}; allowed: at least 2"
                )

    def build(self, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
        """The part of :meth:`make` that each agent defines: the agent without normalization of observations."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ActorCriticConfig(AgentConfig):
    """Additional hyperparameters of agents with an actor."""

    actor_learning_rate: float = setting(1e-3, "Adam step size of the actor", interval="(0, inf)")
    actor_layer_norm: str = setting("none", "LayerNorm before each hidden activation of the actor", choices=LAYER_NORMS)


@dataclasses.dataclass(frozen=True)
class BaselineConfig(AgentConfig):
    """Additional hyperparameters of agents that train critics with Adam and target networks."""

    activation: str = setting("relu", "activation function of the critic, and of the actor if any", choices=ACTIVATIONS)
    critic_learning_rate: float = setting(1e-3, "Adam step size of the critic", interval="(0, inf)")
    polyak: float = setting(
        0.995,
        "decay of the target networks: target = polyak * target + (1 - polyak) * online, after each update",
        interval="[0, 1)",
    )


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """Additional hyperparameters of agents with a deterministic policy."""

    exploration_noise: float = setting(
        0.1, "standard deviation of the Gaussian exploration noise on actions in [-1, 1]", interval="[0, inf)"
    )


def make_critic(config: Any) -> Critic:
    """Creates the critic Q(s, a) for an agent's configuration."""
    return Critic(config.hidden_sizes, config.activation, config.kernel_init, config.critic_layer_norm)


def make_actor(config: Any, action_size: int) -> Actor:
    """Creates the deterministic actor for an agent's configuration."""
    return Actor(action_size, config.hidden_sizes, config.activation, config.kernel_init, config.actor_layer_norm)


def make_gaussian_actor(config: Any, action_size: int) -> GaussianActor:
    """Creates the Gaussian actor for an agent's configuration."""
    sizes, norm = config.hidden_sizes, config.actor_layer_norm
    return GaussianActor(action_size, sizes, config.activation, config.kernel_init, norm)


def descend(
    optimizer: optax.GradientTransformation, loss: Loss, params: Params, state: optax.OptState
) -> tuple[Params, optax.OptState, Scalars]:
    """One optimizer step on ``loss``, a function params -> (loss, metrics).

    Returns:
      The new parameters, the new optimizer state, and the metrics.
    """
    gradient, scalars = jax.grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, scalars


def polyak(target: Params, params: Params, rate: float) -> Params:
    """Polyak averaging for target networks: rate * target + (1 - rate) * params."""
    return optax.incremental_update(params, target, 1.0 - rate)


def add_noise(action: Array, key: Array, deviation: float, bound: float = jnp.inf) -> Array:
    """Adds Gaussian noise, clipped to +-bound, to the action and clips the result to [-1, 1]."""
    noise = jnp.clip(deviation * jax.random.normal(key, action.shape), -bound, bound)
    return jnp.clip(action + noise, -1.0, 1.0)


def values_of(q_fn: QFunction, critics: Sequence[Params], inputs: tuple[Array, Array]) -> Array:
    """Q_i(s, a) of N critics, ``[N, B]``, evaluated one by one, since a batched matmul is no faster on CPU."""
    return jnp.stack([q_fn(params, inputs) for params in critics])


def squared_error(values: Array, target: Array) -> tuple[Array, Scalars]:
    """Mean squared TD error of N critics ``[N, B]`` against one target ``[B]``, summed over critics."""
    error = target[None] - values
    loss = jnp.sum(jnp.mean(error**2, axis=1))
    return loss, {"q": values.mean(), "td_error": jnp.sqrt(jnp.mean(error**2)), "critic_loss": loss}


def gradient_operator(step_size: float) -> Callable[[Array, Scalars], tuple[Array, Array, Array]]:
    """``CriticView.operator`` of gradient descent on the mean squared TD error (gradient: -2 / B sum delta grad Q)."""

    def operator(gram: Array, info: Scalars) -> tuple[Array, Array, Array]:
        del info
        size = gram.shape[0]
        return gram, jnp.full((size,), 1.0 / size, gram.dtype), jnp.asarray(2.0 * step_size, gram.dtype)

    return operator


def climb(policy: QFunction, q_fn: QFunction, critic: Params, observation: Array) -> Loss:
    """The actor loss of the deterministic policy gradient, -mean Q(s, mu(s)), as a function of the actor parameters."""

    def loss(actor: Params) -> tuple[Array, Scalars]:
        action = policy(actor, observation)
        value = -jnp.mean(q_fn(critic, (observation, action)))
        return value, {"actor_loss": value, "action_abs": jnp.mean(jnp.abs(action))}

    return loss
