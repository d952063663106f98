"""PreQN with normalized networks and two critics that share a minibatch, without target networks.

The update is that of Achiam et al. (2019); the agent around it differs as follows (docs/agent.md):

* critics and actor have relu instead of sin, and the critics LayerNorm before each hidden activation;
* there are two critics, each updated by PreQN on its own half of the minibatch, towards a common target that combines
  both;
* observations are normalized by running statistics;
* the actor is updated once in two updates of the critics.

If every option has the value of :class:`~preqn_jax.agents.preqn.PreQNConfig`, the agent is bitwise equal to PreQN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from preqn_jax.agents import common, preqn, soft
from preqn_jax.agents.base import Agent, CriticView
from preqn_jax.networks import LAYER_NORMS
from preqn_jax.ops import ntk, td
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.ops.conditionals import update_if
from preqn_jax.settings import SettingError, check_multiple, setting
from preqn_jax.types import Array, Inputs, Params, Transition


@dataclasses.dataclass(frozen=True)
class PreQNNormConfig(soft.TemperatureConfig, preqn.PreQNConfig):
    """Hyperparameters of preqn_norm; the defaults are the same for all tasks."""

    name: ClassVar[str] = "preqn_norm"
    activation: str = setting("relu", "activation function of critics and actor", choices=ACTIVATIONS)
    critic_layer_norm: str = setting(
        "fixed", "LayerNorm before each hidden activation of the critics", choices=LAYER_NORMS
    )
    normalize_observations: bool = setting(
        True, "whether to normalize observations: subtract their running mean, divide by their running scale"
    )
    observation_tail: float = common.tail_setting(2.0)
    num_critics: int = setting(
        2, "number of critics, each with its own parameters", interval="[1, inf)", structural=True
    )
    split_minibatch: bool = setting(True, "whether each critic is trained on its own part of the minibatch")
    target_pessimism: float = setting(
        1.0, "weight w of the minimum in the target, (1 - w) mean + w minimum of the critics", interval="[0, 1]"
    )
    target_noise: float = setting(
        0.0,
        "standard deviation of the Gaussian noise on target actions in [-1, 1]",
        interval="[0, inf)",
        structural=True,  # no random numbers are drawn for 0
    )
    target_noise_bound: float = setting(0.5, "target noise is clipped to +- this", interval="[0, inf)")
    policy: str = setting(
        "deterministic",
        "type of policy: deterministic, or gaussian with SAC's entropy bonus",
        choices=("deterministic", "gaussian"),
    )
    policy_delay: int = setting(2, "number of critic updates per actor update", interval="[1, inf)", structural=True)
    critic_update: str = setting(
        "preqn",
        "critic update: preqn; or, as controls for the effect of the kernel, diagonal (K replaced by its diagonal: "
        "step_size times the mean of the steps that correct one row each, without a line search) or adam (on the "
        "squared TD error)",
        choices=("preqn", "diagonal", "adam"),
    )
    critic_learning_rate: float = setting(
        1e-3, "Adam step size of the critics, for critic_update=adam", interval="(0, inf)"
    )

    def check(self, batch_size: int) -> None:
        """See :meth:`AgentConfig.check`."""
        super().check(batch_size)
        if self.automatic_temperature and self.policy != "gaussian":
            raise SettingError(
                f"config.agent.automatic_temperature=true has no effect with config.agent.policy={self.policy}; "
                "allowed: config.agent.policy=gaussian"
            )
        if self.target_noise > 0 and self.policy != "deterministic":
            raise SettingError(
                f"config.agent.target_noise={self.target_noise:g} has no effect with "
                f"config.agent.policy={self.policy}; allowed: config.agent.policy=deterministic"
            )
        if self.split_minibatch:
            check_multiple("config.batch_size", batch_size, "config.agent.num_critics", self.num_critics)

    def build(self, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
        """Creates the agent, without normalization of observations."""
        return _build(self, observation_size, action_size)


class ActorPart(NamedTuple):
    """The part of the state that changes only once in ``policy_delay`` updates.

    Attributes:
      params: parameters of the actor.
      optimizer: optimizer state of the actor.
      temperature: learned temperature of a Gaussian policy, None if there is none.
      scalars: metrics of the last actor update; updates without an actor update report them again.
    """

    params: Params
    optimizer: optax.OptState
    temperature: soft.Temperature | None
    scalars: common.Scalars


class PreQNNormState(NamedTuple):
    """Parameters and optimizer state (empty for PreQN) of each critic, the actor, and the number of updates so far."""

    critics: tuple[Params, ...]
    critic_optimizers: tuple[Any, ...]
    actor: ActorPart
    updates: Array


class CriticUpdate(NamedTuple):
    """The update of one critic, a pair of pure functions.

    Attributes:
      init: parameters -> optimizer state.
      apply: (parameters, state, inputs [B, ...], targets [B]) -> (parameters, state, metrics).
    """

    init: Any
    apply: Any


class Policy(NamedTuple):
    """The functions that differ between a deterministic and a Gaussian policy; ``params`` are the actor's parameters.

    Attributes:
      init: (key, observation) -> params.
      act: (params, observation) -> deterministic action.
      explore: (params, observation, key) -> action.
      next_action: (params, observation, key) -> (action for the target, log-density or None).
      loss: (critic parameters, observation, temperature, key) -> loss function of params.
      scalars: names of the metrics of the loss.
    """

    init: Any
    act: Any
    explore: Any
    next_action: Any
    loss: Any
    scalars: tuple[str, ...]


def _build(config: PreQNNormConfig, observation_size: int, action_size: int) -> tuple[Agent, CriticView]:
    critic = common.make_critic(config)
    q_fn = ntk.module_q_fn(critic)
    policy = (_deterministic if config.policy == "deterministic" else _gaussian)(config, action_size, q_fn)
    critic_update = _critic_update(config, critic)
    adam = optax.adam(config.actor_learning_rate)

    def init(key: Array) -> PreQNNormState:
        critic_key, actor_key = jax.random.split(key)
        observation, action = jnp.zeros((1, observation_size)), jnp.zeros((1, action_size))
        keys = [critic_key, *(jax.random.fold_in(critic_key, number) for number in range(1, config.num_critics))]
        critics = tuple(critic.init(key, observation, action) for key in keys)
        params, temperature = policy.init(actor_key, observation), soft.init_temperature(config)
        names = policy.scalars if temperature is None else (*policy.scalars, "temperature")
        actor = ActorPart(params, adam.init(params), temperature, {name: jnp.zeros(()) for name in names})
        return PreQNNormState(critics, tuple(map(critic_update.init, critics)), actor, jnp.zeros((), jnp.int32))

    def act(state: PreQNNormState, observation: Array) -> Array:
        return policy.act(state.actor.params, observation)

    def explore(state: PreQNNormState, observation: Array, key: Array) -> Array:
        return policy.explore(state.actor.params, observation, key)

    @jax.named_scope("target")
    def target(state: PreQNNormState, batch: Transition, key: Array) -> Array:
        action, log_prob = policy.next_action(state.actor.params, batch.next_observation, key)
        values = common.values_of(q_fn, state.critics, (batch.next_observation, action))
        if log_prob is not None:
            values = values - soft.temperature_of(config, state.actor.temperature) * log_prob[None]
        return td.pessimistic_target(batch.reward, batch.discount, values, config.gamma, config.target_pessimism)

    def td_error(state: PreQNNormState, batch: Transition, key: Array) -> Array:
        return target(state, batch, _keys(key)[0]) - q_fn(state.critics[0], (batch.observation, batch.action))

    def update_critics(state: PreQNNormState, inputs: Inputs, y: Array) -> tuple[PreQNNormState, common.Scalars]:
        steps = [
            critic_update.apply(params, optimizer, *part)
            for params, optimizer, part in zip(
                state.critics, state.critic_optimizers, _parts(config, (inputs, y)), strict=True
            )
        ]
        critics, optimizers, scalars = zip(*steps, strict=True)
        return state._replace(critics=critics, critic_optimizers=optimizers), _combined(scalars)

    @jax.named_scope("actor")
    def update_actor(actor: ActorPart, critic_params: Params, observation: Array, key: Array) -> ActorPart:
        temperature = soft.temperature_of(config, actor.temperature)
        loss = policy.loss(critic_params, observation, temperature, key)
        params, optimizer, scalars = common.descend(adam, loss, actor.params, actor.optimizer)
        entropy = scalars.get("entropy", jnp.zeros(()))
        learned, found = soft.update_temperature(config, actor.temperature, entropy, action_size)
        return ActorPart(params, optimizer, learned, {**scalars, **found})

    def update(state: PreQNNormState, batch: Transition, key: Array) -> tuple[PreQNNormState, common.Scalars]:
        target_key, actor_key = _keys(key)
        y = target(state, batch, target_key)
        state, critic_info = update_critics(state, (batch.observation, batch.action), y)
        # As in Algorithm 1, the actor is updated with a new critic, the first one.
        step = lambda actor: update_actor(actor, state.critics[0], batch.observation, actor_key)  # noqa: E731
        due = state.updates % config.policy_delay == 0
        actor = step(state.actor) if config.policy_delay == 1 else update_if(due, step, state.actor)
        return state._replace(actor=actor, updates=state.updates + 1), {**critic_info, **actor.scalars}

    return Agent(init=init, act=act, explore=explore, update=update), CriticView(
        q_fn=q_fn,
        params=lambda state: state.critics[0],
        td_error=td_error,
        operator=_operator(config),
        gamma=config.gamma,
        rows=lambda batch_size: _part_size(config, batch_size),
    )


def _keys(key: Array) -> Array:
    """The PRNG keys for the target and for the actor update."""
    return jax.random.split(key)


def _deterministic(config: PreQNNormConfig, action_size: int, q_fn: ntk.QFunction) -> Policy:
    actor = common.make_actor(config, action_size)
    act = ntk.module_q_fn(actor)

    def explore(params: Params, observation: Array, key: Array) -> Array:
        return common.add_noise(act(params, observation), key, config.exploration_noise)

    def next_action(params: Params, observation: Array, key: Array) -> tuple[Array, None]:
        action = act(params, observation)
        if config.target_noise > 0:
            action = common.add_noise(action, key, config.target_noise, config.target_noise_bound)
        return action, None

    def loss(critic_params: Params, observation: Array, temperature: Any, key: Array) -> common.Loss:
        del temperature, key
        return common.climb(act, q_fn, critic_params, observation)

    return Policy(actor.init, act, explore, next_action, loss, ("actor_loss", "action_abs"))


def _gaussian(config: PreQNNormConfig, action_size: int, q_fn: ntk.QFunction) -> Policy:
    policy = soft.GaussianPolicy(config, action_size)

    def explore(params: Params, observation: Array, key: Array) -> Array:
        return policy.sample(params, observation, key)[0]

    def loss(critic_params: Params, observation: Array, temperature: Any, key: Array) -> common.Loss:
        return soft.climb(policy, lambda inputs: q_fn(critic_params, inputs), temperature, observation, key)

    names = ("actor_loss", "action_abs", "entropy")
    return Policy(policy.actor.init, policy.act, explore, policy.sample, loss, names)


def _part_size(config: PreQNNormConfig, batch_size: int) -> int:
    if not config.split_minibatch:
        return batch_size
    if batch_size % config.num_critics:
        raise ValueError(f"a minibatch of {batch_size} rows cannot be split evenly over {config.num_critics} critics")
    return batch_size // config.num_critics


def _parts(config: PreQNNormConfig, rows: Any) -> list[Any]:
    """The rows that each critic is trained on."""
    (batch_size,) = rows[1].shape
    size = _part_size(config, batch_size)
    starts = [number * size if config.split_minibatch else 0 for number in range(config.num_critics)]
    return [jax.tree.map(lambda leaf, start=start: leaf[start : start + size], rows) for start in starts]


def _combined(scalars: Sequence[common.Scalars]) -> common.Scalars:
    """Means of the critics' metrics; but ``accepted`` is whether all accepted, so that a stall of one is noticed."""
    if len(scalars) == 1:
        return scalars[0]
    means = jax.tree.map(lambda *each: sum(each) / len(each), *scalars)
    if "accepted" in means:
        means["accepted"] = jnp.stack([each["accepted"] for each in scalars]).all()
    return means


