"""What was compiled once is kept on disk."""

from __future__ import annotations

import os
import pathlib

import jax


def keep() -> None:
    """Keeps compiled programs in JAX's persistent cache: ``JAX_COMPILATION_CACHE_DIR`` where it is set."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(base) / "preqn_jax" / "compiled"))
