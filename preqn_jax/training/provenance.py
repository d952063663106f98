"""Records the versions, commit, hardware and command that produced a result."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "gymnasium", "mujoco", "orbax-checkpoint")
_EXTRAS = ("mujoco-mjx", "brax")
_CLI = "preqn_jax.cli."  # prefix of the modules of the console script's commands
COMMAND = "PREQN_JAX_COMMAND"  # environment variable of the workers of a cluster: the command that started the sweep


def device() -> str:
    """Platform and name of the first JAX device."""
    first = jax.devices()[0]
    return f"{first.platform} ({first.device_kind})"


def command() -> str:
    """The command line, without the path of Python; a script is named by its own path."""
    if given := os.environ.get(COMMAND):
        return given
    program, spec = sys.argv[0], getattr(sys.modules["__main__"], "__spec__", None)
    if program.startswith(_CLI):  # a command of the console script, which has replaced argv[0]
        start = ["preqn_jax", program.removeprefix(_CLI)]
    elif spec is not None:
        start = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        start = ["python", program] if program.endswith(".py") else [pathlib.Path(program).name]
    return shlex.join([*start, *sys.argv[1:]])


def commit() -> str:
    """The commit of the Git checkout, with ``-dirty`` if files were changed; "unknown" outside a checkout."""
    root = pathlib.Path(__file__).parents[2]
    # An installed package may be inside of the checkout of another project.
    if pathlib.Path(_git(root, "rev-parse", "--show-toplevel") or "/") != root.resolve():
        return "unknown"
    return _git(root, "describe", "--always", "--dirty", "--exclude=*") or "unknown"


def _git(folder: pathlib.Path, *arguments: str) -> str:
    """The output of a Git command; empty if it fails."""
    try:
        found = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


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
