"""Conditions under which an update contracts: Theorem 2 (Eqs. 16 and 17) and Theorem 3 (Eq. 18) of the paper."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from preqn_jax.ops.checks import check_shape
from preqn_jax.ops.precision import full_precision
from preqn_jax.types import Array


def contraction_bound(kernel: Array, rho: Array, step_size: float | Array, gamma: float | Array) -> Array:
    """beta(K), the modulus of U3: below 1 Q-learning contracts, above 1 some MDP makes it expand.

        beta(K) = max_i |1 - alpha K_ii rho_i| + alpha gamma |K_ii| rho_i + (1 + gamma) alpha sum_{j != i} |K_ij| rho_j

    (Achiam et al. 2019, proof of Theorem 2, which has it for alpha K_ii rho_i < 1; the absolute value covers the rest.)

    Args:
      kernel: ``[N, N]``: K, or K P for updates preconditioned by P.
      rho: share of each row in the data, ``[N]``.
      step_size: alpha.
      gamma: discount factor per step.

    Returns:
      A scalar. Over all pairs of an MDP it bounds U3 itself; on a minibatch (rho = 1 / B) only what the step does to
      the minibatch's own entries.
    """
    c = contraction_conditions(kernel, rho, step_size, gamma)
    return jnp.max(jnp.abs(1.0 - c.overshoot) + gamma * jnp.abs(c.overshoot) + step_size * c.spill)


class ContractionConditions(NamedTuple):
    """The conditions of Theorem 2, row by row; each attribute is ``[N]``.

    Attributes:
      overshoot: alpha K_ii rho_i, to be below 1 (Eq. 16).
      spill: (1 + gamma) sum over j != i of |K_ij| rho_j, how strongly other entries' errors move Q_i.
      pull: (1 - gamma) K_ii rho_i, to be above ``spill``. Eq. 17 admits equality, where U3 need not be a contraction:
        K = I with rho = (1, 0) has equality in its second row, and U3 = U2 never moves that entry.
    """

    overshoot: Array
    spill: Array
    pull: Array

    def hold(self) -> Array:
        """Whether U3 is certainly a contraction, bool []; with spill = pull it is a non-expansion only."""
        return jnp.all((self.overshoot < 1) & (self.spill < self.pull))


def contraction_conditions(
    kernel: Array, rho: Array, step_size: float | Array, gamma: float | Array
) -> ContractionConditions:
    """Both conditions of Theorem 2 (Achiam et al. 2019, Eqs. 16-17); arguments as :func:`contraction_bound`."""
    check_shape("rho", rho, None)
    check_shape("kernel", kernel, *rho.shape, *rho.shape)
    diagonal = jnp.diagonal(kernel)
    off_diagonal = jnp.abs(kernel - jnp.diag(diagonal))
    with full_precision():
        spill = (1.0 + gamma) * (off_diagonal @ rho)
    return ContractionConditions(step_size * diagonal * rho, spill, (1.0 - gamma) * diagonal * rho)
