"""Methods and tasks of ``experiments.divergence``: updates of a critic, on small linear problems and on Pendulum."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from preqn_jax.envs.host import HostEnv
from preqn_jax.networks import Actor, Critic
from preqn_jax.ops import diagnostics, ntk, solvers, td
from preqn_jax.ops.alignment import cosine
from preqn_jax.ops.diagnostics import FailureModes
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import PreQNInfo, preqn_update
from preqn_jax.theory import mdps
from preqn_jax.types import Array, Inputs, Params, Transition

_PROBE, _BATCH_SIZE = 256, 64  # on Pendulum: transitions for measurements, and for an update


class Method(NamedTuple):
    """A method of updating the critic.

    Attributes:
      min_alignment: minimum alignment of PreQN's line search; None for a gradient step.
      has_target: whether a target network computes the targets.
    """

    min_alignment: float | None = None
    has_target: bool = False


METHODS = {
    "q_learning": Method(),
    "target_network": Method(has_target=True),
    "preqn": Method(min_alignment=0.97),
    # The line search accepts every step that does not point away from the targets, which results in damped
    # natural-gradient Q-learning (Lemma 4 of Achiam et al. 2019, with ridge).
    "preqn_any_step": Method(min_alignment=1e-6),
}


class Networks(NamedTuple):
    """The networks of a task with a learned policy, and the initial step size of PreQN's line search."""

    activation: str
    hidden_sizes: tuple[int, ...]
    step_size: float


class Task(NamedTuple):
    """A critic that learns from fixed data, with the policy of its targets.

    Attributes:
      critic: the Q-function and its kernel.
      gamma: discount factor per step.
      step_size: step size of gradient steps; PreQN uses ``preqn_step_size``.
      preqn_step_size: initial step size of PreQN's line search.
      target_rate: weight of the critic in the update of the target network.
      updates: default number of updates.
      bound: largest |Q| that is explained by the rewards, or by the initial Q if rewards are zero.
      probe: transitions for the measurements, a sample of the data.
      init: key -> (critic's parameters, policy's state).
      draw: key -> minibatch, in which all discounts are 1.
      inputs: transitions -> the critic's inputs for (s, a).
      next_inputs: (policy's state, transitions) -> the critic's inputs for (s', a'), with a' from the policy.
      improve: (critic's parameters, policy's state, minibatch) -> policy's state.
      networks: settings of the networks, if the task supports agents of the library; None otherwise.
    """

    critic: ntk.Linearizer
    gamma: float
    step_size: float
    preqn_step_size: float
    target_rate: float
    updates: int
    bound: float
    probe: Transition
    init: Callable[[Array], tuple[Params, Any]]
    draw: Callable[[Array], Transition]
    inputs: Callable[[Transition], Inputs]
    next_inputs: Callable[[Any, Transition], Inputs]
    improve: Callable[[Params, Any, Transition], Any]
    networks: Networks | None = None


class State(NamedTuple):
    """The state of learning: parameters of critic and target network, and the policy's state."""

    params: Params
    target: Params
    policy: Any


class Record(NamedTuple):
    """Measurements, all scalars: |Q| and Q on the probe, and diagnostics of one more update on a minibatch."""

    q_abs: Array
    q_mean: Array
    td_error: Array
    accepted: Array
    alignment: Array
    row_ratio: Array
    failure_modes: FailureModes
    contraction_bound: Array


