"""Code shared by both trainers: the base class, averages between evaluations, gradient steps, checkpoint arrays."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.agents.base import Agent, AgentState, CriticView
from preqn_jax.training.checkpoint import Arrays, CheckpointError
from preqn_jax.training.config import Config, check_config
from preqn_jax.training.evaluation import Evaluation
from preqn_jax.training.presets import to_dict
from preqn_jax.types import Array, NonFiniteError, Transition

Infos = dict[str, np.ndarray]  # metrics of each gradient step by name, [S, U]: S seeds, U gradient steps
Row = dict[str, float]  # a row of metrics.csv
GradientSteps = Callable[[AgentState, Transition, Array, Array], tuple[AgentState, dict[str, Array]]]

# Streams of JAX keys. Each draw depends only on (seed, stream, counter), so a run resumes exactly without storing
# any random state.
INIT, EXPLORE, UPDATE, DIAGNOSE, RESET, UNIFORM_ACTION, REPLAY, EVALUATE, HELD_OUT = range(9)


class Notice(NamedTuple):
    """A remark that matters for the interpretation of a run's results.

    Attributes:
      text: one line for the user.
      event: JSON-compatible record, with an entry ``step``, that is stored with the results; None stores nothing.
    """

    text: str
    event: dict[str, Any] | None = None


class Trainer(abc.ABC):
    """The state of a run, and the methods that advance it. S learners are trained in parallel.

    Attributes:
      config: configuration of the run.
      seeds: seeds of the learners.
      keys: PRNG key of each learner, ``[S]``; all random draws are derived from it.
      step: environment steps per seed so far.
      interval: averages of training metrics since the last evaluation.
      running: False for learners that were stopped because a value became NaN or infinite, ``[S]``.
      evaluation_due: whether an evaluation must run before the next iteration; stored in checkpoints.
      notices: notices that have not been reported yet.
      replay_bytes: memory of all replay buffers [bytes].
      broken_episodes: number of episodes, since this trainer was created, that were truncated because the simulation
        diverged. It stays 0 for environments on the CPU, where MuJoCo itself resets such simulations.
    """

    config: Config
    seeds: Sequence[int]
    step: int
    interval: Interval
    running: np.ndarray
    evaluation_due: bool
    notices: list[Notice]
    replay_bytes: int
    broken_episodes: int = 0

    def __init__(self, config: Config, seeds: Sequence[int]):
        """Initializes the common attributes; raises SettingError if the configuration is invalid."""
        check_config(config)
        self.config, self.seeds, self.step = config, seeds, 0
        self.running, self.evaluation_due, self.notices = np.ones(len(seeds), bool), False, []
        self.keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))

    @abc.abstractmethod
    def compile(self) -> float:
        """Initializes the learners and compiles all functions of the run; returns the elapsed time [s]."""

    @abc.abstractmethod
    def advance(self) -> Infos:
        """Runs one iteration: ``update_every`` environment steps, then ``updates_per_iteration`` gradient steps.

        A learner whose gradient steps produce a NaN or an infinity keeps its previous state and is stopped, with a
        notice.

        Returns:
          Metrics of each gradient step, ``[S, U]`` by name; empty before ``update_after``.

        Raises:
          NonFiniteError: if all learners have been stopped.
        """

    @abc.abstractmethod
    def play(self, should_stop: Callable[[], bool]) -> tuple[Evaluation, np.ndarray] | None:
        """Runs evaluation episodes of the deterministic policies.

        Returns:
          The episodes, and the Q estimate at the initial state of each, ``[S, E]``; None if ``should_stop`` returned
          True.
        """

    @abc.abstractmethod
    def arrays(self) -> Arrays:
        """The state of the run for a checkpoint, as arrays by name; the input of :meth:`restore`."""

    def record(self) -> dict[str, Any]:
        """What describes the run in a checkpoint, as JSON: its configuration."""
        return {"config": to_dict(self.config)}

    @abc.abstractmethod
    def restore(self, arrays: Arrays) -> None:
        """Restores the state of a trainer with the same configuration; call after :meth:`compile`.

        Raises:
          CheckpointError: if the arrays belong to another configuration.
        """

    def evaluate(self, should_stop: Callable[[], bool] = lambda: False) -> list[Row | None] | None:
        """Evaluates the deterministic policies and starts a new averaging interval.

        Args:
          should_stop: called during the evaluation. Once it returns True, the evaluation is abandoned without any
            change of state, and remains due.

        Returns:
          One row of metrics per seed, with None for seeds that were stopped; None if the evaluation was abandoned.
        """
        if (played := self.play(should_stop)) is None:
            return None
        (returns, discounted, lengths, *_), first_q = played
        rows: list[Row | None] = []
        for s, seed in enumerate(self.seeds):
            if not self.running[s]:
                rows.append(None)
                continue
            evaluation = {
                "step": self.step,
                "seed": seed,
                "return_mean": returns[s].mean(),
                "return_std": returns[s].std(),
                "return_min": returns[s].min(),
                "return_max": returns[s].max(),
                "episode_length": lengths[s].mean(),
                # The Q estimate at the initial state and the return obtained from it; their difference is the
                # overestimation bias.
                "first_q": first_q[s].mean(),
                "discounted_return": discounted[s].mean(),
                "overestimation": first_q[s].mean() - discounted[s].mean(),
            }
            rows.append({**evaluation, **self.interval.row(s)})
        self.interval.clear()
        self.evaluation_due = False
        return rows

    def _record(self, info: Infos, running: np.ndarray) -> Infos:
        """Adds the metrics of an iteration to the interval; metrics of learners that are not running become NaN."""
        stopped = [int(s) for s in np.nonzero(self.running & ~running)[0]]
        reasons = [self._reason(info, s) for s in stopped]
        if reasons and not running.any() and jax.process_count() == 1:  # other processes may have some left
            raise NonFiniteError(f"{self.config.env.id}: {reasons[0]}")
        for s, reason in zip(stopped, reasons, strict=True):
            text = f"warning: stopped: {self.label(s)}: {reason}; the others continue, and config.json records this"
            event = {"event": "stopped", "step": self.step, "seed": self.seeds[s], "member": s, "reason": reason}
            self.notices.append(Notice(text, event))
        self.running = running
        if not running.all():
            info = {name: np.where(running[:, None], value, np.nan) for name, value in info.items()}
        if info:
            self.interval.add_updates(info)
        return info

    def _reason(self, info: Infos, s: int) -> str:
        names = [name for name, value in info.items() if not np.isfinite(value[s]).all()]
        what = names[0] if names else "an observation or a parameter"
        return f"{what} of seed {self.seeds[s]} is not finite before step {self.step}"

    def label(self, s: int) -> str:
        """A text that identifies a learner in messages."""
        return f"seed {self.seeds[s]}"


class Interval:
    """Averages of training metrics since the last evaluation, per seed."""

    def __init__(self, num_seeds: int, names: Sequence[str], diagnosis: Sequence[str]):
        """Takes the number of seeds S and the names of the agent's metrics and of the kernel diagnostics."""
        self._num_seeds, self._names, self._diagnosis = num_seeds, names, diagnosis
        self.clear()

    def clear(self) -> None:
        """Resets all counts and sums to zero."""
        self.episodes = np.zeros(self._num_seeds)
        self.episode_returns = np.zeros(self._num_seeds)  # summed
        self.updates = 0
        self.infos = {name: np.zeros(self._num_seeds) for name in self._names}  # summed over updates
        self.diagnoses = 0
        self.diagnosis = {name: np.zeros(self._num_seeds) for name in self._diagnosis}  # summed over diagnoses

    def add_episodes(self, episodes: np.ndarray, returns: np.ndarray) -> None:
        """Adds completed training episodes: their number and the sum of their returns, ``[S]`` each."""
        self.episodes += episodes
        self.episode_returns += returns

    def add_updates(self, info: Infos) -> None:
        """Adds the metrics of U gradient steps, ``[S, U]`` arrays by name."""
        self.updates += next(iter(info.values())).shape[1]
        for name, value in info.items():
            self.infos[name] += value.sum(axis=1, dtype=np.float64)

    def add_diagnosis(self, diagnosis: dict[str, Array]) -> None:
        """Adds the kernel diagnostics of one update, ``[S]`` arrays by name."""
        self.diagnoses += 1
        for name, value in diagnosis.items():
            self.diagnosis[name] += np.asarray(value, np.float64)

    def row(self, s: int) -> Row:
        """Means over the interval for seed number s; NaN where there is nothing to average."""
        episodes = self.episodes[s]
        training = {
            "train_episodes": episodes,
            "train_return": self.episode_returns[s] / episodes if episodes else np.nan,
            "updates": self.updates,
        }
        updates, diagnoses = self.updates or np.nan, self.diagnoses or np.nan
        infos = {name: total[s] / updates for name, total in self.infos.items()}
        return {**training, **infos, **{name: total[s] / diagnoses for name, total in self.diagnosis.items()}}

    def arrays(self) -> Arrays:
        """Counts and sums for a checkpoint, as arrays by name."""
        counts = {"updates": np.asarray(self.updates), "diagnoses": np.asarray(self.diagnoses)}
        totals = {f"infos.{name}": total for name, total in self.infos.items()}
        totals |= {f"diagnosis.{name}": total for name, total in self.diagnosis.items()}
        return {"episodes": self.episodes, "episode_returns": self.episode_returns, **counts, **totals}

    def restore(self, arrays: Arrays) -> None:
        """Restores the arrays of :meth:`arrays`."""
        self.episodes = np.array(arrays["episodes"])
        self.episode_returns = np.array(arrays["episode_returns"])
        self.updates, self.diagnoses = int(arrays["updates"]), int(arrays["diagnoses"])
        self.infos = {name: np.array(total) for name, total in below(arrays, "infos.").items()}
        self.diagnosis = {name: np.array(total) for name, total in below(arrays, "diagnosis.").items()}


