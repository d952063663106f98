"""Flax networks: multilayer perceptrons as critics Q(s, a) and Q(s, .), and as deterministic and Gaussian actors."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.nn import initializers

from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.types import Array

# Kernel initializers by name. torch_default is the initializer of PyTorch's Linear, U(-1/sqrt(in), 1/sqrt(in)).
KERNEL_INITS: dict[str, initializers.Initializer] = {
    "glorot_uniform": initializers.glorot_uniform(),
    "glorot_normal": initializers.glorot_normal(),
    "lecun_uniform": initializers.lecun_uniform(),
    "lecun_normal": initializers.lecun_normal(),
    "he_uniform": initializers.he_uniform(),
    "orthogonal": initializers.orthogonal(),
    "torch_default": initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform"),
}


# Normalization between the Dense layer and the activation of each hidden layer: none, LayerNorm without learned
# parameters, or LayerNorm with a learned scale and bias (Ba, Kiros and Hinton 2016, arXiv 1607.06450).
LAYER_NORMS = ("none", "fixed", "learned")


class MLP(nn.Module):
    """Dense layers with an activation after each layer but the last; biases are initialized to zero.

    Attributes:
      hidden_sizes: width of each hidden layer; its length is the depth.
      output_size: width of the last layer.
      activation: a name in ``ACTIVATIONS``.
      kernel_init: a name in ``KERNEL_INITS``.
      layer_norm: one of ``LAYER_NORMS``, applied before each activation.
    """

    hidden_sizes: Sequence[int]
    output_size: int
    activation: str = "sin"
    kernel_init: str = "glorot_uniform"
    layer_norm: str = "none"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[..., in]`` -> ``[..., output_size]``."""
        activation, kernel_init = ACTIVATIONS[self.activation], KERNEL_INITS[self.kernel_init]
        for size in self.hidden_sizes:
            x = nn.Dense(size, kernel_init=kernel_init)(x)
            if self.layer_norm != "none":
                learned = self.layer_norm == "learned"
                # Not the fast variance, E[x^2] - E[x]^2, which loses precision to cancellation if the mean is large.
                x = nn.LayerNorm(use_scale=learned, use_bias=learned, use_fast_variance=False)(x)
            x = activation(x)
        return nn.Dense(self.output_size, kernel_init=kernel_init)(x)


class Critic(nn.Module):
    """Q(s, a): one value per row of observation ``[..., O]`` and action ``[..., A]``, shape ``[...]``."""

    hidden_sizes: Sequence[int] = (256, 256)
    activation: str = "sin"
    kernel_init: str = "glorot_uniform"
    layer_norm: str = "none"

    @nn.compact
    def __call__(self, observation: Array, action: Array) -> Array:
        """Returns Q ``[...]``."""
        x = jnp.concatenate([observation, action], axis=-1)
        return MLP(self.hidden_sizes, 1, self.activation, self.kernel_init, self.layer_norm)(x)[..., 0]


class DiscreteCritic(nn.Module):
    """Q(s, a) of A discrete actions: one network with an output per action; actions are one-hot vectors."""

    action_size: int
    hidden_sizes: Sequence[int] = (256, 256)
    activation: str = "tanh"
    kernel_init: str = "glorot_uniform"
    layer_norm: str = "none"

    def setup(self) -> None:
        """Creates the network that both methods call."""
        self.network = MLP(self.hidden_sizes, self.action_size, self.activation, self.kernel_init, self.layer_norm)

    def __call__(self, observation: Array, action: Array) -> Array:
        """Returns Q of the given action: ``[..., O]`` and one-hot ``[..., A]`` -> ``[...]``."""
        return jnp.sum(self.all_values(observation) * action, axis=-1)

    def all_values(self, observation: Array) -> Array:
        """Returns Q of every action: ``[..., O]`` -> ``[..., A]``."""
        return self.network(observation)


class Actor(nn.Module):
    """Deterministic policy mu(s), squashed by tanh: ``[..., O]`` -> actions ``[..., A]`` in (-1, 1)."""

    action_size: int
    hidden_sizes: Sequence[int] = (256, 256)
    activation: str = "sin"
    kernel_init: str = "glorot_uniform"
    layer_norm: str = "none"

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        """Returns the action ``[..., A]``."""
        return jnp.tanh(
            MLP(self.hidden_sizes, self.action_size, self.activation, self.kernel_init, self.layer_norm)(observation)
        )


class GaussianActor(nn.Module):
    """Mean and log standard deviation of a Gaussian over actions before squashing, computed by one MLP.

    Attributes:
      log_std_bounds: bounds to which the log standard deviation is clipped.
    """

    action_size: int
    hidden_sizes: Sequence[int] = (256, 256)
    activation: str = "relu"
    kernel_init: str = "glorot_uniform"
    layer_norm: str = "none"
    log_std_bounds: tuple[float, float] = (-20.0, 2.0)

    @nn.compact
    def __call__(self, observation: Array) -> tuple[Array, Array]:
        """Returns mean and log_std, both ``[..., A]``."""
        output = MLP(self.hidden_sizes, 2 * self.action_size, self.activation, self.kernel_init, self.layer_norm)(
            observation
        )
        mean, log_std = jnp.split(output, 2, axis=-1)
        return mean, jnp.clip(log_std, *self.log_std_bounds)
