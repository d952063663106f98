"""Functions that several test modules share."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0):
    """Standard normal numbers, float32."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linear(params, x):
    """A linear Q-function: parameters [n], inputs [B, n] -> Q [B]."""
    return x @ params


def overflowing(gram, td_error):
    """A solver whose solution is infinite."""
    del gram
    return jnp.full_like(td_error, jnp.inf)


def bits(tree):
    """The types and bytes of all leaves, which distinguish -0.0 from 0.0, and in which a NaN equals itself."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [(array.dtype, array.tobytes()) for array in arrays]


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    """Compares two trees of the same structure leaf by leaf."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def assert_for_some_seed(check, seeds=(0, 1, 2)):
    """Checks that ``check(seed)`` raises no AssertionError for one of the seeds, and raises the last one otherwise.

    This is for results of training, which a change of rounding errors can spoil for a single seed. Further seeds are
    only run if the first one fails.
    """
    for seed in seeds:
        try:
            return check(seed)
        except AssertionError:
            if seed == seeds[-1]:
                raise
