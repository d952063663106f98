"""Helpers for all benchmarks: restricting a program to one core, and writing its results."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
from typing import Any

from benchmarks.timing import Section
from preqn_jax.settings import SettingError
from preqn_jax.training import provenance
from preqn_jax.training.files import replace_file

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def use_one_core(core: int | None) -> None:
    """Restricts this process to one core and to one thread each of XLA, OpenMP and MKL.

    Call this before JAX computes anything and before other libraries are imported: they read these settings when they
    start. Where processes cannot be bound to a core (macOS), only the threads are restricted.

    Args:
      core: number of the core; None for the last one that this process may use.

    Raises:
      SettingError: if this process may not use the core.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}".strip()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = sorted(os.sched_getaffinity(0))
    if core is not None and core not in allowed:
        raise SettingError(f"--core={core} is not available; allowed: {', '.join(map(str, allowed))}")
    os.sched_setaffinity(0, {allowed[-1] if core is None else core})


def threads() -> dict[str, Any]:
    """The settings that determine the number of threads, and the load of the machine."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return {"cores allowed": affinity, "load before": load, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "(not set)")}


def version(package: str) -> str:
    """The installed version of a package; "unknown" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def output_file(flag: str, text: str) -> pathlib.Path:
    """Returns the path given by a flag, and creates its directory.

    Raises:
      SettingError: if the file cannot be written.
    """
    path = pathlib.Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"{flag}={path} cannot be written: {error.strerror}") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingError(f"{flag}={path} cannot be written; choose a file in a writable directory")
    return path


def save(path: pathlib.Path, record: dict[str, Any], sections: list[Section]) -> None:
    """Writes sections with versions, device and ``record`` as JSON."""
    whole = {**provenance.collect(), **record, "sections": [section.to_dict() for section in sections]}
    replace_file(path, json.dumps(whole, indent=2) + "\n")
