"""Full float32 matrix products, whatever the accelerator's default is."""

from __future__ import annotations

import contextlib

import jax


def full_precision() -> contextlib.AbstractContextManager:
    """Context in which traced matrix products keep full float32 precision.

    GPUs default to TF32 and TPUs to bfloat16 products. Their rounding makes a Gram matrix indefinite and turns
    the differences Q' - Q that the linesearch measures into noise.
    """
    return jax.default_matmul_precision("highest")
