"""Strict arrays on the CPU for every test, and each program compiled only once in a whole test run."""

import os
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="preqn_jax_tests_")


def pytest_configure():
    # In the environment, before JAX starts: the processes that tests start are to have it too.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")  # [B] against [B, 1] must fail loudly
