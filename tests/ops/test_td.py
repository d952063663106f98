import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.ops import td
from tests import oracles

B = 12
RNG = np.random.default_rng(0)
VALUE, REWARD, NEXT_VALUE, LOG_PROB = RNG.normal(size=(4, B)).astype(np.float32)
DISCOUNT = (RNG.uniform(size=B) < 0.7).astype(np.float32)  # some ended, some did not


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_target_matches_the_oracle(gamma):
    target = oracles.td_target(REWARD, DISCOUNT, NEXT_VALUE, gamma)
    assert 0 < DISCOUNT.sum() < B
    np.testing.assert_allclose(td.td_target(REWARD, DISCOUNT, NEXT_VALUE, gamma), target, rtol=1e-6)


def test_a_terminated_step_does_not_bootstrap_and_any_other_does():
    target = td.td_target(jnp.asarray([1.0, 1.0]), jnp.asarray([0.0, 1.0]), jnp.asarray([10.0, 10.0]), 0.5)
    np.testing.assert_array_equal(target, [1.0, 6.0])


def test_the_target_is_a_constant():
    def total(reward, discount, next_value, gamma):
        return td.td_target(reward, discount, next_value, gamma).sum()

    gradients = jax.grad(total, argnums=range(4))(REWARD, DISCOUNT, NEXT_VALUE, 0.9)
    assert not any(np.any(gradient) for gradient in gradients)


def test_gamma_may_be_traced():
    traced = jax.jit(td.td_target)(REWARD, DISCOUNT, NEXT_VALUE, jnp.float32(0.9))
    np.testing.assert_allclose(traced, td.td_target(REWARD, DISCOUNT, NEXT_VALUE, 0.9), rtol=1e-5)


@pytest.mark.parametrize("wrong", range(3), ids=["reward", "discount", "next_value"])
@pytest.mark.parametrize("shape", [(B, 1), (1,), ()], ids=str)
def test_other_than_one_entry_per_example_raises(wrong, shape):
    arguments = [jnp.ones(B)] * 3
    arguments[wrong] = jnp.ones(shape)
    with pytest.raises(ValueError, match="reward and discount and next_value must be vectors of one length, got"):
        td.td_target(*arguments, 0.9)


def test_columns_raise_even_where_they_agree():
    with pytest.raises(ValueError, match="must be vectors of one length"):
        td.td_target(*[jnp.ones((B, 1))] * 3, 0.9)


def test_several_critics_share_the_smallest_of_their_values():
    reward, discount = jnp.asarray([1.0, 1.0, 1.0]), jnp.asarray([1.0, 1.0, 0.0])
    values = jnp.asarray([[4.0, -2.0, 9.0], [6.0, -8.0, 9.0]])
    np.testing.assert_array_equal(td.clipped_double_target(reward, discount, values, 0.5), [3.0, -3.0, 1.0])
    # alpha log pi is 1, -2 and 8: taken off the value, and with it lost where the episode ended.
    log_prob = jnp.asarray([2.0, -4.0, 16.0])
    np.testing.assert_array_equal(td.soft_target(reward, discount, values, log_prob, 0.5, 0.5), [2.5, -2.0, 1.0])


def test_full_pessimism_is_the_smallest_value_however_far_apart_they_are():
    arguments = jnp.ones(2), jnp.ones(2), jnp.asarray([[1e8, -3.0], [1.0, -3e9]]), 0.9
    expected = td.clipped_double_target(*arguments)
    np.testing.assert_array_equal(td.pessimistic_target(*arguments, 1.0), expected)
    half = td.pessimistic_target(jnp.ones(1), jnp.ones(1), jnp.asarray([[4.0], [8.0]]), 0.5, 0.5)
    np.testing.assert_array_equal(half, [1.0 + 0.5 * 5.0])


def test_targets_of_several_critics_are_constants():
    def total(reward, discount, values, log_prob):
        soft = td.soft_target(reward, discount, values, log_prob, 0.9, 0.1)
        return (td.clipped_double_target(reward, discount, values, 0.9) + soft).sum()

    gradients = jax.grad(total, argnums=range(4))(REWARD, DISCOUNT, np.stack([VALUE, NEXT_VALUE]), LOG_PROB)
    assert not any(np.any(gradient) for gradient in gradients)


@pytest.mark.parametrize("shape", [(B,), (B, 2), (2, 1)], ids=str)
def test_values_of_other_than_critics_by_examples_raise(shape):
    with pytest.raises(ValueError, match=r"next_values must have shape \[\*, 12\], got"):
        td.clipped_double_target(jnp.ones(B), jnp.ones(B), jnp.ones(shape), 0.9)
    with pytest.raises(ValueError, match=r"next_values must have shape \[\*, 12\], got"):
        td.soft_target(jnp.ones(B), jnp.ones(B), jnp.ones(shape), jnp.ones(B), 0.9, 0.1)


@pytest.mark.parametrize("shape", [(B, 1), (1,), ()], ids=str)
def test_a_log_prob_of_other_than_one_entry_per_example_raises(shape):
    with pytest.raises(ValueError, match="reward and next_log_prob must be vectors of one length, got shapes"):
        td.soft_target(jnp.ones(B), jnp.ones(B), jnp.ones((2, B)), jnp.ones(shape), 0.9, 0.1)
