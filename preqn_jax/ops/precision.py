"""Full float32 matrix products, and sums that are rounded to the precision of the parameters."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp

from preqn_jax.types import Array, Params


def full_precision() -> contextlib.AbstractContextManager:
    """Context in which traced matrix products have full float32 precision.

    GPUs default to TF32 and TPUs to bfloat16 products. Their rounding makes a Gram matrix indefinite, and the
    differences Q' - Q that the line search measures are lost in it.
    """
    return jax.default_matmul_precision("highest")


def moved(params: Params, step: Params) -> Params:
    """Returns the parameters plus the step, rounded to the dtype of each parameter, also under jit.

    XLA may omit the rounding of a sum in bfloat16 or float16 whose result is converted to float32 next. Q would then be
    evaluated at parameters that no array of this dtype can hold.
    """
    return jax.tree.map(_add, params, step)


def _add(param: Array, step: Array) -> Array:
    precision = jnp.finfo(param.dtype)
    if precision.bits >= 32:
        return param + step
    total = param.astype(jnp.float32) + step.astype(jnp.float32)
    rounded = jax.lax.reduce_precision(total, precision.nexp, precision.nmant)
    subnormal = jnp.abs(total) < float(precision.smallest_normal)  # reduce_precision would replace it by zero
    return jnp.where(subnormal, total, rounded).astype(param.dtype)
