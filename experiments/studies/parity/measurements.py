"""One step of a task on MJX beside the same step in Gymnasium, from states that Gymnasium went through."""

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
    """Steps that Gymnasium took; every leaf leads with the number N of them.

    Attributes:
      before: the physics before.
      action: ``[N, A]`` in [-1, 1].
      after: the quantities after.
      observation: ``[N, O]``.
      reward: ``[N]``.
      terminated: ``[N]`` bool.
      contact: whether anything touched before or after, ``[N]`` bool.
      steep: whether a capsule stood on the floor at more than 60 degrees then, ``[N]`` bool. MJX by itself turns the
        friction axes of such contacts other than C MuJoCo does.
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
    """What MJX made of N cases: as in :class:`Cases`, with the velocities ``qvel`` alone of the quantities."""

    qvel: Float
    observation: Float
    reward: Float
    terminated: Float


class Row(NamedTuple):
    """How far MJX is from Gymnasium, over the states of one kind.

    Attributes:
      task: Gymnasium id.
      options: of the physics, a key of ``OPTIONS``.
      kind: "all", "contact" or "steep".
      states: how many.
      velocity_median, velocity_p99, velocity_max: errors of qvel; :func:`relative_error` says of which kind.
      observation_median, observation_p99, observation_max: of the observation.
      reward_median, reward_p99, reward_max: of the reward.
      disagreements: states after which one terminates and the other does not.
      ms_per_step: time of one environment's step in a batch [ms], the median over batches. On CPUs this and the next
        are processor time, to which other work on the machine matters less.
      compile_seconds: tracing and compiling a batch's step [s].
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


# The model's own physics, and what may be cheaper: at most so many iterations of the constraint solver x of its
# linesearch, and another integrator.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "own": {},
    "8x8": {"iterations": 8, "ls_iterations": 8},
    "4x4": {"iterations": 4, "ls_iterations": 4},
    "1x4": {"iterations": 1, "ls_iterations": 4},
    "euler": {"integrator": "Euler"},
    "euler_4x4": {"integrator": "Euler", "iterations": 4, "ls_iterations": 4},
}

_SPACING = 5  # steps from one recorded state to the next
_EPISODE = 500  # steps at most
_AFTER_THE_END = 100  # steps that an episode goes on where the task has terminated: fallen robots have most contacts


def collect(env_id: str, states: int, seed: int = 0) -> Cases:
    """Every fifth step of random episodes from their resets on, beyond termination; the same ones at every call.

    Actions are uniform in one episode and at the limits (rails) in the next.
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
    """Whether anything touches, and whether a capsule does so steeply."""
    pairs = env.data.contact.geom
    kinds = env.model.geom_type[pairs]
    on_floor = (kinds == [mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_CAPSULE]).all(axis=1)
    axes = env.data.geom_xmat[pairs[:, 1]].reshape(-1, 3, 3)[:, :, 2]
    normals = env.data.contact.frame.reshape(-1, 9)[:, :3]
    upright = abs((axes * normals).sum(axis=1))
    return len(pairs) > 0, bool((on_floor & (upright > math.cos(math.pi / 6))).any())


def _seconds() -> float:
    """The processor's clock, or the wall's where the processor only waits for another device."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


class Stepper:
    """The step of a batch on MJX, compiled at once."""

    def __init__(self, env_id: str, cases: Cases, batch: int, options: Mapping[str, Any]):
        """Compiles.

        Args:
          env_id: a key of ``MJX_TASKS``.
          cases: that :meth:`run` is to take.
          batch: environments that step together.
          options: of the physics.
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
        """One batch after the other: what came out, and the time of each environment's step [ms]."""
        total = len(self._cases.reward)
        for first in range(0, total, self._batch):
            arguments = jax.block_until_ready(self._arguments(first))
            start = _seconds()
            outcome = jax.block_until_ready(self._step(*arguments))
            ms = 1e3 * (_seconds() - start) / self._batch
            yield jax.tree.map(lambda leaf: np.asarray(leaf)[: total - first], outcome), ms  # noqa: B023

    def _arguments(self, first: int) -> tuple[Physics, Array]:
        """The batch from case ``first`` on, filled up with the first cases."""
        rows = np.arange(first, first + self._batch) % len(self._cases.reward)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[rows], float), (self._cases.before, self._cases.action))


def relative_error(ours: Float, theirs: Float) -> Float:
    """Of each of N: the Euclidean norm of the difference over that of theirs, or over 1 where that is smaller."""
    ours, theirs = np.reshape(ours, (len(ours), -1)), np.reshape(theirs, (len(theirs), -1))
    return np.linalg.norm(ours - theirs, axis=1) / np.maximum(1.0, np.linalg.norm(theirs, axis=1))


def compare(task: str, options: str, cases: Cases, outcome: Outcome, ms: float, compile_seconds: float) -> list[Row]:
    """A row for each kind of states that there are."""
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
