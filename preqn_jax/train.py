"""Training of N seeds side by side: environments on the host, all learners in one vmapped program."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.agents import AGENTS
from preqn_jax.agents.base import Agent, AgentState
from preqn_jax.agents.measured import diagnosis_of, with_alignment
from preqn_jax.checkpoint import Arrays, CheckpointError
from preqn_jax.envs.host import Episode, HostEnv
from preqn_jax.replay import HostReplay
from preqn_jax.rollout import evaluate
from preqn_jax.settings import SettingError, check, setting
from preqn_jax.types import Array, Transition, transition_shapes

# Streams of random numbers. Each draw is a function of (seed, stream, counter) alone, so that a resumed run needs no
# stored random state to go on exactly where it stopped.
_INIT, _EXPLORE, _UPDATE, _DIAGNOSE = range(4)  # of JAX keys
_UNIFORM_ACTION, _REPLAY = range(2)  # of NumPy generators
_TRAINING, _EVALUATION = range(2)  # of environments


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """Which environment."""

    id: str = setting("Ant-v5", "Gymnasium id with a bounded Box action space, Ant-v4 or Pendulum-v1 for example")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run: the schedule, which all agents share, and the parts that have their own classes."""

    agent: Any
    env: EnvConfig = EnvConfig()
    algorithm: str = setting("preqn", "the agent's name; follows from --config", choices=AGENTS)
    seed: int = setting(0, "seed of the first learner; the others count on from it", interval="[0, 2147483647]")
    num_seeds: int = setting(1, "learners trained side by side, each with its own environment", interval="[1, inf)")
    total_steps: int = setting(1_000_000, "length of the run [environment steps of each seed]", interval="[1, inf)")
    start_steps: int = setting(5_000, "uniformly random actions at the start [environment steps]", interval="[0, inf)")
    update_after: int = setting(5_000, "no gradient steps before this [environment steps]", interval="[1, inf)")
    update_every: int = setting(50, "environment steps, then as many gradient steps, by turns", interval="[1, inf)")
    batch_size: int = setting(256, "minibatch, drawn with replacement [transitions]", interval="[1, inf)")
    replay_capacity: int = setting(1_000_000, "ring buffer of each seed [transitions]", interval="[1, inf)")
    evaluate_every: int = setting(10_000, "between evaluations [environment steps]", interval="[1, inf)")
    evaluate_episodes: int = setting(10, "of each evaluation [episodes]", interval="[1, inf)")
    checkpoint_every: int = setting(10_000, "between checkpoints [environment steps]", interval="[1, inf)")
    measure_alignment: bool = setting(
        False, "report cos(Q' - Q, y - Q) of every critic update; slows it by about a fifth"
    )
    diagnose_every: int = setting(
        0,
        "between diagnoses of an update by the critic's kernel, half a second each; 0: none [environment steps]",
        interval="[0, inf)",
    )
    record_updates: bool = setting(False, "keep the scalars of every single update, in <workdir>/updates/*.npz")


def check_config(config: Config) -> None:
    """Checks every field alone and against the others.

    Raises:
      SettingError: for the first that cannot be; one line.
    """
    check(config)
    if not config.agent.hidden_sizes:
        raise SettingError("config.agent.hidden_sizes is empty; give at least one width, 256,256 for example")
    if config.batch_size > config.replay_capacity:
        raise SettingError(
            f"config.batch_size={config.batch_size} is larger than config.replay_capacity={config.replay_capacity}; "
            f"allowed: at most {config.replay_capacity}"
        )
    for name in ("total_steps", "update_after", "evaluate_every", "checkpoint_every", "diagnose_every"):
        value, every = getattr(config, name), config.update_every
        if value % every:
            raise SettingError(
                f"config.{name}={value} must be a multiple of config.update_every={every}; nearest: "
                f"{max(every, round(value / every) * every)}"
            )


class Reporter(Protocol):
    """Who is told how a run goes."""

    def message(self, text: str) -> None:
        """One line for the user."""

    def progress(self, step: int, info: dict[str, np.ndarray]) -> None:
        """After every burst: environment steps so far, the scalars of its updates ``[S, U]``; empty without updates."""

    def evaluation(self, rows: list[dict[str, float]]) -> None:
        """After every evaluation: one row a seed, always the same columns."""


