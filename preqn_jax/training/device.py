"""Training with environments on the device: one compiled program collects transitions and updates all learners."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from preqn_jax.agents.base import Agent, AgentState, CriticView
from preqn_jax.agents.critic_diagnostics import diagnosis_of, with_alignment
from preqn_jax.envs import device as device_env
from preqn_jax.envs.device import EnvState
from preqn_jax.settings import SettingError
from preqn_jax.training import base, replay
from preqn_jax.training.base import Infos, Interval, Trainer
from preqn_jax.training.checkpoint import Arrays
from preqn_jax.training.config import Config
from preqn_jax.training.evaluation import Evaluation, evaluate_on_device
from preqn_jax.training.replay import Ring
from preqn_jax.types import Array, Transition, transition_bytes


class Member(NamedTuple):
    """One learner of a population.

    Attributes:
      seed: its seed.
      hyperparameters: fields of the agent's configuration that differ for this member, e.g. ``{"step_size": 0.03}``.
    """

    seed: int
    hyperparameters: Mapping[str, float] = types.MappingProxyType({})


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


class DeviceTrainer(Trainer):
    """M learners (members), each with N environments, distributed over devices along the member axis.

    Attributes:
      sharding: sharding, over the devices of all processes, of every array whose leading axis is the member axis.
    """

    def __init__(
        self, config: Config, members: Sequence[Member] | None = None, devices: Sequence[jax.Device] | None = None
    ):
        """Creates environments and agents, without compiling anything.

        Args:
          config: configuration of the run.
          members: the population; by default one member for each seed of the configuration.
          devices: devices over which the members are distributed evenly; by default the first local device. They may
            belong to several processes, in contiguous blocks: each process then creates the same trainer, and holds
            only its own members.

        Raises:
          SettingError: if the configuration is invalid, or the population does not fit the devices.
        """
        if members is None:
            members = [Member(seed) for seed in range(config.seed, config.seed + config.num_seeds)]
        devices = list(devices or jax.local_devices()[:1])
        if len(members) % len(devices):
            raise SettingError(
                f"{len(members)} members cannot be spread evenly over {len(devices)} devices; nearest: "
                f"{-(-len(members) // len(devices)) * len(devices)} members"
            )
        each = len(members) // len(devices)
        here = [number for number, device in enumerate(devices) if device.process_index == jax.process_index()]
        self.members = [member for number in here for member in members[number * each : (number + 1) * each]]
        super().__init__(config, [member.seed for member in self.members])
        self.env = device_env.make(config.env)
        transition = transition_bytes(self.env.observation_size, self.env.action_size)
        self.replay_bytes = len(self.members) * config.replay_capacity * transition
        self._check_memory(devices[here[0]], len(here), transition)
        self._mesh = Mesh(np.array(devices), ("members",))
        self.sharding = NamedSharding(self._mesh, PartitionSpec("members"))
        self._identity = self._spread(Identity(self._hyperparameters(), np.asarray(jax.random.key_data(self.keys))))

    def _check_memory(self, device: jax.Device, count: int, transition: int) -> None:
        """Raises SettingError unless the replay buffers and one iteration's minibatches fit on ``count`` devices."""
        config, available = self.config, memory_of(device, count)
        minibatches = len(self.members) * config.update_every * config.batch_size * transition
        minibatches *= 1 + config.measure_alignment
        needed = self.replay_bytes + minibatches
        if needed > available:
            fits = int(config.replay_capacity * (available - minibatches) / self.replay_bytes)
            fits -= fits % config.update_every
            remedy = f"at most {fits} transitions fit" if fits > 0 else "lower config.batch_size, or use fewer members"
            raise SettingError(
                f"config.replay_capacity={config.replay_capacity} needs {needed / 2**30:.1f} GiB for "
                f"{len(self.members)} member(s), but {available / 2**30:.1f} GiB are available; {remedy}"
            )

    def compile(self) -> float:
        """Initializes the learners and compiles all functions of the run; returns the elapsed time [s]."""
        start = time.perf_counter()
        programs = self.programs()
        init, arguments = programs.pop("init")
        self.population: Population = init(*arguments)
        # Compiled ahead of time, so that a call with other shapes fails instead of recompiling.
        lowered = {name: program.lower(*arguments) for name, (program, arguments) in programs.items()}
        compiled = {name: program.compile() for name, program in lowered.items()}
        self._compiled_burst, self._compiled_play = compiled["iteration"], compiled["evaluation"]
        self._compiled_diagnosis = compiled.get("diagnosis")
        infos = lowered["iteration"].out_info[1].infos
        diagnosis = lowered["diagnosis"].out_info if "diagnosis" in lowered else ()
        self.interval = Interval(len(self.members), sorted(infos), sorted(diagnosis))
        return time.perf_counter() - start

    def programs(self) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """The programs of the run, without compiling or allocating anything.

        Returns:
          The jitted function and its arguments by name: ``init``, ``iteration`` (which donates the population),
          ``evaluation`` and, with ``config.diagnose_every``, ``diagnosis``. The population is given by its shapes, so
          that a program can be lowered, exported (``jax.export``) or compiled, but not called.
        """

        def placed(leaf: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.sharding)

        init = self._program(self._init)
        population = jax.tree.map(placed, jax.eval_shape(init, self._identity))
        functions = {"iteration": self._burst, "evaluation": self._play, "diagnosis": self._diagnose}
        if not self.config.diagnose_every:
            del functions["diagnosis"]
        arguments = self._identity, population, np.uint32(0)
        programs = {
            name: (self._program(function, donate=name == "iteration"), arguments)
            for name, function in functions.items()
        }
        return {"init": (init, (self._identity,)), **programs}

    def member_bytes(self) -> int:
        """Memory per member [bytes], from the compiler's memory analysis; compiles, but allocates no buffers."""
        iteration, arguments = self.programs()["iteration"]
        analysis: Any = iteration.lower(*arguments).compile().memory_analysis()
        kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        return (kept + analysis.temp_size_in_bytes) // len(self.members)

    def _hyperparameters(self) -> dict[str, np.ndarray]:
        """The hyperparameters that differ in any member, with the values of all members, ``[M]`` by name."""
        names = sorted({name for member in self.members for name in member.hyperparameters})
        agent = self.config.agent
        of = {name: [m.hyperparameters.get(name, getattr(agent, name)) for m in self.members] for name in names}
        return {name: np.asarray(jnp.asarray(values)) for name, values in of.items()}

    def _program(self, function: Callable[..., Any], donate: bool = False) -> Any:
        """Jits ``function(identity[, population, step])`` with ``shard_map`` over the member axis.

        Devices run independent loops, so no member waits for the line search of a member on another device.
        ``donate`` donates the second argument.
        """
        members, shared = self.sharding.spec, PartitionSpec()

        def of_one_device(identity: Identity, *rest: Any) -> Any:
            return function(identity._replace(key=jax.random.wrap_key_data(identity.key)), *rest)

        count = len(inspect.signature(function).parameters)
        in_specs = (members, members, shared)[:count]
        sharded = jax.shard_map(of_one_device, mesh=self._mesh, in_specs=in_specs, out_specs=members, check_vma=False)
        return jax.jit(sharded, donate_argnums=1 if donate else ())

    def _spread(self, tree: Any) -> Any:
        """Combines arrays of this process's members into global arrays of all members."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self.sharding, leaf), tree)

    # The methods below are traced; there, M is the number of members on one device.

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

    def _init(self, identity: Identity) -> Population:
        config, env = self.config, self.env

        def init(one: Identity) -> tuple[AgentState, EnvState, Array]:
            agent = self._agent(one).init(jax.random.fold_in(one.key, base.INIT))
            reset_keys = jax.random.split(base.stream(one.key, base.RESET, jnp.uint32(0)), config.env.num_envs)
            return agent, env.reset(reset_keys), jnp.zeros(config.env.num_envs)

        ring = replay.device_replay(config.replay_capacity, env.observation_size, env.action_size)
        rings = jax.tree.map(lambda leaf: jnp.zeros((*identity.key.shape, *leaf.shape), leaf.dtype), ring)
        agent, envs, returns = over_members(init, identity)
        return Population(agent, envs, returns, rings, jnp.ones(identity.key.shape, bool))

    def _burst(self, identity: Identity, population: Population, step: Array) -> tuple[Population, Report]:
        """One iteration of every member, starting at environment step ``step``."""
        agent, envs, returns, ring, running = population
        collect = functools.partial(self._collect, step=step)
        given = identity, agent, envs, returns, running
        envs, returns, running, collected, *ended = over_members(unless_stopped(collect, kept=3), *given)
        ring = jax.vmap(lambda ring, new: replay.add(ring, new, step))(ring, collected)
        agent = jax.vmap(self._observe)(identity, agent, collected.transitions.observation, running)
        after = step + self.config.update_every

        def learn(agent: AgentState, running: Array) -> tuple[AgentState, Array, dict[str, Array]]:
            batches = jax.vmap(functools.partial(self._draw, after=after))(identity, ring)
            learn = unless_stopped(functools.partial(self._learn, step=after), kept=2)
            return over_members(learn, identity, batches, agent, running)

        def wait(agent: AgentState, running: Array) -> tuple[AgentState, Array, dict[str, Array]]:
            return agent, running, zeros(jax.eval_shape(learn, agent, running)[2])

        due = after >= self.config.update_after
        agent, running, infos = jax.lax.cond(due, learn, wait, agent, running)
        return Population(agent, envs, returns, ring, running), Report(infos, *ended)

    def _draw(self, one: Identity, ring: Ring, *, after: Array) -> Transition:
        """Minibatches for one member's gradient steps, ``[U, B, ...]``; ``[U, 2 B, ...]`` with held-out rows."""
        shape = (self.config.update_every, self.config.batch_size)
        streams = (base.REPLAY, base.HELD_OUT) if self.config.measure_alignment else (base.REPLAY,)
        parts = [self._sample(one, ring, base.stream(one.key, number, after), after, shape) for number in streams]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)

    def _sample(self, one: Identity, ring: Ring, key: Array, total: Array, shape: tuple[int, ...]) -> Transition:
        gamma, num_envs = self._agent_config(one).gamma, self.config.env.num_envs
        return replay.sample(ring, key, total, shape, self.config.n_step, gamma, num_envs)

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
            after, outcome = device_env.step_and_restart(self.env, envs, action, reset_keys)
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
        after = self._agent(one).observe(agent, observations)
        return jax.tree.map(lambda new, old: jnp.where(running, new, old), after, agent)

    def _learn(
        self, one: Identity, batches: Transition, agent: AgentState, running: Array, *, step: Array
    ) -> tuple[AgentState, Array, dict[str, Array]]:
        burst = base.guarded_burst_of(self._agent(one))
        agent, infos, running = burst(agent, batches, one.key, step, running)
        return agent, running, infos

    def _play(self, identity: Identity, population: Population, step: Array) -> tuple[Evaluation, Array]:
        """Evaluation episodes of every member, and the Q estimate at the initial state of each."""

        def play(one: Identity, state: AgentState, _: Array) -> tuple[Evaluation, Array]:
            agent, critic = self._plain_agent(one)
            reset_keys = jax.random.split(base.stream(one.key, base.EVALUATE, step), self.config.evaluate_episodes)
            evaluation = evaluate_on_device(lambda x: agent.act(state, x), self.env, reset_keys, critic.gamma)
            return evaluation, base.value_of_policy(agent, critic, state, evaluation.first_observation)

        return over_members(unless_stopped(play, kept=0), identity, population.agent, population.running)

    def _diagnose(self, identity: Identity, population: Population, step: Array) -> dict[str, Array]:
        """Kernel diagnostics of the update that each member would make now, on a separately sampled minibatch."""

        def diagnose(one: Identity, agent: AgentState, ring: Ring) -> dict[str, Array]:
            draw, update = jax.random.split(base.stream(one.key, base.DIAGNOSE, step))
            batch = self._sample(one, ring, draw, step, (self.config.batch_size,))
            return diagnosis_of(*self._plain_agent(one))(agent, batch, update)

        return over_members(diagnose, identity, population.agent, population.replay)

    # The methods below are not traced.

    def advance(self) -> Infos:
        """Runs one iteration: ``update_every`` environment steps, then the same number of gradient steps.

        Returns:
          Metrics of each gradient step, ``[M, U]`` by name; empty before ``update_after``.

        Raises:
          NonFiniteError: if all learners have been stopped.
        """
        config = self.config
        arguments = self._identity, self.population, np.uint32(self.step)
        if self._compiled_diagnosis and self.step >= config.update_after and self.step % config.diagnose_every == 0:
            self.interval.add_diagnosis(_local(self._compiled_diagnosis(*arguments)))
        self.population, report = self._compiled_burst(*arguments)
        infos, episodes, returns, broken = _local(report)
        self.step += config.update_every
        self.interval.add_episodes(episodes, returns)
        self.broken_episodes += int(broken.sum())
        return self._record(infos if self.step >= config.update_after else {}, _local(self.population.running))

    def label(self, s: int) -> str:
        """A text that identifies a member in messages: its seed and its hyperparameter overrides."""
        numbers = self.members[s].hyperparameters.items()
        return ", ".join([f"seed {self.seeds[s]}", *(f"{name} {value:g}" for name, value in numbers)])

    def play(self, should_stop: Callable[[], bool]) -> tuple[Evaluation, np.ndarray] | None:
        """Runs evaluation episodes; see :meth:`Trainer.play`.

        The evaluation is one compiled program, so ``should_stop`` is only called before it starts.
        """
        arguments = self._identity, self.population, np.uint32(self.step)
        return None if should_stop() else _local(self._compiled_play(*arguments))

    def arrays(self) -> Arrays:
        """The state of the run for a checkpoint, as arrays by name; the input of :meth:`restore`.

        With several processes these are global arrays of all members.
        """
        interval = {f"interval.{name}": array for name, array in self.interval.arrays().items()}
        fetch: Callable[[Any], Any] = _local
        if jax.process_count() > 1:  # JAX has no float64 by default, so float64 is distributed as pairs of uint32
            interval = {
                n: self._spread(array.view(np.uint32)) if array.ndim else array for n, array in interval.items()
            }
            fetch = lambda leaf: leaf  # noqa: E731
        due = np.asarray(self.evaluation_due)
        arrays = {"step": np.asarray(self.step), "evaluation_due": due, **interval}
        held = min(self.step, self.config.replay_capacity)
        for field, tree in self.population._asdict().items():
            for name, leaf in base.named_leaves(tree, field):
                arrays[name] = fetch(leaf)[:, :held] if field == "replay" else fetch(leaf)
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Restores the state of a trainer with the same configuration; call after :meth:`compile`.

        Raises:
          CheckpointError: if the arrays belong to another configuration.
        """
        arrays = {"running": np.ones(len(self.members), bool), **arrays}  # missing in older checkpoints
        spread = [name for name, array in arrays.items() if isinstance(array, jax.Array)]
        arrays = {name: _local(array) if name in spread else array for name, array in arrays.items()}
        self.step, self.evaluation_due = int(arrays["step"]), bool(arrays.get("evaluation_due", False))
        interval = {n: array.view(np.float64) if n in spread else array for n, array in arrays.items()
                    if n.startswith("interval.")}  # fmt: skip
        self.interval.restore(base.below(interval, "interval."))
        free = self.config.replay_capacity - min(self.step, self.config.replay_capacity)
        whole = {
            name: np.pad(array, [(0, 0), (0, free)] + [(0, 0)] * (array.ndim - 2))
            for name, array in arrays.items()
            if name.startswith("replay.")
        }
        fields = {name: _local_shapes(tree) for name, tree in self.population._asdict().items()}
        restored = [base.restore_tree(like, {**arrays, **whole}, field) for field, like in fields.items()]
        self.population = self._spread(Population(*restored))
        self.running = _local(self.population.running)


def over_members(function: Callable[..., Any], *arguments: Any) -> Any:
    """Maps ``function`` over the members, the leading axis of every argument.

    On accelerators this is a vmap. On CPU, where vmap is not faster, members are processed sequentially: the results of
    a member are then bitwise equal to those of a run with this member alone, and no line search waits for another.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda one: function(*one), arguments)
    return jax.vmap(function)(*arguments)


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


def memory_of(device: jax.Device, count: int) -> int:
    """Memory of ``count`` such devices of this process [bytes]; CPU devices share the machine's memory."""
    stats = device.memory_stats() or {}
    return count * stats["bytes_limit"] if "bytes_limit" in stats else psutil.virtual_memory().available


def _local(tree: Any) -> Any:
    """Copies this process's part of global arrays to NumPy arrays."""

    def fetch(leaf: Array) -> np.ndarray:
        parts = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
        arrays = [np.asarray(parts[start]) for start in sorted(parts)]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)  # avoids a copy of large buffers

    return jax.tree.map(fetch, tree)


def _local_shapes(tree: Any) -> Any:
    """Shapes of the results of :func:`_local`."""

    def shape(leaf: Array) -> jax.ShapeDtypeStruct:
        own = sum(shard.data.shape[0] for shard in leaf.addressable_shards)
        return jax.ShapeDtypeStruct((own, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape, tree)
