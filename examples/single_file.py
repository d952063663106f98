"""DDPG in one file, in the style of CleanRL, with a choice between its own critic step and PreQN's.

    python -m examples.single_file --critic=preqn

``--critic=ddpg`` uses DDPG's critic step: Adam on the squared TD error, with target networks. Without this flag, both
variants are trained from the same seed, and their returns are printed. They differ in the critic step only.
"""

from __future__ import annotations

import argparse
import collections
import functools
import time
from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax

from preqn_jax import ntk, preqn_update

BATCH_SIZE, GAMMA, POLYAK, EXPLORATION_NOISE, ADAM = 128, 0.99, 0.995, 0.1, optax.adam(1e-3)


class MLP(nn.Module):
    """``[..., in]`` -> ``[..., out]``."""

    out: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the outputs of the last layer."""
        for size in (128, 128):
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.out)(x)


class Critic(nn.Module):
    """Q(s, a): ``[B, O]`` and ``[B, A]`` -> ``[B]``."""

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        """Returns Q."""
        return MLP(1)(jnp.concatenate([observation, action], axis=-1))[..., 0]


Q: Any = Critic().apply  # (parameters, observation, action) -> values [B]
# Transitions; terminated is 1 if the task terminated the episode, 0 if a time limit truncated it.
Batch = collections.namedtuple("Batch", "observation action reward terminated next_observation")
# Parameters, target parameters and Adam states of (critic, actor). PreQN uses neither targets nor the critic's Adam.
State = collections.namedtuple("State", "online target adam")


def policy(params: Any, observation: jax.Array) -> jax.Array:
    """mu(s) in (-1, 1); the bias of the last layer has the size of an action."""
    network: Any = MLP(params["params"]["Dense_2"]["bias"].size)
    return jnp.tanh(network.apply(params, observation))


def target_of(networks: tuple[Any, Any], batch: Batch) -> jax.Array:
    """y = r + gamma Q(s', mu(s')) ``[B]``, with the given networks (critic, actor)."""
    next_value = Q(networks[0], batch.next_observation, policy(networks[1], batch.next_observation))
    return batch.reward + GAMMA * (1.0 - batch.terminated) * next_value


def descend(loss: Any, params: Any, adam: optax.OptState) -> tuple[Any, optax.OptState]:
    """One step of Adam."""
    updates, adam = ADAM.update(jax.grad(loss)(params), adam)
    return optax.apply_updates(params, updates), adam


def ddpg_critic(state: State, batch: Batch) -> tuple[Any, optax.OptState]:
    """DDPG's critic step, with targets from the target networks."""
    target = target_of(state.target, batch)

    def loss(params: Any) -> jax.Array:
        return jnp.mean((target - Q(params, batch.observation, batch.action)) ** 2)

    return descend(loss, state.online[0], state.adam[0])


def preqn_critic(state: State, batch: Batch) -> tuple[Any, optax.OptState]:
    """PreQN's critic step, with targets from critic and actor themselves; it needs no target network and no Adam."""
    inputs, target = (batch.observation, batch.action), target_of(state.online, batch)
    params, _ = preqn_update(ntk.dense(Critic()), state.online[0], inputs, target)
    return params, state.adam[0]


CRITICS = {"ddpg": ddpg_critic, "preqn": preqn_critic}


@functools.partial(jax.jit, static_argnums=0)
def update(critic_step: Any, state: State, batch: Batch) -> State:
    """Updates the critic, then the actor with the new critic, then the target networks."""
    critic, critic_adam = critic_step(state, batch)

    def loss(params: Any) -> jax.Array:
        return -jnp.mean(Q(critic, batch.observation, policy(params, batch.observation)))

    actor, actor_adam = descend(loss, state.online[1], state.adam[1])
    target = optax.incremental_update((critic, actor), state.target, 1.0 - POLYAK)
    return State((critic, actor), target, (critic_adam, actor_adam))


def train(critic: str, env_id: str, steps: int, warmup: int, seed: int) -> list[float]:
    """Trains; returns the returns of all finished episodes. The first ``warmup`` of the steps are random."""
    env: Any = gymnasium.make(env_id)
    low, high, (observation, _) = env.action_space.low, env.action_space.high.astype(float), env.reset(seed=seed)
    keys, generator, act = jax.random.split(jax.random.key(seed)), np.random.default_rng(seed), jax.jit(policy)
    online = Critic().init(keys[0], observation[None], low[None]), MLP(low.size).init(keys[1], observation)
    state, returns, total = State(online, online, (ADAM.init(online[0]), ADAM.init(online[1]))), [], 0.0
    replay = Batch(*(np.zeros((steps, *np.shape(x)), np.float32) for x in (observation, low, 0, 0, observation)))
    for step in range(steps):
        noise = generator.normal(0.0, EXPLORATION_NOISE, low.shape)
        action = act(state.online[1], observation) + noise if step >= warmup else generator.uniform(-1, 1, low.shape)
        action = np.clip(action, -1.0, 1.0)
        successor, reward, terminated, truncated, _ = env.step((low + (action + 1) / 2 * (high - low)).astype("f"))
        for column, value in zip(replay, (observation, action, reward, terminated, successor), strict=True):
            column[step] = value
        observation, total = successor, total + float(reward)
        if terminated or truncated:
            returns.append(total)
            (observation, _), total = env.reset(), 0.0
        if step >= warmup:
            rows = generator.integers(step + 1, size=BATCH_SIZE)
            state = update(CRITICS[critic], state, Batch(*(column[rows] for column in replay)))
    return returns


def main() -> None:
    """Trains, and prints the returns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critic", choices=CRITICS, help="critic step to use (default: both in turn)")
    parser.add_argument("--env", default="Pendulum-v1", help="a Gymnasium id with Box actions")
    for name, default in (("steps", 10_000), ("warmup", 1_000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    for critic in [args.critic] if args.critic else CRITICS:
        start, returns = time.perf_counter(), train(critic, args.env, args.steps, args.warmup, args.seed)
        means = (f"{np.mean(part):8.1f}" for part in np.array_split(returns, 10) if part.size)
        print(f"{critic:6}", *means, f"  ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
