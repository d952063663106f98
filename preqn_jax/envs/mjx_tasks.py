"""Observations, rewards, termination and initial states of Gymnasium's MuJoCo tasks (v5).

All functions are pure and accept :class:`Quantities` of NumPy or JAX arrays, float32 or float64. The tests compare them
with Gymnasium's own in float64, with values from C MuJoCo, so that differences of the physics engine do not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.types import Array


class Quantities(NamedTuple):
    """The fields of MuJoCo's data that tasks use, with its names and layout (nb bodies, ns sites, SI units).

    ``qpos`` and ``qvel`` are the values after a step. As in Gymnasium, the other fields come from the last evaluation
    of the dynamics within that step and belong to a slightly earlier state. Fields that the task does not use are None.

    Attributes:
      qpos: generalized positions ``[nq]``.
      qvel: generalized velocities ``[nv]``.
      xpos: position of each body's frame ``[nb, 3]``.
      subtree_com: centre of mass of each body's subtree ``[nb, 3]``; the world's is the whole robot's.
      site_xpos: position of each site ``[ns, 3]``.
      cinert: inertia about the centre of mass ``[nb, 10]``.
      cvel: velocity about the centre of mass ``[nb, 6]``.
      qfrc_actuator: actuators' generalized forces ``[nv]``.
      qfrc_constraint: constraints' generalized forces ``[nv]``.
      cfrc_ext: external, that is contact, force on each body ``[nb, 6]``.
    """

    qpos: Any
    qvel: Any
    xpos: Any = None
    subtree_com: Any = None
    site_xpos: Any = None
    cinert: Any = None
    cvel: Any = None
    qfrc_actuator: Any = None
    qfrc_constraint: Any = None
    cfrc_ext: Any = None


class Physics(NamedTuple):
    """The state of the physics between two steps.

    Attributes:
      quantities: the fields that the task uses.
      qacc: latest accelerations ``[nv]``, from which the constraint solver starts.
    """

    quantities: Quantities
    qacc: Any


class PhysicsStep(NamedTuple):
    """The arguments of a reward function.

    Attributes:
      before: the quantities before the step.
      after: the quantities after the step.
      control: the action ``[A]`` in the task's own units.
      dt: duration of the step [s].
    """

    before: Quantities
    after: Quantities
    control: Any
    dt: float


Start = Callable[
    [Array, Any, Any], tuple[Array, Array]
]  # (key, qpos [nq], qvel [nv] of the XML) -> initial qpos and qvel


class Task(NamedTuple):
    """One Gymnasium task.

    Attributes:
      observe: quantities -> observation ``[O]``.
      reward: step -> reward, a scalar.
      healthy: quantities -> whether the episode continues, a scalar.
      start: (key, ``qpos``, ``qvel`` of the XML) -> random initial positions and velocities.
      reads: names of the quantities that the task uses in addition to ``qpos`` and ``qvel``.
    """

    observe: Callable[[Quantities], Any]
    reward: Callable[[PhysicsStep], Any]
    healthy: Callable[[Quantities], Any]
    start: Start
    reads: tuple[str, ...] = ()


def _numpy(quantities: Quantities) -> ModuleType:
    """``numpy`` or ``jax.numpy``, matching the arrays."""
    return quantities.qpos.__array_namespace__()


def _between(low: float, value: Any, high: float) -> Any:
    return (low < value) & (value < high)  # False for NaN


def _always(now: Quantities) -> Any:
    return _numpy(now).asarray(True)


def _x_velocity(step: PhysicsStep) -> Any:
    return (step.after.qpos[0] - step.before.qpos[0]) / step.dt


def _squares(array: Any) -> Any:
    return (array**2).sum()


def _positions_and_velocities(skip: int, clip: float | None = None) -> Callable[[Quantities], Any]:
    """Observes all positions except the first ``skip``, and the velocities clipped to +-``clip``."""

    def observe(now: Quantities) -> Any:
        velocity = now.qvel if clip is None else now.qvel.clip(-clip, clip)
        return _numpy(now).concatenate([now.qpos[skip:], velocity])

    return observe


def _run(control_cost: float) -> Callable[[PhysicsStep], Any]:
    """Reward: velocity along x, minus a control cost."""
    return lambda step: _x_velocity(step) - control_cost * _squares(step.control)


def _run_upright(control_cost: float, healthy: Callable[[Quantities], Any]) -> Callable[[PhysicsStep], Any]:
    """Like :func:`_run`, plus 1 for every step that ends in a healthy state."""
    return lambda step: _run(control_cost)(step) + 1.0 * healthy(step.after)


def _hopper_healthy(now: Quantities) -> Any:
    state = _numpy(now).concatenate([now.qpos[2:], now.qvel])
    return _between(-100.0, state, 100.0).all() & (now.qpos[1] > 0.7) & _between(-0.2, now.qpos[2], 0.2)


def _walker2d_healthy(now: Quantities) -> Any:
    return _between(0.8, now.qpos[1], 2.0) & _between(-1.0, now.qpos[2], 1.0)


def _clipped_contact_forces(now: Quantities) -> Any:
    return now.cfrc_ext.clip(-1.0, 1.0)


def _ant_observe(now: Quantities) -> Any:
    return _numpy(now).concatenate([now.qpos[2:], now.qvel, _clipped_contact_forces(now)[1:].reshape(-1)])


def _ant_healthy(now: Quantities) -> Any:
    np = _numpy(now)
    finite = np.isfinite(now.qpos).all() & np.isfinite(now.qvel).all()
    return finite & (now.qpos[2] >= 0.2) & (now.qpos[2] <= 1.0)


def _ant_reward(step: PhysicsStep) -> Any:
    torso = 1
    speed = (step.after.xpos[torso, 0] - step.before.xpos[torso, 0]) / step.dt
    cost = 0.5 * _squares(step.control) + 5e-4 * _squares(_clipped_contact_forces(step.after))
    return speed + 1.0 * _ant_healthy(step.after) - cost


def _humanoid_observe(now: Quantities) -> Any:
    np = _numpy(now)
    bodies = [array[1:].reshape(-1) for array in (now.cinert, now.cvel)]
    return np.concatenate([now.qpos[2:], now.qvel, *bodies, now.qfrc_actuator[6:], now.cfrc_ext[1:].reshape(-1)])


def _humanoid_healthy(now: Quantities) -> Any:
    return _between(1.0, now.qpos[2], 2.0)


def _humanoid_reward(step: PhysicsStep) -> Any:
    speed = (step.after.subtree_com[0, 0] - step.before.subtree_com[0, 0]) / step.dt
    contact_cost = (5e-7 * _squares(step.after.cfrc_ext)).clip(None, 10.0)
    return 1.25 * speed + 5.0 * _humanoid_healthy(step.after) - (0.1 * _squares(step.control) + contact_cost)


def _pendulum_healthy(now: Quantities) -> Any:
    np = _numpy(now)
    finite = np.isfinite(now.qpos).all() & np.isfinite(now.qvel).all()
    return finite & (abs(now.qpos[1]) <= 0.2)


def _pendulum_reward(step: PhysicsStep) -> Any:
    return 1.0 * _pendulum_healthy(step.after)


def _double_pendulum_observe(now: Quantities) -> Any:
    np = _numpy(now)
    angles = now.qpos[1:]
    rail = now.qfrc_constraint[:1].clip(-10.0, 10.0)
    return np.concatenate([now.qpos[:1], np.sin(angles), np.cos(angles), now.qvel.clip(-10.0, 10.0), rail])


def _double_pendulum_healthy(now: Quantities) -> Any:
    return _numpy(now).logical_not(now.site_xpos[0, 2] <= 1.0)  # the episode continues for NaN, as in Gymnasium


def _double_pendulum_reward(step: PhysicsStep) -> Any:
    x, _, y = step.after.site_xpos[0]
    _, v1, v2 = step.after.qvel
    distance_penalty, velocity_penalty = 0.01 * x**2 + (y - 2) ** 2, 1e-3 * v1**2 + 5e-3 * v2**2
    return 10.0 * _double_pendulum_healthy(step.after) - distance_penalty - velocity_penalty


def _fingertip_from_target(now: Quantities) -> Any:
    fingertip, target = 3, 4
    return now.xpos[fingertip] - now.xpos[target]


def _reacher_observe(now: Quantities) -> Any:
    np = _numpy(now)
    angles, goal = now.qpos[:2], now.qpos[2:]
    return np.concatenate([np.cos(angles), np.sin(angles), goal, now.qvel[:2], _fingertip_from_target(now)[:2]])


def _reacher_reward(step: PhysicsStep) -> Any:
    distance = _squares(_fingertip_from_target(step.after)) ** 0.5
    return -distance - _squares(step.control)


def _uniform(scale: float) -> Start:
    """Initial positions and velocities: those of the XML plus uniform noise in +-``scale``."""

    def start(key: Array, qpos: Any, qvel: Any) -> tuple[Array, Array]:
        key_position, key_velocity = jax.random.split(key)
        noise = jax.random.uniform(key_position, qpos.shape, qpos.dtype, -scale, scale)
        return qpos + noise, qvel + jax.random.uniform(key_velocity, qvel.shape, qvel.dtype, -scale, scale)

    return start


def _uniform_and_normal(scale: float) -> Start:
    """Initial state: that of the XML plus noise, uniform in +-``scale`` (positions) and normal (velocities)."""

    def start(key: Array, qpos: Any, qvel: Any) -> tuple[Array, Array]:
        key_position, key_velocity = jax.random.split(key)
        noise = jax.random.uniform(key_position, qpos.shape, qpos.dtype, -scale, scale)
        return qpos + noise, qvel + scale * jax.random.normal(key_velocity, qvel.shape, qvel.dtype)

    return start


def _reacher_start(key: Array, qpos: Any, qvel: Any) -> tuple[Array, Array]:
    """Initial state of the arm: that of the XML plus noise; the goal is at rest, uniform in a disc of radius 0.2 m."""
    key_position, key_velocity, key_radius, key_angle = jax.random.split(key, 4)
    noise = jax.random.uniform(key_position, qpos.shape, qpos.dtype, -0.1, 0.1)
    speeds = jax.random.uniform(key_velocity, qvel.shape, qvel.dtype, -0.005, 0.005)
    radius = 0.2 * jnp.sqrt(jax.random.uniform(key_radius, (), qpos.dtype))  # Gymnasium samples until a point is inside
    angle = jax.random.uniform(key_angle, (), qpos.dtype, 0.0, 2 * jnp.pi)
    goal = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return (qpos + noise).at[2:].set(goal), (qvel + speeds).at[2:].set(0.0)


TASKS: dict[str, Task] = {
    "Ant-v5": Task(_ant_observe, _ant_reward, _ant_healthy, _uniform_and_normal(0.1), ("xpos", "cfrc_ext")),
    "HalfCheetah-v5": Task(_positions_and_velocities(1), _run(0.1), _always, _uniform_and_normal(0.1)),
    "Hopper-v5": Task(
        _positions_and_velocities(1, clip=10.0), _run_upright(1e-3, _hopper_healthy), _hopper_healthy, _uniform(5e-3)
    ),
    "Humanoid-v5": Task(
        _humanoid_observe,
        _humanoid_reward,
        _humanoid_healthy,
        _uniform(1e-2),
        ("subtree_com", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
    ),
    "InvertedDoublePendulum-v5": Task(
        _double_pendulum_observe,
        _double_pendulum_reward,
        _double_pendulum_healthy,
        _uniform_and_normal(0.1),
        ("site_xpos", "qfrc_constraint"),
    ),
    "InvertedPendulum-v5": Task(_positions_and_velocities(0), _pendulum_reward, _pendulum_healthy, _uniform(0.01)),
    "Reacher-v5": Task(_reacher_observe, _reacher_reward, _always, _reacher_start, ("xpos",)),
    "Swimmer-v5": Task(_positions_and_velocities(2), _run(1e-4), _always, _uniform(0.1)),
    "Walker2d-v5": Task(
        _positions_and_velocities(1, clip=10.0),
        _run_upright(1e-3, _walker2d_healthy),
        _walker2d_healthy,
        _uniform(5e-3),
    ),
}
