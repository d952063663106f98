"""Programs lowered for accelerators by ``jax.export`` on a machine that has none; nothing is compiled."""

from unittest import mock

import jax
from jax import export

BACKENDS = {"cuda": "gpu", "tpu": "tpu"}  # platform of jax.export -> jax.default_backend() on such a device


def lower(make, platforms=tuple(BACKENDS)):
    """Exports a program for each of ``platforms``; raises an exception if it does not lower for one of them.

    Args:
      make: () -> (jitted function, its arguments); traced once, with the first platform as the default backend.
      platforms: of ``BACKENDS``.

    Returns:
      The exported program of the last platform.
    """
    with mock.patch.object(jax, "default_backend", return_value=BACKENDS[platforms[0]]):
        program, arguments = make()
        # One after the other: JAX 0.7 cannot lower a shard_map for several platforms at once.
        for platform in platforms:
            exported = export.export(program, platforms=[platform])(*arguments)
    return exported
