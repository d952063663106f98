"""PreQN in JAX: Q-learning preconditioned by its own neural tangent kernel (arXiv 1903.08894).

:func:`preqn_update` is the critic update for an agent of your own, :func:`preqn` the same as an Optax transformation,
and :func:`ntk_probe` the diagnostics alone.
"""

from preqn_jax.ops import activations, diagnostics, linesearch, ntk, solvers, td
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import PreQNInfo, describe, preqn_update
from preqn_jax.ops.probe import NTKProbe, ntk_probe
from preqn_jax.ops.status import Status
from preqn_jax.optim import precondition_by_ntk, preqn, preqn_info, scale_by_alignment_linesearch

__version__ = "0.2.0"

__all__ = [
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
