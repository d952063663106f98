"""Published returns, for comparison with measured ones; of deterministic evaluations unless stated otherwise.

Returns of different environment versions are not always comparable: v2 equals v3; v3 and v4 are comparable except for
Ant; v4 and v5 are comparable for HalfCheetah and Swimmer only. Achiam et al. (2019) do not print returns as numbers, so
PreQN has no row.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Published returns of one agent, with the environment version and the source; returns by the task's short name."""

    agent: str
    steps: int
    version: str
    source: str
    returns: dict[str, float]


def _returns(*values: float | None) -> dict[str, float]:
    tasks = ("halfcheetah", "hopper", "walker2d", "swimmer", "ant", "humanoid")
    return {task: value for task, value in zip(tasks, values, strict=True) if value is not None}


PUBLISHED = (
    Published("TD3", 1_000_000, "v1", "Fujimoto et al. 2018, maximum over time, 10 seeds",
              _returns(9637, 3564, 4683, None, 4372, None)),
    Published("TD3", 1_000_000, "v3", "Spinning Up benchmark, 10 seeds, smoothed",
              _returns(9755, 2859, 3998, 78, 3808, None)),
    Published("TD3", 1_000_000, "v3", "Tianshou benchmark, 10 seeds, maximum over time",
              _returns(10201, 3472, 3982, 104, 5116, 5190)),
    Published("SAC", 1_000_000, "v3", "Spinning Up benchmark",
              _returns(11496, 3535, 4111, 42, 3949, None)),
    Published("SAC", 1_000_000, "v3", "Tianshou benchmark",
              _returns(12139, 3542, 5007, 44, 5850, 5489)),
    Published("SAC", 1_000_000, "v4", "SimbaV2 baselines, 10 seeds",
              _returns(11321, 2787, 4536, None, 5734, 4824)),
    Published("DDPG", 1_000_000, "v3", "Tianshou benchmark",
              _returns(11719, 2197, 1401, 144, 990, 177)),
    Published("CrossQ", 1_000_000, "v4", "SimbaV2 baselines",
              _returns(12893, 2467, 6257, None, 6980, 10480)),
    Published("TD3", 100_000, "v1", "Fujimoto et al. 2018", _returns(5514, 659, 770, None, 586, None)),
    Published("TD3", 300_000, "v1", "Fujimoto et al. 2018", _returns(7697, 2410, 3335, None, 1953, None)),
    Published("TD3", 100_000, "v3", "Spinning Up benchmark", _returns(None, None, None, 41, None, None)),
    Published("TD3", 300_000, "v3", "Spinning Up benchmark", _returns(None, None, None, 49, None, None)),
    Published("SAC", 100_000, "v3", "Spinning Up benchmark", _returns(6081, 1164, 771, 39, 802, None)),
    Published("SAC", 100_000, "v4", "SimbaV2 baselines, 10 seeds",
              _returns(6156, 1104, 690, None, 747, 632)),
    Published("CrossQ", 100_000, "v4", "SimbaV2 baselines, 10 seeds",
              _returns(8112, 2764, 3914, None, 2299, 2603)),
    Published("MR.Q", 100_000, "v4", "MR.Q results, 10 seeds",
              _returns(7872, 2249, 3127, None, 2801, 522)),
    Published("SAC", 300_000, "v3", "Spinning Up benchmark", _returns(9163, 2887, 2958, 41, 1737, None)),
)  # fmt: skip
