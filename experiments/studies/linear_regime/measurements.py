"""Deep Q-learning beside linear TD-learning with the network's first kernel, on finite MDPs, update by update."""

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

_KERNEL_INIT = "lecun_normal"  # variance 1 / inputs, with which K / width has a limit; glorot_uniform has none
_PREQN_STEP_SIZE = 0.1  # the paper's


class Problem(NamedTuple):
    """A finite MDP whose pairs (s, a) are inputs of a critic, all equally often in the data.

    Attributes:
      mdp: the :class:`FiniteMDP`, S states and A actions.
      observation: of each pair, in the order s A + a, ``[S A, O]``.
      action: of each pair, ``[S A, A']``.
    """

    mdp: FiniteMDP
    observation: Array
    action: Array

    @property
    def rho(self) -> Array:
        """Share of each pair in the data, ``[S, A]``."""
        return jnp.full_like(self.mdp.reward, 1.0 / self.mdp.reward.size)


def garnet(key: Array, gamma: float) -> Problem:
    """A Garnet MDP of 20 states, observed as normal vectors in eight dimensions, with 3 actions, one-hot."""
    mdp_key, observation_key = jax.random.split(key)
    mdp = mdps.garnet(mdp_key, 20, 3, 5, gamma)
    observation = jax.random.normal(observation_key, (20, 8))
    return Problem(mdp, jnp.repeat(observation, 3, axis=0), jnp.tile(jnp.eye(3), (20, 1)))


def baird(key: Array, gamma: float = 0.99) -> Problem:
    """Baird's star, whose features are what the network observes; nothing is drawn."""
    del key
    problem = mdps.baird(gamma)
    return Problem(problem.mdp, problem.features, jnp.zeros((len(problem.features), 1)))


class Trajectory(NamedTuple):
    """Before the first update and after each.

    Attributes:
      network: the network's Q of all pairs, ``[updates + 1, N]``.
      linear: Q under the operator that the updates follow to first order, from the same start, ``[updates + 1, N]``.
      kernel_change: ||K_t - K_0|| / ||K_0|| in the Frobenius norm, ``[updates + 1]``.
      spectral_radius: of the operator while its greedy policy stays that of the start; above 1 values grow; [].
    """

    network: Array
    linear: Array
    kernel_change: Array
    spectral_radius: Array


class _Updates(NamedTuple):
    """A way to learn: on the network, and what that is to first order on Q.

    Attributes:
      direction: (linearization, TD errors ``[N]``, rho ``[N]``) -> direction of the parameters.
      step_size: K_0 D_rho -> step size along it.
      operator: (Q ``[S, A]``, problem, K_0, step size) -> Q after an update.
      gain: K_0 D_rho -> M of an operator Q + step size M (T* Q - Q).
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
    # PreQN (Eqs. 22 and 23) on all pairs, without the linesearch, which would choose another step size for every width.
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
    """Learns with a network and, from the same values, with the operator that its updates are to first order.

    Args:
      draw: key -> the problem.
      activation: of the network, a name in ``ACTIVATIONS``.
      hidden_sizes: of the network.
      method: a name in ``METHODS``.
      updates: how many.

    Returns:
      key of problem and network -> :class:`Trajectory`.
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
    """Of I + gain (gamma P_pi - I), pi being greedy in q ``[S, A]``."""
    states, actions = q.shape
    greedy = jax.nn.one_hot(jnp.arange(states) * actions + jnp.argmax(q, axis=1), states * actions)
    successors = problem.mdp.transition.reshape(states * actions, states) @ greedy
    identity = jnp.eye(states * actions)
    return jnp.max(jnp.abs(jnp.linalg.eigvals(identity + gain @ (problem.mdp.gamma * successors - identity))))
