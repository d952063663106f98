"""A Gaussian squashed by tanh: a = tanh(u), u ~ N(mean, std^2), each action component independent of the others."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from preqn_jax.types import Array


def sample(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """A reparameterized sample and its log-density (Haarnoja et al. 2018, Appendix C, Eqs. 20-21).

    Args:
      mean: mean of u, ``[..., A]``.
      log_std: logarithm of the standard deviation of u, ``[..., A]``.
      noise: standard normal noise, ``[..., A]``.

    Returns:
      The action tanh(mean + exp(log_std) noise) ``[..., A]``, and log pi(action) ``[...]``, which is finite even if
      tanh rounds to 1.
    """
    chex.assert_equal_shape([mean, log_std, noise])
    u = mean + jnp.exp(log_std) * noise
    # log N(u; mean, std^2), where (u - mean) / std is the noise itself.
    gaussian = -0.5 * (noise**2 + jnp.log(2.0 * jnp.pi)) - log_std
    return jnp.tanh(u), jnp.sum(gaussian - log_tanh_slope(u), axis=-1)


def log_tanh_slope(u: Array) -> Array:
    """log(1 - tanh(u)^2), elementwise, computed without cancellation as 2 (log 2 - u - softplus(-2 u))."""
    return 2.0 * (jnp.log(2.0) - u - jax.nn.softplus(-2.0 * u))
