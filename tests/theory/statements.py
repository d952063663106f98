"""The operators in float64, and the settings of Hypothesis, for the tests of the paper's statements."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from preqn_jax.ops import contraction, ntk
from preqn_jax.theory import operators
from tests.helpers import linear
from tests.ops.precision import double

# Many rounding errors of 1e-16 on values of order 1 to 100.
SLACK = 1e-10

FUNCTIONS = {
    name: jax.jit(getattr(operators, name, None) or getattr(contraction, name))
    for name in (
        "optimality",
        "u1",
        "u2",
        "u3",
        "u1_modulus",
        "u2_modulus",
        "contraction_bound",
        "contraction_conditions",
        "natural_gradient_direction",
    )
}

many = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
gammas = st.floats(0.0, 0.999)
linearize_linear = ntk.per_example(linear)


def call(name, *arguments):
    """The library's function in float64, its result in NumPy."""
    with double():
        arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), arguments)
        return jax.tree.map(np.asarray, FUNCTIONS[name](*arguments))