def learn(task: Task, method: Method, updates: int, records: int, key: Array) -> Record:
    """Learns for ``updates`` updates; measures before each of ``records`` equal parts, and after the last.

    Returns:
      :class:`Record` with leaves ``[records + 1]``.
    """
    init_key, data_key = jax.random.split(key)
    params, policy = task.init(init_key)

    def one_update(state: State, key: Array) -> tuple[State, None]:
        batch = task.draw(key)
        params, _ = _update_critic(task, method, state, batch)
        rate = task.target_rate if method.has_target else 1.0
        target = jax.tree.map(lambda old, new: old + rate * (new - old), state.target, params)
        return State(params, target, task.improve(params, state.policy, batch)), None

    def one_part(state: State, keys: Array) -> tuple[State, Record]:
        return jax.lax.scan(one_update, state, keys)[0], measure(task, method, state, task.draw(keys[0]))

    # One additional part, since the last measurement is made at its beginning.
    keys = jax.random.split(data_key, (records + 1, updates // records))
    return jax.lax.scan(one_part, State(params, params, policy), keys)[1]


def _target(task: Task, state: State, batch: Transition) -> Array:
    """The targets of Q on the minibatch, ``[B]``."""
    next_value = task.critic.q_fn(state.target, task.next_inputs(state.policy, batch))
    return td.td_target(batch.reward, batch.discount, next_value, task.gamma)


def _update_critic(task: Task, method: Method, state: State, batch: Transition) -> tuple[Params, PreQNInfo | None]:
    """Returns the new parameters, and PreQN's info, or None for a gradient step."""
    inputs, target = task.inputs(batch), _target(task, state, batch)
    if method.min_alignment is not None:
        linesearch = Linesearch(task.preqn_step_size, min_alignment=method.min_alignment)
        return preqn_update(task.critic, state.params, inputs, target, solver=solvers.ridge(), linesearch=linesearch)
    values, _, pullback = task.critic(state.params, inputs)
    direction = pullback((target - values) / values.size)
    return jax.tree.map(lambda p, d: p + task.step_size * d, state.params, direction), None


def measure(task: Task, method: Method, state: State, batch: Transition) -> Record:
    """Measures the effect that an update on ``batch`` would have, and Q on the probe."""
    params, info = _update_critic(task, method, state, batch)
    linearization = task.critic(state.params, task.inputs(batch))
    delta = _target(task, state, batch) - linearization.values
    change = task.critic.q_fn(params, task.inputs(batch)) - linearization.values
    if info is None:
        accepted = jnp.ones(())
        kernel, rho, step_size = linearization.gram, jnp.full_like(delta, 1 / delta.size), jnp.asarray(task.step_size)
    else:
        accepted = info.accepted.astype(delta.dtype)
        kernel = diagnostics.preconditioned_kernel(linearization.gram, info.solve.damping)
        rho, step_size = jnp.ones_like(delta), info.search.step_size
    modes = diagnostics.failure_modes(
        kernel, rho, delta, change, _unsupported(task, state, batch), step_size=step_size, gamma=task.gamma
    )
    values = task.critic.q_fn(state.params, task.inputs(task.probe))
    return Record(
        q_abs=jnp.max(jnp.abs(values)),
        q_mean=jnp.mean(values),
        td_error=jnp.sqrt(jnp.mean(delta**2)),
        accepted=accepted,
        alignment=cosine(change, delta),
        row_ratio=jnp.mean(diagnostics.row_ratio(linearization.gram)),
        failure_modes=modes,
        contraction_bound=diagnostics.contraction_bound(kernel, rho, step_size, task.gamma),
    )


def _unsupported(task: Task, state: State, batch: Transition) -> Array:
    """The unsupported shares of the minibatch's next pairs, with the probe as the data, ``[B]``."""
    _, data = task.critic.tangents(state.params, task.inputs(task.probe))
    _, following = task.critic.tangents(state.params, task.next_inputs(state.policy, batch))
    inner = task.critic.inner
    return diagnostics.unsupported_share(
        inner(data, data), inner(following, data), jnp.diagonal(inner(following, following))
    )


# ---------------------------------------------------------------------------------------------------------------------
# The tasks
# ---------------------------------------------------------------------------------------------------------------------


def linear_task(problem: mdps.LinearProblem) -> Task:
    """Expected updates of a linear Q over all pairs of an MDP with one action, with equal weights."""
    successor = jnp.argmax(problem.mdp.transition[:, 0], axis=-1)  # both counterexamples are deterministic
    rows = problem.features
    data = Transition(rows, jnp.zeros((len(rows), 0)), problem.mdp.reward[:, 0], jnp.ones(len(rows)), rows[successor])
    bound = float(jnp.max(jnp.abs(rows @ problem.weights)))
    return _all_of(data, problem.weights, float(problem.mdp.gamma), bound)


def _all_of(data: Transition, weights: Array, gamma: float, bound: float) -> Task:
    """A task in which every update of a linear Q uses all data; observations are features."""

    def q_fn(weights: Params, features: Inputs) -> Array:
        return features @ weights

    return Task(
        ntk.per_example(q_fn),
        gamma=gamma,
        step_size=0.1,
        preqn_step_size=0.1,
        target_rate=0.005,
        updates=6000,
        bound=bound,
        probe=data,
        init=lambda key: (weights, ()),
        draw=lambda key: data,
        inputs=lambda batch: batch.observation,
        next_inputs=lambda policy, batch: batch.next_observation,
        improve=lambda params, policy, batch: policy,
    )


def cascade_task(shared: float, missing: bool, bias: float = 1.0) -> Task:
    """Failure Modes 3 and 4 of Achiam et al. (2019), separately and together: a linear Q on eight pairs, Q* = 0.

    There are four states in a cycle and two actions, of size 1 and 2, which both lead to the next state; rewards are
    zero, and gamma is 0.8. Q(s, a) has one feature for each pair, of size sqrt(1 - shared), and one feature that all
    pairs share, of sqrt(shared) times the size of the action. With shared = 0, Q is a table; with shared near 1, an
    increase of Q at the small actions increases Q at the large actions by almost twice as much. Targets use the greedy
    action. Initially, Q is ``bias`` at the large actions and 0 at the small actions.

    Args:
      shared: share of K's diagonal that generalizes, in [0, 1).
      missing: whether the data contain no large actions; they always contain all small actions.
      bias: initial Q of the large actions, and the largest |Q| that can be explained.
    """
    states, sizes, gamma = 4, jnp.asarray([1.0, 2.0]), 0.8
    own = jnp.sqrt(1 - shared) * jnp.eye(2 * states).reshape(states, 2, -1)
    together = jnp.broadcast_to(jnp.sqrt(shared) * sizes[:, None], (states, 2, 1))
    features = jnp.concatenate([own, together], axis=-1)  # [states, actions, 9]
    weights = jnp.tile(jnp.asarray([0.0, bias]), states) / jnp.sqrt(1 - shared)
    weights = jnp.append(weights, 0.0)
    taken = features[:, : 1 if missing else 2].reshape(-1, features.shape[-1])
    n = len(taken)
    following = jnp.repeat(jnp.roll(features, -1, axis=0), n // states, axis=0)  # [n, actions, 9]
    data = Transition(taken, jnp.zeros((n, 0)), jnp.zeros(n), jnp.ones(n), following)

    def greedy(weights: Params, batch: Transition) -> Inputs:
        best = jnp.argmax(batch.next_observation @ weights, axis=-1)
        return jnp.take_along_axis(batch.next_observation, best[:, None, None], axis=1)[:, 0]

    return _all_of(data, weights, gamma, bias)._replace(
        init=lambda key: (weights, weights), next_inputs=greedy, improve=lambda params, policy, batch: params
    )


def pendulum_task(
    activation: str, hidden_sizes: tuple[int, ...] = (32, 32), preqn_step_size: float = 0.1, transitions: int = 2000
) -> Task:
    """DDPG on a fixed set of transitions of Pendulum-v1 under uniformly random actions."""
    data = _collect("Pendulum-v1", transitions)
    critic, actor = Critic(hidden_sizes, activation), Actor(data.action.shape[1], hidden_sizes, activation)
    q_fn, mu = ntk.module_q_fn(critic), ntk.module_q_fn(actor)
    adam = optax.adam(1e-3)
    gamma = 0.99

    def init(key: Array) -> tuple[Params, Any]:
        critic_key, actor_key = jax.random.split(key)
        actor_params = actor.init(actor_key, data.observation[:1])
        critic_params = critic.init(critic_key, data.observation[:1], data.action[:1])
        return critic_params, (actor_params, adam.init(actor_params))

    def draw(key: Array) -> Transition:
        rows = jax.random.randint(key, (_BATCH_SIZE,), 0, transitions)
        return jax.tree.map(lambda leaf: leaf[rows], data)

    def improve(params: Params, policy: Any, batch: Transition) -> Any:
        actor_params, optimizer = policy

        def loss(actor_params: Params) -> Array:
            return -jnp.mean(q_fn(params, (batch.observation, mu(actor_params, batch.observation))))

        updates, optimizer = adam.update(jax.grad(loss)(actor_params), optimizer)
        return optax.apply_updates(actor_params, updates), optimizer

    return Task(
        ntk.dense(critic),
        gamma=gamma,
        step_size=0.001,
        preqn_step_size=preqn_step_size,
        target_rate=0.005,
        updates=5000,
        bound=float(jnp.max(jnp.abs(data.reward))) / (1 - gamma),
        probe=jax.tree.map(lambda leaf: leaf[:: max(1, transitions // _PROBE)][:_PROBE], data),
        init=init,
        draw=draw,
        inputs=lambda batch: (batch.observation, batch.action),
        next_inputs=lambda policy, batch: (batch.next_observation, mu(policy[0], batch.next_observation)),
        improve=improve,
        networks=Networks(activation, hidden_sizes, preqn_step_size),
    )


@functools.cache
def _collect(env_id: str, transitions: int) -> Transition:
    """Collects transitions with uniformly random actions; the same ones at every call."""
    env, generator = HostEnv(env_id, seed=[0]), np.random.default_rng(0)
    rows: list[Transition] = []
    observation = env.reset()
    while len(rows) < transitions:
        action = generator.uniform(-1.0, 1.0, env.action_size).astype(np.float32)
        step = env.step(action)
        rows.append(Transition(observation, action, step.reward, 1.0 - step.terminated, step.observation))
        observation = env.reset() if step.terminated or step.truncated else step.observation
    env.close()
    return Transition(*(jnp.asarray(np.stack(column), jnp.float32) for column in zip(*rows, strict=True)))
