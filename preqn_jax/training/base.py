"""What both trainers are made of: members, the record of an interval, the burst of updates, checkpointed arrays."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.agents.base import Agent, AgentState
from preqn_jax.training.checkpoint import Arrays, CheckpointError
from preqn_jax.training.config import Config, check_config
from preqn_jax.training.evaluation import Evaluation
from preqn_jax.types import Array, NonFiniteError, Transition

Infos = dict[str, np.ndarray]  # scalars of each update by name, [S, U]
Row = dict[str, float]  # of metrics.csv
Burst = Callable[[AgentState, Transition, Array, Array], tuple[AgentState, dict[str, Array]]]

# Streams of JAX keys. Each draw is a function of (seed, stream, counter) alone, so that a resumed run needs no
# stored random state to go on exactly where it stopped.
INIT, EXPLORE, UPDATE, DIAGNOSE, RESET, UNIFORM_ACTION, REPLAY, EVALUATE, HELD_OUT = range(9)


class Notice(NamedTuple):
    """Something that whoever uses a run's results has to know.

    Attributes:
      text: one line.
      event: what is kept of it beside the results, for JSON; ``step`` is among it. None: nothing.
    """

    text: str
    event: dict[str, Any] | None = None


class Trainer(abc.ABC):
    """All that changes during a run, and the steps that change it; S learners side by side.

    Attributes:
      config: of the run.
      seeds: of the learners.
      keys: one a learner, ``[S]``; every stream of random numbers springs from them.
      step: environment steps of each seed so far.
      interval: what happened since the last evaluation.
      running: false for learners that were stopped because something of theirs was not finite, ``[S]``.
      evaluation_due: whether an evaluation has to follow before the next step; a checkpoint keeps it.
      notices: what has to be reported and has not been yet.
      replay_bytes: memory of all replay buffers.
      broken_episodes: how many were cut, since this trainer was made, because the simulation broke; on the host
        MuJoCo sees to that itself.
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
        """Raises SettingError on a configuration that cannot be."""
        check_config(config)
        self.config, self.seeds, self.step = config, seeds, 0
        self.running, self.evaluation_due, self.notices = np.ones(len(seeds), bool), False, []
        self.keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))

    @abc.abstractmethod
    def compile(self) -> float:
        """Initializes the learners and compiles everything that a run will call; returns the seconds it took."""

    @abc.abstractmethod
    def advance(self) -> Infos:
        """``update_every`` environment steps, then as many updates; their infos, empty while there are none yet.

        A learner with an update that is not finite stays as it was before it, and is stopped, with a notice.

        Raises:
          NonFiniteError: if no learner is left.
        """

    @abc.abstractmethod
    def play(self, should_stop: Callable[[], bool]) -> tuple[Evaluation, np.ndarray] | None:
        """Episodes of the deterministic policies, and Q at the first state of each, ``[S, E]``; None if stopped."""

    @abc.abstractmethod
    def arrays(self) -> Arrays:
        """Everything that :meth:`restore` needs, as arrays by name."""

    @abc.abstractmethod
    def restore(self, arrays: Arrays) -> None:
        """Takes up where a trainer of the same configuration stopped; call after :meth:`compile`.

        Raises:
          CheckpointError: if the arrays are of another configuration.
        """

    def evaluate(self, should_stop: Callable[[], bool] = lambda: False) -> list[Row | None] | None:
        """Plays the deterministic policies and closes the interval.

        Args:
          should_stop: asked on the way; once it is true nothing has changed, and the evaluation stays due.

        Returns:
          One row of metrics a seed, None for one that was stopped; None for all if the evaluation was.
        """
        if (played := self.play(should_stop)) is None:
            return None
        (returns, discounted, lengths, _), first_q = played
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
                # Q at the first state, and what it claims to be: an overestimation shows as their difference.
                "first_q": first_q[s].mean(),
                "discounted_return": discounted[s].mean(),
                "overestimation": first_q[s].mean() - discounted[s].mean(),
            }
            rows.append({**evaluation, **self.interval.row(s)})
        self.interval.clear()
        self.evaluation_due = False
        return rows

    def _record(self, info: Infos, running: np.ndarray) -> Infos:
        """Counts the infos of a burst, of which ``running`` are left; NaN for the others."""
        stopped = [int(s) for s in np.nonzero(self.running & ~running)[0]]
        reasons = [self._reason(info, s) for s in stopped]
        if reasons and not running.any() and jax.process_count() == 1:  # other processes may have some left
            raise NonFiniteError(f"{self.config.env.id}: {reasons[0]}")
        for s, reason in zip(stopped, reasons, strict=True):
            text = f"warning: stopped: {self.label(s)}: {reason}; the others continue, and config.json records it"
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
        """What tells a learner from the others."""
        return f"seed {self.seeds[s]}"


