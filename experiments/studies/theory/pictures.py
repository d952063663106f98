"""The curves of ``experiments.theory`` (Theorems 1 and 3, Intuitions 1 and 2), and the figure that shows them."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.theory.checks import bounds, first_order_errors, kink_errors, scalar_distances
from preqn_jax.theory import mdps, operators
from preqn_jax.theory.mdps import LinearProblem
from preqn_jax.training import plots
from preqn_jax.types import Array

_ALPHA = 0.1  # step size on the counterexamples, as in experiments.divergence
_SHARES = (1 / 8, 1e-2, 1e-3, 0.0)  # shares of the data at the pair whose data are reduced
_UPDATES = 4000


class Blend(NamedTuple):
    """Kernels between K and a multiple of I, ``(1 - t) K + t mean(diag K) I``; all arrays ``[len(t)]``.

    Attributes:
      t: weight of the multiple of I.
      radius: spectral radius of one expected step; above 1, Q grows.
      beta: modulus of U3, which for t = 1 is that of U1 with step size alpha mean(diag K) / N.
    """

    t: np.ndarray
    radius: np.ndarray
    beta: np.ndarray


def closer_to_u1(problem: LinearProblem) -> Blend:
    """Computes the curves of Intuition 1 on an MDP with one action and without rewards, with uniform data."""
    kernel = np.asarray(problem.features @ problem.features.T)
    n, gamma, t = len(kernel), float(problem.mdp.gamma), np.linspace(0, 1, 51)
    mean, bootstrap = np.trace(kernel) / n, gamma * np.asarray(problem.mdp.transition)[:, 0] - np.eye(n)
    blended = kernel + t[:, None, None] * (mean * np.eye(n) - kernel)
    radius = np.abs(np.linalg.eigvals(np.eye(n) + _ALPHA / n * blended @ bootstrap)).max(axis=1)
    each = np.ones(len(t))
    return Blend(t, radius, np.asarray(bounds(blended, np.full((len(t), n), 1 / n), _ALPHA * each, gamma * each)))


def scarce_data() -> dict[float, np.ndarray]:
    """Intuition 2: ||Q - Q'|| for two initial Q that differ by 10 at one pair, for several shares of data at that pair.

    The updates are those of U2 on a Garnet MDP with 4 states and 2 actions, gamma 0.9 and alpha 0.9 / max rho; each
    curve is ``[updates + 1]``.
    """
    mdp = mdps.garnet(jax.random.key(0), 4, 2, 3, 0.9)
    start = jnp.zeros((2, 4, 2)).at[1, 2, 1].set(10.0)

    def distances(share: Array) -> Array:
        rho = jnp.full((4, 2), (1 - share) / 7).at[2, 1].set(share)

        def step(pair: Array, _: None) -> tuple[Array, Array]:
            moved = jax.vmap(lambda q: operators.u2(q, mdp, rho, 0.9 / jnp.max(rho)))(pair)
            return moved, jnp.max(jnp.abs(moved[1] - moved[0]))

        return jnp.concatenate([jnp.full(1, 10.0), jax.lax.scan(step, start, None, _UPDATES)[1]])

    found = np.asarray(jax.jit(jax.vmap(distances))(jnp.asarray(_SHARES)))
    return dict(zip(_SHARES, found, strict=True))


class Curves(NamedTuple):
    """The curves of both intuitions."""

    blends: dict[str, Blend]
    distances: dict[float, np.ndarray]


def measure() -> Curves:
    """Computes the curves: kernels of both counterexamples that approach U1, and U2 with fewer data at one pair."""
    problems = {"Baird's star": mdps.baird(0.99), "Tsitsiklis and Van Roy": mdps.tsitsiklis_van_roy(0.99)}
    return Curves({name: closer_to_u1(problem) for name, problem in problems.items()}, scarce_data())


def lines(curves: Curves) -> list[str]:
    """The results for the two intuitions as lines of text."""
    found = [
        f"Intuition 1, {name}, from K (t = 0) to a multiple of I (t = 1): "
        f"spectral radius {_course(blend.t, blend.radius)}; beta(K) {_course(blend.t, blend.beta)}"
        for name, blend in curves.blends.items()
    ]
    for updates in (500, _UPDATES):
        apart = ", ".join(f"{curve[updates]:.2g} (share {share:g})" for share, curve in curves.distances.items())
        found.append(f"Intuition 2: starts 10 apart at one pair are, after {updates} updates of U2, apart by {apart}")
    return found


def _course(t: np.ndarray, values: np.ndarray) -> str:
    below = t[values < 1]
    since = f"below 1 from t = {below[0]:.2f} on" if len(below) else "never below 1"
    return f"{values[0]:.4f} to {values[-1]:.4f}, {since}"


@plots.harmless
def draw_picture(curves: Curves, out: pathlib.Path) -> bool:
    """Draws four panels, for two theorems and two intuitions; returns False if matplotlib is not installed."""
    if (figure := plots.new_figure(10, 7)) is None:
        return False
    grid = figure.subplots(2, 2)
    _theorem_1(grid[0, 0])
    _theorem_3(grid[0, 1])
    _intuition_1(grid[1, 0], curves.blends)
    _intuition_2(grid[1, 1], curves.distances)
    for axes in grid.flat:
        axes.legend(frameon=False, fontsize="small", loc="upper right" if axes is grid[1, 1] else "best")
        plots.dress(axes)
    plots.save(figure, out)
    return True


def _theorem_1(axes: Any) -> None:
    steps = np.logspace(-4, -0.5, 8)
    errors = first_order_errors(steps, 20)
    axes.loglog(steps, np.median(errors, axis=0), "o-", label="tanh networks, median of 20")
    axes.loglog(steps, kink_errors(steps), "s-", label="relu at a kink")
    axes.loglog(steps, steps**2, "k:", linewidth=0.8, label="second order")
    axes.set(title="Theorem 1", xlabel="length of the step", ylabel="error of the first order")


def _theorem_3(axes: Any) -> None:
    k = np.arange(1.0, 60)
    moduli = {"0.9": np.full_like(k, 0.9), "1 - 1 / (2k + 2)": 1 - 0.5 / (k + 1), "1 - 2^-k / 2": 1 - 0.5 ** (k + 1)}
    for label, beta in moduli.items():
        axes.plot(scalar_distances(beta), label=f"beta_k = {label}")
    axes.set(title="Theorem 3: all moduli below 1", xlabel="updates", ylabel="distance to the fixed point")
    axes.set_ylim(0, 1.05)


def _intuition_1(axes: Any, blends: dict[str, Blend]) -> None:
    for i, (name, blend) in enumerate(blends.items()):
        axes.plot(blend.t, blend.radius, color=f"C{i}", label=f"{name}: spectral radius")
        axes.plot(blend.t, blend.beta, color=f"C{i}", linestyle="--", label=f"{name}: beta(K)")
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(title="Intuition 1: from K to a multiple of I", xlabel="t", ylabel="below 1: contracts")


def _intuition_2(axes: Any, distances: dict[float, np.ndarray]) -> None:
    for share, curve in distances.items():
        axes.semilogy(np.maximum(curve, 1e-12), label=f"share of the data {share:g}")
    axes.set(title="Intuition 2: two starts, 10 apart at one pair", xlabel="updates of U2", ylabel="still apart by")
    axes.set_ylim(1e-10, 1e6)  # room for the legend
