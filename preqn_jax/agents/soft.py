"""Code shared by agents with an entropy bonus: squashed Gaussian policy and temperature (Haarnoja et al. 2018)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from preqn_jax.agents import common
from preqn_jax.ops import squashed_gaussian
from preqn_jax.settings import setting
from preqn_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class TemperatureConfig:
    """Hyperparameters of the entropy bonus."""

    temperature: float = setting(
        0.1, "weight alpha of the entropy bonus, its initial value if automatic [reward per nat]", interval="[0, inf)"
    )
    automatic_temperature: bool = setting(
        False, "whether the temperature is learned such that the policy has the target entropy"
    )
    target_entropy: float = setting(
        -1.0, "target entropy, for automatic_temperature [nats per action component]", interval="(-inf, inf)"
    )
    temperature_learning_rate: float = setting(
        1e-3, "Adam step size of the log-temperature, for automatic_temperature", interval="(0, inf)"
    )


class Temperature(NamedTuple):
    """The logarithm of a learned temperature, [], and its optimizer state."""

    log_value: Array
    optimizer: optax.OptState


class GaussianPolicy:
    """The policy tanh(x) with Gaussian x, whose mean and standard deviation are outputs of an actor network."""

    def __init__(self, config: Any, action_size: int):
        self.actor = common.make_gaussian_actor(config, action_size)

    def act(self, params: Params, observation: Array) -> Array:
        """The deterministic action, tanh of the mean; ``[..., O]`` -> ``[..., A]``."""
        return jnp.tanh(self._distribution(params, observation)[0])

    def sample(self, params: Params, observation: Array, key: Array) -> tuple[Array, Array]:
        """A random action ``[..., A]`` and its log-density ``[...]``."""
        mean, log_std = self._distribution(params, observation)
        return squashed_gaussian.sample(mean, log_std, jax.random.normal(key, mean.shape))

    def _distribution(self, params: Params, observation: Array) -> tuple[Array, Array]:
        return cast(tuple[Array, Array], self.actor.apply(params, observation))


def climb(
    policy: GaussianPolicy,
    value: Callable[[tuple[Array, Array]], Array],
    temperature: float | Array,
    observation: Array,
    key: Array,
) -> common.Loss:
    """SAC's actor loss, the mean of alpha log pi(a|s) - Q(s, a), as a function of the actor's parameters.

    Args:
      policy: the policy pi.
      value: function (observation, action) -> Q ``[B]``.
      temperature: alpha.
      observation: observations s, ``[B, O]``.
      key: PRNG key for sampling the actions a.
    """

    def loss(params: Params) -> tuple[Array, common.Scalars]:
        action, log_prob = policy.sample(params, observation, key)
        loss = jnp.mean(temperature * log_prob - value((observation, action)))
        return loss, {"actor_loss": loss, "action_abs": jnp.mean(jnp.abs(action)), "entropy": -log_prob.mean()}

    return loss


def init_temperature(config: TemperatureConfig) -> Temperature | None:
    """The initial state of a learned temperature; None for a fixed temperature."""
    if not config.automatic_temperature:
        return None
    log_value = jnp.log(jnp.maximum(jnp.asarray(config.temperature), 1e-8))
    return Temperature(log_value, _adam(config).init(log_value))


def temperature_of(config: TemperatureConfig, state: Temperature | None) -> float | Array:
    """The temperature alpha."""
    return config.temperature if state is None else jnp.exp(state.log_value)


def update_temperature(
    config: TemperatureConfig, state: Temperature | None, entropy: Array, action_size: int
) -> tuple[Temperature | None, common.Scalars]:
    """One step of Adam on log(alpha) (entropy - target entropy), after Haarnoja et al. 2018, arXiv 1812.05905, Eq. 18.

    As in most implementations, the loss uses log(alpha) instead of alpha, so that the step does not shrink with alpha.

    Args:
      config: hyperparameters of the temperature.
      state: state of the temperature; None if it is fixed.
      entropy: entropy of the policy, estimated on the minibatch [nats].
      action_size: A.

    Returns:
      The new state and the metrics, which are empty for a fixed temperature.
    """
    if state is None:
        return None, {}
    gradient = entropy - config.target_entropy * action_size
    updates, optimizer = _adam(config).update(gradient, state.optimizer)
    log_value = cast(Array, optax.apply_updates(state.log_value, updates))
    return Temperature(log_value, optimizer), {"temperature": jnp.exp(log_value)}


def _adam(config: TemperatureConfig) -> optax.GradientTransformation:
    return optax.adam(config.temperature_learning_rate)
