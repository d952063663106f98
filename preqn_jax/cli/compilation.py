"""JAX's persistent compilation cache."""

from __future__ import annotations

import os
import pathlib

import jax


def keep() -> None:
    """Enables JAX's persistent compilation cache, in ``JAX_COMPILATION_CACHE_DIR`` or the user's cache directory."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(base) / "preqn_jax" / "compiled"))
