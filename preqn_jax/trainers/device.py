"""Training with environments on the device: collecting and learning of all members are one compiled program."""

from __future__ import annotations

import dataclasses
import functools
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from preqn_jax import replay
from preqn_jax.agents import AGENTS
from preqn_jax.agents.base import Agent, AgentState
from preqn_jax.agents.measured import diagnosis_of, with_alignment
from preqn_jax.checkpoint import Arrays
from preqn_jax.config import Config
from preqn_jax.envs import device as device_env
from preqn_jax.envs.device import EnvState
from preqn_jax.rollout import Evaluation, evaluate_on_device
from preqn_jax.settings import SettingError
from preqn_jax.trainers import base
from preqn_jax.trainers.base import Infos, Interval, Trainer
from preqn_jax.types import Array, Transition, transition_shapes

Hyperparameters = dict[str, Array]  # fields of the agent's configuration that differ between members


class Member(NamedTuple):
    """One learner of a population: its seed, and the agent's numbers in which it differs, ``{"eta": 0.9}``."""

    seed: int
    hyperparameters: Mapping[str, float] = types.MappingProxyType({})


class Population(NamedTuple):
    """All that the members carry from burst to burst; every leaf leads with M.

    Attributes:
      agent: states of the agents.
      envs: of the environments, ``[M, N, ...]``.
      returns: of the episodes under way, ``[M, N]``.
      replay: ring buffers, ``[M, capacity, ...]``.
    """

    agent: AgentState
    envs: EnvState
    returns: Array
    replay: Transition


class Report(NamedTuple):
    """What a burst tells of each member: its updates' infos ``[M, U]``, how many episodes ended, their returns' sum."""

    infos: dict[str, Array]
    episodes: Array
    episode_returns: Array


