"""Brax's SAC with PreQN's critic step, on a Brax environment: ``python -m examples.brax_sac``.

Environment, wrappers, networks, losses, replay buffer and evaluation are Brax's. ``sac.train`` does not accept another
critic step, so this file contains its loop: one environment step, then as many updates as environments. Prints Brax's
evaluation of SAC with its own critic step and with PreQN's, at the same steps from the same seed.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from brax import envs
from brax.training import acting, gradients, networks, replay_buffers, types
from brax.training.agents.sac import losses
from brax.training.agents.sac import networks as sac_networks

from preqn_jax import ntk, preqn_update, td

HIDDEN_SIZES, BATCH_SIZE, GAMMA, TAU, ADAM = (64, 64), 128, 0.97, 0.005, optax.adam(1e-3)
NUM_ENVS, EPISODE_LENGTH, EVALUATIONS = 4, 200, 5


class Critic(nn.Module):
    """The network of ``networks.make_q_network(n_critics=1)``, in a form for ``ntk.dense``; 0 if ``kept`` is 0."""

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array, kept: jax.Array) -> jax.Array:
        """Returns Q ``[B]``."""
        x = jnp.concatenate([observation, action], axis=-1)
        return kept * networks.MLP((*HIDDEN_SIZES, 1), nn.relu, jax.nn.initializers.lecun_uniform())(x)[..., 0]


class Training(NamedTuple):
    """Parameters and optimizer states of SAC."""

    policy: Any
    critic: Any
    critic_target: Any
    log_alpha: jax.Array
    adam: tuple[optax.OptState, optax.OptState, optax.OptState]  # of policy, critic, alpha


def make_preqn_step(network: sac_networks.SACNetworks) -> Any:
    """PreQN's step with the arguments and results of Brax's ``critic_update``; it does not use the target network."""
    q, actions = ntk.dense(Critic()), network.parametric_action_distribution

    def critic_update(
        params: Any,
        policy: Any,
        normalizer: Any,
        target: Any,
        alpha: Any,
        batch: Any,
        key: Any,
        *,
        optimizer_state: Any,
    ) -> tuple[jax.Array, Any, Any]:
        del target
        distribution = network.policy_network.apply(normalizer, policy, batch.next_observation)
        raw = actions.sample_no_postprocessing(distribution, key)
        next_inputs = (batch.next_observation, actions.postprocess(raw), jnp.ones_like(batch.reward))
        next_value = q.q_fn(params, next_inputs) - alpha * actions.log_prob(distribution, raw)
        # After a time limit, Brax's next observation belongs to the next episode: there is no valid target. With a TD
        # error of 0, the update would keep Q unchanged there; with Q = 0, the row of the example in K is zero.
        kept = 1.0 - batch.extras["state_extras"]["truncation"]
        inputs = (batch.observation, batch.action, kept)
        target = kept * td.td_target(batch.reward, batch.discount, next_value, GAMMA)
        params, info = preqn_update(q, params, inputs, target)
        return info.td_error**2, params, optimizer_state

    return critic_update


def make_updates(critic: str, env: envs.Env) -> tuple[sac_networks.SACNetworks, Any, Any]:
    """Returns Brax's networks, a function that creates a :class:`Training`, and one that updates it."""
    sizes = (env.observation_size, env.action_size)
    network = sac_networks.make_sac_networks(*sizes, hidden_layer_sizes=HIDDEN_SIZES)
    if critic == "preqn":
        single = networks.make_q_network(*sizes, hidden_layer_sizes=HIDDEN_SIZES, n_critics=1)
        network = network.replace(q_network=single)
    alpha_update, critic_update, actor_update = (
        gradients.gradient_update_fn(loss, ADAM, pmap_axis_name=None)
        for loss in losses.make_losses(network, 1.0, GAMMA, env.action_size)
    )
    if critic == "preqn":
        critic_update = make_preqn_step(network)

    def init(key: jax.Array) -> Training:
        policy_key, critic_key = jax.random.split(key)
        policy, params = network.policy_network.init(policy_key), network.q_network.init(critic_key)
        log_alpha = jnp.zeros(())
        return Training(policy, params, params, log_alpha, tuple(map(ADAM.init, (policy, params, log_alpha))))

    def update(now: Training, batch_and_key: tuple[types.Transition, jax.Array]) -> tuple[Training, None]:
        """``sgd_step`` of ``sac.train``: all parts use the values from before the update."""
        batch, alpha = batch_and_key[0], jnp.exp(now.log_alpha)
        keys, (policy_adam, critic_adam, alpha_adam) = jax.random.split(batch_and_key[1], 3), now.adam
        _, log_alpha, alpha_adam = alpha_update(
            now.log_alpha, now.policy, None, batch, keys[0], optimizer_state=alpha_adam
        )
        _, params, critic_adam = critic_update(
            now.critic, now.policy, None, now.critic_target, alpha, batch, keys[1], optimizer_state=critic_adam
        )
        _, policy, policy_adam = actor_update(
            now.policy, None, now.critic, alpha, batch, keys[2], optimizer_state=policy_adam
        )
        target = optax.incremental_update(params, now.critic_target, TAU)
        return Training(policy, params, target, log_alpha, (policy_adam, critic_adam, alpha_adam)), None

    return network, init, update


