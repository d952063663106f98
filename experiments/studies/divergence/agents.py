"""Complete agents of the library on the fixed data of a task, for ``experiments.divergence``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.studies.divergence.tasks import Record, Task
from preqn_jax.agents import AGENTS
from preqn_jax.agents.base import Agent, AgentState, CriticView
from preqn_jax.ops.diagnostics import FailureModes
from preqn_jax.types import Array

# PreQN itself is the method "preqn" of the study: there, it can be combined with other targets and line searches.
NAMES = tuple(name for name, config in AGENTS.items() if not config.discrete and name not in ("preqn", "naive_ddpg"))


def make(name: str, task: Task) -> tuple[Agent, CriticView]:
    """Creates the agent with this name, with the sizes, activation and PreQN step size of the task's networks."""
    assert task.networks is not None
    fields: dict[str, Any] = task.networks._asdict()
    if not hasattr(AGENTS[name], "step_size"):
        del fields["step_size"]
    batch = jax.eval_shape(task.draw, jax.random.key(0))
    return AGENTS[name](gamma=task.gamma, **fields).make(batch.observation.shape[-1], batch.action.shape[-1])


def learn_agent(task: Task, name: str, updates: int, records: int, key: Array) -> Record:
    """As ``tasks.learn``, with a whole agent's update, critic and actor, in place of a method of the study.

    Statistics of observations are those of the probe, from the beginning. ``accepted`` and ``alignment`` are the means
    over all updates of a record; what an agent does not report, and the failure modes, are NaN.

    Returns:
      :class:`Record` with leaves ``[records + 1]``; Q is that of the first critic.
    """
    agent, critic = make(name, task)
    init_key, data_key = jax.random.split(key)

    def one_update(state: AgentState, key: Array) -> tuple[AgentState, dict[str, Array]]:
        draw_key, update_key = jax.random.split(key)
        return agent.update(state, task.draw(draw_key), update_key)

    def one_part(state: AgentState, keys: Array) -> tuple[AgentState, Record]:
        after, metrics = jax.lax.scan(one_update, state, keys)
        return after, _measure(task, critic, state, metrics)

    state = agent.observe(agent.init(init_key), task.probe.observation)
    # One additional part, since the last measurement is made at its beginning.
    keys = jax.random.split(data_key, (records + 1, updates // records))
    return jax.lax.scan(one_part, state, keys)[1]


def _measure(task: Task, critic: CriticView, state: AgentState, metrics: dict[str, Array]) -> Record:
    values = critic.value(state, task.probe.observation, task.probe.action)
    unknown = jnp.asarray(jnp.nan)
    reported = {name: jnp.mean(metrics[name]) if name in metrics else unknown for name in ("accepted", "alignment")}
    return Record(
        q_abs=jnp.max(jnp.abs(values)),
        q_mean=jnp.mean(values),
        td_error=metrics["td_error"][0],
        **reported,
        row_ratio=unknown,
        failure_modes=FailureModes(*[unknown] * len(FailureModes._fields)),
        contraction_bound=unknown,
    )