class DeviceTrainer(Trainer):
    """M learners, each with N environments, sharded over devices by members."""

    def __init__(
        self, config: Config, members: Sequence[Member] | None = None, devices: Sequence[jax.Device] | None = None
    ):
        """Makes environments and agents; nothing is compiled yet.

        Args:
          config: of the run.
          members: the population; one for each of the configuration's seeds if left out.
          devices: over which it is spread evenly; the first if left out.

        Raises:
          SettingError: on a configuration that cannot be, or a population that does not fit.
        """
        if members is None:
            members = [Member(seed) for seed in range(config.seed, config.seed + config.num_seeds)]
        super().__init__(config, [member.seed for member in members])
        self.env = device_env.make(config.env.id, config.env.backend, config.env.time_limit)
        self._devices = list(devices or jax.devices()[:1])
        if len(members) % len(self._devices):
            raise SettingError(
                f"{len(members)} members cannot be spread evenly over {len(self._devices)} devices; nearest: "
                f"{-(-len(members) // len(self._devices)) * len(self._devices)} members"
            )
        names = sorted({name for member in members for name in member.hyperparameters})
        self._hyperparameters = {
            name: jnp.asarray([m.hyperparameters.get(name, getattr(config.agent, name)) for m in members])
            for name in names
        }
        shapes = transition_shapes(self.env.observation_size, self.env.action_size)
        floats = sum(int(np.prod(shape)) for shape in shapes)
        self.replay_bytes = 4 * len(members) * config.replay_capacity * floats
        self._check_memory()

    def _check_memory(self) -> None:
        """Raises SettingError unless the replay buffers fit."""
        stats = self._devices[0].memory_stats() or {}
        available = len(self._devices) * stats["bytes_limit"] if "bytes_limit" in stats else _host_memory()
        if self.replay_bytes > available:
            fits = int(self.config.replay_capacity * available / self.replay_bytes)
            raise SettingError(
                f"config.replay_capacity={self.config.replay_capacity} needs {self.replay_bytes / 2**30:.1f} GiB for "
                f"{len(self.seeds)} member(s), but the device has {available / 2**30:.1f} GiB; at most "
                f"{fits - fits % self.config.update_every} transitions fit"
            )

    def compile(self) -> float:
        """Initializes the learners and compiles everything that a run will call; returns the seconds it took."""
        start = time.perf_counter()
        mesh = Mesh(np.array(self._devices), ("members",))
        self._sharding = NamedSharding(mesh, PartitionSpec("members"))
        of_members, shared = PartitionSpec("members"), PartitionSpec()

        def program(function: Callable[..., Any], *in_specs: PartitionSpec, donate: int | None = None) -> Any:
            # Each device has its own loops over its own members: no linesearch waits for another device's.
            sharded = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=of_members, check_vma=False)
            return jax.jit(sharded, donate_argnums=() if donate is None else donate)

        self.keys = jax.device_put(self.keys, self._sharding)
        self._hyperparameters = jax.device_put(self._hyperparameters, self._sharding)
        self.population: Population = program(self._init, of_members, of_members)(self._hyperparameters, self.keys)
        arguments = self._hyperparameters, self.keys, self.population, np.uint32(0)
        specs = of_members, of_members, of_members, shared
        burst = program(self._burst, *specs, donate=2).lower(*arguments)
        # Compiled ahead: a call with other shapes fails instead of compiling again.
        self._compiled_burst = burst.compile()
        self._compiled_play = program(self._play, *specs).lower(*self._play_arguments()).compile()
        self._compiled_diagnosis, diagnosis = None, []
        if self.config.diagnose_every:
            lowered = program(self._diagnose, *specs).lower(*arguments)
            self._compiled_diagnosis, diagnosis = lowered.compile(), sorted(lowered.out_info)
        self.interval = Interval(len(self.seeds), sorted(burst.out_info[1].infos), diagnosis)
        return time.perf_counter() - start

    # What follows is traced. M is here the number of members of one device.

    def _agent(self, hyperparameters: Hyperparameters) -> Agent:
        config = dataclasses.replace(self.config.agent, **hyperparameters)
        agent = AGENTS[self.config.algorithm].make(config, self.env.observation_size, self.env.action_size)
        return with_alignment(agent) if self.config.measure_alignment else agent

    def _init(self, hyperparameters: Hyperparameters, keys: Array) -> Population:
        config, env = self.config, self.env

        def init(hyperparameters: Hyperparameters, key: Array) -> tuple[AgentState, EnvState, Array]:
            agent = self._agent(hyperparameters).init(jax.random.fold_in(key, base.INIT))
            reset_keys = jax.random.split(base.stream(key, base.RESET, jnp.uint32(0)), config.env.num_envs)
            return agent, env.reset(reset_keys), jnp.zeros(config.env.num_envs)

        agent, envs, returns = over_members(init, hyperparameters, keys)
        ring = replay.device_replay(config.replay_capacity, env.observation_size, env.action_size)
        rings = jax.tree.map(lambda leaf: jnp.zeros((len(keys), *leaf.shape), leaf.dtype), ring)
        return Population(agent, envs, returns, rings)

    def _burst(
        self, hyperparameters: Hyperparameters, keys: Array, population: Population, step: Array
    ) -> tuple[Population, Report]:
        """From environment step ``step``, ``update_every`` steps and as many updates, of every member."""
        config = self.config
        agent, envs, returns, ring = population
        collect = functools.partial(self._collect, step=step)
        envs, returns, transitions, *ended = over_members(collect, hyperparameters, keys, agent, envs, returns)
        ring = jax.vmap(lambda ring, new: replay.add(ring, new, step))(ring, transitions)
        after = step + config.update_every

        def learn(agent: AgentState) -> tuple[AgentState, dict[str, Array]]:
            batches = jax.vmap(functools.partial(self._sample, step=after))(keys, ring)
            learn_one = functools.partial(self._learn, step=after)
            return over_members(learn_one, hyperparameters, keys, agent, batches)

        def wait(agent: AgentState) -> tuple[AgentState, dict[str, Array]]:
            infos = jax.eval_shape(learn, agent)[1]
            return agent, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), infos)

        agent, infos = jax.lax.cond(after >= config.update_after, learn, wait, agent)
        return Population(agent, envs, returns, ring), Report(infos, *ended)

    def _collect(
        self, hyperparameters: Hyperparameters, key: Array, agent_state: AgentState, envs: EnvState, returns: Array,
        *, step: Array,
    ) -> tuple[EnvState, Array, Transition, Array, Array]:  # fmt: skip
        """``update_every`` environment steps of one member; besides, how many episodes ended, their returns' sum."""
        config, agent = self.config, self._agent(hyperparameters)
        count = config.env.num_envs

        def step_all(carry: tuple[EnvState, Array], now: Array) -> tuple[tuple[EnvState, Array], Any]:
            envs, returns = carry
            observation = envs.observation
            chosen = agent.explore(agent_state, observation, base.stream(key, base.EXPLORE, now))
            uniform = jax.random.uniform(base.stream(key, base.UNIFORM_ACTION, now), chosen.shape, minval=-1.0)
            action = jnp.where(now < config.start_steps, uniform, chosen)
            reset_keys = jax.random.split(base.stream(key, base.RESET, now + count), count)
            envs, outcome = device_env.step_and_restart(self.env, envs, action, reset_keys)
            discount = 1.0 - outcome.terminated.astype(jnp.float32)
            transition = Transition(observation, action, outcome.reward, discount, outcome.observation)
            returns, over = returns + outcome.reward, outcome.terminated | outcome.truncated
            ended = jnp.where(over, returns, 0.0).sum()
            return (envs, jnp.where(over, 0.0, returns)), (transition, over.sum(), ended)

        steps = step + count * jnp.arange(config.update_every // count, dtype=jnp.uint32)
        (envs, returns), (transitions, episodes, ended) = jax.lax.scan(step_all, (envs, returns), steps)
        transitions = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), transitions)
        return envs, returns, transitions, episodes.sum(), ended.sum()

    def _sample(self, key: Array, ring: Transition, *, step: Array) -> Transition:
        shape = (self.config.update_every, self.config.batch_size)
        return replay.sample(ring, base.stream(key, base.REPLAY, step), step, shape)

    def _learn(
        self, hyperparameters: Hyperparameters, key: Array, agent: AgentState, batches: Transition, *, step: Array
    ) -> tuple[AgentState, dict[str, Array]]:
        return base.burst_of(self._agent(hyperparameters))(agent, batches, key, step)

    def _play(
        self, hyperparameters: Hyperparameters, keys: Array, agent: AgentState, step: Array
    ) -> tuple[Evaluation, Array]:
        """Episodes of every member, and Q at the first state of each."""

        def play(hyperparameters: Hyperparameters, key: Array, state: AgentState) -> tuple[Evaluation, Array]:
            agent = self._agent(hyperparameters)
            reset_keys = jax.random.split(base.stream(key, base.EVALUATE, step), self.config.evaluate_episodes)
            evaluation = evaluate_on_device(lambda x: agent.act(state, x), self.env, reset_keys, agent.gamma)
            return evaluation, base.value_of_policy(agent, state, evaluation.first_observation)

        return over_members(play, hyperparameters, keys, agent)

    def _diagnose(
        self, hyperparameters: Hyperparameters, keys: Array, population: Population, step: Array
    ) -> dict[str, Array]:
        """Of the update that each member would make now, on a minibatch drawn for this alone."""

        def diagnose(
            hyperparameters: Hyperparameters, key: Array, agent: AgentState, ring: Transition
        ) -> dict[str, Array]:
            draw, update = jax.random.split(base.stream(key, base.DIAGNOSE, step))
            batch = replay.sample(ring, draw, step, (self.config.batch_size,))
            return diagnosis_of(self._agent(hyperparameters))(agent, batch, update)

        return over_members(diagnose, hyperparameters, keys, population.agent, population.replay)

    # What follows is not.

    def advance(self) -> Infos:
        """``update_every`` environment steps, then as many updates; their infos, empty while there are none yet.

        Raises:
          NonFiniteError: if anything that an update reports is not finite.
        """
        config = self.config
        arguments = self._hyperparameters, self.keys, self.population, np.uint32(self.step)
        if self._compiled_diagnosis and self.step >= config.update_after and self.step % config.diagnose_every == 0:
            self.interval.add_diagnosis(self._compiled_diagnosis(*arguments))
        self.population, report = self._compiled_burst(*arguments)
        infos, episodes, returns = jax.device_get(report)
        self.step += config.update_every
        self.interval.add_episodes(episodes, returns)
        return self._record(infos) if self.step >= config.update_after else {}

    def play(self) -> tuple[Evaluation, np.ndarray]:
        """Episodes of the deterministic policies; and Q at the first state of each, ``[M, E]``."""
        return jax.device_get(self._compiled_play(*self._play_arguments()))

    def _play_arguments(self) -> tuple[Any, ...]:
        return self._hyperparameters, self.keys, self.population.agent, np.uint32(self.step)

    def arrays(self) -> Arrays:
        """Everything that :meth:`restore` needs, as arrays by name."""
        arrays = {"step": np.asarray(self.step)}
        arrays |= {f"interval.{name}": array for name, array in self.interval.arrays().items()}
        held = min(self.step, self.config.replay_capacity)
        for field, tree in self.population._asdict().items():
            for name, leaf in base.named_leaves(tree, field):
                arrays[name] = np.asarray(leaf[:, :held] if field == "replay" else leaf)
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Takes up where a trainer of the same configuration stopped; call after :meth:`compile`.

        Raises:
          CheckpointError: if the arrays are of another configuration.
        """
        self.step = int(arrays["step"])
        self.interval.restore(base.below(arrays, "interval."))
        free = self.config.replay_capacity - min(self.step, self.config.replay_capacity)
        whole = {
            name: np.pad(array, [(0, 0), (0, free)] + [(0, 0)] * (array.ndim - 2))
            for name, array in arrays.items()
            if name.startswith("replay.")
        }
        fields = self.population._asdict()
        population = Population(
            *(base.restore_tree(tree, {**arrays, **whole}, field) for field, tree in fields.items())
        )
        self.population = jax.device_put(population, self._sharding)


def over_members(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function`` of each member, along the leading axis of every argument.

    All at once where that is faster. On a CPU, where it is not, one after the other: a member's numbers are then bit
    for bit those that it has alone, and no linesearch waits for another's.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda one: function(*one), arguments)
    return jax.vmap(function)(*arguments)


def _host_memory() -> int:
    return psutil.virtual_memory().available
