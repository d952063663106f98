"""PreQN in JAX: Q-learning preconditioned by its own neural tangent kernel (arXiv 1903.08894).

    from preqn_jax import preqn_update

is the whole of it for an agent of your own: see :func:`preqn_update`.
"""

from preqn_jax.ops import activations, diagnostics, linesearch, ntk, solvers, td
from preqn_jax.ops.preqn import PreQNInfo, Status, preqn_update, step_linearized

__version__ = "0.1.0"

__all__ = [
    "PreQNInfo",
    "Status",
    "activations",
    "diagnostics",
    "linesearch",
    "ntk",
    "preqn_update",
    "solvers",
    "step_linearized",
    "td",
]
