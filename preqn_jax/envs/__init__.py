"""Environments by short name, and what can run them."""

from __future__ import annotations

# What <environment> stands for in a configuration's name <agent>_<environment>.
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

BACKENDS = ("gymnasium", "mjx", "brax", "playground")
