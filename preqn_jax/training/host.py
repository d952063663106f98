"""Training with Gymnasium environments on the CPU; all learners are updated by one vmapped program."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.agents.base import Agent, AgentState
from preqn_jax.agents.critic_diagnostics import diagnosis_of, with_alignment
from preqn_jax.envs import host as host_env
from preqn_jax.envs.host import Episode, HostEnv, Step
from preqn_jax.training import base
from preqn_jax.training.base import Infos, Interval, Notice, Trainer
from preqn_jax.training.checkpoint import Arrays
from preqn_jax.training.config import Config, check_actions
from preqn_jax.training.evaluation import Evaluation, evaluate
from preqn_jax.training.mapping import over_learners
from preqn_jax.training.replay import HostReplay
from preqn_jax.types import Array, NonFiniteError, Transition, transition_shapes

_UNIFORM_ACTION, _REPLAY, _HELD_OUT = range(3)  # streams of NumPy random generators
_TRAINING, _EVALUATION = range(2)  # parts of the seeds of environments
_UNSCHEDULED = 2**40  # above the number of any scheduled evaluation


class HostTrainer(Trainer):
    """S learners, each with one Gymnasium environment."""

    def __init__(self, config: Config):
        """Creates environments, replay buffer and agent, without compiling anything.

        Raises:
          SettingError: if the configuration is invalid.
        """
        super().__init__(config, range(config.seed, config.seed + config.num_seeds))
        env = host_env.make(config.env, [self.seeds[0], _TRAINING])
        check_actions(config, env.discrete)
        # Before the other environments are created, because this checks that the seeds fit into memory.
        self.replay = HostReplay(config.num_seeds, config.replay_capacity, env.observation_size, env.action_size)
        self.envs = [env, *(host_env.make(config.env, [seed, _TRAINING]) for seed in self.seeds[1:])]
        self.replay_bytes = self.replay.nbytes
        self.agent, self._critic = config.agent.make(env.observation_size, env.action_size)
        self._plain_agent = self.agent  # without alignment measurement, its update takes one minibatch
        if config.measure_alignment:
            self.agent = with_alignment(self.agent, self._critic)
        with _during("the first reset"):
            self.observation = np.stack([env.reset() for env in self.envs])
        self.returns = np.zeros(config.num_seeds)  # of the current episodes
        self._eval_envs: list[list[HostEnv]] = []
        self.notices += [Notice(f"warning: {caveat}") for caveat in env.caveats]

    def compile(self) -> float:
        """See :meth:`Trainer.compile`."""
        start = time.perf_counter()
        config, env, agent = self.config, self.envs[0], self.agent
        seeds = config.num_seeds
        init = over_learners(lambda key: agent.init(jax.random.fold_in(key, base.INIT)))
        self.state: AgentState = jax.jit(init)(self.keys)
        self.act = jax.jit(over_learners(agent.act))
        self._explore = jax.jit(over_learners(functools.partial(_explore_at, agent), in_axes=(0, 0, 0, None)))
        self._observe = jax.jit(over_learners(functools.partial(base.observe_if, agent)), donate_argnums=0)
        self._value = jax.jit(over_learners(functools.partial(base.value_of_policy, agent, self._critic)))
        jax.block_until_ready(self._explore(self.state, self.observation, self.keys, np.uint32(0)))
        jax.block_until_ready(self.act(self.state, self._evaluation_shape()))
        jax.block_until_ready(self._value(self.state, self._evaluation_shape()))
        lead = (seeds, config.updates_per_iteration, config.batch_size * (1 + config.measure_alignment))
        shapes = transition_shapes(env.observation_size, env.action_size)
        batches = Transition(*(jax.ShapeDtypeStruct((*lead, *shape), jnp.float32) for shape in shapes))
        steps = jax.jit(over_learners(base.guarded_steps_of(agent), in_axes=(0, 0, 0, None, 0)), donate_argnums=0)
        lowered = steps.lower(self.state, batches, self.keys, np.uint32(0), self.running)
        # Compiled ahead of time, so that a call with other shapes fails instead of recompiling.
        self._steps = lowered.compile()
        self._diagnose = self._compile_diagnosis(batches) if config.diagnose_every else None
        diagnosis = sorted(self._diagnose.out_info) if self._diagnose else []
        self.interval = Interval(seeds, sorted(lowered.out_info[1]), diagnosis)
        return time.perf_counter() - start

    def _compile_diagnosis(self, batches: Transition) -> jax.stages.Compiled:
        """Compiles the kernel diagnostics of one update on the first minibatch of an iteration."""
        diagnose = diagnosis_of(self._plain_agent, self._critic)

        def diagnose_at(state: AgentState, batches: Transition, key: Array, step: Array) -> dict[str, Array]:
            first = jax.tree.map(lambda leaf: leaf[0, : self.config.batch_size], batches)
            return diagnose(state, first, base.stream(key, base.DIAGNOSE, step))

        over_seeds = over_learners(diagnose_at, in_axes=(0, 0, 0, None))
        return jax.jit(over_seeds).lower(self.state, batches, self.keys, np.uint32(0)).compile()

    def _evaluation_shape(self) -> np.ndarray:
        size = (self.config.num_seeds, self.config.evaluate_episodes, self.envs[0].observation_size)
        return np.zeros(size, np.float32)

    def advance(self) -> Infos:
        """See :meth:`Trainer.advance`.

        Raises:
          NonFiniteError: if an environment returns a value that float32 cannot represent, or all learners have been
            stopped.
        """
        observations = np.stack([self.collect() for _ in range(self.config.update_every)], axis=1)
        self.state = self._observe(self.state, observations, self.running)
        return self.learn() if self.step >= self.config.update_after else {}

    def collect(self) -> np.ndarray:
        """Takes one environment step per seed and stores the transitions; returns the previous observations ``[S, O]``.

        Raises:
          NonFiniteError: if an environment returns a value that float32 cannot represent; nothing is stored then.
        """
        with _during(f"step {self.step + 1} of the run"):
            return self._collect()

    def _collect(self) -> np.ndarray:
        observation = self.observation.copy()
        action = self._next_action()
        steps = [self.envs[s].step(action[s]) if self.running[s] else self._rest(s) for s in range(len(self.envs))]
        reward = np.array([step.reward for step in steps])
        next_observation = np.stack([step.observation for step in steps])
        discount = np.array([not step.terminated for step in steps])
        over = np.array([step.terminated or step.truncated for step in steps])
        self.replay.add(Transition(self.observation, action, reward, discount, next_observation), over)
        self.step += 1
        self.returns += reward
        self.observation = next_observation
        self.interval.add_episodes(over, over * self.returns)
        for s in np.nonzero(over)[0]:
            self.returns[s] = 0.0
            self.observation[s] = self.envs[s].reset()
        return observation

    def _rest(self, s: int) -> Step:
        """A placeholder step for a learner that was stopped."""
        return Step(self.observation[s], 0.0, terminated=False, truncated=False)

    def _next_action(self) -> np.ndarray:
        if self.step < self.config.start_steps:
            generators = self._generators(_UNIFORM_ACTION)
            return np.stack([env.random_action(g) for env, g in zip(self.envs, generators, strict=True)])
        return np.asarray(self._explore(self.state, self.observation, self.keys, np.uint32(self.step)))

    def _generators(self, stream: int) -> list[np.random.Generator]:
        return [np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, self.step])))
                for seed in self.seeds]  # fmt: skip

    def learn(self) -> Infos:
        """Runs the gradient steps of one iteration for every seed; returns the metrics ``[S, U]`` of each step.

        Raises:
          NonFiniteError: if all learners have been stopped.
        """
        batches = self._draw(_REPLAY)
        if self.config.measure_alignment:
            both = batches, self._draw(_HELD_OUT)
            batches = jax.tree.map(lambda *parts: np.concatenate(parts, axis=2), *both)
        if self._diagnose and self.step % self.config.diagnose_every == 0:
            self.interval.add_diagnosis(self._diagnose(self.state, batches, self.keys, np.uint32(self.step)))
        self.state, info, running = self._steps(self.state, batches, self.keys, np.uint32(self.step), self.running)
        return self._record({name: np.asarray(value) for name, value in info.items()}, np.asarray(running))

    def _draw(self, stream: int) -> Transition:
        """Samples a minibatch for each gradient step of an iteration, ``[S, U, B, ...]``."""
        config = self.config
        shape = (config.updates_per_iteration, config.batch_size)
        return self.replay.sample(self._generators(stream), shape, config.n_step, config.agent.gamma)

    def play(self, should_stop: Callable[[], bool]) -> tuple[Evaluation, np.ndarray] | None:
        """See :meth:`Trainer.play`."""
        config = self.config
        if not self._eval_envs:
            self._eval_envs = [
                [host_env.make(config.env, [seed, _EVALUATION]) for _ in range(config.evaluate_episodes)]
                for seed in self.seeds
            ]
        number, beyond = divmod(self.step, config.evaluate_every)
        # An evaluation between two others, at the end of a run, has episodes of its own.
        first_episode = (_UNSCHEDULED + self.step if beyond else number) * config.evaluate_episodes
        act = lambda x: self.act(self.state, x)  # noqa: E731
        with _during(f"the evaluation after step {self.step}"):
            evaluation = evaluate(
                act, self._eval_envs, first_episode, config.agent.gamma, should_stop, playing=self.running
            )
        if evaluation is None:
            return None
        return evaluation, np.asarray(self._value(self.state, evaluation.first_observation))

    def arrays(self) -> Arrays:
        """See :meth:`Trainer.arrays`."""
        arrays = {"step": np.asarray(self.step), "evaluation_due": np.asarray(self.evaluation_due)}
        arrays["running"] = self.running
        arrays |= {"returns": self.returns, "observation": self.observation}
        arrays |= {f"interval.{name}": array for name, array in self.interval.arrays().items()}
        arrays |= {f"replay.{name}": array for name, array in self.replay.state().items()}
        arrays |= {name: np.asarray(leaf) for name, leaf in base.named_leaves(self.state, "agent")}
        for s, env in enumerate(self.envs):
            arrays[f"env.{s}.number"] = np.asarray(env.episode.number)
            arrays[f"env.{s}.actions"] = env.episode.actions
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """See :meth:`Trainer.restore`.

        Environments are restored by replaying the actions of the current episode. One that does not reach the
        checkpoint's state this way begins a new episode, with a notice.
        """
        self.state = base.restore_tree(self.state, arrays, "agent")
        self.step, self.evaluation_due = int(arrays["step"]), bool(arrays.get("evaluation_due", False))
        self.running = np.array(arrays.get("running", self.running))
        self.returns = np.array(arrays["returns"])
        self.replay.restore(base.below(arrays, "replay."))
        self.interval.restore(base.below(arrays, "interval."))
        self.observation = np.array(arrays["observation"])
        changed = []
        for s, env in enumerate(self.envs):
            episode = Episode(int(arrays[f"env.{s}.number"]), arrays[f"env.{s}.actions"])
            if not _reaches(env, episode, self.observation[s], self.returns[s]):
                changed.append(s)
                self.returns[s] = 0.0
                self.replay.end_episode(s)  # n-step targets must not continue in the new episode
                with _during(f"a reset at step {self.step} of the run"):
                    self.observation[s] = env.reset()
        if changed:
            self.notices.append(self._new_episodes([self.seeds[s] for s in changed]))

    def _new_episodes(self, seeds: list[int]) -> Notice:
        """The notice on environments that did not reach the checkpoint's state."""
        names = ", ".join(map(str, seeds))
        text = (
            f"warning: {self.config.env.id} did not return to the state of the checkpoint (hidden randomness, running "
            f"statistics, or another version of a package): seed {names} resumes with a new episode, so the run is not "
            "exactly the one that was stopped; config.json records this"
        )
        return Notice(text, {"event": "resumed with a new episode", "step": self.step, "seeds": seeds})


def _reaches(env: HostEnv, episode: Episode, observation: np.ndarray, total: float) -> bool:
    """Whether replaying an episode leads to the given observation and return."""
    try:
        reached = env.restore(episode)
    except Exception:  # in a different state, an environment may reject the actions with any exception
        return False
    return np.array_equal(reached[0], observation) and reached[1] == total


@contextlib.contextmanager
def _during(what: str) -> Iterator[None]:
    """Adds to the message of a NonFiniteError at which point of the run it occurred."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}, in {what}") from None


def _explore_at(agent: Agent, state: AgentState, observation: Array, key: Array, step: Array) -> Array:
    return agent.explore(state, observation, base.stream(key, base.EXPLORE, step))
