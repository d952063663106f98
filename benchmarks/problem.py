"""The problem for benchmarks of updates: networks and minibatches of a task's sizes, and their operation counts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Candidate, temporary_bytes
from preqn_jax.agents.base import Agent
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.networks import Actor, Critic
from preqn_jax.ops import ntk, td
from preqn_jax.training.base import gradient_steps_of
from preqn_jax.types import Array, Params, Transition

OBSERVATION, ACTION = 17, 6  # default sizes, those of HalfCheetah
BURST = 20  # consecutive updates in one call
NO_BACKTRACKS = 1e-6  # minimum alignment that every first step reaches: the minibatches here are not from training
OverSeeds = Callable[..., Callable[..., Any]]  # like jax.vmap: (function, in_axes) -> function of all seeds
_POOL = 1000  # transitions that minibatches are drawn from, with replacement: rows repeat, as early in training


class Problem(NamedTuple):
    """A critic, an actor and minibatches, for all sections."""

    critic: Critic
    actor: Actor
    critic_params: Params
    actor_params: Params
    batch: Transition
    bursts: Transition  # [U, B, ...]
    target: Array
    td_error: Array

    @property
    def inputs(self) -> tuple[Array, Array]:
        """The inputs of the critic."""
        return self.batch.observation, self.batch.action


def make_problem(
    batch_size: int, hidden_sizes: tuple[int, ...], observation: int = OBSERVATION, action: int = ACTION
) -> Problem:
    """Creates new networks, and minibatches of transitions on a low-dimensional manifold, some of which are repeated.

    States are a random map of six latent numbers, and rewards depend smoothly on the latent numbers. Like the states of
    a robot, such inputs make the kernel numerically low-rank; the repeated rows make it singular.
    """
    critic, actor = Critic(hidden_sizes), Actor(action, hidden_sizes)
    generator = np.random.default_rng(0)
    latent = generator.normal(size=(_POOL + 1, 6)).cumsum(axis=0) / np.sqrt(np.arange(1, _POOL + 2))[:, None]
    states = np.tanh(latent @ generator.normal(size=(6, observation)) / 2)
    actions = generator.uniform(-1.0, 1.0, (_POOL, action))
    rewards = latent[1:, 0] - latent[:-1, 0] - 0.1 * (actions**2).sum(axis=1)
    drawn = generator.integers(_POOL, size=(BURST, batch_size))
    columns = (states[:-1], actions, rewards, np.ones(_POOL), states[1:])
    bursts = Transition(*(jnp.asarray(column[drawn], jnp.float32) for column in columns))
    batch = jax.tree.map(lambda leaf: leaf[0], bursts)

    critic_params = critic.init(jax.random.key(0), batch.observation, batch.action)
    actor_params = actor.init(jax.random.key(1), batch.observation)
    errors = jax.jit(_errors_of(critic, actor))(critic_params, actor_params, batch)
    return Problem(critic, actor, critic_params, actor_params, batch, bursts, *errors)


def _errors_of(critic: Critic, actor: Actor) -> Callable[[Params, Params, Transition], tuple[Array, Array]]:
    """Returns a function (critic's and actor's parameters, batch) -> (targets, TD errors), as in the agent."""
    gamma, q_fn = PreQNConfig().gamma, ntk.module_q_fn(critic)

    def errors(critic_params: Params, actor_params: Params, batch: Transition) -> tuple[Array, Array]:
        next_action = actor.apply(actor_params, batch.next_observation)
        next_value = q_fn(critic_params, (batch.next_observation, next_action))
        target = td.td_target(batch.reward, batch.discount, next_value, gamma)
        return target, target - q_fn(critic_params, (batch.observation, batch.action))

    return errors


def burst(
    name: str, config: PreQNConfig, batches: Transition, num_seeds: int = 1, over_seeds: OverSeeds = jax.vmap
) -> Candidate:
    """Returns a candidate that runs consecutive whole updates of PreQN, as training does."""
    agent, _ = config.make(batches.observation.shape[-1], batches.action.shape[-1])
    return burst_of_agent(name, agent, batches, num_seeds, over_seeds)


def burst_of_agent(
    name: str, agent: Agent, batches: Transition, num_seeds: int = 1, over_seeds: OverSeeds = jax.vmap
) -> Candidate:
    """Returns a candidate that runs consecutive whole updates of an agent, as training does."""
    updates = batches.reward.shape[0]
    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    function, init = gradient_steps_of(agent), agent.init
    arguments = (init(keys[0]), batches, keys[0])
    if num_seeds > 1:
        function = over_seeds(function, in_axes=(0, 0, 0, None))
        batches = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_seeds), batches)
        arguments = (jax.vmap(init)(keys), batches, keys)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments, np.uint32(0)).compile()
    seconds = time.perf_counter() - start

    def run() -> Any:
        return jax.block_until_ready(compiled(*arguments, np.uint32(0)))

    return Candidate(name, run, updates, seconds, run(), temporary_bytes(compiled))


def layers(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Numbers of (inputs, outputs) of each layer."""
    return list(itertools.pairwise(widths))


def update_work(
    batch_size: int, hidden_sizes: tuple[int, ...], observation: int = OBSERVATION, action: int = ACTION
) -> dict[str, float]:
    """Floating-point operations of one PreQN update without backtracks, by part; a multiply-add counts as two.

    Only matrix products and the factorization are counted. The products of the Gram matrix are counted in full,
    although half of its entries follow by symmetry.
    """
    critic = layers((observation + action, *hidden_sizes, 1))
    actor = layers((observation, *hidden_sizes, action))

    def products(layers: list[tuple[int, int]]) -> float:
        """Operations of one pass through the layers: forward, or backward to the inputs or to the kernels."""
        return 2.0 * batch_size * sum(a * b for a, b in layers)

    return {
        "critic forward and backward": products(critic)
        + products(critic[1:]),  # no backward pass to the critic's inputs
        "Gram": 2.0 * batch_size**2 * sum(a + b for a, b in critic),  # A A^T and D D^T of each layer
        "TD target": products(actor) + products(critic),
        "solve": batch_size**3 / 3 + 4.0 * batch_size**2,  # Cholesky, and K z for the predicted alignment
        "pull-back": products(critic),
        "linesearch": products(critic),
        "actor's gradient": 3 * products(actor) - products(actor[:1]) + 2 * products(critic),
        "Adam": 0.0,
    }
