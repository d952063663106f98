"""Environments by short name, the backends that run them, and Gymnasium's MuJoCo tasks on MJX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from preqn_jax.envs.mjx_tasks import TASKS as MJX_TASKS
from preqn_jax.settings import SettingError, unknown

if TYPE_CHECKING:
    from preqn_jax.envs.mjx import MjxEnv

# The environments that <environment> refers to in the name <agent>_<environment> of a configuration.
ENVS: dict[str, str] = {
    "ant": "Ant-v5",
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "humanoid": "Humanoid-v5",
    "inverteddoublependulum": "InvertedDoublePendulum-v5",
    "invertedpendulum": "InvertedPendulum-v5",
    "reacher": "Reacher-v5",
    "swimmer": "Swimmer-v5",
    "walker2d": "Walker2d-v5",
}

# The same for environments with discrete actions.
DISCRETE_ENVS: dict[str, str] = {
    "acrobot": "Acrobot-v1",
    "asterix": "MinAtar/Asterix-v1",
    "breakout": "MinAtar/Breakout-v1",
    "cartpole": "CartPole-v1",
    "freeway": "MinAtar/Freeway-v1",
    "mountaincar": "MountainCar-v0",
    "seaquest": "MinAtar/Seaquest-v1",
    "spaceinvaders": "MinAtar/SpaceInvaders-v1",
}


class Backend(NamedTuple):
    """What the rest of the library has to know about a backend, the software that runs environments.

    Attributes:
      on_device: whether environments are compiled with the agent and run on its device; if not, they run on the CPU.
      in_gymnasium: whether Gymnasium provides the same environments, so that a policy can be evaluated in them.
      discrete_actions: whether there are environments with discrete actions.
      unsupported: fields of the environment's configuration that the backend does not use.
    """

    on_device: bool
    in_gymnasium: bool
    discrete_actions: bool
    unsupported: tuple[str, ...]


BACKENDS = {
    "gymnasium": Backend(
        on_device=False,
        in_gymnasium=True,
        discrete_actions=True,
        unsupported=("num_envs", "solver_iterations"),
    ),
    "mjx": Backend(
        on_device=True,
        in_gymnasium=True,
        discrete_actions=False,
        unsupported=("kwargs", "reset_options"),
    ),
    "brax": Backend(
        on_device=True,
        in_gymnasium=False,
        discrete_actions=False,
        unsupported=("reset_options", "solver_iterations"),
    ),
    "playground": Backend(
        on_device=True,
        in_gymnasium=False,
        discrete_actions=False,
        unsupported=("kwargs", "reset_options", "solver_iterations"),
    ),
}


def make_mjx(env_id: str, **options: Any) -> MjxEnv:
    """Creates a Gymnasium task on MJX, as a Brax environment.

    Args:
      env_id: a key of ``MJX_TASKS``, for example "Hopper-v5".
      **options: options of the physics, see :class:`preqn_jax.envs.mjx.MjxEnv`.

    Raises:
      SettingError: if there is no such task, a package is missing, or an option is out of range.
    """
    if env_id not in MJX_TASKS:
        raise SettingError(unknown("MJX task", env_id, MJX_TASKS))
    try:
        from preqn_jax.envs.mjx import MjxEnv  # imported here because it needs optional packages
    except ModuleNotFoundError as error:
        raise SettingError(f"{env_id} on MJX needs {error.name}: pip install mujoco-mjx brax") from error
    return MjxEnv(env_id, **options)