class Interval:
    """What happened since the last evaluation, per seed; ``names`` are those of the agent's infos."""

    def __init__(self, num_seeds: int, names: Sequence[str], diagnosis: Sequence[str]):
        self._num_seeds, self._names, self._diagnosis = num_seeds, names, diagnosis
        self.clear()

    def clear(self) -> None:
        """Starts the next one."""
        self.episodes = np.zeros(self._num_seeds)
        self.episode_returns = np.zeros(self._num_seeds)  # summed
        self.updates = 0
        self.infos = {name: np.zeros(self._num_seeds) for name in self._names}  # summed over updates
        self.diagnoses = 0
        self.diagnosis = {name: np.zeros(self._num_seeds) for name in self._diagnosis}  # summed over diagnoses

    def add_episodes(self, episodes: np.ndarray, returns: np.ndarray) -> None:
        """Counts finished training episodes, how many and their returns' sum, ``[S]`` each."""
        self.episodes += episodes
        self.episode_returns += returns

    def add_updates(self, info: Infos) -> None:
        """Counts a burst of updates, ``[S, U]`` arrays by name."""
        self.updates += next(iter(info.values())).shape[1]
        for name, value in info.items():
            self.infos[name] += value.sum(axis=1, dtype=np.float64)

    def add_diagnosis(self, diagnosis: dict[str, Array]) -> None:
        """Counts a diagnosis of one update, ``[S]`` arrays by name."""
        self.diagnoses += 1
        for name, value in diagnosis.items():
            self.diagnosis[name] += np.asarray(value, np.float64)

    def row(self, s: int) -> Row:
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

    def arrays(self) -> Arrays:
        """What a checkpoint needs."""
        counts = {"updates": np.asarray(self.updates), "diagnoses": np.asarray(self.diagnoses)}
        totals = {f"infos.{name}": total for name, total in self.infos.items()}
        totals |= {f"diagnosis.{name}": total for name, total in self.diagnosis.items()}
        return {"episodes": self.episodes, "episode_returns": self.episode_returns, **counts, **totals}

    def restore(self, arrays: Arrays) -> None:
        """Takes up what :meth:`arrays` gave."""
        self.episodes = np.array(arrays["episodes"])
        self.episode_returns = np.array(arrays["episode_returns"])
        self.updates, self.diagnoses = int(arrays["updates"]), int(arrays["diagnoses"])
        self.infos = {name: np.array(total) for name, total in below(arrays, "infos.").items()}
        self.diagnosis = {name: np.array(total) for name, total in below(arrays, "diagnosis.").items()}


def stream(key: Array, number: int, counter: Array) -> Array:
    """The key of one draw."""
    return jax.random.fold_in(jax.random.fold_in(key, number), counter)


def burst_of(agent: Agent) -> Burst:
    """(state, transitions [U, B, ...], key, step) -> (state, infos [U]): U gradient steps in one scan."""

    def burst(state: AgentState, batches: Transition, key: Array, step: Array) -> tuple[AgentState, dict[str, Array]]:
        keys = jax.random.split(stream(key, UPDATE, step), batches.reward.shape[0])
        return jax.lax.scan(lambda state, x: agent.update(state, *x), state, (batches, keys))

    return burst


def guarded_burst_of(agent: Agent) -> Callable[..., tuple[AgentState, dict[str, Array], Array]]:
    """As :func:`burst_of`, with a last argument and result: whether the learner is running.

    If anything of the burst is not finite the state stays as it was, and the learner stops running.
    """
    burst = burst_of(agent)

    def guarded(
        state: AgentState, batches: Transition, key: Array, step: Array, running: Array
    ) -> tuple[AgentState, dict[str, Array], Array]:
        after, infos = burst(state, batches, key, step)
        running = running & all_finite((after, infos))
        return jax.tree.map(lambda new, old: jnp.where(running, new, old), after, state), infos, running

    return guarded


def all_finite(tree: Any) -> Array:
    """Whether every number in a pytree is finite, a scalar bool."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def value_of_policy(agent: Agent, state: AgentState, observation: Array) -> Array:
    """What the critic claims for observations ``[..., O]`` under the deterministic policy, ``[...]``."""
    return agent.q_fn(agent.critic(state), (agent.preprocess(state, observation), agent.act(state, observation)))


def restore_tree(like: Any, arrays: Arrays, prefix: str) -> Any:
    """A pytree out of a checkpoint's arrays.

    Args:
      like: a tree of the same structure and shapes.
      arrays: with what :func:`named_leaves` gave among them.
      prefix: given there.

    Raises:
      CheckpointError: if an array is missing or has another shape.
    """
    leaves = []
    for name, leaf in named_leaves(like, prefix):
        if name not in arrays or arrays[name].shape != leaf.shape:
            found = arrays[name].shape if name in arrays else "none"
            raise CheckpointError(f"the checkpoint is of another configuration: {name} {found}, not {leaf.shape}")
        leaves.append(jnp.asarray(arrays[name]))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def named_leaves(tree: Any, prefix: str) -> list[tuple[str, Any]]:
    """The leaves of a pytree by names that begin with ``prefix``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keystr = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return [(f"{prefix}.{keystr(path)}".rstrip("."), leaf) for path, leaf in leaves]


def below(arrays: Arrays, prefix: str) -> Arrays:
    """Those whose names begin with ``prefix``, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