class NonFiniteError(RuntimeError):
    """Training produced a NaN or an infinity."""


class Trainer:
    """All that changes during a run, and the steps that change it."""

    def __init__(self, config: Config):
        """Makes environments, buffer and agents; nothing is compiled yet.

        Raises:
          SettingError: on a configuration that cannot be.
        """
        check_config(config)
        self.config = config
        self.seeds = range(config.seed, config.seed + config.num_seeds)
        self.envs = [HostEnv(config.env.id, [seed, _TRAINING]) for seed in self.seeds]
        env = self.envs[0]
        self.replay = HostReplay(config.num_seeds, config.replay_capacity, env.observation_size, env.action_size)
        self.agent = AGENTS[config.algorithm].make(config.agent, env.observation_size, env.action_size)
        if config.measure_alignment:
            self.agent = with_alignment(self.agent)
        self.keys = jax.vmap(jax.random.key)(jnp.asarray(self.seeds, jnp.uint32))
        self.step = 0
        self.observation = np.stack([env.reset() for env in self.envs])
        self.returns = np.zeros(config.num_seeds)  # of the episodes under way
        self._eval_envs: list[list[HostEnv]] = []

    def compile(self) -> float:
        """Initializes the learners and compiles everything that a run will call; returns the seconds it took."""
        start = time.perf_counter()
        config, env = self.config, self.envs[0]
        seeds = config.num_seeds
        init = _over_seeds(lambda key: self.agent.init(jax.random.fold_in(key, _INIT)), seeds, in_axes=(0,))
        self.state: AgentState = jax.jit(init)(self.keys)
        self.act = jax.jit(_over_seeds(self.agent.act, seeds, in_axes=(0, 0)))
        self._explore = jax.jit(_over_seeds(_explore_at(self.agent), seeds, in_axes=(0, 0, 0, None)))
        jax.block_until_ready(self._explore(self.state, self.observation, self.keys, np.uint32(0)))
        self._value = jax.jit(_over_seeds(_value_of_policy(self.agent), seeds, in_axes=(0, 0)))
        jax.block_until_ready(self.act(self.state, self._evaluation_shape()))
        jax.block_until_ready(self._value(self.state, self._evaluation_shape()))
        lead = (seeds, config.update_every, config.batch_size)
        shapes = transition_shapes(env.observation_size, env.action_size)
        batches = Transition(*(jax.ShapeDtypeStruct((*lead, *shape), jnp.float32) for shape in shapes))
        burst = jax.jit(_over_seeds(burst_of(self.agent), seeds, in_axes=(0, 0, 0, None)), donate_argnums=0)
        lowered = burst.lower(self.state, batches, self.keys, np.uint32(0))
        # Compiled ahead: a call with other shapes fails instead of compiling again.
        self._burst = lowered.compile()
        self._diagnose = self._compile_diagnosis(batches) if config.diagnose_every else None
        self.interval = Interval(seeds, sorted(lowered.out_info[1]), self._diagnosis_names())
        return time.perf_counter() - start

    def _compile_diagnosis(self, batches: Transition) -> jax.stages.Compiled:
        """Of one update, on the first minibatch of a burst."""
        diagnose = diagnosis_of(self.agent)

        def diagnose_at(state: AgentState, batches: Transition, key: Array, step: Array) -> dict[str, Array]:
            first = jax.tree.map(lambda leaf: leaf[0], batches)
            return diagnose(state, first, jax.random.fold_in(jax.random.fold_in(key, _DIAGNOSE), step))

        over_seeds = _over_seeds(diagnose_at, self.config.num_seeds, in_axes=(0, 0, 0, None))
        return jax.jit(over_seeds).lower(self.state, batches, self.keys, np.uint32(0)).compile()

    def _diagnosis_names(self) -> list[str]:
        return sorted(self._diagnose.out_info) if self._diagnose else []

    def _evaluation_shape(self) -> np.ndarray:
        size = (self.config.num_seeds, self.config.evaluate_episodes, self.envs[0].observation_size)
        return np.zeros(size, np.float32)

    def collect(self) -> None:
        """One environment step of every seed, into the buffer."""
        action = self._next_action()
        steps = [env.step(a) for env, a in zip(self.envs, action, strict=True)]
        reward = np.array([step.reward for step in steps])
        next_observation = np.stack([step.observation for step in steps])
        discount = np.array([not step.terminated for step in steps])
        self.replay.add(Transition(self.observation, action, reward, discount, next_observation))
        self.step += 1
        self.returns += reward
        self.observation = next_observation
        for s, step in enumerate(steps):
            if step.terminated or step.truncated:
                self.interval.add_episode(s, self.returns[s])
                self.returns[s] = 0.0
                self.observation[s] = self.envs[s].reset()

    def _next_action(self) -> np.ndarray:
        if self.step < self.config.start_steps:
            size = self.envs[0].action_size
            draws = [generator.uniform(-1.0, 1.0, size) for generator in self._generators(_UNIFORM_ACTION)]
            return np.stack(draws).astype(np.float32)
        return np.asarray(self._explore(self.state, self.observation, self.keys, np.uint32(self.step)))

    def _generators(self, stream: int) -> list[np.random.Generator]:
        return [np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, self.step])))
                for seed in self.seeds]  # fmt: skip

    def learn(self) -> dict[str, np.ndarray]:
        """One burst of updates of every seed; returns the info of each update, ``[S, U]`` arrays by name.

        Raises:
          NonFiniteError: if anything that it reports is not finite.
        """
        batches = self.replay.sample(self._generators(_REPLAY), (self.config.update_every, self.config.batch_size))
        if self._diagnose and self.step % self.config.diagnose_every == 0:
            self.interval.add_diagnosis(self._diagnose(self.state, batches, self.keys, np.uint32(self.step)))
        self.state, info = self._burst(self.state, batches, self.keys, np.uint32(self.step))
        info = {name: np.asarray(value) for name, value in info.items()}
        for name, value in info.items():
            if not np.isfinite(value).all():
                seed = self.seeds[int(np.nonzero(~np.isfinite(value).all(axis=1))[0][0])]
                raise NonFiniteError(f"{name} of seed {seed} is not finite before step {self.step}")
        self.interval.add_updates(info)
        return info

    def evaluate(self) -> list[dict[str, float]]:
        """Plays the deterministic policies and closes the interval: one row of metrics a seed."""
        config = self.config
        if not self._eval_envs:
            self._eval_envs = [
                [HostEnv(config.env.id, [seed, _EVALUATION]) for _ in range(config.evaluate_episodes)]
                for seed in self.seeds
            ]
        first_episode = self.step // config.evaluate_every * config.evaluate_episodes
        act, gamma = (lambda x: self.act(self.state, x)), self.agent.gamma
        returns, discounted, lengths, first = evaluate(act, self._eval_envs, first_episode, gamma)
        first_q = np.asarray(self._value(self.state, first))
        rows = []
        for s, seed in enumerate(self.seeds):
            evaluation = {
                "step": self.step,
                "seed": seed,
                "return_mean": returns[s].mean(),
                "return_std": returns[s].std(),
                "return_min": returns[s].min(),
                "return_max": returns[s].max(),
                "episode_length": lengths[s].mean(),
                # Q at the first state, and what it claims to be: an overestimation shows as their difference.
                "first_q": first_q[s].mean(),
                "discounted_return": discounted[s].mean(),
            }
            rows.append({**evaluation, **self.interval.row(s)})
        self.interval = Interval(config.num_seeds, list(self.interval.infos), self._diagnosis_names())
        return rows

    def arrays(self) -> Arrays:
        """Everything that :meth:`restore` needs, as arrays by name."""
        arrays = {
            "step": np.asarray(self.step),
            "returns": self.returns,
            "observation": self.observation,
            "interval.episodes": self.interval.episodes,
            "interval.episode_returns": self.interval.episode_returns,
            "interval.updates": np.asarray(self.interval.updates),
            "interval.diagnoses": np.asarray(self.interval.diagnoses),
        }
        arrays |= {f"interval.diagnosis.{name}": total for name, total in self.interval.diagnosis.items()}
        arrays |= {f"interval.infos.{name}": total for name, total in self.interval.infos.items()}
        arrays |= {f"replay.{name}": array for name, array in self.replay.state().items()}
        arrays |= {name: np.asarray(leaf) for name, leaf in _named_leaves(self.state)}
        for s, env in enumerate(self.envs):
            arrays[f"env.{s}.number"] = np.asarray(env.episode.number)
            arrays[f"env.{s}.actions"] = env.episode.actions
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Takes up where a trainer of the same configuration stopped; call after :meth:`compile`.

        Raises:
          CheckpointError: if the arrays are of another configuration, or the environment does not come to the same
            state again.
        """
        self.state = restore_agent_state(self.state, arrays)
        self.step = int(arrays["step"])
        self.returns = np.array(arrays["returns"])
        self.replay.restore(_below(arrays, "replay."))
        self.interval.episodes = np.array(arrays["interval.episodes"])
        self.interval.episode_returns = np.array(arrays["interval.episode_returns"])
        self.interval.updates = int(arrays["interval.updates"])
        self.interval.diagnoses = int(arrays["interval.diagnoses"])
        diagnosis = _below(arrays, "interval.diagnosis.")
        self.interval.diagnosis = {name: np.array(total) for name, total in diagnosis.items()}
        self.interval.infos = {name: np.array(total) for name, total in _below(arrays, "interval.infos.").items()}
        episodes = [Episode(int(arrays[f"env.{s}.number"]), arrays[f"env.{s}.actions"]) for s in range(len(self.envs))]
        self.observation = np.stack([env.restore(episode) for env, episode in zip(self.envs, episodes, strict=True)])
        if not np.array_equal(self.observation, arrays["observation"]):
            raise CheckpointError(
                f"{self.config.env.id} does not come to the checkpoint's state again (another MuJoCo version, or an "
                "environment with hidden randomness): the run cannot go on exactly; choose another --workdir"
            )


class Interval:
    """What happened since the last evaluation, per seed; ``names`` are those of the agent's infos."""

    def __init__(self, num_seeds: int, names: list[str], diagnosis: list[str]):
        self.episodes = np.zeros(num_seeds)
        self.episode_returns = np.zeros(num_seeds)  # summed
        self.updates = 0
        self.infos = {name: np.zeros(num_seeds) for name in names}  # summed over updates
        self.diagnoses = 0
        self.diagnosis = {name: np.zeros(num_seeds) for name in diagnosis}  # summed over diagnoses

    def add_episode(self, s: int, episode_return: float) -> None:
        """Counts a finished training episode of seed number s."""
        self.episodes[s] += 1
        self.episode_returns[s] += episode_return

    def add_updates(self, info: dict[str, np.ndarray]) -> None:
        """Counts a burst of updates, ``[S, U]`` arrays by name."""
        self.updates += next(iter(info.values())).shape[1]
        for name, value in info.items():
            self.infos[name] += value.sum(axis=1, dtype=np.float64)

    def add_diagnosis(self, diagnosis: dict[str, Array]) -> None:
        """Counts a diagnosis of one update, ``[S]`` arrays by name."""
        self.diagnoses += 1
        for name, value in diagnosis.items():
            self.diagnosis[name] += np.asarray(value, np.float64)

    def row(self, s: int) -> dict[str, float]:
        """Means over the interval; NaN where there was nothing to average."""
        episodes = self.episodes[s]
        training = {
            "train_episodes": episodes,
            "train_return": self.episode_returns[s] / episodes if episodes else np.nan,
            "updates": self.updates,
        }
        updates, diagnoses = self.updates or np.nan, self.diagnoses or np.nan
        infos = {name: total[s] / updates for name, total in self.infos.items()}
        return {**training, **infos, **{name: total[s] / diagnoses for name, total in self.diagnosis.items()}}


