import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.ops import td
from tests import oracles

B = 12
RNG = np.random.default_rng(0)
VALUE, REWARD, NEXT_VALUE = RNG.normal(size=(3, B)).astype(np.float32)
DISCOUNT = (RNG.uniform(size=B) < 0.7).astype(np.float32)  # some ended, some did not


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_target_and_error_match_the_oracle(gamma):
    target = oracles.td_target(REWARD, DISCOUNT, NEXT_VALUE, gamma)
    assert 0 < DISCOUNT.sum() < B
    np.testing.assert_allclose(td.td_target(REWARD, DISCOUNT, NEXT_VALUE, gamma), target, rtol=1e-6)
    np.testing.assert_allclose(td.td_error(VALUE, REWARD, DISCOUNT, NEXT_VALUE, gamma), target - VALUE, rtol=1e-5)


def test_a_terminated_step_does_not_bootstrap_and_any_other_does():
    target = td.td_target(jnp.asarray([1.0, 1.0]), jnp.asarray([0.0, 1.0]), jnp.asarray([10.0, 10.0]), 0.5)
    np.testing.assert_array_equal(target, [1.0, 6.0])


def test_only_the_value_gets_a_gradient():
    def total(value, reward, discount, next_value, gamma):
        return td.td_error(value, reward, discount, next_value, gamma).sum()

    gradients = jax.grad(total, argnums=range(5))(VALUE, REWARD, DISCOUNT, NEXT_VALUE, 0.9)
    np.testing.assert_array_equal(gradients[0], -np.ones(B))
    assert not any(np.any(gradient) for gradient in gradients[1:])


def test_gamma_may_be_traced():
    traced = jax.jit(td.td_error)(VALUE, REWARD, DISCOUNT, NEXT_VALUE, jnp.float32(0.9))
    np.testing.assert_allclose(traced, td.td_error(VALUE, REWARD, DISCOUNT, NEXT_VALUE, 0.9), rtol=1e-5)


@pytest.mark.parametrize("wrong", range(4), ids=["value", "reward", "discount", "next_value"])
@pytest.mark.parametrize("shape", [(B, 1), (1,), ()], ids=str)
def test_other_than_one_entry_per_example_raises(wrong, shape):
    arguments = [jnp.ones(B)] * 4
    arguments[wrong] = jnp.ones(shape)
    with pytest.raises(AssertionError):
        td.td_error(*arguments, 0.9)


def test_columns_raise_even_where_they_agree():
    with pytest.raises(AssertionError):
        td.td_error(*[jnp.ones((B, 1))] * 4, 0.9)
