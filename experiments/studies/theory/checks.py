"""The checks of ``experiments.theory``: every numbered statement of Achiam et al. (2019), on many random cases.

Each check compares the library's functions with formulas in NumPy and with the statement, in float64, which the caller
must enable. A statement that fails as printed in the paper is checked by a counterexample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.ops import contraction, ntk, solvers, td
from preqn_jax.ops.alignment import cosine
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import preqn_update
from preqn_jax.theory import mdps, operators
from preqn_jax.theory.mdps import FiniteMDP
from preqn_jax.types import Array, Params

HOLDS, FAILS, WRONG = "holds", "fails as printed", "NOT AS EXPECTED"

_STATES, _ACTIONS, _BRANCHING = 4, 2, 3
_PAIRS = _STATES * _ACTIONS
_CASES = 1000  # of most checks; the same number, so that each function is compiled once
_ROUNDING = 1e-10  # bound on the relative rounding error of sums of a few dozen terms


class Check(NamedTuple):
    """One line of the report.

    Attributes:
      statement: name and number of the statement in the paper.
      compared: the quantities that are compared.
      cases: number of random or constructed cases.
      worst: largest value over the cases of the number that decides.
      verdict: HOLDS; FAILS if the counterexample behaves as expected; or WRONG.
    """

    statement: str
    compared: str
    cases: int
    worst: float
    verdict: str


class Draws(NamedTuple):
    """n random MDPs with values, data distributions and kernels; all leaves have the leading axis n."""

    mdp: Any  # FiniteMDP
    q: np.ndarray  # [n, S, A]
    other: np.ndarray  # [n, S, A]
    rho: np.ndarray  # [n, S, A], sums to 1
    kernel: np.ndarray  # [n, S A, S A], positive definite


_garnets = jax.jit(jax.vmap(lambda key, gamma: mdps.garnet(key, _STATES, _ACTIONS, _BRANCHING, gamma)))


@functools.cache
def draw() -> Draws:
    """Draws Garnet MDPs with gamma in [0, 0.999], values, and kernels from diagonal to strongly coupled."""
    rng = np.random.default_rng(0)
    mdp = _garnets(jax.random.split(jax.random.key(0), _CASES), rng.uniform(0.0, 0.999, _CASES))
    shape = (_CASES, _STATES, _ACTIONS)
    rho, kernel = draw_kernels(rng, rng.choice([0.0, 1e-4, 1e-2, 1.0], _CASES))
    q, other = rng.normal(size=shape), rng.normal(size=shape)
    return Draws(jax.tree.map(np.asarray, mdp), q, other, rho.reshape(shape), kernel)


def _first(draws: Draws, count: int) -> Draws:
    return Draws(*jax.tree.map(lambda leaf: leaf[:count], draws))


def draw_kernels(rng: np.random.Generator, coupling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws rho ``[n, S A]`` and K; ``coupling`` ``[n]`` is the approximate size of the off-diagonal entries of K."""
    count = len(coupling)
    factor = rng.normal(size=(count, _PAIRS, _PAIRS + 2))
    kernel = coupling[:, None, None] * factor @ factor.transpose(0, 2, 1) / _PAIRS
    kernel[:, np.arange(_PAIRS), np.arange(_PAIRS)] += rng.uniform(0.5, 2.0, (count, _PAIRS))
    return rng.dirichlet(np.full(_PAIRS, 20.0), count), kernel