def run(trainer: Trainer, reporter: Reporter, save: Callable[[Trainer], None], should_stop: Callable[[], bool]) -> bool:
    """Trains to the end of the configured schedule, or until told to stop.

    Args:
      trainer: a compiled trainer, fresh or restored.
      reporter: told how it goes.
      save: writes a checkpoint of the trainer.
      should_stop: asked after every burst; when true the run writes a checkpoint and ends.

    Returns:
      Whether the end was reached.

    Raises:
      NonFiniteError: if training produced a NaN; no checkpoint is written then.
    """
    config, stall = trainer.config, StallWatch(reporter)
    while trainer.step < config.total_steps:
        for _ in range(config.update_every):
            trainer.collect()
        if trainer.step >= config.update_after:
            info = trainer.learn()
            stall.watch(info)
            reporter.progress(trainer.step, info)
        else:
            reporter.progress(trainer.step, {})
        finished = trainer.step == config.total_steps
        if finished or trainer.step % config.evaluate_every == 0:
            reporter.evaluation(trainer.evaluate())
        stopped = not finished and should_stop()
        if finished or stopped or trainer.step % config.checkpoint_every == 0:
            save(trainer)
        if stopped:
            return False
    return True


class StallWatch:
    """Warns when nearly no critic step is accepted, which otherwise looks like slow learning."""

    updates = 1000  # that must pass below the fraction
    fraction = 0.1

    def __init__(self, reporter: Reporter):
        self._reporter = reporter
        self._since = 0
        self._warned = False

    def watch(self, info: dict[str, np.ndarray]) -> None:
        """Takes the info of one burst, ``[S, U]`` each."""
        if "accepted" not in info:
            return
        stalled = bool((info["accepted"].mean(axis=1) < self.fraction).any())
        self._since = self._since + info["accepted"].shape[1] if stalled else 0
        if self._since >= self.updates and not self._warned:
            self._warned = True
            predicted = float(info["predicted_alignment"].mean())
            self._reporter.message(
                f"warning: under {self.fraction:.0%} of the critic steps were accepted in the last {self._since} "
                f"updates (predicted alignment {predicted:.2f}). Below eta the solver cuts off too much of K: use "
                "--config.agent.solver=ridge, or a smaller solver_rcond or solver_damping; above it, lower "
                "critic_step_size"
            )