def train(critic: str, env_name: str, steps: int, seed: int) -> list[float]:
    """Trains with the critic step of "brax" or "preqn"; returns Brax's mean return after every fifth of the steps."""
    env = envs.training.wrap(envs.get_environment(env_name), EPISODE_LENGTH)
    network, init, update = make_updates(critic, env)
    make_policy = sac_networks.make_inference_fn(network)
    observation, action, zero = jnp.zeros(env.observation_size), jnp.zeros(env.action_size), jnp.zeros(())
    extras = {"policy_extras": {}, "state_extras": {"truncation": zero}}
    blank = types.Transition(observation, action, zero, zero, observation, extras)
    replay = replay_buffers.UniformSamplingQueue(steps, blank, NUM_ENVS * BATCH_SIZE)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        training, env_state, stored = carry
        act_key, update_key = jax.random.split(key)
        policy = make_policy((None, training.policy))
        env_state, new = acting.actor_step(env, env_state, policy, act_key, extra_fields=("truncation",))
        stored, batch = replay.sample(replay.insert(stored, new))
        batches = jax.tree.map(lambda leaf: leaf.reshape(NUM_ENVS, BATCH_SIZE, *leaf.shape[1:]), batch)
        learned, _ = jax.lax.scan(update, training, (batches, jax.random.split(update_key, NUM_ENVS)))
        filled = replay.size(stored) >= steps // 10
        training = jax.tree.map(functools.partial(jnp.where, filled), learned, training)
        return (training, env_state, stored), None

    init_key, reset_key, replay_key, train_key, eval_key = jax.random.split(jax.random.PRNGKey(seed), 5)
    reset = jax.jit(env.reset)(jax.random.split(reset_key, NUM_ENVS))
    carry, returns = (init(init_key), reset, replay.init(replay_key)), []
    greedy = functools.partial(make_policy, deterministic=True)
    evaluator = acting.Evaluator(env, greedy, 16, EPISODE_LENGTH, 1, eval_key)
    epoch = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    for key in jax.random.split(train_key, EVALUATIONS):
        carry = epoch(carry, jax.random.split(key, steps // (EVALUATIONS * NUM_ENVS)))
        metrics = evaluator.run_evaluation((None, carry[0].policy), {})
        returns.append(float(metrics["eval/episode_reward"]))
    return returns


def main() -> None:
    """Trains both variants, and prints their returns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="inverted_pendulum", help="a Brax environment")
    parser.add_argument("--steps", type=int, default=4_000, help="number of environment steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for critic in ("brax", "preqn"):
        start = time.perf_counter()
        returns = train(critic, args.env, args.steps, args.seed)
        print(f"{critic:6}", *(f"{mean:8.1f}" for mean in returns), f"  ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
