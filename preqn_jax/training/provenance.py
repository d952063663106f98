"""Records the versions, commit, hardware and command that produced a result."""

from __future__ import annotations

import contextlib
import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "gymnasium", "mujoco", "orbax-checkpoint")
_EXTRAS = ("mujoco-mjx", "brax")


def device() -> str:
    """Platform and name of the first JAX device."""
    first = jax.devices()[0]
    return f"{first.platform} ({first.device_kind})"


def command() -> str:
    """The command line, without the paths of Python and of this package."""
    program = pathlib.Path(sys.argv[0])
    module = ["python", "-m", f"{program.parent.name}.{program.stem}"]
    return shlex.join([*(module if program.suffix == ".py" else [program.name]), *sys.argv[1:]])


def commit() -> str:
    """The commit of the Git checkout, with ``-dirty`` if files were changed; "unknown" outside a checkout."""
    root = pathlib.Path(__file__).parents[2]
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"


def collect() -> dict[str, Any]:
    """Versions, commit, device and command line, as a JSON-compatible dict."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    for name in _EXTRAS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "command": command(),
        "commit": commit(),
        "device": device(),
        "machine": f"{platform.machine()} {platform.system()}",
        "python": platform.python_version(),
        "versions": versions,
    }