def _critic_update(config: PreQNNormConfig, critic: nn.Module) -> CriticUpdate:
    if config.critic_update == "adam":
        return _adam_update(config, critic)
    make_step = {"preqn": preqn.make_critic_step, "diagonal": _diagonal_step}[config.critic_update]
    step = make_step(config, critic)

    def apply(params: Params, state: tuple[()], inputs: Inputs, target: Array) -> tuple[Params, Any, Any]:
        params, scalars = step(params, inputs, target)
        return params, state, scalars

    return CriticUpdate(lambda params: (), apply)


def _diagonal_step(config: PreQNNormConfig, critic: nn.Module) -> preqn.CriticStep:
    """theta' = theta + alpha mean_i (delta_i / K_ii) grad Q(x_i), without a line search."""
    linearize = preqn.make_linearizer(config, critic)

    def step(params: Params, inputs: Inputs, target: Array) -> tuple[Params, common.Scalars]:
        values, gram, pullback = linearize(params, inputs)
        td_error, diagonal = target - values, jnp.diagonal(gram)
        direction = pullback(td_error / (diagonal * diagonal.size))
        params = jax.tree.map(lambda leaf, change: leaf + config.step_size * change, params, direction)
        error = jnp.sqrt(jnp.mean(td_error**2))
        return params, {"q": values.mean(), "td_error": error, "kernel_diagonal": diagonal.mean()}

    return step


def _adam_update(config: PreQNNormConfig, critic: nn.Module) -> CriticUpdate:
    q_fn, adam = ntk.module_q_fn(critic), optax.adam(config.critic_learning_rate)

    def apply(params: Params, state: optax.OptState, inputs: Inputs, target: Array) -> tuple[Params, Any, Any]:
        loss = lambda params: common.squared_error(common.values_of(q_fn, [params], inputs), target)  # noqa: E731
        params, state, scalars = common.descend(adam, loss, params, state)
        return params, state, scalars

    return CriticUpdate(adam.init, apply)


def _operator(config: PreQNNormConfig) -> Any:
    if config.critic_update == "preqn":
        return preqn.make_operator(config)
    if config.critic_update == "adam":
        return common.gradient_operator(config.critic_learning_rate)

    def diagonal(gram: Array, info: common.Scalars) -> tuple[Array, Array, Array]:
        del info
        rho = 1.0 / (gram.shape[0] * jnp.diagonal(gram))
        return gram, rho, jnp.asarray(config.step_size, gram.dtype)

    return diagonal
