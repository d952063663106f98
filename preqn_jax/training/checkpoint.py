"""Versioned Orbax checkpoints with everything that a resumed run needs: arrays and a JSON manifest.

The arrays are NumPy arrays or, if several processes train one population, JAX arrays over the devices of all processes.
In the second case all processes save and restore at the same steps, and each one writes and reads its own part.
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

Arrays = dict[str, Any]  # NumPy or JAX arrays by name


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written; the message is one line for the user."""


class Checkpoints:
    """The two newest checkpoints of a run; each is written completely or not at all."""

    def __init__(self, directory: pathlib.Path, read_only: bool = False, sharding: jax.sharding.Sharding | None = None):
        """Opens the directory, and creates it unless ``read_only`` is set.

        Args:
          directory: directory of all checkpoints of the run; several processes share it.
          read_only: whether to change nothing, for example because a run is writing to the directory.
          sharding: sharding of arrays that are distributed over the devices of several processes, if there are any.
        """
        self._directory, self._sharding = directory.absolute(), sharding
        with _silent():
            options = ocp.CheckpointManagerOptions(
                max_to_keep=2,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,  # left by a run that was killed while writing
                enable_async_checkpointing=False,  # save() returns once everything is on disk
            )
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest_step(self) -> int | None:
        """The environment step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Arrays, record: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint, unless there is one for this step already.

        Args:
          step: environment step of the checkpoint.
          arrays: the arrays by name.
          record: a JSON object that describes the run, which :meth:`record` returns.

        Raises:
          CheckpointError: if it cannot be written, for example because the disk is full; earlier checkpoints are kept.
        """
        if step in self._manager.all_steps():
            return
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "step": step,
            "record": record or {},
            "arrays": {name: _describe(array) for name, array in arrays.items()},
        }
        stored = {name: array for name, array in arrays.items() if array.size}  # Orbax rejects empty arrays
        args = ocp.args.Composite(arrays=ocp.args.PyTreeSave(stored), manifest=ocp.args.JsonSave(manifest))
        try:
            with _silent():
                self._manager.save(step, args=args)
        except Exception as error:  # Orbax, tensorstore and the file system each raise their own
            for partial in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)  # frees the space
            raise CheckpointError(f"{self._where(step)} cannot be written ({_reason(error)})") from error

    def restore(self, step: int, only: str | tuple[str, ...] = "") -> Arrays:
        """Reads a checkpoint.

        Args:
          step: environment step of the checkpoint.
          only: prefix, or prefixes, of the names of the arrays that are read. For all others, the result has a
            ``jax.ShapeDtypeStruct``; a replay buffer, for example, takes much longer to read than an agent.

        Raises:
          CheckpointError: if it is damaged, or was not written by this format version.
        """
        where, manifest = self._where(step), self._manifest(step)
        described = manifest["arrays"]
        kinds = {name: self._restore_args(d) for name, d in described.items() if _size(d) and name.startswith(only)}
        try:
            read = ocp.args.PyTreeRestore(dict.fromkeys(kinds, 0), restore_args=kinds, partial_restore=True)
            arrays = dict(self._manager.restore(step, args=ocp.args.Composite(arrays=read))["arrays"])
        except Exception as error:
            raise CheckpointError(f"{where} is damaged; {_advice(where)}") from error
        for name, d in described.items():
            if not name.startswith(only):
                arrays[name] = jax.ShapeDtypeStruct(d["shape"], d["dtype"])
            elif not _size(d):
                arrays[name] = np.zeros(d["shape"], d["dtype"])
            elif name not in arrays or _describe(arrays[name]) != d:
                raise CheckpointError(f"{where} is damaged ({name} differs from its checksum); {_advice(where)}")
        return arrays

    def record(self, step: int) -> dict[str, Any]:
        """The record that was saved with a checkpoint; empty if an earlier version of this library wrote it.

        Raises:
          CheckpointError: if the checkpoint is damaged, or was not written by this format version.
        """
        return self._manifest(step).get("record", {})

    def _where(self, step: int) -> str:
        return f"checkpoint {self._directory.name}/{step}"

    def _manifest(self, step: int) -> dict[str, Any]:
        where = self._where(step)
        try:
            manifest = self._manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))["manifest"]
        except Exception as error:  # Orbax, tensorstore, JSON and the file system each raise their own
            raise CheckpointError(f"{where} has no readable manifest; {_advice(where)}") from error
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise CheckpointError(f"{where} was not written by preqn_jax; choose another --workdir")
        if manifest.get("version") != _VERSION:
            found = manifest.get("version")
            raise CheckpointError(f"{where} has format version {found}, this preqn_jax reads version {_VERSION}")
        return manifest

    def _restore_args(self, description: dict[str, Any]) -> ocp.RestoreArgs:
        if _is_spread(description):
            return ocp.ArrayRestoreArgs(sharding=self._sharding)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    def close(self) -> None:
        """Waits for pending writes and closes the checkpoint manager."""
        self._manager.close()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppresses what Orbax logs: stack traces in addition to exceptions, and that a directory is read only."""
    _ignore_closed_loops()
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@functools.cache  # once per process
def _ignore_closed_loops() -> None:
    """Hides "Event loop is closed" errors of writes that Orbax abandoned; they may occur long after the failure."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _reason(error: Exception) -> str:
    """A short reason: the operating system's error if there is one (tensorstore embeds its code in a long message)."""
    if code := getattr(error, "errno", None) or next(iter(re.findall(r"os_error_code='(\d+)'", str(error))), None):
        return os.strerror(int(code))
    return first_line(error)


def _describe(array: Any) -> dict[str, Any]:
    shape = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if isinstance(array, jax.Array):  # no process holds the whole array, so there is no checksum
        return shape
    return {**shape, "crc32": zlib.crc32(np.ascontiguousarray(array).data) if array.size else 0}


def _is_spread(description: dict[str, Any]) -> bool:
    return "crc32" not in description


def _size(description: dict[str, Any]) -> int:
    return int(np.prod(description["shape"]))


def _advice(where: str) -> str:
    checkpoint = where.split()[1]
    return f"remove {checkpoint} from the work directory to resume from the previous one, or choose another --workdir"
