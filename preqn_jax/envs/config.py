"""Configuration of the environment of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from preqn_jax.envs import BACKENDS, Backend
from preqn_jax.settings import Options, setting


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """The environment and the backend that runs it."""

    id: str = setting("Ant-v5", "name of the environment in its backend; a Gymnasium id, for example Pendulum-v1")
    backend: str = setting(
        "gymnasium",
        "gymnasium runs environments on the CPU; the others are compiled with the agent and run on its device: mjx has "
        "Gymnasium's MuJoCo tasks, brax and playground (MuJoCo Playground) have their own",
        choices=BACKENDS,
    )
    num_envs: int = setting(
        1, "number of parallel environments per seed; must be 1 with backend=gymnasium", interval="[1, inf)"
    )
    time_limit: int = setting(
        0,
        "maximum episode length; 0 uses the task's default, 1000 with backend=brax [environment steps]",
        interval="[0, inf)",
    )
    solver_iterations: int = setting(
        0,
        "maximum iterations of MJX's constraint solver and of its line search; 0 keeps the model's own values; 8 gives "
        "the same errors in a third of the time (docs/parity.md)",
        interval="[0, inf)",
    )
    kwargs: Options = setting(
        Options(),
        "additional arguments of the environment's constructor, with backend=gymnasium or brax: "
        "--config.env.kwargs.<name>=<value> for each, with the value in JSON; or all as one JSON object",
        absent=Options(),
    )
    reset_options: Options = setting(
        Options(),
        "options passed to every reset, with backend=gymnasium, in the same format as kwargs",
        absent=Options(),
    )

    @property
    def facts(self) -> Backend:
        """The properties of the backend."""
        return BACKENDS[self.backend]

    def __post_init__(self) -> None:
        for name in ("kwargs", "reset_options"):  # may be given as plain dictionaries
            if isinstance(value := getattr(self, name), Mapping):  # other types are refused by settings.check
                object.__setattr__(self, name, Options(value))
