"""Gymnasium's MuJoCo tasks on MJX, as Brax environments that can be vmapped on the device."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from preqn_jax.envs.mjx_tasks import TASKS, Physics, PhysicsStep, Quantities
from preqn_jax.ops.precision import full_precision
from preqn_jax.settings import SettingError, unknown
from preqn_jax.types import Array

with contextlib.redirect_stdout(io.StringIO()):  # it prints that Warp, which is not needed here, is missing
    from mujoco import mjx
from brax import math
from brax.envs.base import Env, State

INTEGRATORS = {
    "Euler": mujoco.mjtIntegrator.mjINT_EULER,
    "RK4": mujoco.mjtIntegrator.mjINT_RK4,
    "implicitfast": mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
}

# For each stage: its time within the step, as a fraction of the step, and its weight.
_RUNGE_KUTTA = (np.array([0.0, 0.5, 0.5, 1.0]), np.array([1.0, 2.0, 2.0, 1.0]) / 6.0)


@contextlib.contextmanager
def _as_mjx_needs() -> Iterator[None]:
    """Enables full float32 precision, and the rank promotion that MJX relies on."""
    with full_precision(), jax.numpy_rank_promotion("allow"):
        yield


class MjxEnv(Env):
    """One of the :data:`TASKS`, equal to Gymnasium's in model, time step, reset, observation, reward and termination.

    ``step`` takes an action ``[A]`` in [-1, 1] and never resets by itself. In the returned state, ``done`` is 1 if the
    task terminated; ``info`` contains ``terminated`` (bool), ``truncated`` (bool, the time limit was reached without
    termination) and ``steps``, the number of steps since the reset (int32). Nothing is jitted; use vmap for batches.

    Attributes:
      mj_model: the MuJoCo model.
      model: the MJX model.
      time_limit: maximum episode length [steps].
      dt: duration of a step [s].
      observation_size, action_size, backend: required by Brax.
    """

    def __init__(
        self,
        env_id: str,
        *,
        integrator: str | None = None,
        iterations: int | None = None,
        ls_iterations: int | None = None,
    ):
        """Loads Gymnasium's model of a task. :func:`preqn_jax.envs.make_mjx` also checks the name and the packages.

        Args:
          env_id: a key of ``TASKS``.
          integrator: a key of ``INTEGRATORS``; None keeps the model's integrator.
          iterations: maximum iterations of the constraint solver; None keeps the model's value.
          ls_iterations: maximum iterations of the solver's line search; None keeps the model's value.

        Raises:
          SettingError: if an option is out of range.
        """
        original: Any = gymnasium.make(env_id)
        self.time_limit: int = original.spec.max_episode_steps
        original = original.unwrapped
        self.task, self.mj_model = TASKS[env_id], copy.deepcopy(original.model)
        _set_options(self.mj_model, integrator, iterations, ls_iterations)
        try:
            self.model = mjx.put_model(self.mj_model)
        except NotImplementedError as error:
            raise SettingError(f"MJX cannot run {env_id} with integrator={integrator}: {error}") from error
        self._blank = mjx.make_data(self.mj_model)
        self._frame_skip, self.dt = original.frame_skip, float(original.dt)
        (self._observation_size,) = original.observation_space.shape

    @property
    def observation_size(self) -> int:
        """Number of entries of an observation."""
        return self._observation_size

    @property
    def action_size(self) -> int:
        """Number of entries of an action."""
        return self.mj_model.nu

    @property
    def backend(self) -> str:
        """The name of the physics engine."""
        return "mjx"

    def reset(self, rng: Array) -> State:
        """Starts a new episode from a random initial state."""
        with _as_mjx_needs():
            qpos, qvel = self.task.start(rng, self._blank.qpos, self._blank.qvel)
            data = self._blank.replace(qpos=qpos, qvel=qvel)
            if self.task.reads:  # at a reset, the observed constraint and actuator forces are zero
                data = mjx.com_vel(self.model, mjx.com_pos(self.model, mjx.kinematics(self.model, data)))
        return self.begin(Physics(self._quantities(data, qpos, qvel), data.qacc))

    def begin(self, physics: Physics) -> State:
        """Starts a new episode from a given state."""
        observation = self.task.observe(physics.quantities)
        zero, no = jnp.zeros((), observation.dtype), jnp.zeros((), bool)
        info = {"terminated": no, "truncated": no, "steps": jnp.zeros((), jnp.int32)}
        return State(physics, observation, zero, zero, {}, info)

    def step(self, state: State, action: Array) -> State:
        """Returns the state after an action ``[A]`` in [-1, 1]."""
        with _as_mjx_needs():
            low, high = self.mj_model.actuator_ctrlrange.T.astype(action.dtype)
            control = jnp.clip(low + 0.5 * (action + 1.0) * (high - low), low, high)
            physics = self._simulate(state.pipeline_state, control)
            before, after = state.pipeline_state.quantities, physics.quantities
            observation = self.task.observe(after)
            reward = self.task.reward(PhysicsStep(before, after, control, self.dt)).astype(observation.dtype)
        terminated = ~self.task.healthy(after)
        steps = state.info["steps"] + 1
        info = {**state.info, "terminated": terminated, "truncated": (steps >= self.time_limit) & ~terminated}
        if "truncation" not in info:  # with Brax's EpisodeWrapper, that wrapper counts the steps
            info["steps"] = steps
        done = terminated.astype(observation.dtype)
        return state.replace(pipeline_state=physics, obs=observation, reward=reward, done=done, info=info)

    def _simulate(self, physics: Physics, control: Array) -> Physics:
        """Runs the MuJoCo steps of one environment step."""
        advance = self._runge_kutta if self.mj_model.opt.integrator == INTEGRATORS["RK4"] else self._one_evaluation
        return jax.lax.fori_loop(0, self._frame_skip, lambda _, now: advance(now, control), physics)

    def _one_evaluation(self, physics: Physics, control: Array) -> Physics:
        """One MuJoCo step with an integrator that evaluates the dynamics once."""
        now = physics.quantities
        data = self._evaluate(now.qpos, now.qvel, physics.qacc, control)
        euler = self.mj_model.opt.integrator == INTEGRATORS["Euler"]
        after = (mjx.euler if euler else mjx.implicit)(self.model, data)
        return Physics(self._quantities(data, after.qpos, after.qvel), data.qacc)

    def _runge_kutta(self, physics: Physics, control: Array) -> Physics:
        """One MuJoCo step with RK4. ``mjx.rungekutta4`` cannot be used since it does not call :func:`align_friction`.

        The stages are a loop, so that the dynamics are compiled once instead of four times.
        """
        start, timestep = physics.quantities, self.model.opt.timestep

        def stage(carry: tuple[Physics, Array, Array], tableau: tuple[Array, ...]) -> tuple[Any, None]:
            previous, mean_velocity, mean_acceleration = carry
            offset, weight = tableau
            qpos = self._move(start.qpos, previous.quantities.qvel, offset * timestep)
            qvel = start.qvel + offset * timestep * previous.qacc
            data = self._evaluate(qpos, qvel, previous.qacc, control)
            means = mean_velocity + weight * qvel, mean_acceleration + weight * data.qacc
            return (Physics(self._quantities(data, qpos, qvel), data.qacc), *means), None

        zero = jnp.zeros_like(start.qvel)
        tableau = tuple(jnp.asarray(column, start.qpos.dtype) for column in _RUNGE_KUTTA)
        (last, velocity, acceleration), _ = jax.lax.scan(stage, (physics, zero, zero), tableau)
        qpos, qvel = self._move(start.qpos, velocity, timestep), start.qvel + timestep * acceleration
        return Physics(last.quantities._replace(qpos=qpos, qvel=qvel), last.qacc)

    def _evaluate(self, qpos: Array, qvel: Array, qacc: Array, control: Array) -> mjx.Data:
        """Evaluates the dynamics at a state; the constraint solver starts from ``qacc``."""
        data = self._blank.replace(qpos=qpos, qvel=qvel, ctrl=control, qacc_warmstart=qacc)
        data = align_friction(self.model, mjx.fwd_position(self.model, data))
        for part in (mjx.fwd_velocity, mjx.fwd_actuation, mjx.fwd_acceleration, mjx.solve):
            data = part(self.model, data)
        return mjx.rne_postconstraint(self.model, data) if "cfrc_ext" in self.task.reads else data

    def _quantities(self, data: mjx.Data, qpos: Array, qvel: Array) -> Quantities:
        """The quantities that the task reads; some are only available from MJX's own implementation."""
        own = {"cinert", "cfrc_ext"}
        rest = {name: getattr(data._impl if name in own else data, name) for name in self.task.reads}
        return Quantities(qpos, qvel, **rest)

    def _move(self, qpos: Array, qvel: Array, duration: Array) -> Array:
        """Positions after a motion with constant velocity."""
        if self.mj_model.jnt_type[0] != mujoco.mjtJoint.mjJNT_FREE:
            return qpos + duration * qvel
        axis, speed = math.normalize(qvel[3:6])
        quaternion = math.quat_mul(qpos[3:7], math.quat_rot_axis(axis, duration * speed))
        position, joints = qpos[:3] + duration * qvel[:3], qpos[7:] + duration * qvel[6:]
        return jnp.concatenate([position, quaternion / jnp.linalg.norm(quaternion), joints])


