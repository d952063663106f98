"""Small agents, and minibatches of no environment."""

import functools

import jax
import jax.numpy as jnp

from preqn_jax.agents import AGENTS
from preqn_jax.types import Transition

B, O, A = 24, 5, 2


@functools.cache
def make(name, **settings):
    """An agent and the view of its critic; the same ones for the same settings, as jax.jit compiles a function once."""
    return AGENTS[name](**{"hidden_sizes": (16, 16), **settings}).make(O, A)


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
