"""Which environment a run is in."""

from __future__ import annotations

import dataclasses

from preqn_jax.envs import BACKENDS
from preqn_jax.settings import Options, setting


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """Which environment, and where it runs."""

    id: str = setting("Ant-v5", "the backend's name for it; a Gymnasium id: Ant-v4 or Pendulum-v1 for example")
    backend: str = setting(
        "gymnasium",
        "gymnasium: on the host; the others compiled with the agent, on the same device: Gymnasium's own tasks on MJX, "
        "those of Brax, those of MuJoCo Playground",
        choices=BACKENDS,
    )
    num_envs: int = setting(1, "environments side by side of each seed; on the device only", interval="[1, inf)")
    time_limit: int = setting(
        0,
        "episodes are cut there; 0: where the task says, with Brax at 1000 [environment steps]",
        interval="[0, inf)",
    )
    solver_iterations: int = setting(
        0,
        "at most so many of MJX's constraint solver, and of its linesearch; 0: as the task says; 8 gives the same "
        "errors in a third of the time (docs/parity.md)",
        interval="[0, inf)",
    )
    kwargs: Options = setting(
        Options(),
        "further arguments of the environment's constructor, with backend=gymnasium or brax: "
        "--config.env.kwargs.<name>=<value> for each, the value in JSON; or all as one JSON object",
    )
    reset_options: Options = setting(
        Options(), "options of every reset, with backend=gymnasium, spelled in the same way as kwargs"
    )

    def __post_init__(self) -> None:
        for name in ("kwargs", "reset_options"):  # may be given as plain dictionaries
            object.__setattr__(self, name, Options(getattr(self, name)))