def _set_options(model: mujoco.MjModel, integrator: str | None, iterations: int | None, searches: int | None) -> None:
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:  # Humanoid; MJX lacks it, Newton solves the same problem
        model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    if integrator is not None:
        if integrator not in INTEGRATORS:
            raise SettingError(unknown("integrator", integrator, INTEGRATORS))
        model.opt.integrator = INTEGRATORS[integrator]
    for name, value in {"iterations": iterations, "ls_iterations": searches}.items():
        if value is not None:
            if value < 1:
                raise SettingError(f"{name}={value} is out of range; allowed: at least 1")
            setattr(model.opt, name, value)


def align_friction(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Aligns the friction axes of contacts between capsules and a plane with the capsule, as C MuJoCo does.

    MJX does this only for capsules with less than 60 degrees inclination. The axes matter because the friction cone is
    approximated by a pyramid along them.
    """
    contact = data._impl.contact
    first, second = contact.geom[:, 0], contact.geom[:, 1]
    kinds = jnp.asarray(model.geom_type)
    ours = (kinds[first] == int(mujoco.mjtGeom.mjGEOM_PLANE)) & (kinds[second] == int(mujoco.mjtGeom.mjGEOM_CAPSULE))
    normal, capsule = contact.frame[:, 0], data.geom_xmat[second, :, 2]
    along = capsule - normal * jnp.sum(capsule * normal, axis=1, keepdims=True)
    length = jnp.linalg.norm(along, axis=1, keepdims=True)
    ours = ours[:, None] & (length > 1e-6)  # an upright capsule has no direction
    along = along / jnp.where(ours, length, 1.0)
    frame = jnp.stack([normal, along, jnp.cross(normal, along)], axis=1)
    frame = jnp.where(ours[:, :, None], frame, contact.frame)
    return mjx.make_constraint(model, data.tree_replace({"_impl.contact.frame": frame}))