def _steps(rng: np.random.Generator, rho: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Step sizes that satisfy Eq. 16, Theorem 2's condition on overshooting, ``[n]``."""
    return rng.uniform(0.01, 0.99, len(rho)) / np.max(rho * np.diagonal(kernel, axis1=1, axis2=2), axis=1)


def bellman(q: np.ndarray, mdp: FiniteMDP) -> np.ndarray:
    """T* Q, computed by its formula, ``[n, S, A]``."""
    return mdp.reward + np.reshape(mdp.gamma, (-1, 1, 1)) * np.einsum("nsat,nt->nsa", mdp.transition, q.max(axis=-1))


def _sup(values: np.ndarray) -> np.ndarray:
    """Largest absolute value of each case, ``[n]``."""
    return np.abs(values).reshape(len(values), -1).max(axis=1)


def _ratios(moved: np.ndarray, start: np.ndarray) -> np.ndarray:
    return _sup(moved) / _sup(start)


def _verdict(passed: bool | np.bool_, otherwise: str = HOLDS) -> str:
    return otherwise if passed else WRONG


def _equal(
    statement: str, compared: str, found: np.ndarray, expected: np.ndarray, tolerance: float = _ROUNDING
) -> Check:
    """Checks that two results agree, relative to the largest entry of the expected result in each case."""
    worst = float(np.max(_sup(found - expected) / np.maximum(_sup(expected), 1e-300)))
    return Check(statement, compared, len(found), worst, _verdict(worst <= tolerance))


def _at_most(statement: str, compared: str, found: np.ndarray, bound: np.ndarray | float) -> Check:
    """Checks that no case exceeds its bound."""
    excess = np.max(found - bound)
    return Check(statement, compared, len(found), float(np.max(found)), _verdict(excess <= _ROUNDING))


# ---------------------------------------------------------------------------------------------------------------------
# Section 2.2; Theorem 1, the first order
# ---------------------------------------------------------------------------------------------------------------------

_optimality = jax.jit(jax.vmap(operators.optimality))
_u1, _u2, _u3 = (jax.jit(jax.vmap(function)) for function in (operators.u1, operators.u2, operators.u3))


def optimal_operator() -> list[Check]:
    """Checks T*, its modulus, and Q-learning with a table."""
    d = draw()
    found, gamma = np.asarray(_optimality(d.q, d.mdp)), d.mdp.gamma
    difference = _ratios(found - np.asarray(_optimality(d.other, d.mdp)), d.q - d.other)
    return [
        _equal("Eq. 2", "T* Q, library against formula: largest relative deviation", found, bellman(d.q, d.mdp)),
        _at_most(
            "Eq. 2", "T* has modulus gamma: largest ||T*Q1 - T*Q2|| / (gamma ||Q1 - Q2||)", difference / gamma, 1.0
        ),
        _table_update(d),
    ]


def _table_update(d: Draws) -> Check:
    """Compares Eq. 4 with one-hot features with Eq. 3, at one pair of each case."""
    rng = np.random.default_rng(1)
    pairs, following = rng.integers(_PAIRS, size=len(d.q)), rng.integers(_STATES, size=len(d.q))
    tables, rows = d.q.reshape(-1, _PAIRS), np.arange(len(d.q))
    best = d.q[rows, following].max(axis=1)
    reward = d.mdp.reward.reshape(-1, _PAIRS)[rows, pairs]

    def stepped(table: Array, pair: Array, reward: Array, best: Array, gamma: Array) -> Array:
        linearization = ntk.per_example(_linear)(table, jnp.eye(_PAIRS)[pair][None])
        target = td.td_target(reward[None], jnp.ones(1), best[None], gamma)
        return table + 0.3 * linearization.pullback(target - linearization.values)

    found = np.asarray(jax.jit(jax.vmap(stepped))(tables, pairs, reward, best, d.mdp.gamma))
    expected = tables.copy()
    expected[rows, pairs] += 0.3 * (reward + d.mdp.gamma * best - tables[rows, pairs])
    return _equal("Eqs. 3, 4", "Eq. 4 with a table against tabular Q-learning", found, expected)


def _linear(weights: Params, features: Array) -> Array:
    return features @ weights


def _network(params: Params, x: Array) -> Array:
    return jnp.tanh(x @ params["in"]) @ params["out"]


def _networks(count: int, rows: int, width: int = 20) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(2)
    params = {"in": rng.normal(size=(count, 3, width)), "out": rng.normal(size=(count, width)) / 4}
    return params, rng.normal(size=(count, rows, 3))


def first_order_errors(steps: np.ndarray, count: int = 100) -> np.ndarray:
    """sup |Q' - first order| (Theorem 1) of networks over all pairs of an MDP, ``[count, steps]``.

    One pair has no data. Steps are lengths ||alpha g|| in parameter space.
    """
    d, (params, x) = _first(draw(), count), _networks(count, _PAIRS)
    rho = d.rho.copy()
    rho[:, 1, 0] = 0.0

    def errors(params: Params, x: Array, mdp: FiniteMDP, rho: Array) -> Array:
        linearization = ntk.per_example(_network)(params, x)
        q = linearization.values.reshape(_STATES, _ACTIONS)
        delta = operators.optimality(q, mdp) - q
        direction = linearization.pullback((rho * delta).reshape(-1))
        length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(direction)))

        def error(alpha: Array) -> Array:
            moved = _network(jax.tree.map(lambda p, g: p + alpha * g, params, direction), x)
            return jnp.max(jnp.abs(moved - operators.u3(q, mdp, linearization.gram, rho, alpha).reshape(-1)))

        return jax.vmap(error)(jnp.asarray(steps) / length)

    return np.asarray(jax.jit(jax.vmap(errors))(params, x, d.mdp, rho))


