"""The operators with which Achiam et al. (2019, section 3) explain when deep Q-learning diverges.

For a finite MDP, with K the neural tangent kernel over all pairs (s, a) and rho their share in the data,

    T* Q = r + gamma P max_a' Q,              the Bellman optimality operator (Eq. 2)
    U1 Q = Q + alpha (T* Q - Q),              a table, where every entry is updated (Eq. 12)
    U2 Q = Q + alpha D_rho (T* Q - Q),        a table, where updates are as frequent as entries in the data (Eq. 13)
    U3 Q = Q + alpha K D_rho (T* Q - Q),      the effect of one gradient step to first order (Eq. 14)

An operator U may be a contraction in the sup norm, with Q* as its fixed point, or not. Its modulus is the smallest b
for which ||U Q1 - U Q2|| <= b ||Q1 - Q2|| is guaranteed. docs/theory.md lists every numbered statement of the paper
with its function and its test, and the statements that fail as printed.

Q, r and rho are ``[S, A]``; matrices over pairs are ``[N, N]`` with N = S A, and the pair (s, a) is row s A + a.
"""

from __future__ import annotations

import jax.numpy as jnp

from preqn_jax.ops.checks import check_shape
from preqn_jax.ops.precision import full_precision
from preqn_jax.theory.mdps import FiniteMDP
from preqn_jax.types import Array


def optimality(q: Array, mdp: FiniteMDP) -> Array:
    """T* Q = r + gamma E_s' max_a' Q(s', a'), ``[S, A]``."""
    check_shape("q", q, None, None)
    check_shape("mdp.reward", mdp.reward, *q.shape)
    with full_precision():
        return mdp.reward + mdp.gamma * (mdp.transition @ jnp.max(q, axis=1))


def u1(q: Array, mdp: FiniteMDP, step_size: float | Array) -> Array:
    """U1 Q = Q + alpha (T* Q - Q), ``[S, A]`` (Achiam et al. 2019, Eq. 12)."""
    return q + step_size * (optimality(q, mdp) - q)


def u2(q: Array, mdp: FiniteMDP, rho: Array, step_size: float | Array) -> Array:
    """U2 Q = Q + alpha D_rho (T* Q - Q), ``[S, A]`` (Achiam et al. 2019, Eq. 13); rho is ``[S, A]``."""
    check_shape("rho", rho, *q.shape)
    return q + step_size * rho * (optimality(q, mdp) - q)


def u3(q: Array, mdp: FiniteMDP, kernel: Array, rho: Array, step_size: float | Array) -> Array:
    """U3 Q = Q + alpha K D_rho (T* Q - Q) (Achiam et al. 2019, Eq. 14).

    One expected gradient step (Eq. 5) has this effect on Q up to O(||alpha g||^2), where K is the kernel at the
    parameters before the step (Theorem 1, Eq. 10; kernel: Eq. 9). If Q is linear in its parameters, K is constant, and
    U3 is exact (Lemma 3, Eq. 15). The paper requires a positive definite K. With fewer features than pairs, K is only
    positive semi-definite, and U3 then leaves other Q than Q* unchanged as well.

    Args:
      q: ``[S, A]``.
      mdp: the MDP.
      kernel: K ``[S A, S A]``.
      rho: share of each pair in the data, ``[S, A]``.
      step_size: alpha.

    Returns:
      ``[S, A]``.
    """
    check_shape("rho", rho, *q.shape)
    check_shape("kernel", kernel, q.size, q.size)
    with full_precision():
        change = kernel @ (rho * (optimality(q, mdp) - q)).reshape(-1)
    return q + step_size * change.reshape(q.shape)


def u1_modulus(step_size: float | Array, gamma: float | Array) -> Array:
    """|1 - alpha| + alpha gamma, which is 1 - (1 - gamma) alpha for alpha <= 1.

    The paper states it for 0 < alpha < 1 (Achiam et al. 2019, Lemma 1); the absolute value, for larger steps, is ours.
    """
    return jnp.abs(1.0 - step_size) + step_size * gamma


def u2_modulus(rho: Array, step_size: float | Array, gamma: float | Array) -> Array:
    """Largest of |1 - alpha rho_i| + alpha gamma rho_i (Achiam et al. 2019, Lemma 2).

    For alpha <= 1 / max rho it is 1 - (1 - gamma) alpha min rho. If a pair has no data, it is 1, and U2 is not a
    contraction. The paper states it for 0 < alpha < 1 / max rho; the absolute value, for larger steps, is ours.
    """
    return jnp.max(u1_modulus(step_size * rho, gamma))


def natural_gradient_direction(gradients: Array, rho: Array, td_error: Array) -> Array:
    """F^+ sum_i rho_i delta_i g_i with F = sum_i rho_i g_i g_i^T: natural-gradient Q-learning.

    F is the Fisher information of a Gaussian N(Q(x_i), 1) (Achiam et al. 2019, Eq. 26; Knight and Lerner 2018), and the
    update is Eq. 25, with the pseudo-inverse Eq. 27. PreQN's direction is sum_i z_i g_i with K z = delta (Eq. 28;
    :func:`preqn_jax.ops.preqn.preqn_update`). For equal weights rho, both directions are equal at any rank (Lemma 4),
    and also with K + c I and N F + c I in place of the pseudo-inverses. For other positive rho, they are equal if the
    g_i are linearly independent. Otherwise both fit delta by least squares, but only the natural gradient weights the
    errors by rho.

    Args:
      gradients: g_i = grad Q(x_i), ``[N, d]``.
      rho: share of each row in the data, ``[N]``.
      td_error: delta ``[N]``.

    Returns:
      Direction in parameter space, ``[d]``.
    """
    check_shape("gradients", gradients, None, None)
    check_shape("rho", rho, gradients.shape[0])
    check_shape("td_error", td_error, gradients.shape[0])
    with full_precision():
        fisher = gradients.T @ (rho[:, None] * gradients)
        return jnp.linalg.pinv(fisher, hermitian=True) @ (gradients.T @ (rho * td_error))
