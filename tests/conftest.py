"""Strict arrays on the CPU for every test, as if it were eight devices; each program compiled only once."""

import os
import tempfile

import pytest

_cache = tempfile.TemporaryDirectory(prefix="preqn_jax_tests_")


def pytest_configure(config):
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        _take_a_core(getattr(config, "workerinput", {}).get("workerid", "gw0"))
    # In the environment, before JAX starts: the processes that tests start are to have it too.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)  # a worker of pytest-xdist has the controller's
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")  # [B] against [B, 1] must fail loudly


def _take_a_core(worker):
    """One for each process of pytest-xdist; free to move, XLA's threads would cost several times the time."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(request):
    """Few optimizations, except for simulations: the other tests compile for longer than they run."""
    import jax

    jax.config.update("jax_disable_most_optimizations", request.path.parent.name != "envs")