def kink_errors(steps: np.ndarray) -> np.ndarray:
    """sup |Q' - first order| for Q = (theta, relu(theta)) at theta = 0, with TD errors (1, 0); ``[steps]``."""

    def q_fn(theta: Array, x: Array) -> Array:
        return jnp.where(x > 0, jax.nn.relu(theta), theta)

    theta, x = jnp.zeros(()), jnp.arange(2.0)
    linearization = ntk.per_example(q_fn)(theta, x)
    direction = linearization.pullback(jnp.asarray([1.0, 0.0]))
    return np.asarray([jnp.max(jnp.abs(q_fn(theta + a * direction, x) - a * linearization.gram[0])) for a in steps])


def theorem_1() -> list[Check]:
    """Checks that halving the step quarters the error of the first order; at a kink, it only halves it."""
    steps = np.array([1e-2, 5e-3, 2.5e-3])
    errors, kink = first_order_errors(steps), kink_errors(steps)
    worst = np.max(np.abs(errors[:, 1:] * 4 / errors[:, :-1] - 1))
    halved = float(np.max(kink[:-1] / kink[1:]))
    return [
        Check("Theorem 1 (Eqs. 5-10)", "tanh networks, all pairs: the error of the first order falls by 4 as the step "
              "is halved; largest relative deviation", len(errors), float(worst), _verdict(worst < 0.1)),
        Check("Theorem 1 for relu", "at a kink, Q = (theta, relu(theta)) at 0: the error falls by 2, so it is of first "
              "order", 1, halved, _verdict(abs(halved - 2) < _ROUNDING, FAILS)),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Lemmas 1 to 3, Theorems 2 and 3
# ---------------------------------------------------------------------------------------------------------------------


def lemma_1() -> list[Check]:
    """Checks that U1 contracts by 1 - (1 - gamma) alpha."""
    d, alpha = draw(), np.random.default_rng(3).uniform(0.01, 0.99, _CASES)
    moved = [np.asarray(_u1(q, d.mdp, alpha)) for q in (d.q, d.other)]
    a = alpha.reshape(-1, 1, 1)
    modulus = 1 - (1 - d.mdp.gamma) * alpha
    return [
        _equal("Eq. 12", "U1 Q, library against formula", moved[0], d.q + a * (bellman(d.q, d.mdp) - d.q)),
        _at_most("Lemma 1", "U1: largest ||U1 Q1 - U1 Q2|| / ((1 - (1 - gamma) alpha) ||Q1 - Q2||)",
                 _ratios(moved[0] - moved[1], d.q - d.other) / modulus, 1.0),
    ]  # fmt: skip


def lemma_2() -> list[Check]:
    """Checks that U2 contracts if every pair has data, and does not if a pair has none."""
    d = draw()
    alpha = np.random.default_rng(4).uniform(0.01, 0.99, _CASES) / _sup(d.rho)
    moved = [np.asarray(_u2(q, d.mdp, d.rho, alpha)) for q in (d.q, d.other)]
    expected = d.q + (alpha * d.rho.T).T * (bellman(d.q, d.mdp) - d.q)
    modulus = 1 - (1 - d.mdp.gamma) * alpha * d.rho.reshape(_CASES, -1).min(axis=1)
    rho = d.rho.copy()
    rho[:, 2, 1] = 0.0
    shifted = d.q.copy()
    shifted[:, 2, 1] += 1.0
    apart = np.asarray(_u2(shifted, d.mdp, rho, alpha)) - np.asarray(_u2(d.q, d.mdp, rho, alpha))
    missing = _ratios(apart, shifted - d.q)
    same = np.max(np.abs(missing - 1)) < _ROUNDING
    return [
        _equal("Eq. 13", "U2 Q, library against formula", moved[0], expected),
        _at_most("Lemma 2, data at every pair",
                 "U2: largest ||U2 Q1 - U2 Q2|| / ((1 - (1 - gamma) alpha min rho) ||Q1 - Q2||)",
                 _ratios(moved[0] - moved[1], d.q - d.other) / modulus, 1.0),
        Check("Lemma 2, a pair without data", "U2: ||U2 Q1 - U2 Q2|| / ||Q1 - Q2|| where both differ at that pair "
              "alone: 1, no contraction", _CASES, float(missing.max()), _verdict(same)),
    ]  # fmt: skip


def lemma_3() -> list[Check]:
    """Checks that the step of a linear Q is exactly U3; with a singular K, other fixed points than Q* exist."""
    d, rng = draw(), np.random.default_rng(5)
    features, weights = rng.normal(size=(_CASES, _PAIRS, 5)), rng.normal(size=(_CASES, 5))
    alpha = rng.uniform(0.01, 1.0, _CASES)
    q = np.einsum("npd,nd->np", features, weights).reshape(d.q.shape)
    weighted = (d.rho * (bellman(q, d.mdp) - q)).reshape(_CASES, -1)
    stepped = weights + alpha[:, None] * np.einsum("npd,np->nd", features, weighted)
    after = np.einsum("npd,nd->np", features, stepped).reshape(d.q.shape)
    u3 = np.asarray(_u3(q, d.mdp, features @ features.transpose(0, 2, 1), d.rho, alpha))
    return [_equal("Lemma 3 (Eqs. 14, 15)", "linear Q, gradient step against U3 Q", u3, after), _other_fixed_points()]


def _other_fixed_points() -> Check:
    """Tsitsiklis and Van Roy's states: K has rank 1, and U3 does not move a certain Q other than Q*."""
    gammas = np.array([0.0, 0.5, 0.9, 0.99])
    moved = []
    for gamma in gammas:
        problem = mdps.tsitsiklis_van_roy(float(gamma))
        kernel, q = problem.features @ problem.features.T, jnp.asarray([[3 * gamma - 2], [1.0]])
        moved.append(jnp.max(jnp.abs(operators.u3(q, problem.mdp, kernel, jnp.full((2, 1), 0.5), 0.3) - q)))
    worst = float(np.max(moved))
    return Check(
        "Lemma 3 with Eq. 14's definite K",
        "Q = (w, 2w): K is singular, and U3 does not move Q = ((3 gamma - 2)q, q), which is not Q*",
        len(gammas), worst, _verdict(worst < _ROUNDING, FAILS),
    )  # fmt: skip


def theorem_2() -> list[Check]:
    """Checks that U3 contracts under Eqs. 16 and 17 with <, and need not contract with <=."""
    d = draw()
    rho, gamma = d.rho.reshape(len(d.q), -1), d.mdp.gamma
    alpha = _steps(np.random.default_rng(6), rho, d.kernel)
    held = np.asarray(_held(d.kernel, rho, alpha, gamma))
    bound = np.asarray(bounds(d.kernel, rho, alpha, gamma))
    moved = [np.asarray(_u3(q, d.mdp, d.kernel, d.rho, alpha)) for q in (d.q, d.other)]
    return [
        _equal("Theorem 2, beta(K)", "beta(K), library against formula", bound, _beta(d.kernel, rho, alpha, gamma)),
        _at_most("Theorem 2, beta(K)", "U3: largest ||U3 Q1 - U3 Q2|| / (beta(K) ||Q1 - Q2||)",
                 _ratios(moved[0] - moved[1], d.q - d.other) / bound, 1.0),
        Check("Theorem 2 with < in Eq. 17", f"smallest 1 - beta(K) where both conditions hold ({held.sum()} draws; in "
              "none of the others is beta(K) below 1)", len(held), float(np.min(1 - bound[held])),
              _verdict((held == (bound < 1)).all() and held.any() and not held.all())),
        _equality(),
    ]  # fmt: skip


_held = jax.jit(jax.vmap(lambda *arguments: contraction.contraction_conditions(*arguments).hold()))
bounds = jax.jit(jax.vmap(contraction.contraction_bound))


def _beta(kernel: np.ndarray, rho: np.ndarray, alpha: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """The first form of beta(K) in the paper's Appendix A, ``[n]``."""
    weighted = alpha[:, None, None] * kernel * rho[:, None, :]
    rows = np.abs(np.eye(kernel.shape[-1]) - weighted) + gamma[:, None, None] * np.abs(weighted)
    return rows.sum(axis=2).max(axis=1)


def _equality() -> Check:
    """K = I and rho = (1, 0) satisfy Eqs. 16 and 17 as printed, and Q_2 never moves."""
    kernel, rho = jnp.eye(2), jnp.asarray([1.0, 0.0])
    mdp = FiniteMDP(jnp.ones((2, 1, 2)) / 2, jnp.zeros((2, 1)), 0.9)
    conditions = jax.tree.map(np.asarray, contraction.contraction_conditions(kernel, rho, 0.5, 0.9))
    printed = (conditions.overshoot < 1).all() and (conditions.spill <= conditions.pull).all()
    q = jnp.asarray([[0.0], [1.0]])
    modulus = float(jnp.max(jnp.abs(operators.u3(q, mdp, kernel, rho[:, None], 0.5))))
    return Check("Theorem 2 with Eq. 17 as printed, <=", "K = I, rho = (1, 0): Eqs. 16 and 17 hold, and the modulus of "
                 "U3 is 1", 1, modulus, _verdict(printed and modulus == 1.0, FAILS))  # fmt: skip


def table_forced(count: int = 20_000) -> Check:
    """Checks that fewer features than pairs never satisfy Eq. 17 with <, which makes K D_rho diagonally dominant."""
    rng, pairs, gamma = np.random.default_rng(7), 6, 0.9
    ratios = []
    for features in range(1, pairs):
        phi = rng.normal(size=(count // (pairs - 1), pairs, features))
        rho = rng.dirichlet(np.ones(pairs), len(phi))
        kernel = phi @ phi.transpose(0, 2, 1)
        own = np.diagonal(kernel, axis1=1, axis2=2) * rho
        spill = np.einsum("nij,nj->ni", np.abs(kernel), rho) - own
        ratios.append(np.max((1 + gamma) * spill / ((1 - gamma) * own), axis=1))
    nearest = float(np.min(np.concatenate(ratios)))
    compared = (
        "linear Q with fewer features than pairs: how far Eq. 17 is missed, left / right of the case's worst row, least"
    )
    return Check("Theorem 2 forces a table", compared, count, nearest, _verdict(nearest > 1))


def theorem_3() -> list[Check]:
    """Checks Theorem 3's inequality for changing kernels, and a product of moduli below 1 that does not go to 0."""
    distance = scalar_distances(1 - 0.5 ** np.arange(2.0, 61))
    left = float(distance[-1])
    return [
        _changing_kernels(),
        _any_norm(),
        Check("Theorem 3's convergence as printed", "beta_k = 1 - 2^-k / 2, all below 1: distance to the fixed point, "
              "1 at the start, after 59 steps", 1, left, _verdict(left > 0.577, FAILS)),
    ]  # fmt: skip


def _changing_kernels(updates: int = 15) -> Check:
    d, rng = draw(), np.random.default_rng(13)
    # Without rewards Q* = 0.
    mdp = d.mdp._replace(reward=np.zeros_like(d.q), gamma=np.minimum(d.mdp.gamma, 0.95))
    q, bound, worst = d.q, _sup(d.q), np.zeros(_CASES)
    for _ in range(updates):
        rho, kernel = draw_kernels(rng, np.full(_CASES, 1e-4))
        alpha = _steps(rng, rho, kernel)
        bound = bound * _beta(kernel, rho, alpha, np.asarray(mdp.gamma))
        q = np.asarray(_u3(q, mdp, kernel, rho.reshape(q.shape), alpha))
        worst = np.maximum(worst, _sup(q) / bound)
    return _at_most("Theorem 3 (Eq. 18)", f"U3 with another K, rho and alpha in each of {updates} steps: largest "
                    "||Q* - Q_i|| / (beta_0 ... beta_{i-1} ||Q* - Q_0||)", worst, 1.0)  # fmt: skip


def _any_norm(count: int = _CASES, updates: int = 15) -> Check:
    """Affine maps with a common fixed point, in the Euclidean norm, whether they are contractions or not."""
    rng = np.random.default_rng(8)
    fixed, x = rng.normal(size=(count, 5)), rng.normal(size=(count, 5))
    bound, worst = np.linalg.norm(x - fixed, axis=1), np.zeros(count)
    for _ in range(updates):
        matrix = rng.normal(size=(count, 5, 5)) / 4
        bound = bound * np.linalg.norm(matrix, 2, axis=(1, 2))
        x = fixed + np.einsum("nij,nj->ni", matrix, x - fixed)
        worst = np.maximum(worst, np.linalg.norm(x - fixed, axis=1) / bound)
    return _at_most("Theorem 3 (Eq. 18)", "affine maps with a common fixed point, Euclidean norm: the same", worst, 1.0)


def scalar_distances(moduli: np.ndarray) -> np.ndarray:
    """|Q_i - Q*| of U1 on one state with gamma 1/2, with steps of the given moduli, starting at 1; ``[len + 1]``."""
    mdp = FiniteMDP(jnp.ones((1, 1, 1)), jnp.zeros((1, 1)), 0.5)

    def step(q: Array, modulus: Array) -> tuple[Array, Array]:
        q = operators.u1(q, mdp, (1 - modulus) / 0.5)
        return q, q[0, 0]

    return np.concatenate([[1.0], jax.jit(lambda m: jax.lax.scan(step, jnp.ones((1, 1)), m)[1])(jnp.asarray(moduli))])


# ---------------------------------------------------------------------------------------------------------------------
# PreQN, and the natural gradient
# ---------------------------------------------------------------------------------------------------------------------


def of_rank(rng: np.random.Generator, rows: int, columns: int, rank: int) -> np.ndarray:
    """``[rows, columns]`` with ``rank`` singular values between 1 and 3, the others 0."""
    left, right = (np.linalg.qr(rng.normal(size=(size, rank)))[0] for size in (rows, columns))
    return (left * rng.uniform(1, 3, rank)) @ right.T


def preqn_is_u1() -> list[Check]:
    """Checks PreQN's step of a linear Q with an invertible K, and its line search on networks."""
    d, rng = _first(draw(), 200), np.random.default_rng(9)
    features = np.stack([of_rank(rng, _PAIRS, _PAIRS + 3, _PAIRS) for _ in d.q])
    weights, alpha = rng.normal(size=(200, _PAIRS + 3)), rng.uniform(0.01, 1.0, 200)
    q = np.einsum("npd,nd->np", features, weights).reshape(d.q.shape)
    target = bellman(q, d.mdp).reshape(200, -1)

    def step(weights: Array, features: Array, target: Array, alpha: Array) -> Array:
        how: Any = {"solver": solvers.lstsq(1e-14), "linesearch": Linesearch(alpha)}
        return features @ preqn_update(_linear, weights, features, target, **how)[0]

    found = np.asarray(jax.jit(jax.vmap(step))(weights, features, target, alpha)).reshape(d.q.shape)
    expected = np.asarray(_u1(q, d.mdp, alpha))
    return [
        _equal("Eqs. 19-21", "PreQN's step of a linear Q, K invertible, against U1 Q", found, expected, 1e-8),
        _search(),
    ]


def _search(count: int = 200) -> Check:
    """The lowest alignment of an accepted step of networks, with step sizes up to 1."""
    params, x = _networks(count, 6)
    delta = np.random.default_rng(10).normal(size=(count, 6))

    def step(params: Params, x: Array, delta: Array) -> tuple[Array, Array]:
        target = _network(params, x) + delta
        moved, info = preqn_update(_network, params, x, target, solver=solvers.lstsq(), linesearch=Linesearch(1.0))
        return cosine(_network(moved, x) - _network(params, x), delta), info.accepted

    reached, accepted = (np.asarray(value) for value in jax.jit(jax.vmap(step))(params, x, delta))
    least = float(reached[accepted].min())
    return Check("PreQN (Eqs. 22-24)", "networks, minibatches of 6, eta 0.97: least cos(Q' - Q, delta) of an accepted "
                 f"step ({accepted.sum()} of {count})", count, least, _verdict(least >= 0.97))  # fmt: skip


_SHAPES = [(8, 6, 3), (6, 6, 6), (4, 9, 4), (4, 9, 2)]  # pairs, parameters, rank


_RIDGE = 1e-2
_lstsq = jax.jit(jax.vmap(lambda gram, delta: solvers.solve(solvers.lstsq(1e-12), gram, delta)[0]))
_ridge = jax.jit(jax.vmap(lambda gram, delta: solvers.solve(solvers.ridge(_RIDGE), gram, delta)[0]))
_natural = jax.jit(jax.vmap(operators.natural_gradient_direction))


def lemma_4(count: int = 100) -> list[Check]:
    """Checks (Phi Phi^T)^+ Phi = Phi (Phi^T Phi)^+ on matrices, the library's directions, with ridge, and weighted."""
    rng = np.random.default_rng(11)
    pseudo, directions, ridge = [], [], []
    for rows, columns, rank in _SHAPES:
        g = np.stack([of_rank(rng, rows, columns, rank) for _ in range(count)])  # Phi^T, [n, rows, columns]
        delta, phi = rng.normal(size=(count, rows)), g.transpose(0, 2, 1)
        pinv = np.linalg.pinv(phi @ g, rcond=1e-10, hermitian=True)
        pseudo.append(_relative(pinv @ phi, phi @ np.linalg.pinv(g @ phi, rcond=1e-10, hermitian=True)))
        natural = _natural(g, np.full((count, rows), 1 / rows), delta)
        directions.append(_relative(_preqn_directions(g, delta, _lstsq), np.asarray(natural)))
        c = _RIDGE * np.trace(g @ phi, axis1=1, axis2=2) / rows
        damped = np.linalg.solve(phi @ g + c[:, None, None] * np.eye(columns), (phi @ delta[..., None]))[..., 0]
        ridge.append(_relative(_preqn_directions(g, delta, _ridge), damped))
    cases = f"ranks {', '.join(f'{rank} of {rows} x {columns}' for rows, columns, rank in _SHAPES)}"
    return [
        _small("Lemma 4", f"(Phi Phi^T)^+ Phi against Phi (Phi^T Phi)^+, {cases}", pseudo),
        _small("Lemma 4 (Eqs. 25-28)", "natural gradient against PreQN, the library's, equal weights", directions),
        _small("Lemma 4 with ridge (ours)", "(Phi Phi^T + cI)^-1 Phi delta against PreQN with ridge", ridge),
        *_other_weights(count),
    ]  # fmt: skip


def _preqn_directions(gradients: np.ndarray, delta: np.ndarray, solve: Callable[..., Array]) -> np.ndarray:
    """sum_i z_i g_i with K z = delta, ``[n, d]``."""
    return np.einsum("npd,np->nd", gradients, np.asarray(solve(gradients @ gradients.transpose(0, 2, 1), delta)))


def _relative(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return _sup(found - expected) / _sup(expected)


def _small(statement: str, compared: str, deviations: list[np.ndarray]) -> Check:
    everything = np.concatenate(deviations)
    worst = float(everything.max())
    return Check(statement, compared, len(everything), worst, _verdict(worst < _ROUNDING))


def _other_weights(count: int) -> list[Check]:
    """Checks that for unequal weights, both directions agree if gradients are independent, and differ otherwise."""
    rng, checks = np.random.default_rng(12), []
    for (rows, columns, rank), same in (((4, 9, 4), True), ((8, 6, 3), False)):
        g = np.stack([of_rank(rng, rows, columns, rank) for _ in range(count)])
        rho, delta = rng.dirichlet(np.full(rows, 2.0), count) + 1e-3, rng.normal(size=(count, rows))
        natural = np.asarray(_natural(g, rho, delta))
        apart = _relative(_preqn_directions(g, delta, _lstsq), natural)
        worst, least = float(apart.max()), float(apart.min())
        name = "independent: largest" if same else "dependent, so they part: least"
        checks.append(
            Check("Natural gradient, other weights", f"unequal rho, gradients {name} relative deviation", count,
                  worst if same else least, _verdict(worst < 1e-8 if same else least > 1e-3))
        )  # fmt: skip
    return checks


def natural_gradient_without_target() -> list[Check]:
    """Checks natural-gradient Q-learning on two counterexamples: it is stable if K is invertible, not if singular."""
    checks = []
    for name, problem, stable in (
        ("Baird's star, K invertible", mdps.baird(), True),
        ("Tsitsiklis and Van Roy's states, K of rank 1", mdps.tsitsiklis_van_roy(), False),
    ):
        growth = natural_gradient_growth(problem)
        end = "goes to Q* = 0" if stable else "diverges"
        checks.append(
            Check("Section 4.1, no target network", f"natural-gradient Q-learning, {name}: {end}; |Q| after 6000 steps "
                  "/ at the start", 1, growth, _verdict((growth < 0.01) if stable else not growth < 100))
        )  # fmt: skip
    return checks


def natural_gradient_growth(problem: mdps.LinearProblem, updates: int = 6000, step_size: float = 0.1) -> float:
    """sup |Q| after steps of ``natural_gradient_direction`` with equal weights, relative to the initial sup |Q|."""
    features = problem.features
    rho = jnp.full(len(features), 1 / len(features))

    def step(weights: Array, _: None) -> tuple[Array, None]:
        q = (features @ weights)[:, None]
        delta = (operators.optimality(q, problem.mdp) - q)[:, 0]
        return weights + step_size * operators.natural_gradient_direction(features, rho, delta), None

    weights = jax.jit(lambda w: jax.lax.scan(step, w, None, updates)[0])(problem.weights)
    return float(jnp.max(jnp.abs(features @ weights)) / jnp.max(jnp.abs(features @ problem.weights)))


# ---------------------------------------------------------------------------------------------------------------------
# Section 6
# ---------------------------------------------------------------------------------------------------------------------


def _growth_on_representable(problem: mdps.LinearProblem, features: np.ndarray, rho: np.ndarray) -> float:
    """Spectral radius of one expected step, alpha 0.1, on the weights of a linear Q, with one action and no rewards."""
    gamma, transition = float(problem.mdp.gamma), np.asarray(problem.mdp.transition)[:, 0]
    change = features.T @ (rho[:, None] * (gamma * transition - np.eye(len(rho)))) @ features
    return float(np.abs(np.linalg.eigvals(np.eye(features.shape[1]) + 0.1 * change)).max())


def melo_parallel() -> list[Check]:
    """Checks that each set of conditions removes one part of the deadly triad; with all three parts, Q grows."""
    problem = mdps.tsitsiklis_van_roy(0.99)
    shared, table, checks = np.asarray(problem.features), np.eye(2), []
    for name, features, rho, expected in (
        ("all three of the triad, rho = (1/2, 1/2)", shared, [0.5, 0.5], 1 + 0.1 * (6 * 0.99 - 5) / 2),
        ("on-policy data, rho = (0, 1): Melo's way out", shared, [0.0, 1.0], 1 - 0.4 * 0.01),
        ("a table, K = I: Theorem 2's way out", table, [0.5, 0.5], 1 - 0.05 * 0.01),
    ):
        growth = _growth_on_representable(problem, features, np.asarray(rho))
        passed = abs(growth - expected) < _ROUNDING
        compared = f"Q = (w, 2w), gamma 0.99, alpha 0.1, {name}: factor of a step"
        checks.append(Check("Section 6, Melo et al.", compared, 1, growth, _verdict(passed)))
    return [*checks, table_forced()]


ALL: tuple[Callable[[], list[Check]], ...] = (
    optimal_operator, theorem_1, lemma_1, lemma_2, lemma_3, theorem_2, theorem_3, preqn_is_u1, lemma_4,
    natural_gradient_without_target, melo_parallel,
)  # fmt: skip
