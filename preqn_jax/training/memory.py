"""Checks that arrays fit into memory before they are allocated."""

from __future__ import annotations

import jax
import psutil

from preqn_jax.settings import SettingError

GIB = 2**30


def of_machine() -> int:
    """Memory of this machine that is available [bytes]."""
    return int(psutil.virtual_memory().available)


def of_devices(device: jax.Device, count: int = 1) -> int:
    """Memory of ``count`` such devices of this process [bytes]; CPU devices share the machine's memory."""
    stats = device.memory_stats() or {}
    return count * stats["bytes_limit"] if "bytes_limit" in stats else of_machine()


def check(needed: float, what: str, purpose: str, remedy: str, available: float | None = None) -> None:
    """Checks that memory suffices.

    Args:
      needed: memory that is needed [bytes].
      what: the setting that needs it, for example ``--pairs=500``.
      purpose: what the memory is needed for.
      remedy: what the user can do about it.
      available: memory that is available [bytes]; by default that of the machine.

    Raises:
      SettingError: if ``needed`` is larger than ``available``.
    """
    available = of_machine() if available is None else available
    if needed > available:
        raise SettingError(
            f"{what} needs about {needed / GIB:.1f} GiB for {purpose}, but {available / GIB:.1f} GiB of memory are "
            f"available; {remedy}"
        )
