"""MDPs, kernels and values to draw for the tests of the operators, and the references these are held to, in NumPy."""

import functools

import jax
import numpy as np

from preqn_jax.theory import mdps
from preqn_jax.theory.mdps import FiniteMDP
from tests.ops.precision import double

S, A = 4, 2
N = S * A


def draw_mdp(rng, gamma):
    """A Garnet MDP whose pairs have anything from one successor to all states."""
    branching, seed = int(rng.integers(1, S + 1)), int(rng.integers(2**31))
    with double():
        return jax.tree.map(np.asarray, _garnet(branching)(jax.random.key(seed), gamma))


@functools.cache
def _garnet(branching):
    return jax.jit(lambda key, gamma: mdps.garnet(key, S, A, branching, gamma))


def draw_rho(rng):
    return rng.dirichlet(np.ones(N)).reshape(S, A)


def draw_kernel(rng, coupling):
    """Positive semi-definite; ``coupling`` is about how large the entries beside the diagonal are."""
    factor = rng.normal(size=(N, N + 2))
    return np.diag(rng.uniform(0.5, 2.0, N)) + coupling * factor @ factor.T / N


def draw_qs(rng, count=2):
    scale = 10.0 ** rng.uniform(-1, 1, size=(count, 1, 1))
    return scale * rng.normal(size=(count, S, A))


def sup(x):
    return np.max(np.abs(x))


def bellman(q, mdp):
    target = np.empty_like(q)
    for s, a in np.ndindex(q.shape):
        target[s, a] = mdp.reward[s, a] + mdp.gamma * sum(
            mdp.transition[s, a, t] * max(q[t]) for t in range(q.shape[0])
        )
    return target


def optimal_q(mdp):
    """Q* by policy iteration, exact but for rounding."""
    policy = np.zeros(S, int)
    while True:
        followed = mdp.transition[np.arange(S), policy]
        value = np.linalg.solve(np.eye(S) - mdp.gamma * followed, mdp.reward[np.arange(S), policy])
        q = mdp.reward + mdp.gamma * mdp.transition @ value
        better = np.argmax(q, axis=1)
        if np.all(q[np.arange(S), better] <= q[np.arange(S), policy] + 1e-12):
            return q
        policy = better


def beta(kernel, rho, step_size, gamma):
    """The smallest sure modulus of U3, row by row from the triangle inequality."""
    rows = []
    for i in range(len(kernel)):
        own = step_size * kernel[i, i] * rho[i]
        others = sum(step_size * abs(kernel[i, j]) * rho[j] for j in range(len(kernel)) if j != i)
        rows.append(abs(1 - own) + gamma * abs(own) + (1 + gamma) * others)
    return max(rows)


def worst_case(kernel, rho, step_size, gamma):
    """(MDP, K, rho, Q1, Q2) on which U3 with this K expands ||Q1 - Q2|| by exactly beta(K), if that is 1 or more.

    One action. To the n states comes one without data, where Q1 - Q2 = -1 and stays so; it is 1 in the row i of the
    largest modulus. Each other state and its successor are chosen so that its term of row i is as large as can be.
    """
    n = len(kernel)
    own = step_size * np.diag(kernel) * rho
    others = step_size * (np.abs(kernel) * rho).sum(axis=1) - np.abs(own)
    i = int(np.argmax(np.abs(1 - own) + gamma * own + (1 + gamma) * others))
    sign = 1 if own[i] <= 1 else -1  # of the sum that row i is to become
    high, low = i, n
    difference = np.ones(n + 1)
    difference[low] = -1
    successor = np.full(n + 1, high)
    successor[i] = high if own[i] <= 1 else low
    for j in set(range(n)) - {i}:
        if sign * kernel[i, j] >= 0:
            difference[j], successor[j] = -1, high  # gamma 1 - (-1)
        else:
            difference[j], successor[j] = 1, low  # gamma (-1) - 1
    mdp = FiniteMDP(np.eye(n + 1)[successor][:, None], np.zeros((n + 1, 1)), gamma)
    padded = np.block([[kernel, np.zeros((n, 1))], [np.zeros((1, n)), np.ones((1, 1))]])
    return mdp, padded, np.append(rho, 0.0)[:, None], difference[:, None], np.zeros((n + 1, 1))
