"""Compares one step of a task on MJX with the same step in Gymnasium, from states that Gymnasium has visited."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from preqn_jax.envs import MJX_TASKS, make_mjx
from preqn_jax.envs.mjx_tasks import Physics, Quantities
from preqn_jax.types import Array

Float = np.ndarray


class Cases(NamedTuple):
    """N steps of Gymnasium; every leaf has the leading axis N.

    Attributes:
      before: the physics before the step.
      action: ``[N, A]`` in [-1, 1].
      after: the quantities after the step.
      observation: ``[N, O]``.
      reward: ``[N]``.
      terminated: ``[N]`` bool.
      contact: whether there was any contact before or after the step, ``[N]`` bool.
      steep: whether a capsule touched the floor at more than 60 degrees before or after the step, ``[N]`` bool. MJX
        itself orients the friction axes of such contacts differently from C MuJoCo.
    """

    before: Physics
    action: Float
    after: Quantities
    observation: Float
    reward: Float
    terminated: Float
    contact: Float
    steep: Float


class Outcome(NamedTuple):
    """The results of MJX for N cases: fields of :class:`Cases`, with only the velocities ``qvel`` of the quantities."""

    qvel: Float
    observation: Float
    reward: Float
    terminated: Float


class Row(NamedTuple):
    """Differences between MJX and Gymnasium, over the states of one kind.

    Attributes:
      task: Gymnasium id.
      options: options of the physics, a key of ``OPTIONS``.
      kind: "all", "contact" or "steep".
      states: number of states.
      velocity_median, velocity_p99, velocity_max: errors of qvel, as defined by :func:`relative_error`.
      observation_median, observation_p99, observation_max: errors of the observation.
      reward_median, reward_p99, reward_max: errors of the reward.
      disagreements: number of steps after which only one of the two terminates.
      ms_per_step: time of one environment's step in a batch [ms], median over batches. On CPUs, this and the next
        attribute are processor time, which depends less on other work on the machine.
      compile_seconds: time for tracing and compiling the step of a batch [s].
    """

    task: str
    options: str
    kind: str
    states: int
    velocity_median: float
    velocity_p99: float
    velocity_max: float
    observation_median: float
    observation_p99: float
    observation_max: float
    reward_median: float
    reward_p99: float
    reward_max: float
    disagreements: int
    ms_per_step: float
    compile_seconds: float


# The model's own physics, and options that may be cheaper: maximum iterations of the constraint solver x of its line
# search, and another integrator.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "own": {},
    "8x8": {"iterations": 8, "ls_iterations": 8},
    "4x4": {"iterations": 4, "ls_iterations": 4},
    "1x4": {"iterations": 1, "ls_iterations": 4},
    "euler": {"integrator": "Euler"},
    "euler_4x4": {"integrator": "Euler", "iterations": 4, "ls_iterations": 4},
}

_SPACING = 5  # steps between recorded states
_EPISODE = 500  # maximum length of an episode [steps]
_AFTER_THE_END = 100  # steps of an episode after termination, since fallen robots have most contacts


def collect(env_id: str, states: int, seed: int = 0) -> Cases:
    """Collects every fifth step of random episodes, also after termination; the same ones at every call.

    Actions are uniformly distributed in every second episode, and at their limits (rails) in the others.
    """
    env: Any = gymnasium.make(env_id).unwrapped
    generator = np.random.default_rng(seed)
    low, high = env.action_space.low.astype(float), env.action_space.high.astype(float)
    cases: list[Cases] = []
    episode = 0
    while len(cases) < states:
        env.reset(seed=int(generator.integers(2**31)))
        left = _EPISODE
        for i in range(_EPISODE):
            action = generator.uniform(-1.0, 1.0, low.shape).astype(np.float32)
            action = np.sign(action) if episode % 2 else action
            before, touched = _physics(env_id, env.data), _contacts(env)
            observation, reward, terminated, _, _ = env.step(low + 0.5 * (action + 1.0) * (high - low))
            if i % _SPACING == 0:
                contact, steep = np.logical_or(touched, _contacts(env))
                after = _physics(env_id, env.data).quantities
                scalars = map(np.array, (reward, terminated, contact, steep))
                cases.append(Cases(before, action, after, observation, *scalars))
            left = min(left, _AFTER_THE_END) if terminated else left
            left -= 1
            if left <= 0:
                break
        episode += 1
    env.close()
    return jax.tree.map(lambda *leaves: np.stack(leaves), *cases[:states])


def _physics(env_id: str, data: mujoco.MjData) -> Physics:
    read = {name: np.array(getattr(data, name)) for name in ("qpos", "qvel", *MJX_TASKS[env_id].reads)}
    return Physics(Quantities(**read), np.array(data.qacc))


def _contacts(env: Any) -> tuple[bool, bool]:
    """Whether there is any contact, and whether a capsule touches the floor at more than 60 degrees."""
    pairs = env.data.contact.geom
    kinds = env.model.geom_type[pairs]
    on_floor = (kinds == [mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_CAPSULE]).all(axis=1)
    axes = env.data.geom_xmat[pairs[:, 1]].reshape(-1, 3, 3)[:, :, 2]
    normals = env.data.contact.frame.reshape(-1, 9)[:, :3]
    upright = abs((axes * normals).sum(axis=1))
    return len(pairs) > 0, bool((on_floor & (upright > math.cos(math.pi / 6))).any())


def _seconds() -> float:
    """Processor time on a CPU; else wall time, since the processor only waits for the device."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


