"""Full float32 matrix products, regardless of the accelerator's default precision."""

from __future__ import annotations

import contextlib

import jax


def full_precision() -> contextlib.AbstractContextManager:
    """Context in which traced matrix products have full float32 precision.

    GPUs default to TF32 and TPUs to bfloat16 products. Their rounding makes a Gram matrix indefinite, and the
    differences Q' - Q that the line search measures are lost in it.
    """
    return jax.default_matmul_precision("highest")
