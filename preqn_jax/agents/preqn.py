"""PreQN with a DDPG-style actor (Achiam et al. 2019, Algorithm 1 and Appendix B)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from preqn_jax.agents import common
from preqn_jax.agents.base import Agent, CriticView
from preqn_jax.ops import diagnostics, ntk, solvers, td
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.ops.linesearch import Linesearch
from preqn_jax.ops.preqn import PreQNInfo, preqn_update
from preqn_jax.settings import SettingError, setting
from preqn_jax.types import Array, Inputs, Params, Transition

CriticStep = Callable[[Params, Inputs, Array], tuple[Params, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class CriticStepConfig(common.AgentConfig):
    """Hyperparameters of the critic update.

    The step size and the minimum alignment are those of the paper's Appendix B, the sin activation is that of its
    section 5.2. The solver, the decay and the number of backtracks are choices of this library: the paper uses least
    squares, and states neither of the other two.
    """

    activation: str = setting("sin", "activation function of the critic, and of the actor if any", choices=ACTIVATIONS)
    step_size: float = setting(
        0.1,
        "initial (largest) step size of the line search, alpha in the paper",
        interval="(0, inf)",
        formerly="critic_step_size",
    )
    min_alignment: float = setting(
        0.97,
        "minimum cos(Q' - Q, delta) for a critic step to be accepted, eta in the paper",
        interval="(0, 1]",
        formerly="eta",
    )
    decay: float = setting(
        0.8, "factor by which a backtrack reduces the step size", interval="(0, 1)", formerly="backtrack_decay"
    )
    max_backtracks: int = setting(20, "number of backtracks after which a critic step is rejected", interval="[0, inf)")
    linearizer: str = setting("dense", "how the kernel is computed: layer by layer (dense) or by vmap(grad)",
                              choices=("dense", "per_example"))  # fmt: skip
    solver: str = setting("ridge", "linear solver for K z = delta", choices=solvers.SOLVERS)
    damping: float = setting(
        1e-4, "damping of the ridge solver [mean of K's diagonal]", interval="(0, inf)", formerly="solver_damping"
    )
    rcond: float = setting(
        1e-7,
        "singular value cut-off of the lstsq and eigh solvers [largest singular value]",
        interval="[0, 1)",
        formerly="solver_rcond",
    )
    min_predicted_alignment: float = setting(
        0.985,
        "minimum predicted alignment cos(K z, delta) of the aligned solver",
        interval="(0, 1)",
        formerly="solver_target",
    )

    def check(self, batch_size: int) -> None:
        """See :meth:`AgentConfig.check`."""
        super().check(batch_size)
        if self.solver == "aligned" and self.min_predicted_alignment < self.min_alignment:
            raise SettingError(
                f"config.agent.min_predicted_alignment={self.min_predicted_alignment} is below "
                f"config.agent.min_alignment={self.min_alignment}, so that solver=aligned would aim at steps that are "
                f"rejected; allowed: at least {self.min_alignment}"
            )


@dataclasses.dataclass(frozen=True)
class PreQNConfig(CriticStepConfig, common.NoiseConfig, common.ActorCriticConfig):
    """Hyperparameters of PreQN; the defaults are those of the paper's Appendix B, where it states a value."""

    name: ClassVar[str] = "preqn"

    def build(self, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
        """Creates the agent, without normalization of observations."""
        return _build(self, observation_size, action_size)


class PreQNState(NamedTuple):
    """Parameters of critic and actor, and the actor's optimizer state.

    The critic has no optimizer state and no target network.
    """

    critic: Params
    actor: Params
    actor_optimizer: optax.OptState


def _build(config: PreQNConfig, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
    critic, actor = common.make_critic(config), common.make_actor(config, action_size)
    q_fn, policy = ntk.module_q_fn(critic), ntk.module_q_fn(actor)
    critic_step = make_critic_step(config, critic)
    adam = optax.adam(config.actor_learning_rate)

    def init(key: Array) -> PreQNState:
        critic_key, actor_key = jax.random.split(key)
        observation, action = jnp.zeros((1, observation_size)), jnp.zeros((1, action_size))
        actor_params = actor.init(actor_key, observation)
        return PreQNState(critic.init(critic_key, observation, action), actor_params, adam.init(actor_params))

    def act(state: PreQNState, observation: Array) -> Array:
        return policy(state.actor, observation)

    def explore(state: PreQNState, observation: Array, key: Array) -> Array:
        return common.add_noise(act(state, observation), key, config.exploration_noise)

    @jax.named_scope("target")
    def target(state: PreQNState, batch: Transition) -> Array:
        next_value = q_fn(state.critic, (batch.next_observation, act(state, batch.next_observation)))
        return td.td_target(batch.reward, batch.discount, next_value, config.gamma)

    def td_error(state: PreQNState, batch: Transition, key: Array) -> Array:
        del key
        return target(state, batch) - q_fn(state.critic, (batch.observation, batch.action))

    @jax.named_scope("actor")
    def update_actor(state: PreQNState, observation: Array) -> tuple[PreQNState, dict[str, Array]]:
        loss = common.climb(policy, q_fn, state.critic, observation)
        actor_params, optimizer, scalars = common.descend(adam, loss, state.actor, state.actor_optimizer)
        return state._replace(actor=actor_params, actor_optimizer=optimizer), scalars

    def update(state: PreQNState, batch: Transition, key: Array) -> tuple[PreQNState, dict[str, Array]]:
        del key  # nothing in PreQN's update is random
        critic_params, critic_info = critic_step(state.critic, (batch.observation, batch.action), target(state, batch))
        # Algorithm 1, line 14: the actor is updated with the new critic.
        state, actor_info = update_actor(state._replace(critic=critic_params), batch.observation)
        return state, {**critic_info, **actor_info}

    return Agent(init=init, act=act, explore=explore, update=update), CriticView(
        q_fn=q_fn,
        params=lambda state: state.critic,
        td_error=td_error,
        operator=make_operator(config),
        gamma=config.gamma,
    )


def make_linearizer(config: CriticStepConfig, critic: nn.Module) -> ntk.Linearizer:
    """The configured linearizer of the critic."""
    return ntk.dense(critic) if config.linearizer == "dense" else ntk.per_example(ntk.module_q_fn(critic))


def make_critic_step(config: CriticStepConfig, critic: nn.Module) -> CriticStep:
    """Returns (parameters, inputs [B, ...], targets [B]) -> (parameters, metrics), the configured PreQN update."""
    q, solver = make_linearizer(config, critic), make_solver(config)
    linesearch = Linesearch(config.step_size, config.min_alignment, config.decay, config.max_backtracks)

    def critic_step(params: Params, inputs: Inputs, target: Array) -> tuple[Params, dict[str, Array]]:
        params, info = preqn_update(q, params, inputs, target, solver=solver, linesearch=linesearch)
        return params, scalars_of(info)

    return critic_step


def scalars_of(info: PreQNInfo) -> dict[str, Array]:
    """The metrics of an update. The status is omitted, since the mean of status codes over updates has no meaning."""
    scalars = {**info.solve._asdict(), **info.search._asdict(), "q": info.q, "td_error": info.td_error}
    del scalars["status"]
    return {**scalars, "accepted": info.accepted}


def make_operator(config: CriticStepConfig) -> Callable[[Array, dict[str, Array]], tuple[Array, Array, Array]]:
    """``CriticView.operator`` for the PreQN update."""
    rcond = solvers.cut_off(make_solver(config))

    def operator(gram: Array, info: dict[str, Array]) -> tuple[Array, Array, Array]:
        kernel = diagnostics.preconditioned_kernel(gram, info["damping"], rcond)
        return kernel, jnp.ones_like(kernel[0]), info["step_size"]

    return operator


def make_solver(config: CriticStepConfig) -> solvers.Solver:
    """Creates the configured solver with its parameter."""
    parameter = {
        "lstsq": config.rcond,
        "ridge": config.damping,
        "eigh": config.rcond,
        "aligned": config.min_predicted_alignment,
    }
    return solvers.SOLVERS[config.solver](parameter[config.solver])
