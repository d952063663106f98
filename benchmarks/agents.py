"""The cost of an update of PreQN in comparison with SAC and TD3 (Achiam et al. 2019, section 5.3)."""

from __future__ import annotations

import jax
import optax

from benchmarks.problem import ACTION, OBSERVATION, Problem, burst_of_agent
from benchmarks.timing import Section, measure_relative, numbers, relative_table, table
from preqn_jax.agents import common
from preqn_jax.agents.base import Agent
from preqn_jax.agents.preqn import PreQNConfig, PreQNState
from preqn_jax.agents.sac import SACConfig
from preqn_jax.agents.td3 import TD3Config
from preqn_jax.ops import ntk, solvers, td
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import preqn_update
from preqn_jax.types import Array, Inputs, Params, Transition

_SLOW_UPDATES = 4  # updates per call with per-example gradients; even, since TD3's actor moves at every second update
_SLOW = ("PreQN, gradients formed twice", "PreQN, gradients reused")
_REFERENCE = "SAC"


def gradients_formed_twice(q_fn: ntk.QFunction) -> ntk.Linearizer:
    """Per-example gradients for K, and another backward pass for sum_i z_i grad Q(x_i), as in the paper's code.

    The library reuses the gradients in :func:`preqn_jax.ops.ntk.per_example`, which differs from this function only in
    its cost.

    Args:
      q_fn: (params, inputs) -> Q-values ``[B]``.
    """
    once = ntk.per_example(q_fn)
    Tangents = tuple[Params, Params, Inputs]

    def tangents(params: Params, inputs: Inputs) -> tuple[Array, Tangents]:
        values, gradients = once.tangents(params, inputs)
        return values, (gradients, params, inputs)

    def pullback(tangents: Tangents, z: Array) -> Params:
        _, params, inputs = tangents
        _, backward = jax.vjp(lambda params: q_fn(params, inputs), params)
        return backward(z)[0]

    return ntk.Linearizer(
        q_fn,
        tangents,
        gram=lambda tangents: once.gram(tangents[0]),
        inner=lambda left, right: once.inner(left[0], right[0]),
        pullback=pullback,
    )


def paper_agent(config: PreQNConfig, observation_size: int, action_size: int) -> Agent:
    """PreQN as in Algorithm 1, with gradients formed twice and least squares.

    Args:
      config: configuration of the agent; its linearizer and solver are not used.
      observation_size: number of entries of an observation.
      action_size: number of entries of an action.
    """
    agent, shipped = config.make(observation_size, action_size)
    q, linesearch = gradients_formed_twice(shipped.q_fn), Linesearch(config.step_size, config.min_alignment)
    policy = ntk.module_q_fn(common.make_actor(config, action_size))
    adam = optax.adam(config.actor_learning_rate)

    def update(state: PreQNState, batch: Transition, key: Array) -> tuple[PreQNState, dict[str, Array]]:
        next_value = q.q_fn(state.critic, (batch.next_observation, policy(state.actor, batch.next_observation)))
        target = td.td_target(batch.reward, batch.discount, next_value, config.gamma)
        inputs = (batch.observation, batch.action)
        critic, info = preqn_update(q, state.critic, inputs, target, solver=solvers.lstsq(), linesearch=linesearch)
        loss = common.climb(policy, q.q_fn, critic, batch.observation)
        actor, optimizer, scalars = common.descend(adam, loss, state.actor, state.actor_optimizer)
        return PreQNState(critic, actor, optimizer), {"backtracks": info.search.backtracks, **scalars}

    return agent._replace(update=update)


def make_agents(hidden_sizes: tuple[int, ...], step_size: float) -> dict[str, Agent]:
    """The agents to compare, each with its own activation function: relu for SAC and TD3, sin for PreQN."""
    shipped = PreQNConfig(hidden_sizes=hidden_sizes, step_size=step_size)
    reused = PreQNConfig(hidden_sizes=hidden_sizes, step_size=step_size, linearizer="per_example", solver="lstsq")
    twice, once = _SLOW

    def make(config: common.AgentConfig) -> Agent:
        agent, _ = config.make(OBSERVATION, ACTION)
        return agent

    return {
        _REFERENCE: make(SACConfig(hidden_sizes=hidden_sizes)),
        "TD3": make(TD3Config(hidden_sizes=hidden_sizes)),
        "PreQN as shipped": make(shipped),
        twice: paper_agent(reused, OBSERVATION, ACTION),
        once: make(reused),
    }


def agents_section(problem: Problem, hidden_sizes: tuple[int, ...], step_size: float, repeats: int) -> Section:
    """Measures whole updates, critic and actor, of every agent, relative to SAC in the same round."""
    few = jax.tree.map(lambda leaf: leaf[:_SLOW_UPDATES], problem.bursts)
    candidates = [
        burst_of_agent(name, agent, few if name in _SLOW else problem.bursts)
        for name, agent in make_agents(hidden_sizes, step_size).items()
    ]
    timings, ratios = measure_relative(candidates, repeats, _REFERENCE)
    backtracks = {
        candidate.name: int(candidate.result[1]["backtracks"].sum())
        for candidate in candidates
        if "backtracks" in candidate.result[1]
    }
    lines = [
        *table(timings),
        "",
        f"relative to {_REFERENCE} in the same round",
        *relative_table(ratios),
        "SAC and TD3 with relu, PreQN with sin; TD3's actor and targets move at every second update; backtracks: "
        + ", ".join(f"{name} {count}" for name, count in backtracks.items()),
    ]
    relative = {name: ratio._asdict() for name, ratio in ratios.items()}
    return Section("9. Whole updates of the agents", lines, {**numbers(timings), "relative": relative})