def stream(key: Array, number: int, counter: Array) -> Array:
    """Derives the PRNG key of one draw from a learner's key, the number of the stream and a counter."""
    return jax.random.fold_in(jax.random.fold_in(key, number), counter)


def gradient_steps_of(agent: Agent) -> GradientSteps:
    """Returns (state, transitions [U, B, ...], key, step) -> (state, metrics [U]), which runs U gradient steps."""

    def steps(state: AgentState, batches: Transition, key: Array, step: Array) -> tuple[AgentState, dict[str, Array]]:
        keys = jax.random.split(stream(key, UPDATE, step), batches.reward.shape[0])
        return jax.lax.scan(lambda state, x: agent.update(state, *x), state, (batches, keys))

    return steps


def guarded_steps_of(agent: Agent) -> Callable[..., tuple[AgentState, dict[str, Array], Array]]:
    """Like :func:`gradient_steps_of`, with an additional last argument and result: whether the learner is running.

    If the new state or a metric contains a NaN or an infinity, the old state is kept and the result is False.
    """
    steps = gradient_steps_of(agent)

    def guarded(
        state: AgentState, batches: Transition, key: Array, step: Array, running: Array
    ) -> tuple[AgentState, dict[str, Array], Array]:
        after, infos = steps(state, batches, key, step)
        running = running & all_finite((after, infos))
        return jax.tree.map(lambda new, old: jnp.where(running, new, old), after, state), infos, running

    return guarded