def restore_agent_state(like: AgentState, arrays: Arrays) -> AgentState:
    """The agent's state out of a checkpoint's arrays.

    Args:
      like: a state, or its shapes, of the same agent; leaves lead with the seeds.
      arrays: as :meth:`Trainer.arrays` wrote them.

    Raises:
      CheckpointError: if an array is missing or has another shape.
    """
    leaves = []
    for name, leaf in _named_leaves(like):
        if name not in arrays or arrays[name].shape != leaf.shape:
            found = arrays[name].shape if name in arrays else "none"
            raise CheckpointError(f"the checkpoint is of another configuration: {name} {found}, not {leaf.shape}")
        leaves.append(jnp.asarray(arrays[name]))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(state: AgentState) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [("agent." + jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _explore_at(agent: Agent) -> Callable[[AgentState, Array, Array, Array], Array]:
    def explore(state: AgentState, observation: Array, key: Array, step: Array) -> Array:
        return agent.explore(state, observation, jax.random.fold_in(jax.random.fold_in(key, _EXPLORE), step))

    return explore


def _value_of_policy(agent: Agent) -> Callable[[AgentState, Array], Array]:
    def value(state: AgentState, observation: Array) -> Array:
        return agent.q_fn(agent.critic(state), (observation, agent.act(state, observation)))

    return value


def _over_seeds(function: Callable[..., Any], num_seeds: int, in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """``function`` mapped over the leading axis of the arguments whose in_axes is 0."""
    if num_seeds > 1:
        return jax.vmap(function, in_axes)

    # The same for one seed, without what vmap does to a while_loop or a cond: a tenth of an update's time on CPU.
    def of_one(*arguments: Any) -> Any:
        pairs = zip(arguments, in_axes, strict=True)
        squeezed = (a if axis is None else jax.tree.map(lambda leaf: leaf[0], a) for a, axis in pairs)
        return jax.tree.map(lambda leaf: leaf[None], function(*squeezed))

    return of_one


def burst_of(agent: Agent) -> Callable[[AgentState, Transition, Array, Array], tuple[AgentState, dict[str, Array]]]:
    """(state, transitions [U, B, ...], key, step) -> (state, infos [U]): U gradient steps in one scan."""

    def burst(state: AgentState, batches: Transition, key: Array, step: Array) -> tuple[AgentState, dict[str, Array]]:
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _UPDATE), step), batches.reward.shape[0])
        return jax.lax.scan(lambda state, x: agent.update(state, *x), state, (batches, keys))

    return burst
