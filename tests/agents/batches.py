"""Minibatches of no environment."""

import jax
import jax.numpy as jnp

from preqn_jax.types import Transition

B, O, A = 24, 5, 2


def batch(seed=0, discrete=False):
    k = jax.random.split(jax.random.key(seed), 5)
    continuous, taken = jax.random.uniform(k[1], (B, A), minval=-1.0), jax.random.randint(k[1], (B,), 0, A)
    return Transition(
        jax.random.normal(k[0], (B, O)),
        jax.nn.one_hot(taken, A) if discrete else continuous,
        jax.random.normal(k[2], (B,)),
        jax.random.bernoulli(k[3], 0.7, (B,)).astype(jnp.float32),
        jax.random.normal(k[4], (B, O)),
    )
