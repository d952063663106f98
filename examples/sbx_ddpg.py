"""SBX's DDPG with PreQN's critic step: ``python -m examples.sbx_ddpg``.

Needs ``pip install sbx-rl``, which installs PyTorch. Prints the mean return of ten episodes of the greedy policy, for
DDPG with its own critic step and with PreQN's, at the same steps from the same seed.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import flax.linen as nn
import gymnasium
import jax
import numpy as np
from sbx import DDPG
from sbx.common.policies import ContinuousCritic
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise

from preqn_jax import ntk, preqn_update

NET_ARCH = (128, 128)


class Critic(nn.Module):
    """The only critic in SBX's stack of critics, with values ``[B]`` instead of ``[1, B, 1]``."""

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        """Returns Q."""
        return ContinuousCritic(NET_ARCH, name="only")(observation, action)[:, 0]


class PreQN(DDPG):
    """DDPG with PreQN's critic step. SBX calls ``update_critic`` on the class, so it can only use its arguments."""

    @staticmethod
    @jax.jit
    def update_critic(
        actor_state: Any, qf_state: Any, observations: Any, actions: Any, next_observations: Any, rewards: Any,
        dones: Any, discounts: Any, target_policy_noise: Any, target_noise_clip: Any, key: Any,
    ) -> tuple[Any, jax.Array, Any]:  # fmt: skip
        """One step with targets from critic and actor themselves; SBX's target networks are not used."""
        (name,) = qf_state.params["params"]
        params = {"params": {"only": jax.tree.map(lambda leaf: leaf[0], qf_state.params["params"][name])}}
        q_fn = ntk.module_q_fn(Critic())
        next_actions = actor_state.apply_fn(actor_state.params, next_observations)
        target = rewards + (1 - dones) * discounts * q_fn(params, (next_observations, next_actions))
        params, info = preqn_update(ntk.dense(Critic()), params, (observations, actions), target)
        stacked = {"params": {name: jax.tree.map(lambda leaf: leaf[None], params["params"]["only"])}}
        return qf_state.replace(params=stacked), info.td_error**2, key


def evaluations(algorithm: type[DDPG], steps: int, seed: int) -> list[float]:
    """Trains on Pendulum-v1; returns the mean return of ten episodes after every fifth of the steps."""
    model = algorithm(
        "MlpPolicy", "Pendulum-v1", learning_rate=1e-3, buffer_size=steps, learning_starts=steps // 10,
        batch_size=128, action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), seed=seed,
        policy_kwargs={"net_arch": list(NET_ARCH)},
    )  # fmt: skip
    means = []
    for _ in range(5):
        model.learn(steps // 5, reset_num_timesteps=False)
        env = gymnasium.make("Pendulum-v1")
        env.reset(seed=seed)
        means.append(float(evaluate_policy(model, env, n_eval_episodes=10, warn=False)[0]))
    return means


def main() -> None:
    """Trains both variants, and prints their returns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000, help="number of environment steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, algorithm in (("sbx", DDPG), ("preqn", PreQN)):
        start = time.perf_counter()
        returns = evaluations(algorithm, args.steps, args.seed)
        print(f"{name:6}", *(f"{mean:8.1f}" for mean in returns), f"  ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