def observe_if(agent: Agent, state: AgentState, observations: Array, running: Array) -> AgentState:
    """``agent.observe(state, observations)`` if the learner is running, and the unchanged state if it was stopped."""
    after = agent.observe(state, observations)
    return jax.tree.map(lambda new, old: jnp.where(running, new, old), after, state)


def all_finite(tree: Any) -> Array:
    """Whether all values in a pytree are finite, a scalar bool."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def value_of_policy(agent: Agent, critic: CriticView, state: AgentState, observation: Array) -> Array:
    """The critic's Q estimate ``[...]`` for observations ``[..., O]`` and the actions of the deterministic policy."""
    return critic.value(state, observation, agent.act(state, observation))


def restore_tree(like: Any, arrays: Arrays, prefix: str) -> Any:
    """Builds a pytree from the arrays of a checkpoint; the inverse of :func:`named_leaves`.

    Args:
      like: a tree with the required structure and shapes.
      arrays: arrays by name.
      prefix: the prefix of the names that was passed to :func:`named_leaves`.

    Raises:
      CheckpointError: if an array is missing or has another shape.
    """
    leaves = []
    for name, leaf in named_leaves(like, prefix):
        if name not in arrays or arrays[name].shape != leaf.shape:
            found = arrays[name].shape if name in arrays else "none"
            raise CheckpointError(f"the checkpoint belongs to another configuration: {name} {found}, not {leaf.shape}")
        leaves.append(jnp.asarray(arrays[name]))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def named_leaves(tree: Any, prefix: str) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their names, ``<prefix>.<path of the leaf>``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keystr = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return [(f"{prefix}.{keystr(path)}".rstrip("."), leaf) for path, leaf in leaves]


def below(arrays: Arrays, prefix: str) -> Arrays:
    """The arrays whose names begin with ``prefix``, with the prefix removed from their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
