"""Everything that a resumed run needs, in one versioned Orbax checkpoint: arrays, and a JSON manifest of them.

Arrays are NumPy's or, where several processes train one population, JAX's over the devices of all of them: every
process then saves and restores at the same steps, and each writes and reads the part that is its own.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from preqn_jax.settings import first_line

_FORMAT = "preqn_jax"
_VERSION = 1

Arrays = dict[str, Any]  # of NumPy or JAX


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message is one line fit for a user."""


class Checkpoints:
    """The newest two checkpoints of a run, each written completely or not at all."""

    def __init__(self, directory: pathlib.Path, read_only: bool = False, sharding: jax.sharding.Sharding | None = None):
        """Makes ``directory``, or, read only, leaves a run alone that may be writing there.

        Args:
          directory: of all checkpoints; several processes share one.
          read_only: whether nothing is to be written.
          sharding: of the arrays over the devices of several processes, where there are such arrays.
        """
        self._directory, self._sharding = directory.absolute(), sharding
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,  # of a run that was killed while it wrote
            enable_async_checkpointing=False,  # save() returns when all is on disk
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest_step(self) -> int | None:
        """Environment step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Arrays) -> None:
        """Writes a checkpoint; one for the same step stays as it is.

        Raises:
          CheckpointError: if it cannot be written, on a full disk for example; those before it are left as they are.
        """
        if step in self._manager.all_steps():
            return
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "step": step,
            "arrays": {name: _describe(array) for name, array in arrays.items()},
        }
        stored = {name: array for name, array in arrays.items() if array.size}  # Orbax refuses empty arrays
        args = ocp.args.Composite(arrays=ocp.args.PyTreeSave(stored), manifest=ocp.args.JsonSave(manifest))
        try:
            with _silent():
                self._manager.save(step, args=args)
        except Exception as error:  # Orbax, tensorstore and the file system each raise their own
            for partial in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)  # what room there is may be needed
            where = f"checkpoint {self._directory.name}/{step}"
            raise CheckpointError(f"{where} cannot be written ({_reason(error)})") from error

    def restore(self, step: int) -> Arrays:
        """Reads a checkpoint.

        Raises:
          CheckpointError: if it is damaged, or nothing that this version wrote.
        """
        where = f"checkpoint {self._directory.name}/{step}"
        try:
            manifest = self._manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))["manifest"]
        except Exception as error:  # Orbax, tensorstore, JSON and the file system each raise their own
            raise CheckpointError(f"{where} has no readable manifest; {_advice(where)}") from error
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise CheckpointError(f"{where} was not written by preqn_jax; choose another --workdir")
        if manifest.get("version") != _VERSION:
            found = manifest.get("version")
            raise CheckpointError(f"{where} has format version {found}, this preqn_jax reads version {_VERSION}")

        described = manifest["arrays"]
        kinds = {name: self._restore_args(d) for name, d in described.items() if _size(d)}
        try:
            args = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(restore_args=kinds))
            arrays = dict(self._manager.restore(step, args=args)["arrays"])
        except Exception as error:
            raise CheckpointError(f"{where} is damaged; {_advice(where)}") from error
        for name, d in described.items():
            if not _size(d):
                arrays[name] = np.zeros(d["shape"], d["dtype"])
            if name not in arrays or _describe(arrays[name]) != d:
                raise CheckpointError(f"{where} is damaged ({name} differs from its checksum); {_advice(where)}")
        return arrays

    def _restore_args(self, description: dict[str, Any]) -> ocp.RestoreArgs:
        if _is_spread(description):
            return ocp.ArrayRestoreArgs(sharding=self._sharding)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps the stack traces from the user's terminal that Orbax logs in addition to what it raises."""
    _ignore_closed_loops()
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@functools.cache  # once in a process
def _ignore_closed_loops() -> None:
    """Hides what the writes that Orbax abandons call back into; it may come long after they have failed."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _reason(error: Exception) -> str:
    """In few words: of the system's where there is one, which tensorstore buries in a list of paths."""
    if code := getattr(error, "errno", None) or next(iter(re.findall(r"os_error_code='(\d+)'", str(error))), None):
        return os.strerror(int(code))
    return first_line(error)


def _describe(array: Any) -> dict[str, Any]:
    shape = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if isinstance(array, jax.Array):  # no process sees all of it
        return shape
    return {**shape, "crc32": zlib.crc32(np.ascontiguousarray(array).data) if array.size else 0}


def _is_spread(description: dict[str, Any]) -> bool:
    return "crc32" not in description


def _size(description: dict[str, Any]) -> int:
    return int(np.prod(description["shape"]))


def _advice(where: str) -> str:
    return f"remove {where.split()[1]} in the work folder to go on from the one before, or choose another --workdir"
