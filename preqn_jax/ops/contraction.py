"""Conditions under which an update contracts: Theorem 2 (Eqs. 16 and 17) and Theorem 3 (Eq. 18) of the paper."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from preqn_jax.ops.checks import check_shape
from preqn_jax.ops.precision import full_precision
from preqn_jax.types import Array


def contraction_bound(kernel: Array, rho: Array, step_size: float | Array, gamma: float | Array) -> Array:
    """beta(K), the modulus of U3: below 1, Q-learning contracts; above 1, there is an MDP on which it expands.

        beta(K) = max_i |1 - alpha K_ii rho_i| + alpha gamma |K_ii| rho_i + (1 + gamma) alpha sum_{j != i} |K_ij| rho_j

    (Achiam et al. 2019, proof of Theorem 2, which assumes alpha K_ii rho_i < 1; the absolute value extends it to larger
    steps.)

    Args:
      kernel: K, or K P for updates preconditioned by P, ``[N, N]``.
      rho: share of each row in the data, ``[N]``.
      step_size: alpha.
      gamma: discount factor per step.

    Returns:
      A scalar. For the kernel of all pairs of an MDP, it bounds U3 itself. For the kernel of a minibatch (with
      rho = 1 / B), it only bounds the effect of the step on the values of that minibatch.
    """
    c = contraction_conditions(kernel, rho, step_size, gamma)
    return jnp.max(jnp.abs(1.0 - c.overshoot) + gamma * jnp.abs(c.overshoot) + step_size * c.spill)


class ContractionConditions(NamedTuple):
    """The quantities in the conditions of Theorem 2, one entry per row; each attribute is ``[N]``.

    Attributes:
      overshoot: alpha K_ii rho_i, which must be below 1 (Eq. 16).
      spill: (1 + gamma) sum over j != i of |K_ij| rho_j, the influence of the other entries' errors on Q_i.
      pull: (1 - gamma) K_ii rho_i, which must exceed ``spill``. Eq. 17 permits equality, but then U3 need not be a
        contraction: for K = I and rho = (1, 0) the second row has equality, and U3 = U2 never changes that entry.
    """

    overshoot: Array
    spill: Array
    pull: Array

    def hold(self) -> Array:
        """Whether U3 is guaranteed to be a contraction, bool []; spill = pull only guarantees a non-expansion."""
        return jnp.all((self.overshoot < 1) & (self.spill < self.pull))


def contraction_conditions(
    kernel: Array, rho: Array, step_size: float | Array, gamma: float | Array
) -> ContractionConditions:
    """Both conditions of Theorem 2 (Achiam et al. 2019, Eqs. 16-17); for arguments, see :func:`contraction_bound`."""
    check_shape("rho", rho, None)
    check_shape("kernel", kernel, *rho.shape, *rho.shape)
    diagonal = jnp.diagonal(kernel)
    off_diagonal = jnp.abs(kernel - jnp.diag(diagonal))
    with full_precision():
        spill = (1.0 + gamma) * (off_diagonal @ rho)
    return ContractionConditions(step_size * diagonal * rho, spill, (1.0 - gamma) * diagonal * rho)
