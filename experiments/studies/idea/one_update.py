"""One gradient step and one step of PreQN from the same newly initialized critic, for the same TD errors."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax import Linesearch, ntk, preqn_update, solvers
from preqn_jax.networks import Critic
from preqn_jax.ops.alignment import cosine
from preqn_jax.types import Array, Params

STEP_SIZE = 0.25  # share of each TD error that a step should remove


class Step(NamedTuple):
    """The effect of a step: Q' - Q on the minibatch ``[B]`` and at other states ``[G]``, and its alignment."""

    change: Array
    elsewhere: Array
    alignment: float


class Measured(NamedTuple):
    """States of the minibatch ``[B]``, their TD errors ``[B]``, K ``[B, B]``, other states ``[G]``, and both steps."""

    state: Array
    td_error: Array
    gram: Array
    grid: Array
    gradient: Step
    preqn: Step


def measure(activation: str, seed: int) -> Measured:
    """Computes one gradient step and one step of PreQN from the same critic, for the same TD errors."""
    critic = Critic((256, 256), activation)
    q_fn = ntk.module_q_fn(critic)
    init_key, error_key = jax.random.split(jax.random.key(seed))
    state, grid = jnp.linspace(-20.0, 20.0, 6), jnp.linspace(-28.0, 28.0, 401)
    inputs, everywhere = _inputs(state), _inputs(grid)
    params = critic.init(init_key, *inputs)
    td_error = jax.random.normal(error_key, state.shape)
    values, gram, pullback = ntk.dense(critic)(params, inputs)

    def step_to(new_params: Params) -> Step:
        change = q_fn(new_params, inputs) - values
        elsewhere = q_fn(new_params, everywhere) - q_fn(params, everywhere)
        return Step(change, elsewhere, float(cosine(change, td_error)))

    # The gradient step is as large as possible: it removes STEP_SIZE of the error along the kernel's first eigenvector.
    gradient_step_size = STEP_SIZE / jnp.linalg.eigvalsh(gram)[-1]
    gradient = jax.tree.map(lambda p, g: p + gradient_step_size * g, params, pullback(td_error))
    preqn, _ = preqn_update(
        q_fn, params, inputs, values + td_error, solver=solvers.lstsq(), linesearch=Linesearch(STEP_SIZE)
    )
    return Measured(state, td_error, gram, grid, step_to(gradient), step_to(preqn))


def _inputs(state: Array) -> tuple[Array, Array]:
    """Observations, and the only action, each ``[B, 1]``."""
    return state[:, None], jnp.ones_like(state)[:, None]
