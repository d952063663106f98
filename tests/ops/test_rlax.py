"""What RLax computes too, held against it."""

import jax
import numpy as np
import rlax

from preqn_jax.agents import common
from preqn_jax.ops import squashed_gaussian, td

B, A, GAMMA = 12, 3, 0.9
RNG = np.random.default_rng(0)
VALUE, REWARD, NEXT_VALUE, LOG_PROB = RNG.normal(size=(4, B)).astype(np.float32)
NEXT_VALUES = RNG.normal(size=(2, B)).astype(np.float32)
DISCOUNT = (RNG.uniform(size=B) < 0.7).astype(np.float32)


def td_learning(next_value):
    return jax.vmap(rlax.td_learning)(VALUE, REWARD, np.float32(GAMMA) * DISCOUNT, next_value)


def test_td_errors():
    target = td.td_target(REWARD, DISCOUNT, NEXT_VALUE, GAMMA)
    np.testing.assert_allclose(target - VALUE, td_learning(NEXT_VALUE), rtol=1e-6)
    twin = td.clipped_double_target(REWARD, DISCOUNT, NEXT_VALUES, GAMMA)
    np.testing.assert_allclose(twin - VALUE, td_learning(NEXT_VALUES.min(axis=0)), rtol=1e-5, atol=1e-6)
    soft = td.soft_target(REWARD, DISCOUNT, NEXT_VALUES, LOG_PROB, GAMMA, 0.2)
    soft_value = NEXT_VALUES.min(axis=0) - np.float32(0.2) * LOG_PROB
    np.testing.assert_allclose(soft - VALUE, td_learning(soft_value), rtol=1e-5, atol=1e-6)


def test_the_deterministic_policy_gradient():
    observation, w = (RNG.normal(size=(B, A)).astype(np.float32) for _ in range(2))
    scale = RNG.normal(size=A).astype(np.float32)

    def policy(params, observation):
        return params * observation

    def q_fn(params, inputs):
        return (params * inputs[1] ** 2).sum(axis=1)

    def rlax_loss(params):
        action = policy(params, observation)
        slope = jax.grad(lambda a: q_fn(w, (observation, a)).sum())(action)
        return jax.vmap(rlax.dpg_loss)(action, slope).sum(axis=1).mean()

    ours = jax.grad(common.climb(policy, q_fn, w, observation), has_aux=True)
    scales = np.tile(scale, (B, 1))
    np.testing.assert_allclose(ours(scales)[0], jax.grad(rlax_loss)(scales), rtol=1e-5)


def test_the_squashed_gaussian():
    mean, log_std, noise = (RNG.uniform(-0.9, 0.9, (B, A)).astype(np.float32) for _ in range(3))
    action, log_prob = squashed_gaussian.sample(mean, log_std, noise)
    theirs = rlax.squashed_gaussian(sigma_min=log_std, sigma_max=log_std)  # which squashes the mean, too
    expected = theirs.logprob(action, np.arctanh(mean), np.zeros_like(mean), None)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-4)