class Stepper:
    """The compiled step of a batch on MJX."""

    def __init__(self, env_id: str, cases: Cases, batch: int, options: Mapping[str, Any]):
        """Compiles the step.

        Args:
          env_id: a key of ``MJX_TASKS``.
          cases: the cases that :meth:`run` evaluates.
          batch: number of environments that are stepped together.
          options: options of the physics.
        """
        env, self._cases, self._batch = make_mjx(env_id, **options), cases, batch

        def step(before: Physics, action: Array) -> Outcome:
            state = env.step(env.begin(before), action)
            qvel = state.pipeline_state.quantities.qvel
            return Outcome(qvel, state.obs, state.reward, state.info["terminated"])

        start = _seconds()
        self._step: Callable[..., Outcome] = jax.jit(jax.vmap(step)).lower(*self._arguments(0)).compile()
        self.compile_seconds = _seconds() - start

    def run(self) -> Iterator[tuple[Outcome, float]]:
        """Yields the results of one batch after the other, and the time per environment step [ms]."""
        total = len(self._cases.reward)
        for first in range(0, total, self._batch):
            arguments = jax.block_until_ready(self._arguments(first))
            start = _seconds()
            outcome = jax.block_until_ready(self._step(*arguments))
            ms = 1e3 * (_seconds() - start) / self._batch
            yield jax.tree.map(lambda leaf: np.asarray(leaf)[: total - first], outcome), ms  # noqa: B023

    def _arguments(self, first: int) -> tuple[Physics, Array]:
        """The batch that starts with case ``first``, padded with the first cases."""
        rows = np.arange(first, first + self._batch) % len(self._cases.reward)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[rows], float), (self._cases.before, self._cases.action))


def relative_error(ours: Float, theirs: Float) -> Float:
    """||ours - theirs|| / max(1, ||theirs||) of each of N cases, in the Euclidean norm."""
    ours, theirs = np.reshape(ours, (len(ours), -1)), np.reshape(theirs, (len(theirs), -1))
    return np.linalg.norm(ours - theirs, axis=1) / np.maximum(1.0, np.linalg.norm(theirs, axis=1))


def compare(task: str, options: str, cases: Cases, outcome: Outcome, ms: float, compile_seconds: float) -> list[Row]:
    """The rows of all kinds of states that occur."""
    errors = {
        "velocity": relative_error(outcome.qvel, cases.after.qvel),
        "observation": relative_error(outcome.observation, cases.observation),
        "reward": relative_error(outcome.reward, cases.reward),
    }
    differ = outcome.terminated != cases.terminated
    rows = []
    for kind, chosen in {"all": np.ones_like(cases.contact), "contact": cases.contact, "steep": cases.steep}.items():
        if chosen.any():
            figures: dict[str, Any] = {
                f"{name}_{figure}": float(np.quantile(error[chosen], share))
                for name, error in errors.items()
                for figure, share in {"median": 0.5, "p99": 0.99, "max": 1.0}.items()
            }
            figures |= {"disagreements": int(differ[chosen].sum()), "ms_per_step": ms}
            rows.append(Row(task, options, kind, int(chosen.sum()), compile_seconds=compile_seconds, **figures))
    return rows
