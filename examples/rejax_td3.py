"""rejax's TD3 with PreQN's critic step: ``python -m examples.rejax_td3``.

Needs ``pip install rejax gymnax``. Prints the mean return of the 128 episodes of rejax's evaluation, for TD3 with its
own critic step and with PreQN's, at the same steps from the same seed.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from rejax.algos.td3 import TD3
from rejax.networks import QNetwork

from preqn_jax import ntk, preqn_update, td


class Critic(nn.Module):
    """rejax's critic times ``kept``: if ``kept`` is 0, the row of an example in K is zero."""

    critic: QNetwork

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array, kept: jax.Array) -> jax.Array:
        """Returns Q ``[B]``."""
        return kept * self.critic(observation, action)


class PreQN(TD3):
    """TD3 with PreQN's critic step, for tasks that end by a time limit only; create it with ``num_critics=1``.

    gymnax resets environments by itself: at a time limit ``done`` is True, and ``next_obs`` belongs to the next
    episode. Such a transition has no valid target, so PreQN ignores it. rejax uses r as its target, as if terminated.
    """

    def update_critic(self, ts: Any, minibatch: Any) -> Any:
        """One step with targets from critic and actor themselves; rejax's target networks are not used."""
        critic = Critic(self.critic)
        q_fn, kept = ntk.module_q_fn(critic), 1.0 - minibatch.done
        one = jax.tree.map(lambda leaf: leaf[0], ts.critic_ts.params)  # rejax stacks its critics
        params, inputs = {"params": {"critic": one["params"]}}, (minibatch.obs, minibatch.action, kept)
        next_action = self.actor.apply(ts.actor_ts.params, minibatch.next_obs)
        next_value = q_fn(params, (minibatch.next_obs, next_action, kept))
        target = kept * td.td_target(minibatch.reward, kept, next_value, self.gamma)
        params, _ = preqn_update(ntk.dense(critic), params, inputs, target)
        stacked = jax.tree.map(lambda leaf: leaf[None], {"params": params["params"]["critic"]})
        return ts.replace(critic_ts=ts.critic_ts.replace(params=stacked))


def evaluations(algorithm: type[TD3], steps: int, seed: int, **config: Any) -> np.ndarray:
    """Trains on Pendulum-v1; returns the mean return before training and after every fifth of the steps, ``[6]``."""
    freq = steps // 5
    algorithm = algorithm.create(
        env="Pendulum-v1", total_timesteps=steps, eval_freq=freq, buffer_size=steps, fill_buffer=freq // 2,
        batch_size=128, learning_rate=1e-3, **config,
    )  # fmt: skip
    _, (_, returns) = jax.jit(algorithm.train)(jax.random.key(seed))
    return np.asarray(returns.mean(axis=1))


def main() -> None:
    """Trains both variants, and prints their returns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000, help="number of environment steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, algorithm, config in (("rejax", TD3, {}), ("preqn", PreQN, {"num_critics": 1})):
        start = time.perf_counter()
        returns = evaluations(algorithm, args.steps, args.seed, **config)
        print(f"{name:6}", *(f"{mean:8.1f}" for mean in returns), f"  ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
