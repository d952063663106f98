"""Optional diagnostics for any agent's critic: update alignment and failure modes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from preqn_jax.agents.base import Agent, AgentState, CriticView
from preqn_jax.ops import diagnostics, ntk
from preqn_jax.ops.alignment import cosine, relative_norm
from preqn_jax.ops.precision import full_precision
from preqn_jax.ops.sharding import vary, varying_axes
from preqn_jax.types import Array, Transition


def with_alignment(agent: Agent, critic: CriticView) -> Agent:
    """Adds the metrics ``update_alignment`` and ``heldout_alignment`` to the updates of an agent.

    Both are cos(Q' - Q, y - Q), where Q is the critic before the update, Q' the critic after it, and y are the targets
    before the update (Achiam et al. 2019, section 5.2, Figures 3 and 10-14). ``update_alignment`` is computed on the
    rows that the critic was trained on, ``heldout_alignment`` on the same number of other rows; their difference shows
    how much of the update is noise of its minibatch. The update itself may change by rounding, since XLA compiles it
    together with these values.

    Returns:
      The agent. Its ``update`` takes 2 B transitions, trains on the first B, and holds out the others.
    """

    def update(state: AgentState, batch: Transition, key: Array) -> tuple[AgentState, dict[str, Array]]:
        size = batch.reward.shape[0] // 2
        trained, held_out = _rows(batch, 0, size), _rows(batch, size, 2 * size)
        values = lambda state, part: critic.value(state, part.observation, part.action)  # noqa: E731
        with full_precision():
            # Targets with random target actions equal those of the update only for the same key and the same rows.
            errors = [critic.td_error(state, part, key) for part in (trained, held_out)]
            before = [values(state, part) for part in (trained, held_out)]
        state, info = agent.update(state, trained, key)
        with full_precision():
            changes = [values(state, part) - old for part, old in zip((trained, held_out), before, strict=True)]
        rows = critic.rows(size)
        on_trained, on_held_out = (
            cosine(change[:rows], error[:rows]) for change, error in zip(changes, errors, strict=True)
        )
        return state, {**info, "update_alignment": on_trained, "heldout_alignment": on_held_out}

    return agent._replace(update=update)


def _rows(batch: Transition, start: int, stop: int) -> Transition:
    return jax.tree.map(lambda leaf: leaf[start:stop], batch)


def diagnosis_of(agent: Agent, critic: CriticView) -> Callable[[AgentState, Transition, Array], dict[str, Array]]:
    """Returns (state, transitions [B, ...], key) -> metrics, which analyzes the update that the agent would make now.

    The metrics describe the critic's kernel (``diagnostics.row_ratio``, ``diagnostics.effective_rank``) and the four
    failure modes (``diagnostics.FailureModes``); the linearization error is computed for the actual change of the
    parameters. Three kernels are formed from per-example gradients: for B = 256 and hidden layers [256, 256] this takes
    half a second on a CPU core, as long as fifty updates or more, and 146 MB.
    """
    linearizer = ntk.per_example(critic.q_fn)

    def diagnose(state: AgentState, batch: Transition, key: Array) -> dict[str, Array]:
        with full_precision():
            own = _rows(batch, 0, critic.rows(batch.reward.shape[0]))
            params, inputs = critic.params(state), (critic.preprocess(state, own.observation), own.action)
            next_action = agent.act(state, own.next_observation)
            next_inputs = (critic.preprocess(state, own.next_observation), next_action)
            values, tangents = linearizer.tangents(params, inputs)
            _, next_tangents = linearizer.tangents(params, next_inputs)
            gram, cross = linearizer.gram(tangents), linearizer.inner(next_tangents, tangents)
            next_diagonal = jnp.diagonal(linearizer.gram(next_tangents))
        new_state, info = agent.update(state, batch, key)
        with full_precision():
            step = jax.tree.map(jnp.subtract, critic.params(new_state), params)
            at = vary(params, varying_axes(step))
            predicted = jax.jvp(lambda params: critic.q_fn(params, inputs), (at,), (step,))[1]
            change = critic.q_fn(critic.params(new_state), inputs) - values
            kernel, rho, step_size = critic.operator(gram, info)
            modes = diagnostics.failure_modes(
                kernel,
                rho,
                critic.td_error(state, batch, key)[: own.reward.shape[0]],
                change,
                diagnostics.unsupported_share(gram, cross, next_diagonal),
                step_size=step_size,
                gamma=critic.gamma,
            )._replace(linearization=relative_norm(change - predicted, predicted))
            return {
                "row_ratio": diagnostics.row_ratio(gram).mean(),
                "effective_rank": diagnostics.effective_rank(gram),
                **modes._asdict(),
            }

    return diagnose
