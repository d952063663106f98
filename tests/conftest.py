"""Strict arrays on the CPU for every test."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX starts; set it to run the tests elsewhere

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")  # [B] against [B, 1] must fail loudly
