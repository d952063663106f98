"""Deep Q-learning and linear TD-learning with the network's initial kernel, on finite MDPs, update by update."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from preqn_jax.networks import Critic
from preqn_jax.ops import ntk, solvers
from preqn_jax.ops.preqn import preqn_direction
from preqn_jax.theory import mdps, operators
from preqn_jax.theory.mdps import FiniteMDP
from preqn_jax.types import Array, Params

_KERNEL_INIT = "lecun_normal"  # variance 1 / inputs, for which K / width has a limit; it has none for glorot_uniform
_PREQN_STEP_SIZE = 0.1  # the paper's


class Problem(NamedTuple):
    """A finite MDP whose pairs (s, a) are inputs of a critic, with uniform data.

    Attributes:
      mdp: the :class:`FiniteMDP` with S states and A actions.
      observation: observation of each pair, in the order s A + a, ``[S A, O]``.
      action: action of each pair, ``[S A, A']``.
    """

    mdp: FiniteMDP
    observation: Array
    action: Array

    @property
    def rho(self) -> Array:
        """Share of each pair in the data, ``[S, A]``."""
        return jnp.full_like(self.mdp.reward, 1.0 / self.mdp.reward.size)


def garnet(key: Array, gamma: float) -> Problem:
    """A Garnet MDP with 20 states, observed as normal vectors in eight dimensions, and 3 one-hot actions."""
    mdp_key, observation_key = jax.random.split(key)
    mdp = mdps.garnet(mdp_key, 20, 3, 5, gamma)
    observation = jax.random.normal(observation_key, (20, 8))
    return Problem(mdp, jnp.repeat(observation, 3, axis=0), jnp.tile(jnp.eye(3), (20, 1)))


def baird(key: Array, gamma: float = 0.99) -> Problem:
    """Baird's star, with its features as observations; the key is not used."""
    del key
    problem = mdps.baird(gamma)
    return Problem(problem.mdp, problem.features, jnp.zeros((len(problem.features), 1)))


class Trajectory(NamedTuple):
    """Values before the first update, and after each update.

    Attributes:
      network: the network's Q of all pairs, ``[updates + 1, N]``.
      linear: Q under the operator that describes the updates to first order, from the same initial values,
        ``[updates + 1, N]``.
      kernel_change: ||K_t - K_0|| / ||K_0|| in the Frobenius norm, ``[updates + 1]``.
      spectral_radius: spectral radius of the operator with the initial greedy policy, a scalar; above 1, values grow
        while this policy does not change.
    """

    network: Array
    linear: Array
    kernel_change: Array
    spectral_radius: Array


class _Updates(NamedTuple):
    """A method: its updates of the network, and their effect on Q to first order.

    Attributes:
      direction: (linearization, TD errors ``[N]``, rho ``[N]``) -> direction in parameter space.
      step_size: K_0 D_rho -> step size along the direction.
      operator: (Q ``[S, A]``, problem, K_0, step size) -> Q after an update.
      gain: K_0 D_rho -> M of the operator Q + step size M (T* Q - Q).
    """

    direction: Callable[[ntk.Linearization, Array, Array], Params]
    step_size: Callable[[Array], Array]
    operator: Callable[[Array, Problem, Array, Array], Array]
    gain: Callable[[Array], Array]


METHODS = {
    # The expected step of Eq. 5. Its size is relative to the largest eigenvalue: the size of K grows with the width.
    "q_learning": _Updates(
        direction=lambda linearization, delta, rho: linearization.pullback(rho * delta),
        step_size=lambda kernel: 0.5 / jnp.linalg.eigvalsh(kernel)[-1],
        operator=lambda q, problem, kernel, step: operators.u3(q, problem.mdp, kernel, problem.rho, step),
        gain=lambda kernel: kernel,
    ),
    # PreQN (Eqs. 22 and 23) on all pairs, without the line search, which would choose a different step size for each
    # width.
    "preqn": _Updates(
        direction=lambda linearization, delta, rho: preqn_direction(linearization, delta, solvers.lstsq())[0],
        step_size=lambda kernel: jnp.asarray(_PREQN_STEP_SIZE),
        operator=lambda q, problem, kernel, step: operators.u1(q, problem.mdp, step),
        gain=lambda kernel: jnp.eye(len(kernel)),
    ),
}


def follow(
    draw: Callable[[Array], Problem], activation: str, hidden_sizes: tuple[int, ...], method: str, updates: int
) -> Callable[[Array], Trajectory]:
    """Learns with a network and, from the same values, with the operator that describes its updates to first order.

    Args:
      draw: key -> the problem.
      activation: activation of the network, a key of ``ACTIVATIONS``.
      hidden_sizes: widths of the hidden layers of the network.
      method: a key of ``METHODS``.
      updates: number of updates.

    Returns:
      A function: key of problem and network -> :class:`Trajectory`.
    """
    critic, learn = Critic(hidden_sizes, activation, _KERNEL_INIT), METHODS[method]
    linearize = ntk.dense(critic)

    def run(key: Array) -> Trajectory:
        problem_key, network_key = jax.random.split(key)
        problem = draw(problem_key)
        inputs, rho = (problem.observation, problem.action), problem.rho.reshape(-1)
        params = critic.init(network_key, *inputs)
        values, first, _ = linearize(params, inputs)
        weighted = first * rho[None]
        step_size = learn.step_size(weighted)

        def update(state: tuple[Params, Array], _: None) -> tuple[tuple[Params, Array], tuple[Array, Array, Array]]:
            params, linear = state
            linearization = linearize(params, inputs)
            q = linearization.values.reshape(linear.shape)
            delta = (operators.optimality(q, problem.mdp) - q).reshape(-1)
            direction = learn.direction(linearization, delta, rho)
            params = jax.tree.map(lambda p, d: p + step_size * d, params, direction)
            change = jnp.linalg.norm(linearization.gram - first) / jnp.linalg.norm(first)
            after = learn.operator(linear, problem, first, step_size)
            return (params, after), (linearization.values, linear.reshape(-1), change)

        start = (params, values.reshape(problem.mdp.reward.shape))
        _, (network, linear, change) = jax.lax.scan(update, start, length=updates + 1)
        radius = _spectral_radius(problem, start[1], step_size * learn.gain(weighted))
        return Trajectory(network, linear, change, radius)

    return run


def _spectral_radius(problem: Problem, q: Array, gain: Array) -> Array:
    """The spectral radius of I + gain (gamma P_pi - I), where pi is greedy with respect to q ``[S, A]``."""
    states, actions = q.shape
    greedy = jax.nn.one_hot(jnp.arange(states) * actions + jnp.argmax(q, axis=1), states * actions)
    successors = problem.mdp.transition.reshape(states * actions, states) @ greedy
    identity = jnp.eye(states * actions)
    return jnp.max(jnp.abs(jnp.linalg.eigvals(identity + gain @ (problem.mdp.gamma * successors - identity))))
