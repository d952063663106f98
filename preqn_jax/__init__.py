"""PreQN in JAX: Q-learning preconditioned by its own neural tangent kernel (arXiv 1903.08894).

    from preqn_jax import preqn_update

is the whole of it for an agent of your own: see :func:`preqn_update`, :func:`preqn` for the same as an Optax
transformation, and :func:`ntk_probe` for the diagnostics alone.
"""

from preqn_jax.ops import activations, diagnostics, linesearch, ntk, solvers, td
from preqn_jax.ops.preqn import PreQNInfo, Status, preqn_update, step_linearized
from preqn_jax.ops.probe import NTKProbe, ntk_probe
from preqn_jax.transforms import precondition_by_ntk, preqn, preqn_info, scale_by_alignment_linesearch

__version__ = "0.2.0"

__all__ = [
    "NTKProbe",
    "PreQNInfo",
    "Status",
    "activations",
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
    "step_linearized",
    "td",
]
