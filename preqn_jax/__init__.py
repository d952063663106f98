"""PreQN in JAX: Q-learning preconditioned by its own neural tangent kernel (arXiv 1903.08894).

:func:`preqn_update` is the critic update for your own agent, :func:`preqn` is the same update as an Optax
transformation, and :func:`ntk_probe` computes only diagnostics. :func:`train` trains an agent and :func:`load_policy`
loads the resulting policy; these two need ``pip install 'preqn_jax[train]'``.
"""

import importlib as _importlib
from importlib import util as _util
from typing import Any as _Any

from preqn_jax.ops import activations, diagnostics, linesearch, ntk, solvers, td
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import PreQNInfo, describe, preqn_update
from preqn_jax.ops.probe import NTKProbe, ntk_probe
from preqn_jax.ops.status import Status
from preqn_jax.optim import precondition_by_ntk, preqn, preqn_info, scale_by_alignment_linesearch

__version__ = "0.2.0"

_TRAINING = {"load_policy": "policy", "train": "api"}  # imported on first use, since they need additional packages


def __getattr__(name: str) -> _Any:
    if name in _TRAINING:
        try:
            return getattr(_importlib.import_module(f"preqn_jax.training.{_TRAINING[name]}"), name)
        except ModuleNotFoundError as error:
            hint = f"preqn_jax.{name} needs the module {error.name}; run: pip install 'preqn_jax[train]'"
            raise ModuleNotFoundError(hint, name=error.name) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    installed = all(_util.find_spec(package) for package in ("gymnasium", "mujoco", "orbax"))
    return [*globals(), *(_TRAINING if installed else ())]


__all__ = [  # without _TRAINING, so that "from preqn_jax import *" needs no additional packages
    "Linesearch",
    "NTKProbe",
    "PreQNInfo",
    "Status",
    "activations",
    "describe",
    "diagnostics",
    "linesearch",
    "ntk",
    "ntk_probe",
    "precondition_by_ntk",
    "preqn",
    "preqn_info",
    "preqn_update",
    "scale_by_alignment_linesearch",
    "solvers",
    "td",
]
