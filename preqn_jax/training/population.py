"""The functions of a population that are compiled: initialization, an iteration, evaluation and diagnostics."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.agents.base import Agent, AgentState, CriticView
from preqn_jax.agents.critic_diagnostics import diagnosis_of, with_alignment
from preqn_jax.envs.device import DeviceEnv, EnvState, step_and_restart
from preqn_jax.training import base, replay
from preqn_jax.training.config import Config
from preqn_jax.training.evaluation import Evaluation, evaluate_on_device
from preqn_jax.training.mapping import over_learners
from preqn_jax.training.replay import Ring
from preqn_jax.types import Array, Transition


class Identity(NamedTuple):
    """Constants of each member: hyperparameter overrides by name and the PRNG key, ``[M]`` each."""

    hyperparameters: dict[str, Any]
    key: Any


class Population(NamedTuple):
    """The state of all members between iterations; every leaf has the leading axis M.

    Attributes:
      agent: agent states.
      envs: environment states, ``[M, N, ...]``.
      returns: returns of the current episodes so far, ``[M, N]``.
      replay: ring buffers, ``[M, capacity, ...]``.
      running: False for members that were stopped, ``[M]``; their state, except for the replay buffer, is frozen.
    """

    agent: AgentState
    envs: EnvState
    returns: Array
    replay: Ring
    running: Array


class Report(NamedTuple):
    """Results of one iteration for each member.

    Attributes:
      infos: metrics of the gradient steps by name, ``[M, U]``.
      episodes: number of episodes that ended, ``[M]``.
      episode_returns: sum of their returns, ``[M]``.
      broken: number of them that ended because the simulation diverged, ``[M]``.
    """

    infos: dict[str, Array]
    episodes: Array
    episode_returns: Array
    broken: Array


class PopulationFunctions:
    """Pure functions of the members on one device, M of them; the caller compiles them.

    Their first argument is always the members' identity.
    """

    def __init__(self, config: Config, env: DeviceEnv):
        """Takes the configuration of the run and its environment."""
        self.config, self.env = config, env

    def init(self, identity: Identity) -> Population:
        """The state of all members at the start of a run."""
        config, env = self.config, self.env

        def init(one: Identity) -> tuple[AgentState, EnvState, Array]:
            agent = self._agent(one).init(jax.random.fold_in(one.key, base.INIT))
            reset_keys = jax.random.split(base.stream(one.key, base.RESET, jnp.uint32(0)), config.env.num_envs)
            return agent, env.reset(reset_keys), jnp.zeros(config.env.num_envs)

        ring = replay.device_replay(config.replay_capacity, env.observation_size, env.action_size)
        rings = jax.tree.map(lambda leaf: jnp.zeros((*identity.key.shape, *leaf.shape), leaf.dtype), ring)
        agent, envs, returns = _over_members(init)(identity)
        return Population(agent, envs, returns, rings, jnp.ones(identity.key.shape, bool))

    def iterate(self, identity: Identity, population: Population, step: Array) -> tuple[Population, Report]:
        """One iteration of every member, starting at environment step ``step``."""
        agent, envs, returns, ring, running = population
        collect = functools.partial(self._collect, step=step)
        given = identity, agent, envs, returns, running
        envs, returns, running, collected, *ended = _over_members(unless_stopped(collect, kept=3))(*given)
        ring = jax.vmap(lambda ring, new: replay.add(ring, new, step))(ring, collected)
        agent = jax.vmap(self._observe)(identity, agent, collected.transitions.observation, running)
        after = step + self.config.update_every

        def learn(agent: AgentState, running: Array) -> tuple[AgentState, Array, dict[str, Array]]:
            batches = jax.vmap(functools.partial(self._draw, after=after))(identity, ring)
            learn = unless_stopped(functools.partial(self._learn, step=after), kept=2)
            return _over_members(learn)(identity, batches, agent, running)

        def wait(agent: AgentState, running: Array) -> tuple[AgentState, Array, dict[str, Array]]:
            return agent, running, zeros(jax.eval_shape(learn, agent, running)[2])

        due = after >= self.config.update_after
        agent, running, infos = jax.lax.cond(due, learn, wait, agent, running)
        return Population(agent, envs, returns, ring, running), Report(infos, *ended)

    def play(self, identity: Identity, population: Population, step: Array) -> tuple[Evaluation, Array]:
        """Evaluation episodes of every member, and the Q estimate at the initial state of each."""

        def play(one: Identity, state: AgentState, _: Array) -> tuple[Evaluation, Array]:
            agent, critic = self._plain_agent(one)
            reset_keys = jax.random.split(base.stream(one.key, base.EVALUATE, step), self.config.evaluate_episodes)
            evaluation = evaluate_on_device(lambda x: agent.act(state, x), self.env, reset_keys, critic.gamma)
            return evaluation, base.value_of_policy(agent, critic, state, evaluation.first_observation)

        return _over_members(unless_stopped(play, kept=0))(identity, population.agent, population.running)

    def diagnose(self, identity: Identity, population: Population, step: Array) -> dict[str, Array]:
        """Kernel diagnostics of the update that each member would make now, on a separately sampled minibatch."""

        def diagnose(one: Identity, agent: AgentState, ring: Ring) -> dict[str, Array]:
            draw, update = jax.random.split(base.stream(one.key, base.DIAGNOSE, step))
            batch = self._sample(one, ring, draw, step, (self.config.batch_size,))
            return diagnosis_of(*self._plain_agent(one))(agent, batch, update)

        return _over_members(diagnose)(identity, population.agent, population.replay)

    def _agent_config(self, one: Identity) -> Any:
        """The agent's configuration of a member."""
        return dataclasses.replace(self.config.agent, **one.hyperparameters)

    def _plain_agent(self, one: Identity) -> tuple[Agent, CriticView]:
        """The agent of a member, without the metrics that ``measure_alignment`` adds, and the view of its critic."""
        return self._agent_config(one).make(self.env.observation_size, self.env.action_size)

    def _agent(self, one: Identity) -> Agent:
        """The agent of a member."""
        agent, critic = self._plain_agent(one)
        return with_alignment(agent, critic) if self.config.measure_alignment else agent

    def _collect(
        self, one: Identity, agent_state: AgentState, envs: EnvState, returns: Array, running: Array, *, step: Array
    ) -> tuple[EnvState, Array, Array, Ring, Array, Array, Array]:
        """``update_every`` environment steps of one member; the last three results are fields of :class:`Report`.

        A member is stopped if an environment returns NaN or infinite observations directly after a reset. If a
        simulation diverges later, the environment is reset.
        """
        config, agent, key = self.config, self._agent(one), one.key
        count = config.env.num_envs

        def step_all(carry: tuple[EnvState, Array], now: Array) -> tuple[tuple[EnvState, Array], Any]:
            envs, returns = carry
            chosen = agent.explore(agent_state, envs.observation, base.stream(key, base.EXPLORE, now))
            uniform = jax.random.uniform(base.stream(key, base.UNIFORM_ACTION, now), chosen.shape, minval=-1.0)
            action = jnp.where(now < config.start_steps, uniform, chosen).astype(jnp.float32)  # JAX may have float64
            reset_keys = jax.random.split(base.stream(key, base.RESET, now + count), count)
            after, outcome = step_and_restart(self.env, envs, action, reset_keys)
            discount = 1.0 - outcome.terminated.astype(jnp.float32)
            transition = Transition(envs.observation, action, outcome.reward, discount, outcome.observation)
            returns, over = returns + outcome.reward, outcome.terminated | outcome.truncated
            ended = jnp.where(over, returns, 0.0).sum()
            counts = over.sum(), ended, outcome.broken.sum()
            return (after, jnp.where(over, 0.0, returns)), (Ring(transition, over), counts)

        steps = step + count * jnp.arange(config.update_every // count, dtype=jnp.uint32)
        (envs, returns), (collected, counts) = jax.lax.scan(step_all, (envs, returns), steps)
        collected = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), collected)
        running &= base.all_finite((envs.observation, collected.transitions))
        return envs, returns, running, collected, *(count.sum() for count in counts)

    def _observe(self, one: Identity, agent: AgentState, observations: Array, running: Array) -> AgentState:
        return base.observe_if(self._agent(one), agent, observations, running)

    def _draw(self, one: Identity, ring: Ring, *, after: Array) -> Transition:
        """Minibatches for one member's gradient steps, ``[U, B, ...]``; ``[U, 2 B, ...]`` with held-out rows."""
        shape = (self.config.updates_per_iteration, self.config.batch_size)
        streams = (base.REPLAY, base.HELD_OUT) if self.config.measure_alignment else (base.REPLAY,)
        parts = [self._sample(one, ring, base.stream(one.key, number, after), after, shape) for number in streams]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)

    def _sample(self, one: Identity, ring: Ring, key: Array, total: Array, shape: tuple[int, ...]) -> Transition:
        gamma, num_envs = self._agent_config(one).gamma, self.config.env.num_envs
        return replay.sample(ring, key, total, shape, self.config.n_step, gamma, num_envs)

    def _learn(
        self, one: Identity, batches: Transition, agent: AgentState, running: Array, *, step: Array
    ) -> tuple[AgentState, Array, dict[str, Array]]:
        steps = base.guarded_steps_of(self._agent(one))
        agent, infos, running = steps(agent, batches, one.key, step, running)
        return agent, running, infos


def _over_members(function: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a function of one member over the members of a device."""
    return over_learners(function, in_turn=True)


def unless_stopped(function: Callable[..., Any], kept: int) -> Callable[..., Any]:
    """Makes a function of one member skip its work for a member that was stopped.

    The last argument of ``function`` must be ``running``, and its first ``kept`` results must be the new values of its
    last ``kept`` arguments. If ``running`` is False, ``function`` is not evaluated: these arguments are returned
    unchanged, and all other results are zeros.
    """

    def guarded(*arguments: Any) -> Any:
        def rest() -> Any:
            results = jax.eval_shape(function, *arguments)
            return (*arguments[len(arguments) - kept :], *zeros(results[kept:]))

        return jax.lax.cond(arguments[-1], lambda: function(*arguments), rest)

    return guarded


def zeros(tree: Any) -> Any:
    """A pytree of zeros with the shapes and dtypes of another."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
